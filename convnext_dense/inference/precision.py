"""Inference in bfloat16, where that is faster."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError

IN_FP32 = 'BaseRoIExtractor', 'MultiScaleDeformableAttention'  # have operators without bfloat16


def to_bf16(model: nn.Module, device: str) -> None:
    """Let a detector or segmentor of mmdet or mmseg predict under bfloat16 autocast, in place.

    Convolutions and matrix products are in bfloat16. What heads emit is fp32 again: coordinates of
    1000 pixels are rounded to multiples of 4 in bfloat16, and logits tie. RoIAlign and deformable
    attention are in fp32, as they have no other operators. Weights stay as they are.

    Fuse and rearrange the model before: both leave alone what has another ``forward``.

    Args:
        device: on which it predicts; its rates are measured.

    Raises:
        ConfigError: products in bfloat16 are slower there than in fp32.
    """
    check_rates(device)
    whole: Any = model
    while isinstance(getattr(whole, 'module', None), nn.Module):  # of DDP or augmentation
        whole = whole.module
    _replace(whole, lambda forward: torch.autocast(device, torch.bfloat16)(forward))
    for name, module in whole.named_modules():
        if name.rpartition('.')[2].endswith('_head') and not hasattr(module, 'bbox_head'):
            for head in module if isinstance(module, nn.ModuleList) else [module]:
                _replace(head, _in_full)
        elif any(base.__name__ in IN_FP32 for base in type(module).__mro__):
            _replace(module, _of_full)


def check_rates(device: str) -> None:
    """
    Raises:
        ConfigError: products in bfloat16 are slower there than in fp32.
    """
    full, half = (product_rate(dtype, device) for dtype in (torch.float32, torch.bfloat16))
    if half < full:
        raise ConfigError(
            f'bf16 would be slower here: products run at {half / 1e9:.0f} GFLOP/s in it, and at '
            f'{full / 1e9:.0f} in fp32'
        )


def product_rate(dtype: torch.dtype, device: str, side: int = 2048) -> float:
    """FLOP/s of a large matrix product, the best of eleven: what the machine can do at most."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(11):
        start = time.perf_counter()
        a @ b
        if device == 'cuda':
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def _replace(module: Any, change: Callable) -> None:
    module.forward = change(module.forward)


def _in_full(forward: Callable) -> Callable:
    """``forward``, whose results are fp32."""

    def call(*args, **kwargs):
        return _cast(forward(*args, **kwargs))

    return call


def _of_full(forward: Callable) -> Callable:
    """``forward`` of fp32."""

    def call(*args, **kwargs):
        with torch.autocast('cpu', enabled=False), torch.autocast('cuda', enabled=False):
            return forward(*map(_cast, args), **{key: _cast(kwargs[key]) for key in kwargs})

    return call


def _cast(value: Any) -> Any:
    """The tensors in lists, tuples and dicts, in fp32 if they are in bfloat16."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_cast, value))
    if isinstance(value, dict):
        return {key: _cast(part) for key, part in value.items()}
    if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16:
        return value.float()
    return value
