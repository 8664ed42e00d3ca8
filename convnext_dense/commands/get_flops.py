"""Parameters and FLOPs (multiply-adds, as papers print them) of any mmdet or mmseg model, part by
part.

    python tools/get_flops.py configs/coco/mask-rcnn_*-t-in1k*3x_coco.py --size 800 1280
    python tools/get_flops.py configs/ade20k/upernet_*.py --size 512 2048

Needs no weights, no data and hardly any memory, whatever the size of the model.
"""

import sys
from pathlib import Path

from mmengine.config import Config

from ..errors import ConfigError
from ..evaluation.flops import BOXES, MASKS, count, total, usual_size
from ..printing import console, table
from .shared import make_parser


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument('configs', nargs='+', metavar='CONFIG')
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help='of the image (default, as papers have it: 800 1280 for detectors, the crop by four '
        'times the crop for segmentors)',
    )
    args = parser.parse_args(argv)
    for config in args.configs:
        if not Path(config).is_file():
            sys.exit(f'no config at {config}')
        cfg = Config.fromfile(config)
        height, width = args.size or usual_size(cfg)
        try:
            costs = count(cfg, (height, width))
        except ConfigError as error:
            print(f'{config}: {error}', file=sys.stderr)
            continue
        rows = [
            (name, f'{cost.parameters / 1e6:.2f}', f'{cost.macs / 1e9:.2f}' if cost.macs else '-')
            for name, cost in {**costs, 'all': total(costs.values())}.items()
        ]
        title = f'{Path(config).stem}, {height} x {width}'
        console().print(table(('part', 'parameters, M', 'FLOPs, G'), rows, title))
        if 'rpn_head' in costs and costs['rpn_head'].macs:
            print(f'{BOXES} boxes through each box head, {MASKS} through each mask head')
        if not all(cost.macs for cost in costs.values()):
            print('-: not run at test time, only looked up, or a kind of head that is not counted')
