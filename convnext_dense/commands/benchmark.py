"""Speed and memory of ConvNeXt here and in other libraries, side by side in one run; or of whole
models.

    convnext-dense benchmark                  the suite: several sizes and precisions
    convnext-dense benchmark --arch base --size 1x512x512 --dtype bfloat16
    convnext-dense benchmark --size 2x512x512 --train
    convnext-dense benchmark CONFIG [CONFIG ...] --size 1x800x1280 [--train]

A config's model is timed as the zoos have it (mmpretrain's backbone under the heads of mmdet or
mmseg; left out where that has no such output stride), with our backbone under these heads, as it is
here, and fused.

All get the same random weights, backbones of peers the memory format in which they are faster, and
no model is timed whose maps are not those of the float64 network. Every model has a process of its
own, and their runs take turns. Memory is the allocator's peak above the weights, outputs included;
of a training step without the gradients of the weights, which all hold alike.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

from ..architectures import ARCHITECTURES
from ..errors import ConfigError
from ..evaluation import backbones
from ..evaluation.peers import BOUND, Scenario
from ..evaluation.timing import machine
from ..printing import console as make_console
from ..printing import table
from .shared import add_device, errors_as_messages, make_parser


@errors_as_messages()
def main(argv=None):
    parser = make_parser(__doc__)
    add = parser.add_argument
    add('configs', nargs='*', metavar='CONFIG', help='whole models, in place of backbones')
    add('--arch', default='tiny', choices=ARCHITECTURES, metavar='ARCH', help='atto ... v2_huge')
    add('--size', help='IMAGESxHEIGHTxWIDTH, as 1x800x1280; without it and CONFIG: the suite')
    add('--dtype', default='float32', choices=BOUND, help='in a training step that of autocast')
    add('--train', action='store_true', help='a training step in place of inference')
    add('--compile', action='store_true', help='also torch.compile of each backbone (minutes)')
    add('--runs', type=int, default=10, help='calls of each model (default: %(default)s)')
    add('--threads', type=int, help="default: torch's, the number of cores")
    add_device(parser)
    add('--out', default='work_dirs/benchmark', help='folder of benchmark.json, .md and .png')
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    console, out, results = make_console(), Path(args.out), []
    out.mkdir(parents=True, exist_ok=True)
    about = machine(args.device)
    if args.device == 'cuda':  # torch's own choice: maps are compared without it
        about['TF32 while timed'] = 'in convolutions'
    console.print(', '.join(f'{key} {value}' for key, value in about.items()))
    missing = [name for name in ('timm', 'torchvision', 'transformers') if not find_spec(name)]
    if missing and not args.configs:
        names = ', '.join(missing)
        console.print(f'not compared: {names} (pip install "convnext_dense[peers]")', markup=False)
    if args.configs:
        size = args.size or '1x800x1280'
        scenarios = [Scenario(path, size, args.dtype, args.train) for path in args.configs]
    elif args.size:
        scenarios = [Scenario(args.arch, args.size, args.dtype, args.train)]
    else:
        scenarios = backbones.SUITE
    for scenario in scenarios:
        try:
            result = backbones.benchmark(scenario, args.device, args.runs, args.compile)
        except (ConfigError, RuntimeError) as error:
            console.print(f'{scenario}: {error}', style='red', markup=False)
            continue
        rows, title = backbones.cells_of(result), backbones.title_of(result)
        console.print(table(backbones.HEADER, rows, title))
        console.print(backbones.note_of(result))
        heading, parts = backbones.parts_of(result)
        if parts:
            console.print(table(heading, parts))
        results.append(result)
        content = dict(machine=about, results=[result.as_json() for result in results])
        (out / 'benchmark.json').write_text(json.dumps(content, indent=1), encoding='utf-8')
        (out / 'benchmark.md').write_text(backbones.report(results, about), encoding='utf-8')
    if not results:
        sys.exit('nothing was measured')
    backbones.draw(results, about, out / 'benchmark.png')
    console.print(f'wrote {out}/benchmark.json, .md and .png')
