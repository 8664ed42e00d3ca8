"""Parameters and FLOPs (multiply-adds, as papers print them) of any mmdet or mmseg model, part by
part.

    convnext-dense flops mask-rcnn_convnext-t-in1k_fpn_amp-ms-crop-3x_coco --size 800 1280
    convnext-dense flops my_configs/*.py

The first figure is the published one. Where convnext_dense.rearrange makes heads compute the same
with fewer, the second one is theirs.

Needs no weights, no data and hardly any memory, whatever the size of the model.
"""

import sys
from pathlib import Path

from ..config_names import read_config
from ..errors import ConfigError
from ..evaluation.flops import BOXES, MASKS, count, total, usual_size
from ..printing import console, table
from .shared import errors_as_messages, make_parser


@errors_as_messages()
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
    failed = False
    for config in args.configs:
        try:
            cfg = read_config(config)
            height, width = args.size or usual_size(cfg)
            costs = count(cfg, (height, width))
            rearranged = count(cfg, (height, width), is_rearranged=True)
        except ConfigError as error:
            print(f'{config}: {error}', file=sys.stderr)
            failed = True
            continue
        names, columns = ['part', 'parameters, M', 'FLOPs, G'], [costs]
        if rearranged != costs:
            names, columns = [*names, 'rearranged, G'], [costs, rearranged]
        columns = [{**column, 'all': total(column.values())} for column in columns]
        rows = [
            (name, f'{cost.parameters / 1e6:.2f}')
            + tuple(f'{c[name].macs / 1e9:.2f}' if c[name].macs else '-' for c in columns)
            for name, cost in columns[0].items()
        ]
        title = f'{Path(config).stem}, {height} x {width}'
        console().print(table(names, rows, title))
        if 'rpn_head' in costs and costs['rpn_head'].macs:
            print(f'{BOXES} boxes through each box head, {MASKS} through each mask head')
        if not all(cost.macs for cost in costs.values()):
            print('-: not run at test time, only looked up, or a kind of head that is not counted')
    sys.exit(failed)
