"""The fast path: inference on CPUs, in chunks of pixels that stay in the cache.

LayerNorm, both linear layers and GELU work on each pixel alone. So a few thousand pixels at a time
give the same map, and the hidden activations (4C channels) of a whole map are never allocated.
GRN needs statistics of the whole map: V2 goes image by image and keeps the hidden activations of
one image.

``takes_over`` alone decides between this file and the plain operators of layers.py. Private
functions of torch are used in this file only, each with a check and the public way beside it.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from .layers import (
    LAYER_TYPES,
    Block,
    GlobalResponseNorm,
    altered_layer,
    is_watched,
    response_energy,
    response_scale,
)

CHUNK_BYTES = 8 << 20  # of a chunk's hidden activations: at most what a core's cache holds
SMALLEST_CHUNK = 1000  # pixels; the matrix products of fewer are slow
MOST_CHUNKS = 16  # of a map; more would save no more memory
STRIP = 4096  # pixels in a strip of rows
FEW_VALUES = 1 << 17  # in a smaller map the loop over chunks costs more time than it saves

_switched_off = ContextVar('convnext_dense.plain_operators', default=False)


@contextmanager
def plain_operators() -> Iterator[None]:
    """Within this context everything runs in the plain operators of layers.py."""
    token = _switched_off.set(True)
    try:
        yield
    finally:
        _switched_off.reset(token)


def is_plain() -> bool:
    """Whether ``plain_operators`` is active. Compilers cannot ask: they have to be asked first."""
    return _switched_off.get()


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
        not is_compiling()  # a compiler cannot answer the rest
        and x.device.type == 'cpu'  # early: a GPU waits for Python
        and not (torch.jit.is_tracing() or _is_observed() or is_plain())
        and type(x) is Tensor
        and not _is_small(x, module)
        and not module.training
        and not (torch.is_grad_enabled() and _has_gradient(x, module))
        and not is_watched(module)
        and (layers is None or altered_layer(module, layers) is None)
    )


def _is_small(x: Tensor, module: nn.Module) -> bool:
    # GRN works image by image, and sweeps twice over each.
    has_grn = isinstance(getattr(module, 'grn', None), GlobalResponseNorm)
    return x.numel() < FEW_VALUES * (2 * len(x) if has_grn else 1) or not len(x)


def _has_gradient(x: Tensor, module: nn.Module) -> bool:
    return x.requires_grad or any(parameter.requires_grad for parameter in module.parameters())


# torch 2.1 has only the private function.
is_compiling: Callable[[], bool] = getattr(
    torch.compiler, 'is_compiling', getattr(torch._utils, 'is_compiling', lambda: True)
)
# Private: dispatch modes (FLOP counters, fake tensors) and torch.func's transforms.
_OBSERVERS: list[Callable[[], object]] = [
    getattr(torch._C, '_len_torch_dispatch_stack', lambda: True),
    getattr(getattr(torch._C, '_functorch', None), 'peek_interpreter_stack', lambda: True),
]
# Private: of hooks on all modules.
_GLOBAL_HOOKS = '_global_forward_hooks', '_global_forward_pre_hooks'


def _is_observed() -> bool:
    """Whether something has to see every operator; where torch cannot tell, it has."""
    return (
        any(is_active() for is_active in _OBSERVERS)
        or any(getattr(nn.modules.module, name, True) for name in _GLOBAL_HOOKS)
        or getattr(forward_ad, '_current_level', 0) >= 0
    )


# ---- what it does ----


def steps(stage: nn.Module, x: Tensor) -> Iterable[Callable[[Tensor], Tensor]]:
    """A stage as functions to call in turn, the first with ``x``.

    On the fast path these are its blocks: a call of the whole stage would hold its input in memory
    to the end.
    """
    if type(stage) is not nn.Sequential or not takes_over(x, stage):
        return [stage]
    return [partial(_step, block) for block in stage]


def _step(block: nn.Module, x: Tensor) -> Tensor:
    has_our_forward = isinstance(block, Block) and type(block).forward is Block.forward
    return _block(block, x) if has_our_forward and takes_over(x, block, LAYER_TYPES) else block(x)


def _block(block, x: Tensor) -> Tensor:
    """``Block.forward``: (N, C, H, W) -> (N, C, H, W), in channels-last memory."""
    y = block.dwconv(x).contiguous(memory_format=torch.channels_last)
    norm, layer_scale = block.norm, block.gamma
    grn = block.grn if isinstance(block.grn, GlobalResponseNorm) else None
    # Autocast has cast the convolution, and would cast the linear layers to the same type.
    linears = block.pwconv1, block.pwconv2
    w1, b1, w2, b2 = (p.to(y.dtype) for layer in linears for p in (layer.weight, layer.bias))
    affine = [None if p is None else p.to(y.dtype) for p in (norm.weight, norm.bias)]

    def hidden(pixels: Tensor) -> Tensor:
        """(T, C) -> (T, 4C)."""
        normed = F.layer_norm(pixels, norm.normalized_shape, affine[0], affine[1], norm.eps)
        return _linear(normed, w1, b1, 'gelu')

    dtype = torch.promote_types(x.dtype, y.dtype if layer_scale is None else layer_scale.dtype)
    out = y if y.dtype == dtype else torch.empty_like(y, dtype=dtype)
    parts = 1 if grn is None else len(x)
    for inputs, pixels, sums in zip(*(_pixels(tensor, parts) for tensor in (x, y, out))):
        kept, second, pieces = None, (w2, b2), chunks(pixels)
        if grn is not None:
            kept = deque(hidden(pixels[piece]) for piece in pieces)
            energy = response_energy(torch.stack([response_energy(part) for part in kept]))
            scaled = (w2 * response_scale(energy, grn.gamma)).to(w2.dtype)
            second = scaled, torch.addmv(b2, w2, grn.beta.to(w2.dtype))
        for piece in pieces:
            # No name for the hidden activations: it would hold them until the next are there.
            branch = _linear(kept.popleft() if kept else hidden(pixels[piece]), *second)
            if layer_scale is not None:
                branch = branch * layer_scale
            # This piece of y is not needed any more, so that its memory can take the sum.
            torch.add(inputs[piece], branch, out=sums[piece])
    return out


# oneDNN's product in fp32 is faster than torch's where the CPU has AVX-512, and slower where not.
_HAS_AVX512 = torch.backends.cpu.get_cpu_capability().startswith('AVX512')


def _linear(x: Tensor, weight: Tensor, bias: Tensor, activation: str = 'none') -> Tensor:
    """The linear layer, then GELU where ``activation`` says so: (T, C_in) -> (T, C_out)."""
    # Private.
    onednn = getattr(torch.ops.mkldnn, '_linear_pointwise', None)
    if _HAS_AVX512 and onednn and x.dtype == torch.float32 and torch.backends.mkldnn.enabled:
        return onednn(x, weight, bias, activation, [], 'none')
    x = F.linear(x, weight, bias)
    return F.gelu(x) if activation == 'gelu' else x


def _pixels(x: Tensor, parts: int) -> Tensor:
    """(N, C, H, W) -> (parts, T, C): all pixels in one part, or each image's in a part."""
    return x.permute(0, 2, 3, 1).reshape(parts, -1, x.shape[1])


