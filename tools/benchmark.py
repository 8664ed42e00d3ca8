#!/usr/bin/env python3
"""Speed and memory of ConvNeXt here and in other libraries, side by side in one run; or of whole configs, fused or not.

    python tools/benchmark.py                                            the suite of docs/performance.md (make benchmark)
    python tools/benchmark.py --arch base --size 1x512x512 --dtype bfloat16
    python tools/benchmark.py --size 2x512x512 --train
    python tools/benchmark.py configs/coco/mask-rcnn_convnext-t-in1k_fpn_amp-ms-crop-3x_coco.py --size 1x800x1280

Backbones get the same random weights, each peer the memory format in which it is faster, and no model is timed whose maps
are not those of the float64 network. Every model has a process of its own, and their runs take turns. Memory is the allocator's peak above the weights, outputs
included; of a training step without the gradients of the weights, which all hold alike.
"""
import argparse
import copy
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from mmengine.config import Config
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from timing import Candidate, Process, interleaved, machine, product_rate
from torch import nn

from convnext_dense import ARCHITECTURES, ConfigError, ConvNeXt, fuse
from convnext_dense.layers import Block
from convnext_dense.weights import convert

BOUND = dict(float32=1e-4, bfloat16=.1, float16=.02)  # of an output's error, relative to float64: beyond it is another network
NAMED = .03  # share of the time from which a part is named
OURS = ('convnext_dense', 'convnext_dense, fused')
OURS_IN_TRAINING = {f'convnext_dense, {mode}': mode for mode in ('none', 'mlp', 'block')}
WHOLE = ('plain operators', 'convnext_dense', 'convnext_dense, fused')
HEADER = ('model', 'median, s', 'spread', 'speed', 'memory, MB', 'memory', 'error')


class Scenario(NamedTuple):
    arch: str
    size: str  # images x height x width
    dtype: str = 'float32'
    train: bool = False

    def __str__(self):
        return f'{self.arch}, {self.size}, {self.dtype}, {"training step" if self.train else "inference"}'


