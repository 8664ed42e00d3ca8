"""The fast path: inference on CPUs, in runs of pixels that stay in the cache.

LayerNorm, both linear layers and GELU work on each pixel alone. So a few thousand pixels at a time
give the same map, and what is 4C wide is never allocated for a whole map. GRN needs statistics of
the whole map: V2 goes image by image and keeps the 4C-wide map of one image.

``takes_over`` alone decides between this file and the plain operators of layers.py. Private
functions of torch are used in this file only, each with a check and the public way beside it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from .layers import (
    BLOCK,
    Block,
    GlobalResponseNorm,
    altered_layer,
    is_watched,
    response_energy,
    response_scale,
)

RUN_BYTES = 8 << 20  # of what is 4C wide of a run: the cache of a core holds it a few times over
SMALLEST_RUN = 1000  # pixels; fewer make slow products
MOST_RUNS = 16  # of a map: beyond so many no memory is saved
STRIP = 4096  # pixels of a strip of rows
FEW_VALUES = 1 << 17  # in a smaller map the loop over runs takes longer than it saves

_switched_off = ContextVar('convnext_dense.plain_operators', default=False)


@contextmanager
def plain_operators() -> Iterator[None]:
    """Within this context everything runs in the plain operators of layers.py."""
    token = _switched_off.set(True)
    try:
        yield
    finally:
        _switched_off.reset(token)


# ---- when it takes over ----


def takes_over(x: Tensor, module: nn.Module, layers: Mapping | None = None) -> bool:
    """Whether ``module`` (a stage, a block or an output norm) runs in this file for ``x``.

    It does where all of this holds:

    - eager mode: no compiler, tracer, FLOP counter, torch.func transform or forward-mode AD;
    - inference: the module is in eval mode, and no gradient is recorded;
    - ``x`` is an ordinary tensor on a CPU, and not so small that the plain operators are faster;
    - the module has no hooks and is not compiled, and neither are its children, which are of the
      types that ``layers`` names (name -> types; None: each child decides for itself);
    - ``plain_operators`` is not active.
    """
    return (
        not (_is_compiling() or torch.jit.is_tracing() or _is_observed() or _switched_off.get())
        and type(x) is Tensor
        and x.device.type == 'cpu'
        and not _is_small(x, module)
        and not module.training
        and not (torch.is_grad_enabled() and _has_gradient(x, module))
        and not is_watched(module)
        and (layers is None or altered_layer(module, layers) is None)
    )


def _is_small(x, module):
    # GRN works image by image, and sweeps twice over each.
    has_grn = isinstance(getattr(module, 'grn', None), GlobalResponseNorm)
    return x.numel() < FEW_VALUES * (2 * len(x) if has_grn else 1)


def _has_gradient(x, module):
    return x.requires_grad or any(parameter.requires_grad for parameter in module.parameters())


# torch 2.1 has only the private function.
_is_compiling = getattr(torch.compiler, 'is_compiling', None) or getattr(
    torch._utils, 'is_compiling', lambda: True
)
# Private: dispatch modes (FLOP counters, fake tensors) and torch.func's transforms.
_OBSERVERS = [
    getattr(module, name, None)
    for module, name in (
        (torch._C, '_len_torch_dispatch_stack'),
        (getattr(torch._C, '_functorch', None), 'peek_interpreter_stack'),
    )
]
# Private: of hooks on all modules.
_GLOBAL_HOOKS = '_global_forward_hooks', '_global_forward_pre_hooks'


def _is_observed() -> bool:
    """Whether something has to see every operator; where torch cannot tell, it has."""
    return (
        any(is_active is None or is_active() for is_active in _OBSERVERS)
        or any(getattr(nn.modules.module, name, True) for name in _GLOBAL_HOOKS)
        or getattr(forward_ad, '_current_level', 0) >= 0
    )


# ---- what it does ----


def steps(stage: nn.Sequential, x: Tensor) -> Sequence[Callable[[Tensor], Tensor]]:
    """A stage as functions to call in turn, the first with ``x``.

    On the fast path these are its blocks: a call of the stage would hold ``x`` to its end.
    """
    if type(stage) is not nn.Sequential or not takes_over(x, stage):
        return [stage]
    return [partial(_run, block) for block in stage]


def _run(block, x):
    is_ours = isinstance(block, Block) and type(block).forward is Block.forward
    return _block(block, x) if is_ours and takes_over(x, block, BLOCK) else block(x)


def _block(block: Block, x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, H, W), in channels-last memory."""
    y = block.dwconv(x).contiguous(memory_format=torch.channels_last)
    norm, grn, layer_scale = block.norm, block.grn, block.gamma
    # Autocast has cast the convolution, and would cast the linear layers to the same type.
    w1, b1, w2, b2 = (
        parameter.to(y.dtype)
        for layer in (block.pwconv1, block.pwconv2)
        for parameter in (layer.weight, layer.bias)
    )
    affine = [None if value is None else value.to(y.dtype) for value in (norm.weight, norm.bias)]
    has_grn = isinstance(grn, GlobalResponseNorm)
    dtype = torch.promote_types(x.dtype, y.dtype if layer_scale is None else layer_scale.dtype)
    out = y if y.dtype == dtype else torch.empty_like(y, dtype=dtype)
    images = len(x) if has_grn else 1
    for x, y, rows in zip(*(_tokens(part, images) for part in (x, y, out))):
        pieces = runs(y)

        def hidden(run):
            normed = F.layer_norm(y[run], norm.normalized_shape, *affine, norm.eps)
            return F.gelu(F.linear(normed, w1, b1))

        second = w2, b2
        if has_grn:
            kept = deque(map(hidden, pieces))
            energy = response_energy(torch.stack([response_energy(part) for part in kept]))
            scaled = (w2 * response_scale(energy, grn.gamma)).to(w2.dtype)
            second = scaled, torch.addmv(b2, w2, grn.beta.to(w2.dtype))
        for run in pieces:
            # Not named: it is 4C wide, and a name would hold it until the next run's is there.
            branch = F.linear(kept.popleft() if has_grn else hidden(run), *second)
            if layer_scale is not None:
                branch = branch * layer_scale
            # Each run of y has been read by now, so that its memory can take the sum.
            torch.add(x[run], branch, out=rows[run])
    return out


