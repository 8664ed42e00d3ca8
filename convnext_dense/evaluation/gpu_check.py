"""Does ConvNeXt compute on this GPU what it should, and how fast? Torch and MMEngine are enough.

    python -m convnext_dense.evaluation.gpu_check                 minutes
    python -m convnext_dense.evaluation.gpu_check --device cpu    the same with small networks

Errors are relative to float64 of the official code's form (peers.Official) with the same weights.
Ours may be 2e-6, or twice as large as that form's in the same precision. TF32 is off unless a row
says otherwise. The exit code is 0 if no verdict is FAIL; there is none on speed.
"""

import argparse
import itertools
import json
import math
import sys
import time
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .gpu_parts import FAIL, PARTS, PASS, SETTINGS, UNJUDGED, Part, Settings, reason
from .peers import PEERS, supports
from .timing import machine, tf32

COMMAND = 'python -m convnext_dense.evaluation.gpu_check'


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--device', default='cuda', choices=SETTINGS)
    parser.add_argument('--parts', nargs='+', default=list(PARTS), choices=PARTS)
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/gpu_check'),
        help='folder for gpu.json and gpu.md (default: %(default)s)',
    )
    args = parser.parse_args()
    if args.device == 'cuda' and not torch.cuda.is_available():
        sys.exit(
            f'torch {torch.__version__} sees no GPU here. The same with small networks on the '
            f'CPU: {COMMAND} --device cpu'
        )
    warnings.simplefilter('ignore')  # of other libraries; what matters raises
    if args.device == 'cpu':
        torch.set_num_threads(1)  # in small networks more would wait for each other
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        with tf32(False):
            sys.exit(int(check(args.device, args.parts, args.out) != PASS))
    except KeyboardInterrupt:
        sys.exit(f'\nstopped; the parts that were done are in {args.out}')
    except OSError as error:
        sys.exit(f'--out {args.out} cannot be written: {error}')


def check(device: str, parts: Sequence[str], out: Path) -> str:
    """Print the tables of ``parts`` and write ``out``/gpu.json and gpu.md. Returns PASS or FAIL."""
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    settings, (versions, missing) = SETTINGS[device], peers_here()
    report = dict(
        verdict='unfinished',
        machine=machine(device),
        versions=versions,
        missing=missing,
        settings=settings._asdict(),
        parts={},
    )
    console.print(*preamble(report), sep='\n', markup=False)
    for name in dict.fromkeys(parts):
        rows, start, cases = [], time.perf_counter(), grid(**PARTS[name].choices(settings))
        with console.status(name) as status:
            for i, case in enumerate(cases):
                status.update(f'{name}, {i + 1} of {len(cases)}: {", ".join(case.values())}')
                rows += attempt(PARTS[name], case, settings, device)
        part = dict(verdict=verdict_of(rows), seconds=time.perf_counter() - start, rows=rows)
        report['parts'][name] = part
        if set(report['parts']) == set(parts):
            report['verdict'] = verdict_of(report['parts'].values())
        (out / 'gpu.json').write_text(json.dumps(report, indent=1), encoding='utf-8')
        (out / 'gpu.md').write_text(page(report), encoding='utf-8')
        header, cells = table_of(rows)
        table = Table(*header, title=title_of(name, part))
        for row in cells:
            table.add_row(*map(escape, row), style='red' if FAIL in row else None)
        console.print(table)
    console.print(f'{report["verdict"]}; wrote {out}/gpu.json and gpu.md')
    return report['verdict']


def peers_here() -> tuple[dict[str, str], dict[str, str]]:
    """Versions of MMEngine and the peers, and why others cannot be imported."""
    versions, missing = {}, {}
    for name in ('mmengine', *PEERS):
        try:
            versions[name] = import_module(name).__version__
        except Exception as error:  # a peer that breaks on import is only missed
            missing[name] = reason(error)
    return versions, missing


def grid(**choices: Sequence[str]) -> list[dict[str, str]]:
    return [dict(zip(choices, values)) for values in itertools.product(*choices.values())]


def attempt(part: Part, case: dict[str, str], settings: Settings, device: str) -> list[dict]:
    """Rows of a case; of a case that raises, a row that says why."""
    dtype = getattr(torch, case.get('precision', 'float32').partition(',')[0])
    try:
        rows = [dict(verdict=UNJUDGED, why='not supported here')]
        if supports(dtype, device, part.is_autocast):
            rows = part.run(settings, device, **case)
    except Exception as error:
        rows = [dict(verdict=FAIL, why=reason(error))]
    torch.cuda.empty_cache()
    return [
        {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in {**case, **row}.items()
        }
        for row in rows
    ]  # JSON has no nan


def verdict_of(rows) -> str:
    return FAIL if any(row['verdict'] == FAIL for row in rows) else PASS


# ---- the tables and the page ----


def preamble(report: dict) -> list[str]:
    facts = {**report['machine'], **report['versions']}
    return [
        ', '.join(f'{key} {value}' for key, value in facts.items() if value != ''),
        *(f'without {name}: {why}' for name, why in report['missing'].items()),
    ]


def title_of(name: str, part: dict) -> str:
    return f'{name}: {part["verdict"]}, {part["seconds"]:.0f} s'


def table_of(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header, and cells as text; verdict and reason are the last."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    header.sort(key=('verdict', 'why').__contains__)
    return header, [[text_of(row.get(key, '')) for key in header] for row in rows]


def text_of(value) -> str:
    if isinstance(value, float):
        return f'{value:.0f}' if value >= 1000 else f'{value:.3g}'
    return str(value)


def page(report: dict) -> str:
    """gpu.md, of what gpu.json holds."""
    about, *missing = preamble(report)
    sizes = ', '.join(
        f'{part} {report["settings"][part]}' for part in ('compared', 'inference', 'training')
    )
    lines = [
        f'# ConvNeXt on {report["machine"]["hardware"]}: {report["verdict"]}',
        '',
        f'Made by `{COMMAND}`: {about}. Images: {sizes}.',
        '',
        __doc__[__doc__.index('Errors') :],
        *(f'- {line}' for line in missing),
        '',
    ]
    for name, part in report['parts'].items():
        header, cells = table_of(part['rows'])
        lines += [f'## {title_of(name, part)}', '', ' '.join(PARTS[name].run.__doc__.split()), '']
        lines += [
            '| ' + ' | '.join(cell.replace('|', '/') for cell in row) + ' |'
            for row in (header, ['---'] * len(header), *cells)
        ]
        lines += ['']
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
