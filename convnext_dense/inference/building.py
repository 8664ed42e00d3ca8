"""Builds models of a config for looking at them or predicting: nothing is fetched or initialised.

What is trained is built by MMEngine's runner instead.
"""

from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import nn

from ..weights.comparing import check_names
from ..weights.loading import read
from ..weights.pretrained import without_pretrained


def build(model: dict | list, device: str) -> nn.Module:
    """The model of a config in eval mode, without the pretrained weights that the config names.

    Args:
        model: the config's ``model``, a part of it, or a list of parts that follow each other.
        device: any device of torch; ``'meta'`` for shapes alone.
    """
    try:
        with torch.device(device):
            built = MODELS.build(_single_process(without_pretrained(model)))
    except RuntimeError:  # some models read values while they are built; meta tensors have none
        built = MODELS.build(_single_process(without_pretrained(model)))
    built = built.to(device)  # torch.Tensor(n) is made on the CPU in any context
    built.eval()  # not chained: it returns None in mmdet's ResNet
    return built


def load(model: nn.Module, checkpoint: str | Path) -> dict[str, Any]:
    """Load the checkpoint of a whole detector or segmentor, from a path or a URL.

    Returns:
        ``classes`` (names) and ``palette`` (colours), as far as the checkpoint holds them.

    Raises:
        WeightsError: it cannot be read, or a tensor's name or shape is not the model's.
    """
    tensors, _, classes = read(checkpoint)
    tensors = {name.removeprefix('module.'): value for name, value in tensors.items()}
    check_names(model, tensors, heads_may_differ=False)
    model.load_state_dict(tensors)
    return classes


def _single_process(value):
    """MMCV's synchronised batch norm is built in distributed training only; torch's has the same
    tensors and is built anywhere."""
    if isinstance(value, dict):
        return type(value)({key: _single_process(inner) for key, inner in value.items()})
    if isinstance(value, list):
        return [_single_process(inner) for inner in value]
    return 'SyncBN' if isinstance(value, str) and value == 'MMSyncBN' else value
