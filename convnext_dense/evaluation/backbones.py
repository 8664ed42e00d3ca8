"""Speed and memory of ConvNeXt here and in other libraries, side by side in one run; or of whole
models, fused or not."""

import copy
import tempfile
from collections import Counter as Counts
from collections.abc import Iterable, Sequence
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..architectures import ARCHITECTURES
from ..data.pictures import save_figure
from ..inference.precision import product_rate
from ..printing import markdown_table, paragraph, progress
from .flops import Counter
from .peers import OURS, OURS_IN_TRAINING, PEERS, Scenario, candidate, common, images_of, official
from .processes import Process
from .timing import Candidate, Measurement, figures, interleaved
from .whole_models import FUSED, IN_TRAINING, whole_model

SMALLEST_SHARE = 0.03  # of the time, of a part that the page names
COLUMNS = {  # title of each of the Figures -> how they are written
    'median, s': '.3f',
    'spread': '.0%',
    'speed': '.2f',
    'from': '.2f',
    'to': '.2f',
    'memory, MB': '.0f',
    'memory': '.2f',
}
HEADER = ('model', *COLUMNS, 'error')
SUITE = [
    Scenario('tiny', '1x800x1280'),
    Scenario('tiny', '1x800x1280', 'bfloat16'),
    Scenario('tiny', '2x512x512', train=True),
    Scenario('v2_tiny', '2x512x512', train=True),
    *(Scenario('tiny', size) for size in ('1x512x512', '8x224x224', '1x512x2048')),
    *(Scenario(arch, '1x512x512') for arch in ('atto', 'small', 'base', 'v2_tiny')),
]


class Analysis(NamedTuple):
    """Of a backbone, and of what its time at inference goes to, fused."""

    parameters: int
    flops: int
    rate: float  # FLOP/s of a large matrix product
    shares: dict[str, float]  # kind of operator -> share of the time
    efficiency: float  # FLOP/s of the blocks' linear layers, as a share of ``rate``


class Result(NamedTuple):
    scenario: Scenario
    rows: dict[str, Measurement]
    analysis: Analysis | None = None
    parts: dict[str, dict[str, float]] = {}  # row of a whole model -> part -> share of its time

    def as_json(self) -> dict[str, Any]:
        rows = {name: dict(median=row.median, **row._asdict()) for name, row in self.rows.items()}
        analysis = self.analysis._asdict() if self.analysis else {}
        return dict(scenario=self.scenario._asdict(), rows=rows, parts=self.parts, **analysis)


def benchmark(scenario: Scenario, device: str, runs: int, is_compiled: bool = False) -> Result:
    """Our backbone in its forms beside the same in every library that has it; or, where
    ``scenario.arch`` is the path of a config, its model as the zoos have it, as here, and fused.

    Args:
        runs: calls of each that are timed.
        is_compiled: each backbone also under torch.compile.

    Raises:
        ConfigError: the size is no size.
        RuntimeError: a model raised something in its process, or was killed.
    """
    images_of(scenario.size)  # a wrong size is told before any work
    is_backbone = scenario.arch in ARCHITECTURES
    with tempfile.TemporaryDirectory() as folder:
        if is_backbone:
            processes = start_backbones(scenario, device, f'{folder}/expected.pt', is_compiled)
        else:
            names = IN_TRAINING if scenario.train else (*IN_TRAINING, FUSED)
            processes = {name: Process(whole_model, name, scenario, device) for name in names}
        try:
            rows = measured(scenario, processes, runs)
            if scenario.train:
                return Result(scenario, rows)
            if not is_backbone:
                available = {name: processes[name] for name in rows}
                parts = {name: process.ask('parts') for name, process in available.items()}
                return Result(scenario, rows, parts=parts)
            shares = processes['convnext_dense, fused'].ask('shares')
        finally:
            for process in processes.values():
                process.end()
    seconds = rows['convnext_dense, fused'].median * shares.get('matrix products', 1)
    return Result(scenario, rows, analysed(scenario, device, shares, seconds))


def start_backbones(
    scenario: Scenario, device: str, path: str, is_compiled: bool
) -> dict[str, Process]:
    """A process for each model; the maps that all have to return go into the file ``path``."""
    images, net = common(scenario)
    with torch.no_grad():
        torch.save(official(net).double()(images.double()), path)
    start = partial(Process, backbone, scenario, device, path)
    names = [*(OURS_IN_TRAINING if scenario.train else OURS), *PEERS]
    processes = {name: start(name) for name in names}
    if is_compiled:
        choices = [name for name in names if not name.endswith('fused')]
        processes |= {f'{name}, compiled': start(name, True) for name in choices}
    return processes


def measured(
    scenario: Scenario, processes: dict[str, Process], runs: int
) -> dict[str, Measurement]:
    """A row for each model that is available."""
    items = progress(processes.items(), f'{scenario}: models')
    available = {name: process for name, process in items if process.ask('is_available')}
    calls = {name: partial(process.ask, 'seconds') for name, process in available.items()}
    seconds = interleaved(calls, runs, str(scenario))
    return {
        name: Measurement(seconds[name], process.ask('memory'), process.ask('error'))
        for name, process in available.items()
    }


