"""ConvNeXt's block in plain operators: the reference for everything else.

Training runs this code, and so does all that happens on GPUs, in compilers and exporters, under
FLOP counters, with forward hooks or in torch.func. Only for inference on CPUs may backbone.py take
fast_path.py in its place, which computes the same.

Maps are (N, C, H, W) in channels-last memory, so that (N, H, W, C) is contiguous and costs no copy.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .errors import ConfigError


class Block(nn.Module):
    """x + drop path(MLP(depthwise 7x7(x))), where the MLP works on each pixel's C channels:
    LayerNorm -> linear to 4C -> GELU [-> GRN] -> linear to C [-> layer scale].

    Figure 4 of arXiv 2201.03545 (V1, with layer scale) and figure 5 of arXiv 2301.00808 (V2, with
    GRN). Parameter names are the official ones.

    Args:
        dim: channels in and out, C.
        drop_path_rate: the probability that a sample skips this block in training.
        layer_scale_init_value: initial value of V1's layer scale, ``gamma``.
        dilation: dilation of the depthwise convolution.
        recompute: the activations that the backward pass computes again instead of keeping them:
            ``'none'``, ``'mlp'`` (all after the convolution) or ``'block'`` (all). It is the
            backbone's argument ``checkpointing``.
        generation: 1 or 2.
        eps: eps of the LayerNorm.

    Raises:
        ConfigError: torch.func's grad, vjp or hessian is used with another ``recompute`` than
            ``'none'``.
    """

    def __init__(
        self,
        dim: int,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1.0,
        dilation: int = 1,
        recompute: str = 'none',
        generation: int = 1,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3 * dilation, dilation=dilation, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.grn = GlobalResponseNorm(4 * dim) if generation == 2 else nn.Identity()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = (
            nn.Parameter(torch.full((dim,), float(layer_scale_init_value)))
            if generation == 1
            else None
        )
        self.drop_path_rate = drop_path_rate
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        branch = self._maybe_recomputed('block', self._branch, x)
        # Outside of what is recomputed, so that no random state has to be kept for it.
        if self.training and self.drop_path_rate:
            branch = drop_path(branch, self.drop_path_rate)
        return x + branch

    def _branch(self, x: Tensor) -> Tensor:
        x = self.dwconv(x).permute(0, 2, 3, 1)
        x = self._maybe_recomputed('mlp', self._mlp, x)
        return x.permute(0, 3, 1, 2)

    def _mlp(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        x = self.pwconv2(self.grn(self.act(self.pwconv1(self.norm(x)))))
        return x if self.gamma is None else self.gamma * x

    def _maybe_recomputed(self, part: str, function: Callable, x: Tensor) -> Tensor:
        if self.recompute != part or not (self.training and torch.is_grad_enabled()):
            return function(x)
        # The block's own layers draw no random numbers. A layer put in their place, such as a
        # Dropout, may: it has to draw the same ones again.
        may_draw = altered_layer(self, LAYER_TYPES) is not None
        try:
            # DDP with find_unused_parameters=False works with the non-reentrant kind only.
            return checkpoint(function, x, use_reentrant=False, preserve_rng_state=may_draw)
        except RuntimeError as error:
            if 'saved tensor hooks' not in str(error):
                raise
            raise ConfigError(
                f'torch.func cannot differentiate checkpointing={part!r}: it does not support '
                "torch.utils.checkpoint. Use checkpointing='none'"
            ) from error


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each pixel: (N, C, H, W) -> (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GlobalResponseNorm(nn.Module):
    """GRN over a map (N, H, W, C), per image: section 3.3 and algorithm 1 of arXiv 2301.00808.

    ``gamma`` and ``beta`` are (C,), not (1, 1, 1, C) as in the official code. Weight decay leaves
    1-D parameters out, and so these, as it does those of other norms.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = response_scale(response_energy(x.flatten(1, 2)), self.gamma).to(x.dtype)
        return torch.addcmul(self.beta.to(x.dtype), x, scale[:, None, None])


def response_energy(x: Tensor) -> Tensor:
    """GRN's statistic of each channel: its L2 norm over the T pixels, (..., T, C) -> (..., C).

    In fp32 or better: the squares of a large map overflow half precision long before the map does.
    """
    # torch.promote_types(x.dtype, torch.float32) is shorter, but torch 2.1 cannot compile it.
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.linalg.vector_norm(x, dim=-2, dtype=dtype)


def response_scale(energy: Tensor, gamma: Tensor) -> Tensor:
    """The factor of each channel in GRN: (..., C) -> (..., C).

    The 1 is GRN's own skip connection, x + gamma * x * ... (section 3.3 of arXiv 2301.00808).
    """
    return 1 + gamma * (energy / (energy.mean(-1, keepdim=True) + 1e-6))


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Stochastic depth (arXiv 1603.09382) of (N, ...): whole samples are dropped, and the others
    scaled by 1 / (1 - rate).
    """
    keep = 1 - rate
    mask = x.new_empty((len(x),) + (1,) * (x.dim() - 1)).bernoulli_(keep)
    return x * mask.div_(keep)


LAYER_TYPES = {  # of a block, as it is built
    'dwconv': (nn.Conv2d,),
    'norm': (nn.LayerNorm,),
    'pwconv1': (nn.Linear,),
    'act': (nn.GELU,),
    'grn': (nn.Identity, GlobalResponseNorm),
    'pwconv2': (nn.Linear,),
}


def altered_layer(module: nn.Module, layers: Mapping[str, tuple[type, ...]]) -> str | None:
    """Name of the first child that is not of the types in ``layers``, or that has hooks; or None.

    Such a child may compute anything: its weights cannot be folded, and the fast path, which reads
    nothing but weights, cannot run it.
    """
    return next(
        (
            name
            for name, layer in module.named_children()
            if type(layer) not in layers.get(name, ()) or is_watched(layer)
        ),
        None,
    )


def is_watched(module: nn.Module) -> bool:
    """Whether a call is more than the ``forward`` of its class.

    It is with hooks, with a ``forward`` that was put in place of it, and if it is compiled.
    """
    hooks = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
    return (
        'forward' in vars(module)
        or any(getattr(module, name) for name in hooks)
        or getattr(module, '_compiled_call_impl', None) is not None
    )
