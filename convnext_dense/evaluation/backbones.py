"""Speed and memory of ConvNeXt here and in other libraries, side by side in one run; or of whole"""

import copy
import tempfile
from contextlib import nullcontext
from functools import partial

import torch
from mmengine.config import Config
from rich.progress import track

from ..architectures import ARCHITECTURES
from ..fast_path import plain_operators
from ..folding import fuse
from .peers import OURS, OURS_IN_TRAINING, PEERS, Scenario, candidate, common, images_of, official
from .processes import Process
from .timing import Candidate, figures, interleaved, product_rate

NAMED = 0.03  # share of the time from which a part is named
WHOLE = ('plain operators', 'convnext_dense', 'convnext_dense, fused')
HEADER = ('model', 'median, s', 'spread', 'speed', 'memory, MB', 'memory', 'error')
SUITE = [
    Scenario('tiny', '1x800x1280'),
    Scenario('tiny', '1x800x1280', 'bfloat16'),
    Scenario('tiny', '2x512x512', train=True),
    Scenario('v2_tiny', '2x512x512', train=True),
    *(Scenario('tiny', size) for size in ('1x512x512', '8x224x224', '1x512x2048')),
    *(Scenario(arch, '1x512x512') for arch in ('atto', 'small', 'base', 'v2_tiny')),
]


def benchmark(scenario, args):
    images_of(scenario)  # a wrong size is told before any work
    with tempfile.TemporaryDirectory() as folder:
        if args.configs:
            processes = {name: Process(whole_model, name, scenario, args.device) for name in WHOLE}
        else:
            images, net = common(scenario)
            with torch.no_grad():
                torch.save(official(net).double()(images.double()), f'{folder}/expected.pt')
            names = [*(OURS_IN_TRAINING if scenario.train else OURS), *PEERS]
            choices = [(name, False) for name in names]
            choices += [(name, True) for name in names if 'fused' not in name] * args.compile
            processes = {
                f'{name}, compiled' if is_compiled else name: Process(
                    backbone, name, scenario, args.device, f'{folder}/expected.pt', is_compiled
                )
                for name, is_compiled in choices
            }
        try:
            return measured(scenario, args, processes)
        finally:
            for process in processes.values():
                process.end()


def measured(scenario, args, processes):
    facts = {
        name: process.ask('facts')
        for name, process in track(processes.items(), f'{scenario}: models', transient=True)
    }
    processes = {name: process for name, process in processes.items() if facts[name] is not None}
    seconds = interleaved(
        {name: partial(process.ask, 'seconds') for name, process in processes.items()},
        args.runs,
        str(scenario),
    )
    rows = {
        name: dict(seconds=times, memory=processes[name].ask('memory'), **facts[name])
        for name, times in seconds.items()
    }
    medians = {name: figure.median for name, figure in figures(rows).items()}
    rows = {name: dict(median=medians[name], **row) for name, row in rows.items()}
    result = dict(scenario=scenario._asdict(), rows=rows)
    if not args.configs and not scenario.train:
        images, net = common(scenario)
        shares = processes['convnext_dense, fused'].ask('shares')
        rate = product_rate(getattr(torch, scenario.dtype), args.device)
        seconds_of_products = medians['convnext_dense, fused'] * shares.get('matrix products', 1)
        result.update(
            parameters=sum(p.numel() for p in net.parameters()),
            flops=2 * macs(net, images),
            rate=rate,
            shares=shares,
            efficiency=product_flops(scenario.arch, images) / (seconds_of_products * rate),
        )
    return result


def backbone(name, scenario, device, path, is_compiled=False):
    """A Candidate that is compared with the maps in the file ``path``."""
    return candidate(name, scenario, device, torch.load(path), is_compiled)


def macs(net, images):
    from .flops import Counter

    with Counter() as counter, torch.no_grad(), torch.device('meta'):
        copy.deepcopy(net).to('meta')(torch.empty(images.shape, device='meta'))
    return counter.macs()


