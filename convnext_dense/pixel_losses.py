"""Cross entropy of each pixel, of logits that are smaller than the labels.

At the labels' size, the logits of all classes, their softmax and its gradient take as much memory
as the rest of a head: 157 MB each for 150 classes at 512 x 512. Here they are made for some rows of
an image at a time, which stay in a CPU's cache, and made again in the backward pass, which writes
the gradient into the softmax.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_ROWS_BYTES = 2**23  # of the logits of some rows; elsewhere all rows are done at once


def cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """The sum over all pixels of the cross entropy of ``logits``, resized to the labels' size.

    Args:
        logits: (N, C, h, w), which are resized bilinearly, in fp32 at least.
        labels: (N, H, W), int64.
        ignore_index: the label of pixels that do not count.
        align_corners: as in ``torch.nn.functional.interpolate``.

    Returns:
        The sum; and the number of pixels whose label has a larger logit than each other class,
        which has no gradient.

    Raises:
        IndexError: a label is no class.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return _CrossEntropy.apply(logits, labels, ignore_index, align_corners)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool):
        ctx.save_for_backward(logits, labels)
        ctx.ignore_index, ctx.align_corners = ignore_index, align_corners
        losses, right = [], []
        for x, y, rows in _strips(logits, labels, align_corners):
            z = rows.resize(x)
            losses.append(F.cross_entropy(z, y, ignore_index=ignore_index, reduction='sum'))
            counts = y != ignore_index
            label = y.where(counts, 0)[:, None]
            score = z.gather(1, label)
            others = z.scatter_(1, label, -torch.inf).amax(1, keepdim=True)
            right.append(((score > others) & counts[:, None]).sum())
        total = torch.stack(right).sum()
        ctx.mark_non_differentiable(total)
        return torch.stack(losses).sum(), total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _of_count: Tensor):
        logits, labels = ctx.saved_tensors
        total = torch.zeros_like(logits, dtype=grad.dtype)
        strips = _strips(logits, labels, ctx.align_corners)
        grads = _strips(total, labels, ctx.align_corners)
        with torch.autocast(logits.device.type, enabled=False):
            for (x, y, rows), (of_x, _, _) in zip(strips, grads):
                with torch.enable_grad():
                    # In grad's type, so that the sum of the strips is rounded once.
                    x = x.detach().to(grad.dtype).requires_grad_()
                    z = rows.resize(x)
                counts = (y != ctx.ignore_index)[:, None]
                of_z = z.detach().softmax(1)
                of_z.scatter_add_(1, y[:, None].where(counts, 0), -counts.to(of_z))
                of_x += torch.autograd.grad(z, x, of_z.mul_(counts * grad))[0]
        return total.to(logits.dtype), None, None, None


class _Rows(NamedTuple):
    """Rows of a resized map."""

    matrix: Tensor  # (rows, source rows): how they are interpolated
    width: int
    align_corners: bool

    def resize(self, x: Tensor) -> Tensor:
        """Source rows (1, C, source rows, w) -> (1, C, rows, width)."""
        x = self.matrix @ x.to(self.matrix.dtype)
        size = x.shape[2], self.width
        return F.interpolate(x, size=size, mode='bilinear', align_corners=self.align_corners)


def _strips(
    maps: Tensor, labels: Tensor, align_corners: bool
) -> Iterator[tuple[Tensor, Tensor, _Rows]]:
    """Strips of an image after the other: the source rows, the labels, and how to resize."""
    (_, channels, h, _), (_, height, width) = maps.shape, labels.shape
    dtype = torch.promote_types(maps.dtype, torch.float32)
    eye = torch.eye(h, dtype=dtype, device=maps.device)[None]
    # (height, h), from torch's own interpolation
    matrix = F.interpolate(eye, size=height, mode='linear', align_corners=align_corners)[0].t()
    step = height
    if maps.device.type == 'cpu':
        step = max(1, CPU_ROWS_BYTES // (channels * width * dtype.itemsize))
    sources = [part.any(0).nonzero().flatten().tolist() for part in matrix.split(step)]
    for x, y in zip(maps.split(1), labels.split(1)):
        for part, used, of_strip in zip(matrix.split(step), sources, y.split(step, 1)):
            first, last = used[0], used[-1] + 1
            rows = _Rows(part[:, first:last].contiguous(), width, align_corners)
            yield x[:, :, first:last], of_strip, rows
