"""What is published of the recipes, and the pages configs/coco/README.md and
configs/ade20k/README.md, made of it and of the configs."""

from collections.abc import Mapping
from typing import NamedTuple

import yaml

from ..config_names import config_folder, read_config
from ..errors import ConfigError
from ..printing import markdown_table, paragraph
from .flops import count, total, usual_size

TASKS = {
    'coco': (
        'COCO',
        ('box AP', 'mask AP'),
        'Box and mask AP on val2017, single scale. FLOPs at 800 x 1280, two-stage detectors with '
        '1000 boxes through each box head and 100 through each mask head.',
    ),
    'ade20k': (
        'ADE20K',
        ('mIoU', 'mIoU (ms+flip)'),
        'mIoU on the validation set, at one scale and as `--tta` tests (ms+flip); FLOPs at 512 x '
        '2048, those of 640 x 640 models at 640 x 2560.',
    ),
}
ORIGIN = (
    'Written by `convnext-dense tables`; no model of it was trained here. Parameters and FLOPs are '
    'counted by us. Where a published figure differs in its last digit, it stands beside ours.'
)


class Recipe(NamedTuple):
    """A config of this package, with what others published of it."""

    name: str
    task: str  # folder of the config
    weights: str  # preset
    licence: str  # of the weights
    status: str  # who published what
    scores: Mapping[str, float]  # metric -> value
    parameters: int | None  # millions
    flops: int | None  # billions of multiply-adds

    @property
    def is_for_own_data(self) -> bool:
        return '_own' in self.name


def read_recipes(task: str) -> list[Recipe]:
    """The recipes of a key of ``TASKS``, from its ``metafile.yml``.

    Raises:
        ConfigError: the package's files are not complete.
    """
    folder = config_folder('convnext_dense')
    if folder is None:
        raise ConfigError('the recipes are not where the package is: install convnext_dense again')
    recipes = []
    for model in yaml.safe_load((folder / task / 'metafile.yml').read_text('utf-8'))['Models']:
        facts = model['Metadata']
        scores: dict[str, float] = {}
        for result in model.get('Results', ()):
            scores |= result['Metrics']
        keys = 'Pretrained Weights', 'License of Pretrained Weights', 'Status'
        weights, licence, status = (facts[key] for key in keys)
        parameters, flops = facts.get('Parameters (M)'), facts.get('FLOPs (G)')
        origin = weights, licence, status
        recipes.append(Recipe(model['Name'], task, *origin, scores, parameters, flops))
    return recipes


def page(task: str, known: Mapping[str, tuple[str, str]] | None = None) -> str:
    """README.md of a folder of configs.

    Args:
        task: key of ``TASKS``.
        known: config -> its cells of parameters and FLOPs, of those that need not be counted again.
    """
    title, metrics, caption = TASKS[task]
    header = ['config', *metrics, 'parameters, M', 'FLOPs, G', 'weights', 'licence', 'status']
    rows, links = [], []
    for recipe in read_recipes(task):
        if recipe.is_for_own_data:
            links.append(f'[{recipe.name.partition("_")[0]}]({recipe.name}.py)')
            continue
        counts = (known or {}).get(recipe.name) or counted(recipe)
        scores = [recipe.scores.get(metric, '') for metric in metrics]
        origin = f'`{recipe.weights}`', recipe.licence, recipe.status
        rows.append([f'[{recipe.name}]({recipe.name}.py)', *scores, *counts, *origin])
    own_data = (
        'For one GPU and data of your own ([docs/own-data.md](../../docs/own-data.md)): '
        f'{", ".join(links)}.'
    )
    blocks = [f'# {title}', paragraph(f'{caption} {ORIGIN}'), markdown_table(header, rows)]
    return '\n\n'.join([*blocks, paragraph(own_data)]) + '\n'


def counted(recipe: Recipe) -> tuple[str, str]:
    """Millions of parameters and GFLOPs, with the published ones where they differ."""
    cfg = read_config(f'{recipe.task}/{recipe.name}')
    cost = total(count(cfg, usual_size(cfg)).values())

    def cell(value, published):
        return f'{value}' if published in (None, value) else f'{value} (published: {published})'

    parameters, gigaflops = round(cost.parameters / 1e6), round(cost.macs / 1e9)
    return cell(parameters, recipe.parameters), cell(gigaflops, recipe.flops)
