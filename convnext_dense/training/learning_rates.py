"""What layer-wise decay makes of a config: the learning rate of each part of the model."""

from typing import Any

import torch
from matplotlib.figure import Figure  # pyplot would change the backend of the user's program
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from ..errors import ConfigError

CONSTRUCTOR = 'convnext_dense.LayerDecayOptimWrapperConstructor'


def parameter_groups(cfg: Config) -> tuple[nn.Module, list[dict]]:
    """The model of a config, without values (on the meta device), and its optimiser's groups.

    The constructor prints the groups as a table while it makes them.

    Raises:
        ConfigError: the config does not use layer-wise decay of this package, or not rightly.
    """
    optim_wrapper = cfg.get('optim_wrapper', {})
    constructor = optim_wrapper.get('constructor')
    if constructor != CONSTRUCTOR:
        raise ConfigError(
            f'{cfg.filename} has no layer-wise decay of convnext_dense: expected '
            f'optim_wrapper.constructor={CONSTRUCTOR!r}, not {constructor!r}'
        )
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    settings = dict(
        type='OptimWrapper',  # the config's own may need a GPU, for mixed precision
        constructor=constructor,
        optimizer=optim_wrapper.optimizer,
        paramwise_cfg=optim_wrapper.get('paramwise_cfg'),
    )
    return model, build_optim_wrapper(model, settings).optimizer.param_groups


def draw_learning_rates(model: nn.Module, groups: list[dict], title: str) -> Figure:
    """A bar for each trained part of the backbone, from the stem on, and one for all behind it.

    Args:
        groups: ``lr`` and ``param_names`` of each.
    """
    rates = {name: group['lr'] for group in groups for name in group['param_names']}
    backbone: Any = model.backbone
    labels, heights, colours = [], [], []

    def add(label, parameter, colour):
        rate = rates.get(f'backbone.{parameter}')  # frozen parts have none
        if rate is not None:
            labels.append(label)
            heights.append(rate)
            colours.append(colour)

    for i, stage in enumerate(backbone.stages):
        label = f'downsample_layers.{i}' if i else 'stem'
        add(label, f'downsample_layers.{i}.0.weight', 'tab:gray')
        for j in range(len(stage)):
            add(f'stages.{i}.{j}', f'stages.{i}.{j}.norm.weight', f'C{i}')
    labels.append('output norms, neck and heads')
    heights.append(max(rates.values()))
    colours.append('black')

    figure = Figure(figsize=(max(6, 0.28 * len(labels)), 4.5), layout='constrained')
    axes = figure.subplots()
    axes.bar(range(len(labels)), heights, color=colours)
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
    axes.set(yscale='log', ylabel='learning rate after warm-up')
    axes.set_ylim(bottom=min(heights) / 2)
    axes.set_title(title, fontsize=9)
    return figure
