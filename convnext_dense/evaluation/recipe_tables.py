"""Write configs/coco/README.md and configs/ade20k/README.md from the configs and configs/published.json."""

import json
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config

from ..weights import PRESETS
from .flops import count

ROOT = Path(__file__).resolve().parents[2]
TASKS = {
    'coco': (
        'COCO',
        {'box_ap': 'box AP', 'mask_ap': 'mask AP'},
        'Box and mask AP on val2017, single scale. FLOPs at 800 x 1280, two-stage detectors with 1000 boxes through '
        'each box head and 100 through each mask head.',
    ),
    'ade20k': (
        'ADE20K',
        {'miou': 'mIoU', 'miou_tta': 'mIoU, `--tta`'},
        'mIoU on the validation set; FLOPs at 512 x 2048, those of 640 x 640 models at 640 x 2560.',
    ),
}


def table(task: str, known: Mapping[str, str] | None = None) -> str:
    """The page of one folder. ``known`` has the two counts of configs that are not to be counted again."""
    published = json.loads((ROOT / 'configs' / 'published.json').read_text())
    title, metrics, caption = TASKS[task]
    lines = [
        f'# {title}',
        '',
        f'{caption} Written by `tools/make_tables.py`; nothing in it was trained here. Parameters '
        'and FLOPs are counted by us; a published figure that differs from ours in its last digit would stand beside.',
        '',
        f'| config | {" | ".join(metrics.values())} | parameters, M | FLOPs, G | weights | licence | status |',
        '|---' * (6 + len(metrics)) + '|',
    ]
    for path in sorted((ROOT / 'configs' / task).glob('*.py')):
        if '_own' in path.stem:  # for data of one's own: nothing is published of them
            continue
        cfg, row = Config.fromfile(path), published[path.stem]
        counts = (known or {}).get(path.stem) or ' | '.join(counted(cfg, task, row))
        weights = cfg.model.backbone.init_cfg.checkpoint
        cells = [
            f'[{path.stem}]({path.name})',
            *(str(row.get(metric, '')) for metric in metrics),
            counts,
            f'`{weights}`',
            PRESETS[weights].licence,
            row['status'],
        ]
        lines.append(f'| {" | ".join(cells)} |')
    own = ', '.join(
        f'[{path.stem}]({path.name})'
        for path in sorted((ROOT / 'configs' / task).glob('*_own*.py'))
    )
    lines += [
        '',
        f'For one GPU and data of your own ([docs/own-data.md](../../docs/own-data.md)): {own}.',
    ]
    return '\n'.join(lines) + '\n'


def counted(cfg, task, row):
    """Millions of parameters and GFLOPs, with the published ones where they differ."""
    side = cfg.get('crop_size', (512,))[0]
    costs = count(cfg, (800, 1280) if task == 'coco' else (side, 4 * side))
    for column, scale, published in zip(
        zip(*costs.values()), (1e6, 1e9), (row.get('parameters_m'), row.get('flops_g'))
    ):
        value = round(sum(column) / scale)
        yield f'{value}' + (f' (published: {published})' if published not in (None, value) else '')
