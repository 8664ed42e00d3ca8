"""Models of a config for looking at, not for training: nothing is fetched, nothing initialised."""

from pathlib import Path

import torch
from mmengine.registry import MODELS
from torch import nn

from ..weights.comparing import check_names
from ..weights.loading import read

WEIGHTS = ('init_cfg', 'pretrained', 'teacher_ckpt')


def build(model: dict, device: str) -> nn.Module:
    """``model`` (a dict, or a list of parts in sequence) on ``device``, the meta device among them; in eval mode."""
    try:
        with torch.device(device):
            built = MODELS.build(without_init(model))
    except RuntimeError:  # reads values while it is built
        built = MODELS.build(without_init(model))
    built = built.to(device)  # torch.Tensor(n) does not heed the context
    built.eval()  # mmdet's ResNet returns nothing from it
    return built


def load(model: nn.Module, checkpoint: str | Path) -> dict:
    """Load the checkpoint of a whole model, a path or a URL. Returns the names and colours of its classes, where it has them
    (``classes``, ``palette``).

    Raises:
        WeightsError: it cannot be read, or is not of this model, to the last name and shape.
    """

    tensors, _, classes = read(checkpoint)
    tensors = {name.removeprefix('module.'): value for name, value in tensors.items()}
    check_names(model, tensors, heads_may_differ=False)
    model.load_state_dict(tensors)
    return classes


def without_init(value):
    """A copy that names no weights, a teacher's neither, and no norm of mmcv's that wants distributed training."""
    if isinstance(value, dict):
        return type(value)(
            {key: without_init(inner) for key, inner in value.items() if key not in WEIGHTS}
        )
    if isinstance(value, list):
        return [without_init(inner) for inner in value]
    return 'SyncBN' if isinstance(value, str) and value == 'MMSyncBN' else value
