"""Models of a config for looking at, not for training: nothing is fetched, nothing initialised."""
import torch
from mmengine.registry import MODELS
from torch import nn

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


def without_init(value):
    """A copy that names no weights, a teacher's neither, and no norm of mmcv's that wants distributed training."""
    if isinstance(value, dict):
        return type(value)({key: without_init(inner) for key, inner in value.items() if key not in WEIGHTS})
    if isinstance(value, list):
        return [without_init(inner) for inner in value]
    return 'SyncBN' if isinstance(value, str) and value == 'MMSyncBN' else value
