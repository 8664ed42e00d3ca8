"""Speed and memory of ConvNeXt here and in other libraries, side by side in one run; or of whole
configs, fused or not.

    python tools/benchmark.py                  the suite of docs/performance.md (make benchmark)
    python tools/benchmark.py --arch base --size 1x512x512 --dtype bfloat16
    python tools/benchmark.py --size 2x512x512 --train
    python tools/benchmark.py CONFIG [CONFIG ...] --size 1x800x1280

Backbones get the same random weights, each peer the memory format in which it is faster, and no
model is timed whose maps are not those of the float64 network. Every model has a process of its
own, and their runs take turns. Memory is the allocator's peak above the weights, outputs included;
of a training step without the gradients of the weights, which all hold alike.
"""

import json
import sys
from pathlib import Path

import torch
from rich.table import Column, Table

from ..architectures import ARCHITECTURES
from ..errors import ConfigError
from ..evaluation.backbones import HEADER, SUITE, benchmark, cells_of, draw, report
from ..evaluation.peers import BOUND, Scenario
from ..evaluation.timing import machine
from ..printing import console as make_console
from .shared import add_device, make_parser


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        'configs', nargs='*', metavar='CONFIG', help='whole models to compare in place of backbones'
    )
    parser.add_argument(
        '--arch',
        default='tiny',
        choices=ARCHITECTURES,
        metavar='ARCH',
        help='atto ... xxlarge, v2_atto ... v2_huge',
    )
    parser.add_argument(
        '--size',
        help='IMAGESxHEIGHTxWIDTH, for instance 1x800x1280; without it '
        'and without configs: the suite',
    )
    parser.add_argument(
        '--dtype',
        default='float32',
        choices=BOUND,
        help='of weights and images; in a training step that of autocast',
    )
    parser.add_argument(
        '--train', action='store_true', help='a training step in place of inference'
    )
    parser.add_argument(
        '--compile', action='store_true', help='also torch.compile of each backbone (minutes)'
    )
    parser.add_argument('--runs', type=int, default=10)
    parser.add_argument('--threads', type=int, help="default: torch's, the number of cores")
    add_device(parser)
    parser.add_argument(
        '--out', default='work_dirs/benchmark', help='folder for benchmark.json, .md and .png'
    )
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    console = make_console()
    out, results = Path(args.out), []
    out.mkdir(parents=True, exist_ok=True)
    about = machine(args.device)
    if args.device == 'cuda':  # torch's own choice: maps are compared without it
        about['TF32 while timed'] = 'in convolutions'
    console.print(', '.join(f'{key} {value}' for key, value in about.items()), highlight=False)
    scenarios = [Scenario(name, args.size or '1x800x1280', args.dtype) for name in args.configs]
    if not scenarios:
        scenarios = (
            SUITE if not args.size else [Scenario(args.arch, args.size, args.dtype, args.train)]
        )
    for scenario in scenarios:
        try:
            result = benchmark(scenario, args)
        except (ConfigError, RuntimeError) as error:
            console.print(f'{scenario}: {error}', style='red', markup=False)
            continue
        title, rows, note = cells_of(result)
        table = Table(
            HEADER[0], *(Column(name, justify='right') for name in HEADER[1:]), title=title
        )
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print(note, highlight=False)
        results.append(result)
        content = json.dumps(dict(machine=about, results=results), indent=1)
        (out / 'benchmark.json').write_text(content, encoding='utf-8')
        (out / 'benchmark.md').write_text(report(results, about), encoding='utf-8')
    if results:
        draw(results, about, out / 'benchmark.png')
        console.print(f'wrote {out}/benchmark.json, .md and .png')
    else:
        sys.exit('nothing was measured')
