"""Batch norms folded into the convolutions before them, for inference. It imports mmcv."""

import copy
from typing import Any

from mmcv.cnn import ConvModule
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .errors import ConfigError
from .layers import is_watched

# In eval mode these compute the same.
BATCH_NORMS = nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward


class FoldedConvModule(ConvModule):
    """mmcv's ConvModule, whose batch norm is in its convolution."""

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        if f'{prefix}{self.folded_norm}.weight' in state_dict:
            raise ConfigError(
                f'the weights of {prefix.rstrip(".")} are not folded: load them into '
                'the model first, then fuse it'
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def fold_norms(model: nn.Module) -> None:
    """Fold the statistics of batch norms in every ``ConvModule`` of a model in eval mode.

    Layers that have hooks or are of other classes are left alone.
    """
    for module in model.modules():
        if _folds(module):
            _fold(module)


def _folds(module: Any) -> bool:
    if type(module) is not ConvModule or not module.with_norm:
        return False
    conv, norm = module.conv, module.norm
    return (
        type(conv) is nn.Conv2d
        and module.order == ('conv', 'norm', 'act')
        and type(norm).forward in BATCH_NORMS
        and norm.running_mean is not None
        and not any(is_watched(layer) for layer in (module, conv, norm))
    )


def _fold(module: Any) -> None:
    # In float64, and rounded once. Copies: convolutions are shared where norms are not (RetinaNet's
    # head with separate norms).
    conv, norm = (copy.deepcopy(layer).double() for layer in (module.conv, module.norm))
    module.conv = fuse_conv_bn_eval(conv, norm).to(module.conv.weight.dtype).requires_grad_(False)
    delattr(module, module.norm_name)
    module.folded_norm, module.norm_name, module.with_norm = module.norm_name, None, False
    module.__class__ = FoldedConvModule
    if module.with_activation and type(module.activate) is nn.ReLU:
        module.activate.inplace = True  # a map of fresh memory less; nothing else reads it