SUITE = [Scenario('tiny', '1x800x1280'), Scenario('tiny', '1x800x1280', 'bfloat16'), Scenario('tiny', '2x512x512', train=True),
         Scenario('v2_tiny', '2x512x512', train=True), *(Scenario('tiny', size) for size in ('1x512x512', '8x224x224', '1x512x2048')),
         *(Scenario(arch, '1x512x512') for arch in ('atto', 'small', 'base', 'v2_tiny'))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='*', metavar='CONFIG', help='whole models to compare in place of backbones')
    parser.add_argument('--arch', default='tiny', choices=ARCHITECTURES, metavar='ARCH', help='atto ... xxlarge, v2_atto ... v2_huge')
    parser.add_argument('--size', help='IMAGESxHEIGHTxWIDTH, for instance 1x800x1280; without it and without configs: the suite')
    parser.add_argument('--dtype', default='float32', choices=BOUND)
    parser.add_argument('--train', action='store_true', help='a training step in place of inference')
    parser.add_argument('--compile', action='store_true', help='also torch.compile of each backbone (minutes)')
    parser.add_argument('--runs', type=int, default=10)
    parser.add_argument('--threads', type=int, help="default: torch's, the number of cores")
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--out', default='work_dirs/benchmark', help='folder for benchmark.json, .md and .png')
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    console = Console(width=None if sys.stdout.isatty() else 140)
    out, results = Path(args.out), []
    out.mkdir(parents=True, exist_ok=True)
    about = machine(args.device)
    console.print(', '.join(f'{key} {value}' for key, value in about.items()), highlight=False)
    for scenario in ([Scenario(name, args.size or '1x800x1280', args.dtype) for name in args.configs] or
                     ([Scenario(args.arch, args.size, args.dtype, args.train)] if args.size else SUITE)):
        try:
            result = benchmark(scenario, args)
        except (ConfigError, RuntimeError) as error:
            console.print(f'{scenario}: {error}', style='red', markup=False)
            continue
        title, rows, note = cells_of(result)
        table = Table(*HEADER[:1], *(Column(name, justify='right') for name in HEADER[1:]), title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print(note, highlight=False)
        results.append(result)
        (out / 'benchmark.json').write_text(json.dumps(dict(machine=about, results=results), indent=1), encoding='utf-8')
        (out / 'benchmark.md').write_text(report(results, about), encoding='utf-8')
    if results:
        draw(results, about, out / 'benchmark.png')
        console.print(f'wrote {out}/benchmark.json, .md and .png')
    else:
        sys.exit('nothing was measured')


def benchmark(scenario, args):
    images_of(scenario)  # a wrong size is told before any work
    with tempfile.TemporaryDirectory() as folder:
        if args.configs:
            processes = {name: Process(whole_model, name, scenario, args.device) for name in WHOLE}
        else:
            images, net = common(scenario)
            with torch.no_grad():
                torch.save(copy.deepcopy(net).double()(images.double()), f'{folder}/expected.pt')
            names = [*(OURS_IN_TRAINING if scenario.train else OURS), *PEERS]
            names += [f'{name}, compiled' for name in names if not name.endswith('fused')] * args.compile
            processes = {name: Process(backbone, name, scenario, args.device, f'{folder}/expected.pt') for name in names}
        try:
            return measured(scenario, args, processes)
        finally:
            for process in processes.values():
                process.end()


def measured(scenario, args, processes):
    facts = {name: process.ask('facts') for name, process in track(processes.items(), f'{scenario}: models', transient=True)}
    processes = {name: process for name, process in processes.items() if facts[name] is not None}
    seconds = interleaved({name: partial(process.ask, 'seconds') for name, process in processes.items()}, args.runs, str(scenario))
    rows = {name: dict(median=median(times), seconds=times, memory=processes[name].ask('memory'), **facts[name])
            for name, times in seconds.items()}
    result = dict(scenario=scenario._asdict(), rows=rows)
    if not args.configs and not scenario.train:
        images, net = common(scenario)
        result.update(parameters=sum(p.numel() for p in net.parameters()), flops=2 * macs(net, images),
                      rate=product_rate(getattr(torch, scenario.dtype), args.device), shares=processes['convnext_dense, fused'].ask('shares'))
        share = result['shares'].get('matrix products', 1)
        result['efficiency'] = product_flops(scenario.arch, images) / (rows['convnext_dense, fused']['median'] * share * result['rate'])
    return result


def images_of(scenario):
    try:
        count, height, width = (int(number) for number in scenario.size.split('x'))
    except ValueError:
        raise ConfigError(f'--size {scenario.size}: expected IMAGESxHEIGHTxWIDTH') from None
    torch.manual_seed(0)
    return torch.randn(count, 3, height, width)


def common(scenario):
    """The images, and the network that all are to be: the same in every process."""
    return images_of(scenario), randomise(ConvNeXt(scenario.arch, out_norm=False, drop_path_rate=0.))


def backbone(name, scenario, device, expected):
    """A Candidate; with facts of None: that library is not installed, or has no such architecture."""
    images, net = common(scenario)
    expected, dtype = torch.load(expected), getattr(torch, scenario.dtype)
    name, is_compiled = name.removesuffix(', compiled'), name.endswith(', compiled')
    own = name.startswith('convnext_dense')
    try:
        model = ours(name, net, scenario.arch) if own else peer(name, net, scenario.arch)
    except (ImportError, KeyError):
        return Candidate(None, device, None)
    targets = [torch.randn_like(one).to(device, dtype) for one in expected] if scenario.train else None
    timed = []
    for layout in (torch.contiguous_format, torch.channels_last)[:1 if own else 2]:
        ready = copy.deepcopy(model).to(device, dtype, memory_format=layout).train(scenario.train)
        x = images.to(device, dtype).contiguous(memory_format=layout)
        with torch.no_grad():
            error = max(((a.double().cpu() - b).norm() / b.norm()).item() for a, b in zip(ready(x), expected))
        if not error < BOUND[scenario.dtype]:
            raise ConfigError(f'{name} is another network: its maps differ by {error:.2g}')
        if is_compiled:
            ready = torch.compile(ready)
        candidate = Candidate(partial(step, ready, x, targets) if targets else partial(infer, ready, x), device, dict(error=error))
        timed.append((min(candidate.seconds() for _ in range(2)), candidate))
    return min(timed, key=lambda item: item[0])[-1]


def infer(model, images):
    with torch.no_grad():
        return model(images)


def step(model, images, targets):
    model.zero_grad(set_to_none=False)  # so that gradients are not counted as activations
    sum((one * target).sum() for one, target in zip(model(images), targets)).backward()


def ours(name, net, arch):
    if name.endswith('fused'):
        return fuse(net)
    other = ConvNeXt(arch, out_norm=False, checkpointing=OURS_IN_TRAINING.get(name, 'none'))
    other.load_state_dict(net.state_dict())
    return other


def randomise(net):
    """Every part has its say: at the initial layer scale or GRN of 0 the maps would not show what a block does."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(0, .1).add_(not name.endswith('bias') and 'grn' not in name)
            else:
                parameter.normal_(0, parameter[0].numel()**-.5)
    return net.eval()


def macs(net, images):
    from convnext_dense.flops import Counter
    with Counter() as counter, torch.no_grad(), torch.device('meta'):
        copy.deepcopy(net).to('meta')(torch.empty(images.shape, device='meta'))
    return counter.macs()


def product_flops(arch, images):
    """Of the two linear layers of every block."""
    depths, dims = ARCHITECTURES[arch].depths, ARCHITECTURES[arch].dims
    pixels = [len(images) * (images.shape[2] // s) * (images.shape[3] // s) for s in (4, 8, 16, 32)]
    return sum(16 * depth * dim**2 * count for depth, dim, count in zip(depths, dims, pixels))


# ---- the other implementations ----

class Features(nn.Module):
    """A peer that returns its four maps."""

    def __init__(self, model, maps):
        super().__init__()
        self.model, self.maps = model, maps

    def forward(self, images):
        return self.maps(self.model, images)


def peer(name, net, arch):
    """With the weights of ``net``."""
    model, maps = PEERS[name](arch)
    missing, unexpected = model.load_state_dict(convert(net.state_dict(), name).tensors, strict=False)
    if unexpected or any('classifier' not in one and 'head' not in one for one in missing):
        raise ConfigError(f'{name} has other weights than its layout says: {missing}, {unexpected}')
    return Features(model, maps).eval()


def timm_peer(arch):
    import timm
    model = timm.create_model(f'convnext{arch}' if arch.startswith('v2') else f'convnext_{arch}')
    model.head = nn.Identity()

    def maps(model, images):
        x, found = model.stem(images), []
        for stage in model.stages:
            x = stage(x)
            found.append(x)
        return found
    return model, maps


def torchvision_peer(arch):
    import torchvision
    model = getattr(torchvision.models, dict.fromkeys(('tiny', 'small', 'base', 'large'), 'convnext_')[arch] + arch)(stochastic_depth_prob=0.)

    def maps(model, images):
        x, found = images, []
        for i, layer in enumerate(model.features):
            x = layer(x)
            found += [x] if i % 2 else []
        return found
    return model, maps


def transformers_peer(arch):
    import transformers
    name = 'ConvNextV2' if arch.startswith('v2') else 'ConvNext'
    config = getattr(transformers, f'{name}Config')(depths=list(ARCHITECTURES[arch].depths), hidden_sizes=list(ARCHITECTURES[arch].dims),
                                                    out_indices=[1, 2, 3, 4], drop_path_rate=0.)
    model = getattr(transformers, f'{name}Backbone')(config)
    for key in model.hidden_states_norms:
        model.hidden_states_norms[key] = nn.Identity()
    return model, lambda model, images: model(images).feature_maps


def mmpretrain_peer(arch):
    from mmpretrain.models import ConvNeXt as Theirs
    v2 = dict(use_grn=True, layer_scale_init_value=0.) if arch.startswith('v2') else {}
    model = Theirs(dict(depths=list(ARCHITECTURES[arch].depths), channels=list(ARCHITECTURES[arch].dims)),
                   out_indices=(0, 1, 2, 3), gap_before_final_norm=False, **v2)
    for i in range(4):
        setattr(model, f'norm{i}', nn.Identity())
    return model, lambda model, images: model(images)


PEERS = dict(timm=timm_peer, torchvision=torchvision_peer, transformers=transformers_peer, mmpretrain=mmpretrain_peer)


# ---- whole models ----

def whole_model(name, scenario, device):
    from mmengine.registry import init_default_scope

    from convnext_dense.building import build
    from convnext_dense.flops import samples
    images = images_of(scenario)
    cfg = Config.fromfile(scenario.arch)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = build(cfg.model, device)
    batch = samples(model, images) * len(images)
    model = fuse(model) if name.endswith('fused') else model
    for module in model.modules() if name == 'plain operators' else ():
        if isinstance(module, Block):  # it does not work in runs of pixels if somebody watches
            module.norm.register_forward_hook(lambda *_: None)

    def predict():
        with torch.no_grad():
            return model(images.to(device), copy.deepcopy(batch), mode='predict')
    return Candidate(predict, device, dict(error=None))


# ---- what is shown ----

def references(result):
    """Least median and memory of those that are not ours."""
    rows = [row for name, row in result['rows'].items() if not name.startswith('convnext_dense')]
    return min(row['median'] for row in rows), min(row['memory'] for row in rows)


def cells_of(result):
    """Title, rows of text under ``HEADER``, and what the time goes to."""
    title = str(Scenario(**result['scenario']))
    if 'flops' in result:
        title += f': {result["parameters"] / 1e6:.1f} M parameters, {result["flops"] / 2e9:.1f} G multiply-adds'
    fastest, lightest = references(result)
    rows, note = [], ''
    for name, row in result['rows'].items():
        times = sorted(row['seconds'])
        spread = (times[-1 - len(times) // 4] - times[len(times) // 4]) / row['median']
        rows.append((name, f'{row["median"]:.3f}', f'{spread:.0%}', f'{fastest / row["median"]:.2f}', f'{row["memory"] / 1e6:.0f}',
                     f'{row["memory"] / lightest:.2f}', '' if row['error'] is None else f'{row["error"]:.1e}'))
    if 'shares' in result:
        note = ('fused: ' + ', '.join(f'{name} {share:.0%}' for name, share in result['shares'].items() if share >= NAMED)
                + f'; products run at {result["efficiency"]:.0%} of the rate of a large one ({result["rate"] / 1e9:.0f} GFLOP/s)')
    return title, rows, note


def report(results, about):
    lines = ['# Benchmark', '', 'Made by `tools/benchmark.py` (`make benchmark` for the suite): ' + ', '.join(
        f'{key} {value}' for key, value in about.items()) + '. Each model in a process of its own. Speed is relative to the fastest peer, memory to the '
        'lightest; error is that of the worst map relative to float64; spread is the middle half of the runs.', '', '![the same as bars](benchmark.png)', '']
    for result in results:
        title, rows, note = cells_of(result)
        lines += [f'## {title}', '', '| ' + ' | '.join(HEADER) + ' |', '|---' + '|---:' * (len(HEADER) - 1) + '|']
        lines += ['| ' + ' | '.join(row) + ' |' for row in rows] + ['', note, '']
    return '\n'.join(lines).rstrip() + '\n'


def draw(results, about, path):
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(len(results), 2, figsize=(11, .6 + 1.7 * len(results)), squeeze=False, layout='constrained')
    for (left, right), result in zip(axes, results):
        names = list(result['rows'])
        colours = ['C0' if name.startswith('convnext_dense') else 'C7' for name in names]
        for axis, key, scale, unit in ((left, 'median', 1, 's'), (right, 'memory', 1e6, 'MB')):
            bars = axis.barh(names, [result['rows'][name][key] / scale for name in names], color=colours)
            axis.bar_label(bars, fmt='%.3f' if unit == 's' else '%.0f', padding=2, fontsize=7)
            axis.invert_yaxis()
            axis.margins(x=.15)
            axis.tick_params(labelsize=7)
            axis.spines[['top', 'right']].set_visible(False)
            axis.set_title(f'{Scenario(**result["scenario"])}: {unit}', fontsize=8)
        right.set_yticklabels([])
    figure.suptitle(f'{about["hardware"]}, {about["threads"]} threads, torch {about["torch"]}', fontsize=9)
    figure.savefig(path, dpi=120)


if __name__ == '__main__':
    main()
