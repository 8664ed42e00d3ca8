"""The depthwise 7x7 with another gradient of its weights for CPUs, where oneDNN's is most of the backward of the layer."""
import torch
import torch.nn.functional as F
from torch import Tensor

from .mlp import differentiable_gradients

STRIP_BYTES = 4 << 20  # of the map in one go, measured: less means more calls, more leaves the cache
FEW_VALUES = 1 << 17  # in a map of less, 49 calls take longer than oneDNN


def depthwise(x: Tensor, conv: torch.nn.Conv2d) -> Tensor:
    """``conv(x)``: (N, C, H, W) -> (N, C, H, W), differentiable twice."""
    if x.device.type != 'cpu' or x.numel() < FEW_VALUES or not (torch.is_grad_enabled() and conv.weight.requires_grad):
        return conv(x)
    return _Depthwise.apply(x, conv.weight, conv.bias, conv.padding, conv.dilation)


class _Depthwise(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, weight, bias, padding, dilation):
        ctx.save_for_backward(x, weight, bias)
        ctx.options = dict(stride=(1, 1), padding=padding, dilation=dilation, groups=len(weight))
        return F.conv2d(x, weight, bias, **ctx.options)

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias = (one.to(grad.dtype) for one in ctx.saved_tensors)  # autocast's
        with torch.autocast('cpu', enabled=False):
            if torch.is_grad_enabled():  # create_graph=True: these gradients are differentiated again
                return *differentiable_gradients(F.conv2d(x, weight, bias, **ctx.options), (x, weight, bias), grad), None, None
            dx = torch.ops.aten.convolution_backward(grad, x, weight, None, *list(ctx.options.values())[:3], False, (0, 0), len(weight),
                                                     (ctx.needs_input_grad[0], False, False))[0]
            # From x as it was saved: this sum may be in a better precision than the convolution.
            dweight = weight_gradient(ctx.saved_tensors[0], grad, weight.shape[-1], ctx.options['dilation'][0])
        return dx, dweight, grad.sum((0, 2, 3)), None, None


def weight_gradient(x: Tensor, grad: Tensor, kernel: int, dilation: int) -> Tensor:
    """Of a depthwise convolution that keeps the size of its map: (N, C, H, W) both -> (C, 1, kernel, kernel), in fp32 or better.

    Each of the kernel's positions is a sum over pixels of two maps' product, one moved. With zeros at the end of the rows of ``grad``,
    moving is an offset into the flat pixels, so nothing is copied for it; and PyTorch's fused sum of products a channel is that of
    LayerNorm's weight, of rows that are normed already.
    """
    x, grad = (one.permute(0, 2, 3, 1).to(torch.promote_types(one.dtype, torch.float32)) for one in (x, grad))
    count, height, width, channels = x.shape
    halo = dilation * (kernel // 2)
    row_bytes = (width + 2 * halo) * channels * x.element_size()
    rows = min(height, max(1, STRIP_BYTES // row_bytes))
    images = max(1, STRIP_BYTES // (row_bytes * (height + 2 * halo)))  # small ones go together
    offsets = [dilation * (i * (width + 2 * halo) + j) for i in range(kernel) for j in range(kernel)]
    total, one = x.new_zeros(len(offsets), channels), x.new_ones(channels)
    for first in range(0, count, images):
        for start in range(0, height, rows):
            stop = min(start + rows, height)
            above, below = max(0, halo - start), max(0, stop + halo - height)
            moved = F.pad(x[first:first + images, start - halo + above:stop + halo - below], (0, 0, halo, halo, above, below)).view(-1, channels)
            still = F.pad(grad[first:first + images, start:stop], (0, 0, 0, 2 * halo, 0, 2 * halo)).view(-1, channels)[:len(moved) - offsets[-1]]
            statistics = still.new_zeros(len(still), 1), still.new_ones(len(still), 1)  # mean, 1 / standard deviation
            total += torch.stack([torch.ops.aten.native_layer_norm_backward(
                still, moved[offset:offset + len(still)], (channels,), *statistics, one, None, (False, True, False))[1] for offset in offsets])
    return total.t().reshape(channels, 1, kernel, kernel)
