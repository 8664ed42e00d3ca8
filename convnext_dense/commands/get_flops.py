"""Parameters and FLOPs (multiply-adds, as papers print them) of any mmdet or mmseg model, part by part.

    python tools/get_flops.py configs/coco/mask-rcnn_convnext-t-in1k_fpn_amp-ms-crop-3x_coco.py --size 800 1280
    python tools/get_flops.py configs/ade20k/upernet_*.py --size 512 2048

Needs no weights, no data and hardly any memory, whatever the size of the model.
"""

import sys
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from ..errors import ConfigError
from ..evaluation.flops import BOXES, MASKS, count
from .shared import make_parser


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument('configs', nargs='+', metavar='CONFIG')
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help='of the image (default, as papers have it: 800 1280 for detectors, the crop by four times the crop for segmentors)',
    )
    args = parser.parse_args(argv)
    for config in args.configs:
        if not Path(config).is_file():
            sys.exit(f'no config at {config}')
        cfg = Config.fromfile(config)
        side = cfg.get('crop_size', (512, 512))[0]
        size = tuple(
            args.size or ((side, 4 * side) if cfg.get('default_scope') == 'mmseg' else (800, 1280))
        )
        try:
            parts = count(cfg, size)
        except ConfigError as error:
            print(f'{config}: {error}', file=sys.stderr)
            continue
        table = Table(
            'part', 'parameters, M', 'FLOPs, G', title=f'{Path(config).stem}, {size[0]} x {size[1]}'
        )
        for name, cost in parts.items():
            table.add_row(
                name, f'{cost.parameters / 1e6:.2f}', f'{cost.macs / 1e9:.2f}' if cost.macs else '-'
            )
        table.add_row(
            'all',
            *(f'{sum(row) / scale:.2f}' for row, scale in zip(zip(*parts.values()), (1e6, 1e9))),
        )
        Console(width=None if sys.stdout.isatty() else 120).print(table)
        if 'rpn_head' in parts and parts['rpn_head'].macs:
            print(f'{BOXES} boxes through each box head, {MASKS} through each mask head')
        if not all(cost.macs for cost in parts.values()):
            print(
                '-: not run at test time, only looked up, or a head of its own kind, which is not counted'
            )
