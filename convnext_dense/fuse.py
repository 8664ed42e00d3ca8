"""A model for inference: ConvNeXt's blocks with everything affine folded into their two linear layers."""
import copy
from typing import Dict, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbone import ConvNeXt
from .errors import ConfigError
from .layers import Block
from .mlp import Parameters, is_small, is_traced, linear, response_energy, response_scale, runs, strips


def fuse(model: nn.Module) -> nn.Module:
    """A copy of a backbone, or of a detector or segmentor with one in it, that is faster and smaller at inference.

    LayerNorm's weight and bias go into the first linear layer of each block, the layer scale (V2: GRN's beta) into the second:
    exact but for rounding, which is done once, so fuse first and then choose a precision (``fuse(model).bfloat16()``). The MLP
    works on cache-sized runs of pixels, on a CPU with oneDNN's linear layer that applies GELU as it writes. The folded weights
    are buffers, and the rest of the backbone is frozen: nothing of it is left to train. They are saved and loaded as any state is, between fused models.

    Raises:
        ConfigError: there is no block of ConvNeXt in the model, or all are fused already. From the copy: if it is asked to
            train, to compute a gradient, or to load weights that are not folded.
    """
    model = copy.deepcopy(model).eval()
    found = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children() if isinstance(child, Block)]
    if not found:
        raise ConfigError('nothing to fuse: the model has no block of convnext_dense.ConvNeXt' + (
            ' that is not fused' if any(isinstance(module, FusedBlock) for module in model.modules()) else ''))
    for parent, name, block in found:
        if block.odd_layer():
            raise ConfigError(f'{block.odd_layer()} of a block has been replaced or has hooks, and its weights alone do not say what it '
                              'does: merge or remove that first')
        setattr(parent, name, FusedBlock(block))
    for backbone in model.modules():
        if isinstance(backbone, ConvNeXt):
            backbone.requires_grad_(False)
            for i, downsample in enumerate(backbone.downsample_layers[1:], start=1):
                if downsample[1].stride == (2, 2):
                    backbone.downsample_layers[i] = FusedDownsample(*downsample).to(memory_format=torch.channels_last)  # as its maps are
    return model


def fold(parameters: Parameters) -> Dict[str, Optional[Tensor]]:
    """Both linear layers with all that is affine beside them; what is left is GRN's gamma."""
    norm_weight, norm_bias, w1, b1, w2, b2, layer_scale, grn_gamma, grn_beta = (
        one if one is None else one.detach().double() for one in parameters)
    first = dict(w1=w1 * norm_weight, b1=b1 + w1 @ norm_bias)
    if grn_gamma is not None:
        return dict(first, w2=w2, b2=b2 + w2 @ grn_beta, grn=grn_gamma)
    return dict(first, w2=layer_scale[:, None] * w2, b2=layer_scale * b2, grn=None)


class FusedBlock(nn.Module):
    """Depthwise 7x7 -> LayerNorm without affine -> 4C linear, GELU -> [GRN ->] C linear -> + input."""

    def __init__(self, block: Block):
        super().__init__()
        self.convolution = {key: getattr(block.dwconv, key) for key in ('stride', 'padding', 'dilation', 'groups')}
        self.eps = block.norm.eps
        dtype = block.pwconv1.weight.dtype
        folded = fold(block.mlp_parameters())
        for name, value in dict(dwconv_weight=block.dwconv.weight, dwconv_bias=block.dwconv.bias, **folded).items():
            self.register_buffer(name, None if value is None else value.detach().to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise ConfigError('a fused model computes no gradients, neither to its image: use the model that it was made from')
        y = F.conv2d(x, self.dwconv_weight, self.dwconv_bias, **self.convolution)
        weights = [one.to(y.dtype) for one in (self.w1, self.b1, self.w2, self.b2)]  # under autocast they differ
        if is_traced(x) or is_small(x, by_image=self.grn is not None):
            return x + self._plain_mlp(y.permute(0, 2, 3, 1), *weights).permute(0, 3, 1, 2)
        y = y.contiguous(memory_format=torch.channels_last)
        images = 1 if self.grn is None else len(x)  # V1's pixels are all alike
        for out, own_x in zip(*(one.permute(0, 2, 3, 1).reshape(images, -1, y.shape[1]) for one in (y, x))):
            self._add_mlp(out, own_x, *weights)
        return y

    def _plain_mlp(self, y, w1, b1, w2, b2):
        y = F.gelu(F.linear(F.layer_norm(y, y.shape[-1:], eps=self.eps), w1, b1))
        if self.grn is not None:
            y = y * response_scale(response_energy(y.flatten(1, 2)), self.grn).to(y.dtype)[:, None, None]
        return F.linear(y, w2, b2)

    def _add_mlp(self, y, x, w1, b1, w2, b2):
        """x + MLP of y, written to y: (T, C). Each run of y has been read by then."""
        pieces, hidden = runs(y), {}
        if self.grn is not None:
            hidden = {run.start: _hidden(y[run], w1, b1, self.eps) for run in pieces}
            energy = response_energy(torch.stack([response_energy(one) for one in hidden.values()]))
            w2 = (w2 * response_scale(energy, self.grn)).to(w2.dtype)
        for run in pieces:  # no name for what is 4C wide: it would live until the next is there
            torch.add(x[run], linear(hidden.pop(run.start) if hidden else _hidden(y[run], w1, b1, self.eps), w2, b2), out=y[run])

    def train(self, mode: bool = True) -> 'FusedBlock':
        if mode:
            raise ConfigError('a fused model cannot be trained: its weights are folded. Train the model that it was made from, '
                              'and fuse that again')
        return super().train(mode)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        if f'{prefix}pwconv1.weight' in state_dict:
            raise ConfigError(f'the weights of {prefix.rstrip(".")} are not folded: load them into the model first, then fuse it')
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class FusedDownsample(nn.Sequential):
    """LayerNorm -> 2x2 convolution of stride 2, in strips of rows: no normalised map is made in between."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != 'cpu' or is_traced(x):
            return super().forward(x)
        out = None
        for rows in strips(x, multiple=2, least=8 * x.shape[1]):  # as much as the weights, which each call reorders
            strip = super().forward(x[:, :, rows])
            if out is None:
                size = (*strip.shape[:2], x.shape[2] // 2, strip.shape[3])
                out = torch.empty(size, dtype=strip.dtype, memory_format=torch.channels_last)
            out[:, :, rows.start // 2:rows.stop // 2] = strip
        return out


def _hidden(x, w1, b1, eps):
    """(T, C) -> (T, 4C)."""
    return linear(F.layer_norm(x, x.shape[1:], eps=eps), w1, b1, 'gelu')