def product_flops(arch, images):
    """Of the two linear layers of every block."""
    depths, dims = ARCHITECTURES[arch].depths, ARCHITECTURES[arch].dims
    pixels = [len(images) * (images.shape[2] // s) * (images.shape[3] // s) for s in (4, 8, 16, 32)]
    return sum(16 * depth * dim**2 * count for depth, dim, count in zip(depths, dims, pixels))


def whole_model(name, scenario, device):
    from mmengine.registry import init_default_scope

    from ..inference.building import build
    from .flops import samples

    images = images_of(scenario)
    cfg = Config.fromfile(scenario.arch)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = build(cfg.model, device)
    batch = samples(model, images) * len(images)
    model = fuse(model) if name.endswith('fused') else model

    def predict():
        with torch.no_grad(), plain_operators() if name == 'plain operators' else nullcontext():
            return model(images.to(device), copy.deepcopy(batch), mode='predict')

    return Candidate(predict, device, dict(error=None))


# ---- the page and the plot ----


def cells_of(result):
    """Title, rows of text under ``HEADER``, and what the time goes to."""
    title = str(Scenario(**result['scenario']))
    if 'flops' in result:
        title += (
            f': {result["parameters"] / 1e6:.1f} M parameters, '
            f'{result["flops"] / 2e9:.1f} G multiply-adds'
        )
    rows, note = [], ''
    for name, figure in figures(result['rows']).items():
        error = result['rows'][name]['error']
        rows.append(
            (
                name,
                f'{figure.median:.3f}',
                f'{figure.spread:.0%}',
                f'{figure.speed:.2f}',
                f'{figure.memory / 1e6:.0f}',
                f'{figure.relative_memory:.2f}',
                '' if error is None else f'{error:.1e}',
            )
        )
    if 'shares' in result:
        shares = [
            f'{name} {share:.0%}' for name, share in result['shares'].items() if share >= NAMED
        ]
        note = (
            f'fused: {", ".join(shares)}; products run at {result["efficiency"]:.0%} of the '
            f'rate of a large one ({result["rate"] / 1e9:.0f} GFLOP/s)'
        )
    return title, rows, note


def report(results, about):
    facts = ', '.join(f'{key} {value}' for key, value in about.items())
    lines = [
        '# Benchmark',
        '',
        f'Made by `tools/benchmark.py` (`make benchmark` for the suite): '
        f'{facts}. Each model in a process of its own. Speed is relative to the fastest peer, '
        'memory to the lightest; error is that of the worst map relative to float64; spread '
        'is the middle half of the runs.',
        '',
        '![the same as bars](benchmark.png)',
        '',
    ]
    for result in results:
        title, rows, note = cells_of(result)
        lines += [
            f'## {title}',
            '',
            '| ' + ' | '.join(HEADER) + ' |',
            '|---' + '|---:' * (len(HEADER) - 1) + '|',
        ]
        lines += ['| ' + ' | '.join(row) + ' |' for row in rows] + ['', note, '']
    return '\n'.join(lines).rstrip() + '\n'


def draw(results, about, path):
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    size = 11, 0.6 + 1.7 * len(results)
    figure, axes = pyplot.subplots(
        len(results), 2, figsize=size, squeeze=False, layout='constrained'
    )
    for (left, right), result in zip(axes, results):
        names = list(result['rows'])
        colours = ['C0' if name.startswith('convnext_dense') else 'C7' for name in names]
        for axis, key, scale, unit in ((left, 'median', 1, 's'), (right, 'memory', 1e6, 'MB')):
            values = [result['rows'][name][key] / scale for name in names]
            bars = axis.barh(names, values, color=colours)
            axis.bar_label(bars, fmt='%.3f' if unit == 's' else '%.0f', padding=2, fontsize=7)
            axis.invert_yaxis()
            axis.margins(x=0.15)
            axis.tick_params(labelsize=7)
            axis.spines[['top', 'right']].set_visible(False)
            axis.set_title(f'{Scenario(**result["scenario"])}: {unit}', fontsize=8)
        right.set_yticklabels([])
    figure.suptitle(
        f'{about["hardware"]}, {about["threads"]} threads, torch {about["torch"]}', fontsize=9
    )
    figure.savefig(path, dpi=120)