def _tokens(x, images):
    """(N, C, H, W) -> (images, T, C): all pixels of an image, or with ``images`` of 1 of all."""
    return x.permute(0, 2, 3, 1).reshape(images, -1, x.shape[1])


def runs(x: Tensor) -> list[slice]:
    """Of alike length, for pixels (T, C) and what is 4C wide of them."""
    length = RUN_BYTES // (4 * x.shape[1] * x.element_size())
    length = max(1, SMALLEST_RUN, min(length, len(x) // MOST_RUNS))
    length = max(1, -(-len(x) // max(1, -(-len(x) // length))))  # the last as long as the others
    return [slice(start, start + length) for start in range(0, len(x), length)]


def emit(norm: nn.Module, x: Tensor) -> Tensor:
    """norm(x) in NCHW memory: (N, C, H, W) -> (N, C, H, W).

    Turned in strips of rows: a map that is not in the cache takes four times as long.
    """
    if not takes_over(x, norm, {}):
        return norm(x).contiguous()
    out = None
    for rows in strips(x):
        strip = norm(x[:, :, rows])
        out = strip.new_empty(x.shape) if out is None else out
        out[:, :, rows] = strip
    return out


def strips(x: Tensor) -> list[slice]:
    """Rows of a map (N, C, H, W), some ``STRIP`` pixels each."""
    rows = max(1, STRIP // max(1, len(x) * x.shape[3]))
    return [slice(start, start + rows) for start in range(0, x.shape[2], rows)]
