"""What a ConvNeXt makes of an image, stage by stage, as a picture: how one sees that weights have really loaded.

    python tools/show_features.py street.jpg tiny_in22k
    python tools/show_features.py street.jpg work_dirs/mine/iter_10000.pth --out features.png

The first three principal components of each map as red, green and blue, before and after the LayerNorm of the stage, beside those of
random weights. Trained maps show the things in the image as areas of a colour, ever more so from stage to stage; random ones show
edges and brightness. The number is the share of the map's variance that the three components hold.
"""

import sys
from pathlib import Path

from ..data.pictures import read as read_image
from ..errors import ConfigError, WeightsError
from ..inference.features import draw, load, resized
from ..weights import PRESETS
from ..weights.presets import IMAGENET
from .shared import make_parser


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument('image', type=Path)
    parser.add_argument(
        'weights',
        help='a preset (tools/convert_weights.py --list), a path or a URL, of a backbone or a whole model',
    )
    parser.add_argument(
        '--size', type=int, default=512, help='shorter side of the image, pixels (default: 512)'
    )
    parser.add_argument(
        '--out', type=Path, default=Path('features.png'), help='default: features.png'
    )
    args = parser.parse_args(argv)
    if not args.image.is_file():
        parser.error(f'no image at {args.image}')
    if args.size < 32:
        parser.error('--size is 32 or more')
    try:
        net, random, report = load(args.weights)
        image = read_image(args.image)[0]
    except (ConfigError, WeightsError, OSError, SyntaxError, ValueError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
    if report.left_as_initialised:
        print(
            'The weights hold no LayerNorm of the stages: these are as initialised, and only normalise.'
        )
    preset = PRESETS.get(args.weights)
    image = resized(image, args.size)
    draw(image, net, random, *((preset.mean, preset.std) if preset else IMAGENET), args.out)
    print(f'wrote {args.out}')
