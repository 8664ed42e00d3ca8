"""The parts of a ConvNeXt block. Maps are (N, C, H, W) in channels-last memory, so that every permute is a view."""
from contextlib import nullcontext
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from .depthwise import depthwise
from .mlp import Parameters, is_small, is_traced, mlp, response_energy, response_scale, strips


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each pixel: (N, C, H, W) -> (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def emit(norm: nn.Module, x: Tensor) -> Tensor:
    """norm(x) in NCHW memory. Turned in strips of rows: a map that is not in the cache takes four times as long."""
    if x.device.type != 'cpu' or is_traced(x) or is_watched(norm):
        return norm(x).contiguous()
    if torch.is_grad_enabled():
        return _Turn.apply(norm(x), torch.contiguous_format)
    out = None
    for rows in strips(x):
        strip = norm(x[:, :, rows])
        out = strip.new_empty(x.shape) if out is None else out
        out[:, :, rows] = strip
    return out


class _Turn(torch.autograd.Function):
    """Into another memory format, and back."""

    @staticmethod
    def forward(ctx, x, memory_format):
        out = torch.empty_like(x, memory_format=memory_format)
        for rows in strips(x):
            out[:, :, rows] = x[:, :, rows]
        return out

    @staticmethod
    def backward(ctx, grad):
        return _Turn.apply(grad, torch.channels_last), None


def is_watched(module: nn.Module) -> bool:
    """Whether hooks, or a forward put in place of its own, expect to see what goes in and out."""
    return 'forward' in vars(module) or any(
        getattr(module, f'_{kind}_hooks') for kind in ('forward', 'forward_pre', 'backward', 'backward_pre'))


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Stochastic depth (arXiv 1603.09382): drop whole samples of (N, ...) and scale the rest by 1 / (1 - rate)."""
    keep = 1 - rate
    mask = x.new_empty((len(x),) + (1,) * (x.dim() - 1)).bernoulli_(keep)
    return x * mask.div_(keep)


class GlobalResponseNorm(nn.Module):
    """GRN over a map (N, H, W, C), per image: section 3.3 and algorithm 1 of arXiv 2301.00808.

    The statistics are those of the whole map and are taken in fp32 or better: the squares of a large map overflow
    half precision long before the map itself does. ``gamma`` and ``beta`` are (C,), not the official (1, 1, 1, C), so
    that they are exempt from weight decay as norms are.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = response_scale(response_energy(x.flatten(1, 2)), self.gamma).to(x.dtype)
        return torch.addcmul(self.beta.to(x.dtype), x, scale[:, None, None])


class Block(nn.Module):
    """Depthwise 7x7 -> LayerNorm -> 4C linear -> GELU [-> GRN] -> C linear [-> layer scale] -> drop path -> + input.

    Figure 4 of arXiv 2201.03545 (V1, with layer scale) and figure 5 of arXiv 2301.00808 (V2, with GRN). Parameter
    names are the official ones.

    Args:
        dim: channels in and out.
        drop_path_rate: of this block.
        layer_scale_init_value: initial value of V1's ``gamma``.
        dilation: of the depthwise convolution.
        recompute: which part's activations are recomputed in backward instead of kept: none, mlp or block.
        generation: 1 or 2.
        eps: of the LayerNorm.
    """

    def __init__(self, dim: int, drop_path_rate: float = 0., layer_scale_init_value: float = 1.,
                 dilation: int = 1, recompute: str = 'none', generation: int = 1, eps: float = 1e-6):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3 * dilation, dilation=dilation, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.grn = GlobalResponseNorm(4 * dim) if generation == 2 else nn.Identity()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), float(layer_scale_init_value))) if generation == 1 else None
        self.drop_path_rate = drop_path_rate
        self.recompute = recompute

    def mlp_parameters(self) -> Parameters:
        first, second, v2 = self.pwconv1, self.pwconv2, self.gamma is None
        return Parameters(self.norm.weight, self.norm.bias, first.weight, first.bias, second.weight, second.bias, self.gamma,
                          self.grn.gamma if v2 else None, self.grn.beta if v2 else None)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        # V2's runs go image by image, which a GPU would wait for.
        v2 = self.gamma is None
        in_runs = not (is_traced(x) or v2 and x.device.type != 'cpu' or is_small(x, by_image=v2) or self.odd_layer())
        branch = self._branch(x) if in_runs else self._maybe_recomputed('block', self._plain_branch, x)
        # Outside of what is recomputed, so that no random state has to be kept for it.
        if self.training and self.drop_path_rate:
            branch = drop_path(branch, self.drop_path_rate)
        return x + branch

    def _branch(self, x):
        y = depthwise(x, self.dwconv).permute(0, 2, 3, 1)
        place, dtype = y.data_ptr(), y.dtype

        def pack(saved):  # the map between the convolution and the MLP is not kept
            shape = saved.shape
            return saved if saved.data_ptr() != place else lambda: self._convolved(x, dtype).reshape(shape)

        def unpack(saved):
            return saved() if callable(saved) else saved
        with saved_tensors_hooks(pack, unpack) if self.recompute == 'block' else nullcontext():
            y = mlp(y, self.mlp_parameters(), self.norm.eps, keep_hidden=self.recompute == 'none')
        return y.permute(0, 3, 1, 2)

    def _convolved(self, x, dtype):
        """What the depthwise convolution made, (N, H, W, C), again in the precision that it was in."""
        conv = self.dwconv
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            y = F.conv2d(x.to(dtype), conv.weight.to(dtype), conv.bias.to(dtype), conv.stride, conv.padding, conv.dilation, conv.groups)
        return y.permute(0, 2, 3, 1)

    def odd_layer(self) -> Optional[str]:
        """Name of a layer that has been replaced or has hooks, so that its weights do not say what it does."""
        expected = dict(dwconv=nn.Conv2d, norm=nn.LayerNorm, pwconv1=nn.Linear, pwconv2=nn.Linear,
                        grn=nn.Identity if self.gamma is not None else GlobalResponseNorm)
        return next((name for name, layer in self.named_children() if type(layer) is not expected[name] or is_watched(layer)), None)

    def _plain_branch(self, x):
        x = self.dwconv(x).permute(0, 2, 3, 1)
        x = self._maybe_recomputed('mlp', self._plain_mlp, x)
        return x.permute(0, 3, 1, 2)

    def _plain_mlp(self, x):
        x = self.pwconv2(self.grn(F.gelu(self.pwconv1(self.norm(x)))))
        return x if self.gamma is None else self.gamma * x

    def _maybe_recomputed(self, part, function, x):
        if self.recompute == part and self.training and torch.is_grad_enabled():
            # Non-reentrant: works under DDP with find_unused_parameters=False.
            return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)
        return function(x)