def chunks(pixels: Tensor) -> list[slice]:
    """Slices of pixels (T, C), all about as long, within the bounds at the top of this file."""
    fit = CHUNK_BYTES // (4 * pixels.shape[1] * pixels.element_size())
    longest = max(1, SMALLEST_CHUNK, min(fit, len(pixels) // MOST_CHUNKS))
    count = max(1, math.ceil(len(pixels) / longest))
    length = max(1, math.ceil(len(pixels) / count))
    return [slice(start, start + length) for start in range(0, len(pixels), length)]


def emit(norm: nn.Module, x: Tensor, is_channels_last: bool = False) -> Tensor:
    """norm(x) in NCHW memory, or as it is: (N, C, H, W) -> (N, C, H, W).

    The copy is done in strips of rows: of a map that is not in the cache it takes four times as
    long.
    """
    if is_channels_last:
        return norm(x)
    if not takes_over(x, norm, {}):
        return norm(x).contiguous()
    first, *others = strips(x)
    strip = norm(x[:, :, first])
    out = strip.new_empty(x.shape)
    out[:, :, first] = strip
    for rows in others:
        out[:, :, rows] = norm(x[:, :, rows])
    return out


def strips(x: Tensor) -> list[slice]:
    """Rows of a map (N, C, H, W), some ``STRIP`` pixels each."""
    rows = max(1, STRIP // max(1, len(x) * x.shape[3]))
    return [slice(start, start + rows) for start in range(0, x.shape[2], rows)]
