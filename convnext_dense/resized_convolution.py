"""A convolution over maps that are upsampled first, computed before they are.

Bilinear upsampling treats each channel alone, and a convolution mixes channels at each pixel alone.
So the two commute: conv(up(x)) is the sum over the kernel's taps t of shift_t(up(W_t x)), where
W_t x has as few pixels as x. A 3x3 convolution over a map upsampled to twice its size so takes a
quarter of its multiply-adds, and the upsampled map is never made. Both are exact, but for the order
in which sums are rounded.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from . import fast_path
from .layers import is_watched

# Rows and columns of the output that are computed at a time. On CPUs what is between has to stay in
# the cache, and interpolation, a product with matrices that are mostly zeros, costs less in small
# tiles. Elsewhere a launch costs more than that.
CPU_TILE, TILE = (32, 64), (128, 128)
# Multiply-adds that a map has to save on a GPU, which computes about as many while the operators of
# the rearranged form, thirty for a map, are launched.
LEAST_SAVED = 2e10

# Memory format of a map -> of its tiles, whose rows come first, the axis of the columns; the
# permutation of a map into that order, and back.
TILES = {
    torch.contiguous_format: (3, (0, 2, 1, 3), (0, 2, 1, 3)),
    torch.channels_last: (2, (0, 2, 3, 1), (0, 3, 1, 2)),
}

# Old versions cannot tell exporting from compiling.
_is_exporting = getattr(torch.compiler, 'is_exporting', fast_path.is_compiling)


def is_plain() -> bool:
    """Whether to compute in mmseg's order: in exports, whose sizes may vary, and if asked to."""
    if _is_exporting() or torch.jit.is_tracing():
        return True
    return not fast_path.is_compiling() and fast_path.is_plain()


