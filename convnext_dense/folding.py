"""A model for inference: what is affine in ConvNeXt's blocks, folded into the linear layers."""

import copy
import sys

import torch
from mmengine.logging import print_log
from torch import nn

from .backbone import ConvNeXt
from .errors import ConfigError
from .layers import LAYER_TYPES, Block, GlobalResponseNorm, altered_layer
from .memory_format import use_channels_last
from .rearranging import rearrange


def fuse(model: nn.Module) -> nn.Module:
    """A copy of a backbone, or of a detector or segmentor with one in it, for inference.

    In each block LayerNorm's weight and bias go into the first linear layer, the layer scale (V2:
    GRN's beta) into the second; in necks and heads batch norms go into convolutions. That is exact
    but for rounding, which is done once. So fuse first and then choose a precision
    (``fuse(model).bfloat16()``). Heads are rearranged as ``rearrange`` does it. What is folded is
    frozen. In models of known parts, maps are passed on in channels-last memory. The state is saved
    and loaded as any is, between fused models.

    Raises:
        ConfigError: the model has no block of ConvNeXt, or all are fused already, or a block has
            layers that are not its own. From the copy: if it is asked to train, or to load weights
            that are not folded.
    """
    model = copy.deepcopy(model)
    blocks = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is Block
    ]
    if not blocks:
        is_fused = any(isinstance(module, FusedBlock) for module in model.modules())
        raise ConfigError(
            'nothing to fuse: the model has no block of convnext_dense.ConvNeXt'
            + ' that is not fused' * is_fused
        )
    for parent, name, block in blocks:
        altered = altered_layer(block, LAYER_TYPES)
        if altered:
            raise ConfigError(
                f'{altered} of a block has been replaced or has hooks, and its weights '
                'alone do not say what it does: merge or remove that first'
            )
        setattr(parent, name, FusedBlock(block))
    for backbone in model.modules():
        if isinstance(backbone, ConvNeXt):
            backbone.requires_grad_(False)
    model.eval()  # not chained: it returns None in distilled models of mmdet
    report = rearrange(model)
    if report.left_alone:
        print_log(f'fuse: {report}', logger='current')
    if 'mmcv.cnn' in sys.modules:
        from .folded_norms import fold_norms

        fold_norms(model)
    use_channels_last(model)
    return model


class FusedBlock(Block):
    """A block with the affine parts of its LayerNorm, GRN and layer scale in its linear layers."""

    def __init__(self, block: Block):
        nn.Module.__init__(self)
        self.drop_path_rate, self.recompute, self.gamma = 0.0, 'none', None
        self.dwconv, self.pwconv1, self.act = block.dwconv, block.pwconv1, block.act
        self.grn, self.pwconv2 = block.grn, block.pwconv2
        self.norm = nn.LayerNorm(block.norm.normalized_shape, block.norm.eps, False)

        first, second, norm = block.pwconv1, block.pwconv2, block.norm
        w1, b1, w2, b2, norm_weight, norm_bias = (
            parameter.detach().double()
            for layer in (first, second, norm)
            for parameter in (layer.weight, layer.bias)
        )
        _set(first, weight=w1 * norm_weight, bias=b1 + w1 @ norm_bias)
        if isinstance(self.grn, GlobalResponseNorm):
            beta = self.grn.beta.detach().double()
            _set(second, bias=b2 + w2 @ beta)
            _set(self.grn, beta=beta * 0)
        else:
            assert block.gamma is not None  # V1
            scale = block.gamma.detach().double()
            _set(second, weight=w2 * scale[:, None], bias=b2 * scale)

    def train(self, mode: bool = True) -> 'FusedBlock':
        if mode:
            raise ConfigError(
                'a fused model cannot be trained: its weights are folded. Train the '
                'model that it was made from, and fuse that again'
            )
        return super().train(mode)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        if f'{prefix}norm.weight' in state_dict:
            raise ConfigError(
                f'the weights of {prefix.rstrip(".")} are not folded: load them into '
                'the model first, then fuse it'
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _set(layer: nn.Module, **values: torch.Tensor) -> None:
    """Parameters in place, in their own precision: folded in float64, rounded once."""
    with torch.no_grad():
        for name, value in values.items():
            getattr(layer, name).copy_(value)