def analysed(scenario: Scenario, device: str, shares: dict[str, float], seconds: float) -> Analysis:
    """``shares`` and ``seconds`` (of the matrix products) are those of the fused network."""
    images, net = common(scenario)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    with Counter() as counter, torch.no_grad(), torch.device('meta'):
        copy.deepcopy(net).to('meta')(torch.empty(images.shape, device='meta'))
    rate = product_rate(getattr(torch, scenario.dtype), device)
    efficiency = product_flops(scenario.arch, images) / (seconds * rate)
    return Analysis(parameters, 2 * counter.macs(), rate, shares, efficiency)


def product_flops(arch: str, images: Tensor) -> int:
    """Of the two linear layers of every block."""
    depths, dims = ARCHITECTURES[arch].depths, ARCHITECTURES[arch].dims
    pixels = [len(images) * (images.shape[2] // s) * (images.shape[3] // s) for s in (4, 8, 16, 32)]
    return sum(16 * depth * dim**2 * count for depth, dim, count in zip(depths, dims, pixels))


def backbone(
    scenario: Scenario, device: str, path: str, name: str, is_compiled: bool = False
) -> Candidate:
    """A candidate that is compared with the maps in the file ``path``."""
    return candidate(name, scenario, device, torch.load(path), is_compiled)


# ---- the page and the plot ----


def title_of(result: Result) -> str:
    if not result.analysis:
        return str(result.scenario)
    parameters, flops = result.analysis[:2]
    return (
        f'{result.scenario}: {parameters / 1e6:.1f} M parameters, {flops / 2e9:.1f} G multiply-adds'
    )


def cells_of(result: Result) -> list[list[str]]:
    """Rows of text under ``HEADER``."""
    rows = []
    for name, figure in figures(result.rows).items():
        pairs = zip(figure, COLUMNS.values())
        cells = ['' if isnan(value) else format(value, spec) for value, spec in pairs]
        error = result.rows[name].error
        rows.append([name, *cells, '' if error is None else f'{error:.1e}'])
    return rows


def note_of(result: Result) -> str:
    """What the time goes to."""
    if not result.analysis:
        return ''
    _, _, rate, shares, efficiency = result.analysis
    parts = [f'{name} {share:.0%}' for name, share in shares.items() if share >= SMALLEST_SHARE]
    return (
        f'fused: {", ".join(parts)}; products run at {efficiency:.0%} of the rate of a large one '
        f'({rate / 1e9:.0f} GFLOP/s)'
    )


def parts_of(result: Result) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of text: seconds of each part of a whole model; no rows of a backbone."""
    names = dict.fromkeys(part for spent in result.parts.values() for part in spent)
    rows = [
        [part, *(f'{spent[part] * result.rows[name].median:.3f}' for name, spent in _parts(result))]
        for part in names
    ]
    return ['seconds in', *result.parts], rows


def _parts(result):
    """Of each row; a part that is not there takes no time."""
    return [(name, Counts(spent)) for name, spent in result.parts.items()]


def report(results: Iterable[Result], about: dict[str, Any]) -> str:
    """benchmark.md."""
    facts = ', '.join(f'{key} {value}' for key, value in about.items())
    introduction = (
        f'Made by `convnext-dense benchmark`: {facts}. '
        'Each model in a process of its own. Speed is relative to the fastest peer, memory to the '
        'lightest; from and to are the ends of the 95 % interval of the speed, over pairs of runs '
        'in turns; error is that of the worst map relative to float64; spread is the middle half '
        'of the runs.'
    )
    blocks = ['# Benchmark', paragraph(introduction), '![the same as bars](benchmark.png)']
    for result in results:
        table = markdown_table(HEADER, cells_of(result), align='---:')
        heading, parts = parts_of(result)
        blocks += [f'## {title_of(result)}', table, paragraph(note_of(result))]
        blocks += [markdown_table(heading, parts, align='---:')] if parts else []
    return '\n\n'.join(block for block in blocks if block) + '\n'


def draw(results: Sequence[Result], about: dict[str, Any], path: Path) -> None:
    """benchmark.png: a bar for each model's time and memory."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    size = 11, 0.6 + 1.7 * len(results)
    figure, axes = pyplot.subplots(
        len(results), 2, figsize=size, squeeze=False, layout='constrained'
    )
    for (left, right), result in zip(axes, results):
        names = list(result.rows)
        colours = ['C0' if name.startswith('convnext_dense') else 'C7' for name in names]
        seconds = [row.median for row in result.rows.values()]
        megabytes = [row.memory / 1e6 for row in result.rows.values()]
        for axis, values, digits, unit in ((left, seconds, 3, 's'), (right, megabytes, 0, 'MB')):
            bars = axis.barh(names, values, color=colours)
            axis.bar_label(bars, fmt=f'%.{digits}f', padding=2, fontsize=7)
            axis.invert_yaxis()
            axis.margins(x=0.15)
            axis.tick_params(labelsize=7)
            axis.spines[['top', 'right']].set_visible(False)
            axis.set_title(f'{result.scenario}: {unit}', fontsize=8)
        right.set_yticklabels([])
    title = f'{about["hardware"]}, {about["threads"]} threads, torch {about["torch"]}'
    figure.suptitle(title, fontsize=9)
    save_figure(figure, path, 120)
