"""The parts of a ConvNeXt block. Maps are (N, C, H, W) in channels-last memory, so that every permute is a view."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each pixel: (N, C, H, W) -> (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


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
        precise = torch.promote_types(x.dtype, torch.float32)
        energy = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=precise)
        response = energy / (energy.mean(-1, keepdim=True) + 1e-6)
        # x + gamma * (x * response) + beta
        return torch.addcmul(self.beta.to(x.dtype), x, (1 + self.gamma * response).to(x.dtype))


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

    def mlp(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        x = self.pwconv2(self.grn(F.gelu(self.pwconv1(self.norm(x)))))
        return x if self.gamma is None else self.gamma * x

    def residual(self, x: Tensor) -> Tensor:
        x = self.dwconv(x).permute(0, 2, 3, 1)
        x = self._maybe_recomputed('mlp', self.mlp, x)
        return x.permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        branch = self._maybe_recomputed('block', self.residual, x)
        # Outside of what is recomputed, so that no random state has to be kept for it.
        if self.training and self.drop_path_rate:
            branch = drop_path(branch, self.drop_path_rate)
        return x + branch

    def _maybe_recomputed(self, part, function, x):
        if self.recompute == part and self.training and torch.is_grad_enabled():
            # Non-reentrant: works under DDP with find_unused_parameters=False.
            return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)
        return function(x)
