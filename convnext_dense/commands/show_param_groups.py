"""Show what layer-wise decay makes of a config: a table of the learning rates, and a picture.

    python tools/show_param_groups.py configs/coco/mask-rcnn_convnext-t-in1k_fpn_amp-ms-crop-3x_coco.py

Needs no weights and no data. The picture is NAME_param_groups.png in the current folder, or --out.
"""

import sys
from pathlib import Path

import matplotlib
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from ..errors import ConfigError

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

from .shared import make_parser


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument('config')
    parser.add_argument('--out', help='PNG to write')
    args = parser.parse_args(argv)
    if not Path(args.config).is_file():
        sys.exit(f'no config at {args.config}')
    cfg = Config.fromfile(args.config)
    constructor = cfg.get('optim_wrapper', {}).get('constructor')
    if constructor != 'convnext_dense.LayerDecayOptimWrapperConstructor':
        sys.exit(
            f'{args.config} has no layer-wise decay of convnext_dense: its optim_wrapper.constructor is {constructor}'
        )
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    try:  # the constructor prints the table itself
        groups = build_optim_wrapper(
            model,
            dict(
                type='OptimWrapper',
                constructor=constructor,
                optimizer=cfg.optim_wrapper.optimizer,
                paramwise_cfg=cfg.optim_wrapper.paramwise_cfg,
            ),
        ).optimizer.param_groups
    except ConfigError as error:
        sys.exit(f'ConfigError: {error}')
    out = args.out or f'{Path(args.config).stem}_param_groups.png'
    draw(model, groups, Path(args.config).stem).savefig(out, dpi=100)
    print(f'drew {out}')


def draw(model, groups, title):
    """A bar per part of the backbone in the order that the image takes, and one for all that follows it."""
    rates = {name: group['lr'] for group in groups for name in group['param_names']}
    parts = []
    for i, (down, stage) in enumerate(zip(model.backbone.downsample_layers, model.backbone.stages)):
        parts.append(
            (
                f'downsample_layers.{i}' if i else 'stem',
                f'downsample_layers.{i}.0.weight',
                'tab:gray',
            )
        )
        parts += [
            (f'stages.{i}.{j}', f'stages.{i}.{j}.norm.weight', f'C{i}') for j in range(len(stage))
        ]
    bars = [
        (label, rates[f'backbone.{name}'], colour)
        for label, name, colour in parts
        if f'backbone.{name}' in rates
    ]
    bars.append(('output norms, neck and heads', max(rates.values()), 'black'))
    labels, heights, colours = zip(*bars)
    figure, axes = plt.subplots(figsize=(max(6, 0.28 * len(bars)), 4.5), layout='constrained')
    axes.bar(range(len(bars)), heights, color=colours)
    axes.set_xticks(range(len(bars)), labels, rotation=90, fontsize=7)
    axes.set_yscale('log')
    axes.set_ylim(bottom=min(heights) / 2)
    axes.set_ylabel('learning rate after warm-up')
    axes.set_title(title, fontsize=9)
    return figure
