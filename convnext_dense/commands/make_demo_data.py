"""Generate the demo's data: scenes of textured shapes, in the true COCO and ADE20K layouts.

    python tools/demo_data.py work_dirs/demo/data

Five shapes stand in front of a wall and a floor, each instance with a pattern, a light and a hue of its own, and
cover one another. Masks hold what is visible. An instance of which hardly anything is left is in no annotation, and
its pixels are 0 (ignored) in the semantic map. The same arguments give the same files.

Colour is a hint and no more: hues of a class scatter around one hue (HUE_SPREAD) and overlap with its neighbours'.
"""

from pathlib import Path

from ..demo.scenes import SPLITS, write
from .shared import make_parser


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument('folder', type=Path)
    parser.add_argument(
        '--scenes',
        type=int,
        nargs=3,
        default=list(SPLITS.values()),
        metavar=('TRAIN', 'VAL', 'TEST'),
    )
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    write(args.folder, dict(zip(SPLITS, args.scenes)), args.seed)
    print(f'{args.folder}/coco and {args.folder}/ade are ready')