def convolve_resized(
    module: Any, maps: Sequence[Tensor], size: Sequence[int], align_corners: bool
) -> Tensor:
    """``module(torch.cat([resize(x) for x in maps], 1))``, resized bilinearly to ``size``.

    A map that is smaller than ``size`` is multiplied by the weights where it is small, if that
    takes fewer multiply-adds. For a module of which ``why_plain`` names a reason, that expression
    itself is computed.

    Args:
        module: mmcv's ``ConvModule``: a convolution, then perhaps a norm and an activation.
        maps: (N, C_i, h_i, w_i), as many channels together as the convolution has.
        size: height and width of the output, H and W.
        align_corners: as in ``torch.nn.functional.interpolate``.

    Returns:
        (N, C_out, H, W), in channels-last memory if a map is.
    """
    size = tuple(size)
    is_small = [not why_plain(module) and _pays(x, size, module.conv, align_corners) for x in maps]
    if not any(is_small):
        return module(torch.cat([_resize(x, size, align_corners) for x in maps], 1))

    bias, weights = module.conv.bias, module.conv.weight.split([x.shape[1] for x in maps], 1)
    small = [
        _Small(x, weight, size, align_corners) for x, weight, s in zip(maps, weights, is_small) if s
    ]
    large = [(x, weight) for x, weight, s in zip(maps, weights, is_small) if not s]
    out = None
    if large:
        resized = _join([_resize(x, size, align_corners) for x, _ in large])
        weight = _join([weight for _, weight in large])
        out = F.conv2d(resized, weight, bias, padding=weight.shape[-1] // 2)
    is_last = any(memory_format_of(x) == torch.channels_last for x in maps)
    layout = torch.channels_last if is_last else torch.contiguous_format
    out = _add(out, small, size, layout)
    if bias is not None and not large:
        out = out + bias.to(out.dtype)[:, None, None]
    if module.with_norm:
        out = module.norm(out)
    return module.activate(out) if module.with_activation else out


def why_plain(module: Any) -> str | None:
    """Why ``module`` is not rearranged, as a phrase about it; None if it is."""
    if type(module).forward is not ConvModule.forward:
        return f'is a {type(module).__name__}, not a ConvModule'
    children = dict(module.named_children())
    watched = [name for name, part in [('it', module), *children.items()] if is_watched(part)]
    if watched:
        return f'has hooks, is compiled or has another forward: {watched[0]}'
    conv = module.conv
    if type(conv) is not nn.Conv2d:
        return f'has a {type(conv).__name__}, not a Conv2d'
    if module.with_explicit_padding or module.order != ('conv', 'norm', 'act'):
        return f'has order={module.order}, padding={module.padding}'
    kernel, _ = conv.kernel_size
    usual = dict(
        kernel_size=(kernel | 1, kernel | 1),  # odd
        stride=(1, 1),
        padding=(kernel // 2, kernel // 2),
        dilation=(1, 1),
        groups=1,
        padding_mode='zeros',
    )
    values = {name: getattr(conv, name) for name in usual}
    return next((f'has {k}={v}' for k, v in values.items() if v != usual[k]), None)


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Channels-last only where that is not contiguous as well, as in maps of a pixel."""
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_last else torch.contiguous_format


def _resize(x: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    if tuple(x.shape[2:]) == size:
        return x
    return F.interpolate(x, size=size, mode='bilinear', align_corners=align_corners)


def _join(tensors: list[Tensor]) -> Tensor:
    return torch.cat(tensors, 1) if len(tensors) > 1 else tensors[0]  # of one it is a copy


# ---- tiles ----


class _Span(NamedTuple):
    """A tile along one axis: outputs ``start`` to ``stop`` need inputs ``first`` to ``last``."""

    start: int
    stop: int
    first: int
    last: int


def _spans(length: int, size: int, tile: int, kernel: int, align_corners: bool) -> list[_Span]:
    """Tiles of an axis that is resized from ``length`` to ``size``, where a kernel reads it."""

    def source(place: int) -> float:
        place = min(max(place, 0), size - 1)
        if align_corners:
            return place * (length - 1) / max(1, size - 1)
        return (place + 0.5) * length / size - 0.5

    spans, halo = [], kernel // 2
    for start in range(0, size, tile):
        stop = min(size, start + tile)
        # torch computes places in single precision, and may fall on the other side of an integer.
        first = math.floor(source(start - halo) - 0.01)
        last = math.floor(source(stop - 1 + halo) + 0.01) + 2
        spans.append(_Span(start, stop, max(0, first), min(length, last)))
    return spans


def _spans_of(
    x: Tensor, size: tuple[int, ...], kernel: int, align_corners: bool
) -> list[list[_Span]]:
    """The tiles of a map's rows, and those of its columns."""
    tile = CPU_TILE if x.device.type in ('cpu', 'meta') else TILE
    return [
        _spans(length, total, side, kernel, align_corners)
        for length, total, side in zip(x.shape[2:], size, tile)
    ]


def _pays(x: Tensor, size: tuple[int, ...], conv: nn.Conv2d, align_corners: bool) -> bool:
    """Whether the rearranged form of one map takes fewer multiply-adds, and on GPUs less time."""
    kernel, channels, (h, w) = conv.kernel_size[0], x.shape[1], x.shape[2:]
    height, width = size
    if h > height or w > width or (h, w) == size:
        return False
    rows, columns = _spans_of(x, size, kernel, align_corners)
    # For each output channel: products, then interpolation along the height, then the width.
    count = 0
    for start, stop, first, last in rows:
        count += (last - first) * w * kernel**2 * (channels + stop - start)
        count += sum((stop - start) * (b - a) * kernel * (g - f) for a, b, f, g in columns)
    saved = height * width * kernel**2 * channels - count
    least = 0 if x.device.type in ('cpu', 'meta') else LEAST_SAVED
    return saved > 0 and len(x) * conv.out_channels * saved >= least


# ---- the sum ----


class _Small:
    """A map that is smaller than the output, its weights and how it is interpolated."""

    def __init__(self, x: Tensor, weight: Tensor, size: tuple[int, ...], align_corners: bool):
        self.channels, _, self.kernel, _ = weight.shape
        # The type in which autocast, if it is on, computes products.
        dtype = torch.mm(x.new_empty(0, 1), weight.new_empty(1, 0)).dtype
        self.x = x.to(dtype).permute(0, 2, 3, 1).contiguous()  # (N, h, w, C)
        # For each row of the kernel, its columns one after the other: k of (k * C_out, C).
        taps = weight.to(dtype).permute(2, 3, 0, 1).flatten(1, 2)
        self.taps = taps.contiguous().unbind()
        rows, columns = (
            _shifted(length, total, self.kernel, align_corners, x).to(dtype)
            for length, total in zip(x.shape[2:], size)
        )
        self.rows = rows.unbind()  # k of (H, h)
        self.columns = columns.permute(2, 0, 1).flatten(0, 1)  # (w * k, W)
        self.row_spans, self.column_spans = _spans_of(x, size, self.kernel, align_corners)

    def strip(self, span: _Span) -> Tensor:
        """The taps' products, interpolated to rows of the output: (N * rows, w * k, C_out)."""
        start, stop, first, last = span
        x = self.x[:, first:last]
        pixels = x.flatten(0, 2)
        strip: Any = None
        for taps, rows in zip(self.taps, self.rows):
            products = F.linear(pixels, taps).view(len(x), last - first, -1)
            part = rows[start:stop, first:last].expand(len(x), -1, -1)
            strip = torch.bmm(part, products) if strip is None else strip.baddbmm_(part, products)
        return strip.view(len(x) * (stop - start), -1, self.channels)


def interpolation_matrix(
    length: int,
    size: int,
    align_corners: bool,
    dtype: torch.dtype,
    device: torch.device | str = 'cpu',
) -> Tensor:
    """(size, length), in fp32 at least: what torch's linear interpolation multiplies by."""
    eye = torch.eye(length, dtype=torch.promote_types(dtype, torch.float32), device=device)
    return F.interpolate(eye[None], size=size, mode='linear', align_corners=align_corners)[0].t()


def _shifted(length: int, size: int, kernel: int, align_corners: bool, like: Tensor) -> Tensor:
    """Row p of the t-th matrix has the weights of place p + t - k // 2, and is zero outside.

    (k, size, length), from torch's own interpolation.
    """
    matrix = interpolation_matrix(length, size, align_corners, like.dtype, like.device)
    halo = kernel // 2
    padded = F.pad(matrix, (0, 0, halo, halo))
    return torch.stack([padded[tap : tap + size] for tap in range(kernel)])


def _add(
    out: Tensor | None, maps: Sequence[_Small], size: tuple[int, ...], layout: torch.memory_format
) -> Tensor:
    """``out`` (N, C_out, H, W; None: zeros) and the convolutions of all ``maps``."""
    row_spans = list(zip(*(small.row_spans for small in maps)))
    axis, order, back = TILES[layout]
    if torch.is_grad_enabled():
        strips = [
            torch.cat([tile for _, tile in _tiles(maps, spans, layout)], axis)
            for spans in row_spans
        ]
        total = torch.cat(strips, 1).permute(back)
        return total.contiguous(memory_format=layout) if out is None else out.add_(total)
    # In place: a map of this size in fresh memory costs as much time as a level's interpolation.
    if out is None:
        x = maps[0].x
        out = x.new_zeros(len(x), maps[0].channels, *size).contiguous(memory_format=layout)
    canvas = out.permute(order)
    for spans in row_spans:
        rows = canvas[:, spans[0].start : spans[0].stop]
        for columns, tile in _tiles(maps, spans, layout):
            rows.narrow(axis, columns.start, columns.stop - columns.start).add_(tile)
    return out


def _tiles(
    maps: Sequence[_Small], row_spans: Sequence[_Span], layout: torch.memory_format
) -> Iterator[tuple[slice, Tensor]]:
    """The tiles of a strip of rows: their columns, and their sums (N, rows, C_out, columns), in
    channels-last memory (N, rows, columns, C_out)."""
    strips = [small.strip(span) for small, span in zip(maps, row_spans)]
    is_last = layout == torch.channels_last
    for spans in zip(*(small.column_spans for small in maps)):
        products = []
        for small, strip, (start, stop, first, last) in zip(maps, strips, spans):
            part = slice(small.kernel * first, small.kernel * last)
            matrix = small.columns[part, start:stop].expand(len(strip), -1, -1)
            # (w k, columns) and (w k, C_out) of each row
            pair = (matrix, strip[:, part]) if is_last else (strip[:, part], matrix)
            products.append((pair[0].transpose(1, 2), pair[1]))
        tile = torch.bmm(*products[0])
        for product in products[1:]:
            tile.baddbmm_(*product)
        rows = row_spans[0].stop - row_spans[0].start
        yield slice(spans[0].start, spans[0].stop), tile.unflatten(0, (-1, rows))
