"""Convert ConvNeXt weights between libraries, look into a file, or list the published weights.

    # list the presets
    convnext-dense convert --list
    # what a file is: its layout, architecture and tensors, under our names
    convnext-dense convert cascade_mask_rcnn_convnext_tiny_1k_3x.pth
    # convert a detector for our configs
    convnext-dense convert mask_rcnn_convnext-t_p4_w7_from_mmdet.pth detector.pth
    # convert the backbone of a detector for timm
    convnext-dense convert work_dirs/mine/epoch_36.pth backbone.safetensors \\
        --to timm --backbone

SOURCE is a path, URL or preset, of a backbone, a classifier or a whole detector or segmentor. Write
whole models to a .pth: MMEngine's tools read no .safetensors, which also has no place for the names
of the classes.
"""

from ..weights import PRESETS, TARGETS, convert, save
from .shared import errors_as_messages, make_parser


@errors_as_messages()
def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument('source', nargs='?', metavar='SOURCE')
    parser.add_argument(
        'out', nargs='?', metavar='OUT', help='.pth or .safetensors to write; none: describe SOURCE'
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
        print_presets()
        return
    if not args.source:
        parser.error('SOURCE is missing')
    if args.out and not args.out.endswith(('.pth', '.safetensors')):
        parser.error(f'{args.out}: expected a name that ends in .pth or .safetensors')
    conversion = convert(args.source, args.to, args.backbone)
    print(conversion)
    for name, why in conversion.dropped.items():
        print(f'  {name}: dropped, {why}')
    if args.out:
        save(conversion, args.out)
        print(f'wrote {args.out} under the names of {args.to}')
    else:
        for name, tensor in conversion.tensors.items():
            print(f'  {name} {tuple(tensor.shape)} {str(tensor.dtype).removeprefix("torch.")}')


def print_presets():
    """A line each, whatever the terminal's width, so that a search finds whole rows."""
    row = '{:<30}{:>6}{:>9}  {:<14} {}'
    print(row.format('preset', 'pixels', 'top-1 %', 'licence', 'source'))
    for name, preset in PRESETS.items():
        top1 = preset.top1 or ''
        print(row.format(name, preset.resolution, top1, preset.licence, preset.source))
