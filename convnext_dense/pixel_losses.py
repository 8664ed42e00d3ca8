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

from .resized_convolution import interpolation_matrix

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
        for strip in _strips(logits, labels, align_corners):
            z, y = strip.resize(logits[strip.source]), strip.labels
            losses.append(F.cross_entropy(z, y, ignore_index=ignore_index, reduction='sum'))
            counts, label = _split(y, ignore_index)
            score = z.gather(1, label)
            others = z.scatter_(1, label, -torch.inf).amax(1, keepdim=True)
            right.append(((score > others) & counts).sum())
        number = torch.stack(right).sum()
        ctx.mark_non_differentiable(number)
        return torch.stack(losses).sum(), number

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _of_number: Tensor):
        logits, labels = ctx.saved_tensors
        # In the type of the loss, so that the sum of strips is rounded once.
        total = torch.zeros_like(logits, dtype=grad.dtype)
        with torch.autocast(logits.device.type, enabled=False):
            for strip in _strips(logits, labels, ctx.align_corners):
                with torch.enable_grad():
                    x = logits[strip.source].detach().to(grad.dtype).requires_grad_()
                    z = strip.resize(x)
                counts, label = _split(strip.labels, ctx.ignore_index)
                of_z = z.detach().softmax(1)
                of_z.scatter_(1, label, of_z.gather(1, label) - 1).mul_(counts * grad)
                total[strip.source] += torch.autograd.grad(z, x, of_z)[0]
        return total.to(logits.dtype), None, None, None


def _split(labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which labels count, and the labels, 0 where they do not: (1, 1, rows, W)."""
    counts = (labels != ignore_index)[:, None]
    return counts, labels[:, None].where(counts, 0)


class _Strip(NamedTuple):
    """Some rows of an image's labels."""

    labels: Tensor  # (1, rows, W)
    source: tuple[slice, ...]  # the rows of the logits that are interpolated for them
    matrix: Tensor  # how: (rows, source rows)
    align_corners: bool

    def resize(self, x: Tensor) -> Tensor:
        """(1, C, source rows, w) -> (1, C, rows, W)."""
        x = self.matrix @ x.to(self.matrix.dtype)
        size = self.labels.shape[1:]
        return F.interpolate(x, size=size, mode='bilinear', align_corners=self.align_corners)


def _strips(logits: Tensor, labels: Tensor, align_corners: bool) -> Iterator[_Strip]:
    (_, channels, h, _), (images, height, width) = logits.shape, labels.shape
    matrix = interpolation_matrix(h, height, align_corners, logits.dtype)
    step = height
    if logits.device.type == 'cpu':
        step = max(1, CPU_ROWS_BYTES // (channels * width * matrix.itemsize))
    parts = []
    for part in matrix.split(step):
        used = part.any(0).nonzero().flatten().tolist()
        rows = slice(used[0], used[-1] + 1)
        parts.append((rows, part[:, rows].contiguous().to(logits.device)))
    for i in range(images):
        image = slice(i, i + 1)
        for (rows, part), of_strip in zip(parts, labels[image].split(step, 1)):
            yield _Strip(of_strip, (image, slice(None), rows), part, align_corners)
