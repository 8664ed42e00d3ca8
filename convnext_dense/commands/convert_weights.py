"""Convert ConvNeXt weights between libraries, look into a file, or list what is published.

    python tools/convert_weights.py --list
    python tools/convert_weights.py cascade_mask_rcnn_convnext_tiny_1k_3x.pth                    # what is in it
    python tools/convert_weights.py mask_rcnn_convnext-t_p4_w7_from_mmdet.pth detector.pth       # for our configs
    python tools/convert_weights.py work_dirs/mine/epoch_36.pth backbone.safetensors --to timm --backbone

SOURCE is a path, URL or preset, of a backbone, a classifier or a whole detector or segmentor. Whole models belong into a
.pth: MMEngine's tools read no .safetensors, which also has no place for the names of the classes.
"""

import sys

from rich.console import Console
from rich.table import Column, Table

from ..errors import WeightsError
from ..weights import PRESETS, TARGETS, convert, save
from .shared import make_parser


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument('source', nargs='?', metavar='SOURCE')
    parser.add_argument(
        'out',
        nargs='?',
        metavar='OUT',
        help='.pth or .safetensors to write; none: say what SOURCE is',
    )
    parser.add_argument(
        '--to', default='ours', choices=TARGETS, help='whose names to use (default: ours)'
    )
    parser.add_argument(
        '--backbone',
        action='store_true',
        help='leave out neck, heads and the prefix of a whole model',
    )
    parser.add_argument('--list', action='store_true', help='list the presets with their licences')
    args = parser.parse_args(argv)
    if args.list:
        return print_presets()
    if not args.source:
        parser.error('SOURCE is missing')
    if args.out and not args.out.endswith(('.pth', '.safetensors')):
        parser.error(f'{args.out}: expected a name that ends in .pth or .safetensors')
    try:
        conversion = convert(args.source, args.to, args.backbone)
        print(conversion)
        for name, why in conversion.dropped.items():
            print(f'  {name}: dropped, {why}')
        if args.out:
            save(conversion, args.out)
            print(f'wrote {args.out} under the names of {args.to}')
        else:
            for name, value in conversion.tensors.items():
                print(f'  {name} {tuple(value.shape)} {str(value.dtype).removeprefix("torch.")}')
    except WeightsError as error:
        sys.exit(f'WeightsError: {error}')


def print_presets():
    table = Table(
        'preset', 'pixels', 'top-1 %', 'licence', Column('source', overflow='fold'), box=None
    )
    for name, preset in PRESETS.items():
        table.add_row(
            name, str(preset.resolution), str(preset.top1 or ''), preset.licence, preset.source
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)
