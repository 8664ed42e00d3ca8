"""The pages configs/coco/README.md and configs/ade20k/README.md, made of the configs and of
configs/published.json."""

import json
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config

from ..printing import markdown_table, paragraph
from ..weights import PRESETS
from .flops import count, total, usual_size

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
TASKS = {
    'coco': (
        'COCO',
        {'box_ap': 'box AP', 'mask_ap': 'mask AP'},
        'Box and mask AP on val2017, single scale. FLOPs at 800 x 1280, two-stage detectors with '
        '1000 boxes through each box head and 100 through each mask head.',
    ),
    'ade20k': (
        'ADE20K',
        {'miou': 'mIoU', 'miou_tta': 'mIoU, `--tta`'},
        'mIoU on the validation set; FLOPs at 512 x 2048, those of 640 x 640 models at 640 x 2560.',
    ),
}
ORIGIN = (
    'Written by `tools/make_tables.py`; no model of it was trained here. Parameters and FLOPs are '
    'counted by us. Where a published figure differs in its last digit, it stands beside ours.'
)


def page(task: str, known: Mapping[str, tuple[str, str]] | None = None) -> str:
    """README.md of a folder of configs.

    Args:
        task: key of ``TASKS``.
        known: config -> its cells of parameters and FLOPs, of those that need not be counted again.
    """
    published = json.loads((CONFIGS / 'published.json').read_text())
    title, metrics, caption = TASKS[task]
    header = ['config', *metrics.values(), 'parameters, M', 'FLOPs, G']
    header += ['weights', 'licence', 'status']
    rows, links = [], []
    for path in sorted((CONFIGS / task).glob('*.py')):
        if '_own' in path.stem:  # for the user's own data: nothing is published of them
            links.append(f'[{path.stem.partition("_")[0]}]({path.name})')
            continue
        cfg, row = Config.fromfile(path), published[path.stem]
        counts = (known or {}).get(path.stem) or counted(cfg, row)
        weights = cfg.model.backbone.init_cfg.checkpoint
        figures = [row.get(metric, '') for metric in metrics]
        origin = f'`{weights}`', PRESETS[weights].licence, row['status']
        rows.append([f'[{path.stem}]({path.name})', *figures, *counts, *origin])
    own_data = (
        'For one GPU and data of your own ([docs/own-data.md](../../docs/own-data.md)): '
        f'{", ".join(links)}.'
    )
    blocks = [f'# {title}', paragraph(f'{caption} {ORIGIN}'), markdown_table(header, rows)]
    return '\n\n'.join([*blocks, paragraph(own_data)]) + '\n'


def counted(cfg: Config, row: Mapping[str, float]) -> tuple[str, str]:
    """Millions of parameters and GFLOPs, with those of ``row``, the published ones, where they
    differ.
    """
    cost = total(count(cfg, usual_size(cfg)).values())

    def cell(value, key):
        published = row.get(key, value)
        return f'{value}' if published == value else f'{value} (published: {published})'

    parameters, gigaflops = round(cost.parameters / 1e6), round(cost.macs / 1e9)
    return cell(parameters, 'parameters_m'), cell(gigaflops, 'flops_g')
