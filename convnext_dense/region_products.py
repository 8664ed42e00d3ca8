"""RoIAlign as products of small matrices, for inference on CPUs. It imports mmcv.

RoIAlign (arXiv 1703.06870) takes means of values that are interpolated bilinearly at points of a
grid. Rows and columns of the grid are independent, so that a region is R x C': x is the part of
the map under it, and the rows of R and C have the weights of its pixels. mmcv's CPU operator visits
each channel of each point one after the other, with one core.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmcv.ops import RoIAlign
from torch import Tensor

from . import fast_path
from .layers import is_watched


def takes_over(layers: Sequence[Any], maps: Sequence[Tensor], boxes: Tensor) -> bool:
    """Whether ``align`` is used: at inference in fp32 on CPUs, for mmcv's RoIAlign that takes
    means."""
    return (
        all(type(layer) is RoIAlign and layer.pool_mode == 'avg' for layer in layers)
        and all(x.device.type == 'cpu' and x.dtype == torch.float32 for x in [*maps, boxes])
        and not any(is_watched(layer) or layer.use_torchvision for layer in layers)
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in [*maps, boxes]))
        and not (fast_path.is_compiling() or torch.jit.is_tracing() or fast_path.is_plain())
    )


def align(layer: Any, x: Tensor, boxes: Tensor) -> Tensor:
    """What ``layer`` gives.

    Args:
        layer: mmcv's ``RoIAlign``.
        x: (N, C, H, W), in any memory format.
        boxes: (K, 5): the number of the image; left, top, right, bottom in its pixels.

    Returns:
        (K, C, P, Q) in channels-last memory.
    """
    pixels = x.permute(0, 2, 3, 1).contiguous()  # (N, H, W, C)
    height, width = layer.output_size
    edges = boxes[:, 1:] * layer.spatial_scale - (0.5 if layer.aligned else 0.0)
    left, top, right, bottom = edges.unbind(1)
    samples = layer.sampling_ratio
    rows = _weights(top, bottom, height, x.shape[2], samples, layer.aligned)
    columns = _weights(left, right, width, x.shape[3], samples, layer.aligned)
    out = x.new_empty(len(boxes), height, width, x.shape[1])
    numbers = boxes[:, 0].long().tolist()
    with _one_thread():
        for k, (number, (row, down), (column, across)) in enumerate(zip(numbers, rows, columns)):
            part = pixels[number, row : row + down.shape[1], column : column + across.shape[1]]
            lines = torch.mm(down, part.flatten(1)).view(height, -1, x.shape[1])
            torch.matmul(across, lines, out=out[k])
    return out.permute(0, 3, 1, 2)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Each product is too small to share. Threads that wait for each other at every one take
    a hundred times as long where other processes use the cores."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def _weights(
    begin: Tensor, end: Tensor, count: int, length: int, samples: int, is_aligned: bool
) -> list[tuple[int, Tensor]]:
    """Of each region: the first pixel that it needs along an axis, and the weights of that and the
    next ones in each of the ``count`` cells, (count, pixels).

    Args:
        begin, end: (K,), in pixels of the map.
        length: of the map.
        samples: in a cell; 0: one for each pixel that a cell has, rounded up.
    """
    size = end - begin
    if not is_aligned:
        size = size.clamp(min=1)
    cell = size / count
    number = torch.full_like(cell, samples) if samples > 0 else cell.ceil().clamp(min=0)
    most = max(1, int(number.max())) if len(number) else 1
    # (K, count, most): places of the samples, those behind the last one left out
    index = torch.arange(most, dtype=cell.dtype)
    step = cell / number.clamp(min=1)
    place = begin[:, None, None] + torch.arange(count)[:, None] * cell[:, None, None]
    place = place + (index + 0.5) * step[:, None, None]
    is_there = (index < number[:, None, None]) & (place >= -1) & (place <= length)
    place = place.clamp(0, length - 1)
    low = place.floor().clamp(max=max(length - 2, 0))
    share = (place - low).clamp(max=1)
    weight = is_there / number.clamp(min=1)[:, None, None]
    low = low.long()
    first = torch.where(is_there, low, length).flatten(1).amin(1).clamp(max=length - 1)
    last = torch.where(is_there, low, -1).flatten(1).amax(1)
    # One pixel more than the last: there the right one of a pair is.
    extent = (last + 2 - first).clamp(1, length)
    widest = int(extent.max()) if len(extent) else 1
    offset = (low - first[:, None, None]).clamp(0, widest - 1)
    matrix = begin.new_zeros(len(begin), count, widest)
    matrix.scatter_add_(2, offset, weight * (1 - share))
    matrix.scatter_add_(2, (offset + 1).clamp(max=widest - 1), weight * share)
    pairs = zip(first.tolist(), extent.tolist(), matrix)
    return [
        (start, part[:, : min(pixels, length - start)].contiguous())
        for start, pixels, part in pairs
    ]
