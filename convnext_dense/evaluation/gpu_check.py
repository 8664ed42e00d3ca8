"""Does ConvNeXt compute on this GPU what it should, and how fast?

    python -m convnext_dense.evaluation.gpu_check                 minutes
    python -m convnext_dense.evaluation.gpu_check --device cpu    the same with small networks

Torch and MMEngine are enough to run it.
"""

import argparse
import dataclasses
import itertools
import json
import math
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..printing import console as make_console
from ..printing import markdown_table, paragraph, table
from .gpu_parts import FAIL, PARTS, PASS, SETTINGS, UNJUDGED, Part, Row, Settings, reason
from .peers import PEERS, supports
from .timing import machine, tf32

COMMAND = 'python -m convnext_dense.evaluation.gpu_check'
RULES = (
    "Errors are relative to float64 of the official code's form (peers.Official) with the same "
    "weights. Ours may be 2e-6, or twice as large as that form's in the same precision. TF32 is "
    'off unless a row says otherwise. The exit code is 0 if no verdict is FAIL; there is none on '
    'speed.'
)


@dataclasses.dataclass
class PartReport:
    verdict: str
    seconds: float
    rows: list[Row]


@dataclasses.dataclass
class Report:
    """What gpu.json holds."""

    verdict: str
    machine: dict[str, Any]
    versions: dict[str, str]  # of MMEngine and the peers
    missing: dict[str, str]  # those that cannot be imported -> why
    settings: dict[str, Any]
    parts: dict[str, PartReport]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=f'{__doc__}\n{paragraph(RULES)}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--device', default='cuda', choices=SETTINGS)
    parser.add_argument('--parts', nargs='+', default=list(PARTS), choices=PARTS)
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/gpu_check'),
        help='folder for gpu.json and gpu.md (default: %(default)s)',
    )
    args = parser.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        sys.exit(
            f'torch {torch.__version__} sees no GPU here. The same with small networks on the '
            f'CPU: {COMMAND} --device cpu'
        )
    warnings.simplefilter('ignore')  # those of other libraries; what matters raises
    if args.device == 'cpu':
        torch.set_num_threads(1)  # in small networks more would wait for each other
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        with tf32(False):
            sys.exit(int(check(SETTINGS[args.device], args.parts, args.out) != PASS))
    except KeyboardInterrupt:
        sys.exit(f'\nstopped; the parts that were done are in {args.out}')
    except OSError as error:
        sys.exit(f'--out {args.out} cannot be written: {error}')


def check(settings: Settings, parts: Sequence[str], out: Path) -> str:
    """Print the tables of ``parts`` and write ``out``/gpu.json and gpu.md. Returns PASS or FAIL."""
    console, (versions, missing) = make_console(), peers_here()
    facts = machine(settings.device)
    report = Report('unfinished', facts, versions, missing, settings._asdict(), {})
    console.print(*preamble(report), sep='\n', markup=False)
    parts = list(dict.fromkeys(parts))
    for name in parts:
        rows, start, cases = [], time.perf_counter(), grid(PARTS[name].choices(settings))
        with console.status(name) as status:
            for i, case in enumerate(cases):
                status.update(f'{name}, {i + 1} of {len(cases)}: {", ".join(case.values())}')
                rows += attempt(PARTS[name], case, settings)
        seconds = time.perf_counter() - start
        part = PartReport(worst_of(row['verdict'] for row in rows), seconds, rows)
        report.parts[name] = part
        if len(report.parts) == len(parts):
            report.verdict = worst_of(part.verdict for part in report.parts.values())
        content = json.dumps(dataclasses.asdict(report), indent=1)
        (out / 'gpu.json').write_text(content, encoding='utf-8')
        (out / 'gpu.md').write_text(page(report), encoding='utf-8')
        title = title_of(name, part)
        red = [i for i, row in enumerate(rows) if row['verdict'] == FAIL]
        console.print(table(*table_of(rows), title, justify='left', red=red))
    console.print(f'{report.verdict}; wrote {out}/gpu.json and gpu.md')
    return report.verdict


def peers_here() -> tuple[dict[str, str], dict[str, str]]:
    """Versions of MMEngine and the peers, and why others cannot be imported."""
    versions, missing = {}, {}
    for name in ('mmengine', *PEERS):
        try:
            versions[name] = import_module(name).__version__
        except Exception as error:  # a peer that breaks on import is only missed
            missing[name] = reason(error)
    return versions, missing


def grid(choices: dict[str, Iterable[str]]) -> list[dict[str, str]]:
    return [dict(zip(choices, values)) for values in itertools.product(*choices.values())]


def attempt(part: Part, case: dict[str, str], settings: Settings) -> list[Row]:
    """Rows of a case; of a case that raises, a row that says why."""
    dtype = getattr(torch, case.get('precision', 'float32').partition(',')[0])
    rows: list[Row] = [dict(verdict=UNJUDGED, why='not supported here')]
    try:
        if supports(dtype, settings.device, part.is_autocast):
            rows = part.run(settings, **case)
    except Exception as error:
        rows = [dict(verdict=FAIL, why=reason(error))]
    torch.cuda.empty_cache()
    return [{key: written(value) for key, value in {**case, **row}.items()} for row in rows]


def written(value: Any) -> Any:
    """As JSON can hold it, which has no nan."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def worst_of(verdicts: Iterable[str]) -> str:
    return FAIL if FAIL in verdicts else PASS


# ---- the tables and the page ----


def preamble(report: Report) -> list[str]:
    facts = {**report.machine, **report.versions}
    return [
        ', '.join(f'{key} {value}' for key, value in facts.items() if value != ''),
        *(f'without {name}: {why}' for name, why in report.missing.items()),
    ]


def title_of(name: str, part: PartReport) -> str:
    return f'{name}: {part.verdict}, {part.seconds:.0f} s'


def table_of(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header, and cells as text; verdict and reason are the last."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    header.sort(key=('verdict', 'why').__contains__)
    return header, [[text_of(row.get(key, '')) for key in header] for row in rows]


def text_of(value: Any) -> str:
    if isinstance(value, float):
        return f'{value:.0f}' if value >= 1000 else f'{value:.3g}'
    return str(value)


def page(report: Report) -> str:
    """gpu.md."""
    about, *missing = preamble(report)
    sizes = (f'{kind} {report.settings[kind]}' for kind in ('compared', 'inference', 'training'))
    blocks = [
        f'# ConvNeXt on {report.machine["hardware"]}: {report.verdict}',
        paragraph(f'Made by `{COMMAND}`: {about}. Images: {", ".join(sizes)}.'),
        paragraph(RULES),
        '\n'.join(f'- {line}' for line in missing),
    ]
    for name, part in report.parts.items():
        caption = paragraph(str(PARTS[name].run.__doc__))
        blocks += [f'## {title_of(name, part)}', caption, markdown_table(*table_of(part.rows))]
    return '\n\n'.join(block for block in blocks if block) + '\n'


if __name__ == '__main__':
    main()
