"""What torch's exporter cannot follow, said otherwise while a model is traced.

Sizes of an image are symbols then. Some operators turn them into numbers, so that the file is right
at the traced size only, and says nothing of it.
"""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import base_data_element
from torch import Tensor

DETR = (  # modules of mmdet that use its ``inverse_sigmoid``
    'mmdet.models.dense_heads.deformable_detr_head',
    'mmdet.models.layers.transformer.deformable_detr_layers',
    'mmdet.models.layers.transformer.dino_layers',
)


@contextmanager
def traceable() -> Iterator[None]:
    """Within this context torch's functions, and a few of mmseg's, take sizes that are symbols.

    With numbers they compute what they do elsewhere.
    """
    replaced = []
    try:
        for owner, name, new in _replacements():
            # of a module: its own name, which may hide a built-in one
            replaced.append((owner, name, vars(owner).get(name)))
            setattr(owner, name, new)
        yield
    finally:
        for owner, name, old in reversed(replaced):
            if old is None:
                delattr(owner, name)
            else:
                setattr(owner, name, old)


def _replacements() -> list[tuple[Any, str, Any]]:
    """Owner, name and what stands there while a model is traced."""
    replacements: list[tuple[Any, str, Any]] = [
        (F, 'adaptive_avg_pool2d', adaptive_average_pool),
        (F, 'adaptive_max_pool2d', adaptive_max_pool),
        (torch, 'linspace', _where_symbolic(torch.linspace, evenly_spaced)),
        (torch, 'as_tensor', _where_symbolic(torch.as_tensor, tensor_of)),
        (torch.Tensor, 'new_tensor', _where_symbolic(torch.Tensor.new_tensor, _new_tensor)),
        (torch, '_shape_as_tensor', lambda x: Sizes(x.shape)),
        (torch, 'cat', _concatenate),
        # metainfo of data elements: a symbol cannot be copied, and need not be
        (base_data_element, 'copy', SimpleNamespace(copy=copy.copy, deepcopy=copy.copy)),
    ]
    wrappers = sys.modules.get('mmseg.models.utils.wrappers')
    if wrappers:  # Upsample and resize make numbers of sizes by int()
        replacements.append((wrappers, 'int', whole))
    return replacements + [
        (sys.modules[name], 'inverse_sigmoid', inverse_sigmoid)
        for name in DETR
        if name in sys.modules
    ]


def _where_symbolic(function, otherwise):
    """``function``, unless an argument has a symbol in it."""

    def choose(*args, **kwargs):
        chosen = otherwise if _is_symbolic((args, *kwargs.values())) else function
        return chosen(*args, **kwargs)

    return choose


def _is_symbolic(value) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_is_symbolic, value))
    return isinstance(value, (torch.SymInt, torch.SymFloat))


def whole(number) -> int | torch.SymInt:
    """``int``."""
    is_symbol = isinstance(number, (torch.SymInt, torch.SymFloat))
    return torch.sym_int(number) if is_symbol else int(number)


def tensor_of(data, dtype: torch.dtype | None = None, device=None, **_) -> Tensor:
    """``torch.tensor`` of numbers in lists."""
    if dtype is None:
        dtype = torch.get_default_dtype() if _has_fraction(data) else torch.int64
    if isinstance(data, (tuple, list)):
        return torch.stack([tensor_of(part, dtype, device) for part in data])
    if isinstance(data, Tensor):
        return data.to(dtype)
    return torch.scalar_tensor(data, dtype=dtype, device=device)


def _has_fraction(data) -> bool:
    if isinstance(data, (tuple, list)):
        return any(map(_has_fraction, data))
    if isinstance(data, Tensor):
        return data.is_floating_point()
    return isinstance(data, (float, torch.SymFloat))


def _new_tensor(self, data, dtype=None, device=None, **_):
    return tensor_of(data, dtype or self.dtype, device or self.device)


class Sizes(list):
    """Numbers in place of a tensor of them: a tensor's sizes, or pairs of height and width.

    Of what is in a tensor torch knows nothing, so no size could be made of it again, as deformable
    attention does. All that is not here is done with the tensor.
    """

    def to(self, *_) -> 'Sizes':
        return self

    def view(self, *shape) -> 'Sizes':
        assert shape == (-1, 2), shape  # how mmdet's levels are put together
        return Sizes(list(pair) for pair in zip(self[::2], self[1::2]))

    def __getitem__(self, key):
        if not isinstance(key, tuple):
            part = super().__getitem__(key)
            return Sizes(part) if isinstance(part, list) else part
        column = [pair[key[1]] for pair in self]
        # [..., i] is computed with, [:, i] is compared with a size
        return tensor_of(column) if key[0] is Ellipsis else np.array(column, object)

    def __getattr__(self, name):
        return getattr(tensor_of(list(self)), name)


_cat = torch.cat


def _concatenate(tensors, *args, **kwargs):
    if any(isinstance(part, Sizes) for part in tensors):
        return Sizes(number for part in tensors for number in part)
    return _cat(tensors, *args, **kwargs)


def evenly_spaced(start, end, steps, *, dtype=None, device=None, **_) -> Tensor:
    """``torch.linspace``."""
    place = torch.arange(steps, device=device).to(dtype or torch.get_default_dtype())
    return start + place * ((end - start) / torch.sym_max(steps - 1, 1))


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """mmdet's, without a limit upon a limit: where a tensor has two of these, the exporter gives
    both the same name, and the file cannot be read."""
    return torch.log(x.clamp(eps, 1.0) / (1 - x).clamp(eps, 1.0))


def adaptive_average_pool(x: Tensor, output_size) -> Tensor:
    """``F.adaptive_avg_pool2d``: (N, C, H, W) -> (N, C, *output_size).

    Two products with matrices, which depend on the size of the map. ONNX has no operator for it,
    and the exporter writes down the windows of the traced size.
    """
    sizes = (output_size,) * 2 if isinstance(output_size, int) else output_size
    if tuple(sizes) == (1, 1):
        return x.mean((2, 3), keepdim=True)
    height, width = x.shape[2:]
    wanted = [length if size is None else size for size, length in zip(sizes, (height, width))]
    rows = pooling_matrix(height, wanted[0]).to(x)
    columns = pooling_matrix(width, wanted[1]).to(x)
    return rows @ x @ columns.T


def pooling_matrix(length, windows) -> Tensor:
    """(windows, length): row i averages the places from floor(i L / W) to ceil((i + 1) L / W)."""
    place = torch.arange(length)
    begin, end = pooling_windows(length, windows)
    inside = ((place >= begin) & (place < end)).float()
    return inside / inside.sum(1, keepdim=True)


def pooling_windows(length, windows) -> tuple[Tensor, Tensor]:
    """Where each window begins, and where it ends: (windows, 1)."""
    window = torch.arange(windows)[:, None]
    return window * length // windows, ((window + 1) * length + windows - 1) // windows


def adaptive_max_pool(x: Tensor, output_size, return_indices: bool = False) -> Tensor:
    """``F.adaptive_max_pool2d``: (N, C, H, W) -> (N, C, *output_size)."""
    assert not return_indices
    for dim, windows in zip((2, 3), output_size):
        length = x.shape[dim]
        begin, end = pooling_windows(length, windows)
        longest = (length + windows - 1) // windows + 1
        # of shorter windows the last place again
        places = torch.minimum(begin + torch.arange(longest), end - 1)
        x = x.movedim(dim, -1)[..., places].amax(-1).movedim(-1, dim)
    return x
