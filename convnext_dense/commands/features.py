"""What a ConvNeXt makes of an image, stage by stage, as a picture: shows that weights are loaded.

    convnext-dense features street.jpg tiny_in22k
    convnext-dense features street.jpg work_dirs/mine/iter_10000.pth --out features.png

The first three principal components of each map are shown as red, green and blue, before and after
the LayerNorm of the stage, above those of random weights. Maps of trained weights show the objects
in the image as areas of a colour, the more so the later the stage; those of random weights show
edges and brightness. The number is the share of the map's variance in the three components.
"""

import sys
from pathlib import Path

from ..data.pictures import read as read_image
from ..inference.features import draw_features, load, resize
from ..weights import PRESETS
from ..weights.presets import IMAGENET
from .shared import errors_as_messages, make_parser


@errors_as_messages()
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add = parser.add_argument
    weights = 'a preset (convnext-dense convert --list), a path or a URL; a backbone or a model'
    add('image', type=Path)
    add('weights', help=weights)
    add('--size', type=int, default=512, help='shorter side, pixels (default: 512)')
    add('--out', type=Path, default=Path('features.png'), help='default: features.png')
    args = parser.parse_args(argv)
    if not args.image.is_file():
        parser.error(f'no image at {args.image}')
    if args.size < 32:
        parser.error('--size is 32 or more')

    try:
        image = read_image(args.image)[0]
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises of broken files
        sys.exit(f'{args.image}: {type(error).__name__}: {error}')
    networks = load(args.weights)
    if networks.report.left_as_initialised:
        print('The weights hold no LayerNorm of the stages: theirs are as initialised, so they')
        print('normalise, without scale and shift.')
    preset = PRESETS.get(args.weights)
    mean, std = (preset.mean, preset.std) if preset else IMAGENET
    draw_features(resize(image, args.size), networks, mean, std, args.out)
    print(f'wrote {args.out}')
