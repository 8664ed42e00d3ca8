"""The MLP of a block in runs of pixels: what is 4C wide stays in the cache, and need not be kept for backward.

LayerNorm -> 4C linear -> GELU [-> GRN] -> C linear. All of it but GRN's statistics works on each pixel alone, so doing it
for a few thousand pixels at a time is exact. This is for eager mode; compilers and exporters get the plain operators.
"""
from typing import List, NamedTuple, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# The 4C-wide tensor of one run, bytes: what the cache of a core holds a few times over; on a GPU, what is worth a launch.
RUN_BYTES = dict(cpu=8 << 20, cuda=256 << 20)
SMALLEST_RUN = 1000  # pixels, fewer make slow products
STRIP = 4096  # pixels of a strip at most
MOST_RUNS = 16  # or strips of a map, beyond so many no memory is saved
FEW_VALUES = 1 << 17  # in less than so many, the loop over runs takes longer than it saves
is_compiling = getattr(torch.compiler, 'is_compiling', torch._utils.is_compiling)  # torch 2.1 has only the latter


class Parameters(NamedTuple):
    """Of the MLP of a block, as the block has them."""
    norm_weight: Tensor  # (C)
    norm_bias: Tensor
    w1: Tensor  # (4C, C)
    b1: Tensor
    w2: Tensor  # (C, 4C)
    b2: Tensor
    layer_scale: Optional[Tensor]  # V1's (C)
    grn_gamma: Optional[Tensor]  # V2's (4C)
    grn_beta: Optional[Tensor]


def mlp(x: Tensor, parameters: Parameters, eps: float, keep_hidden: bool) -> Tensor:
    """(N, H, W, C) -> (N, H, W, C), differentiable twice.

    Args:
        eps: of LayerNorm.
        keep_hidden: for backward, keep the first product, 4C values a pixel beside the C of the input, or compute it again.
    """
    tokens = x.flatten(1, 2)
    dtype = F.linear(tokens[:0, 0], parameters.w1).dtype  # what autocast makes of it
    return _MLP.apply(tokens, eps, keep_hidden and torch.is_grad_enabled(), dtype, *parameters).view(x.shape)


def plain_mlp(x: Tensor, parameters: Parameters, eps: float) -> Tensor:
    """``mlp`` with whole maps at a time: (N, T, C) -> (N, T, C)."""
    norm_weight, norm_bias, w1, b1, w2, b2, layer_scale, grn_gamma, grn_beta = parameters
    x = F.layer_norm(x, x.shape[-1:], norm_weight.to(x.dtype), norm_bias.to(x.dtype), eps)
    x = F.gelu(F.linear(x.to(w1.dtype), w1, b1))
    if grn_gamma is not None:
        x = x * response_scale(response_energy(x), grn_gamma).to(x.dtype)[:, None] + grn_beta
    x = F.linear(x, w2, b2)
    return x if layer_scale is None else x * layer_scale


def is_traced(x: Tensor) -> bool:
    """Whether a loop over runs would be frozen to the size of ``x``, or is watched by who wants the plain operators."""
    return is_compiling() or torch.jit.is_tracing() or x.is_meta


def is_small(x: Tensor, by_image: bool) -> bool:
    """Whether the plain operators are faster for a map (N, ...): ``by_image`` as for GRN, where each image has its own weights."""
    return x.device.type == 'cpu' and x.numel() < FEW_VALUES * (2 * len(x) if by_image else 1)


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, activation: str = 'none') -> Tensor:
    """F.linear, and 'gelu' as it writes, without autograd. oneDNN's: in fp32 a tenth faster than the product behind F.linear."""
    if x.device.type == 'cpu' and x.dtype in (torch.float32, torch.bfloat16) and hasattr(torch.ops.mkldnn, '_linear_pointwise'):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], 'none')
    x = F.linear(x, weight, bias)
    return F.gelu(x) if activation == 'gelu' else x


def response_energy(x: Tensor) -> Tensor:
    """GRN's statistic, in fp32 or better: the squares of a large map overflow half precision. (..., T, C) -> (..., C)"""
    return torch.linalg.vector_norm(x, dim=-2, dtype=torch.promote_types(x.dtype, torch.float32))


def response_scale(energy: Tensor, gamma: Tensor) -> Tensor:
    """What GRN multiplies a map by, its skip connection included: (..., C) -> (..., C)."""
    return 1 + gamma * (energy / (energy.mean(-1, keepdim=True) + 1e-6))


def runs(x: Tensor) -> List[slice]:
    """Of alike length, for the tokens (T, C) and what is 4C wide of them."""
    length = RUN_BYTES.get(x.device.type, RUN_BYTES['cuda']) // (4 * x.shape[1] * x.element_size())
    if x.device.type == 'cpu':
        length = max(SMALLEST_RUN, min(length, len(x) // MOST_RUNS))
    length = max(1, -(-len(x) // max(1, -(-len(x) // length))))  # the last as long as the others
    return [slice(start, min(start + length, len(x))) for start in range(0, len(x), length)] or [slice(0, 0)]


def strips(x: Tensor, multiple: int = 1, least: int = 1) -> List[slice]:
    """Rows of a map (N, C, H, W), a ``multiple`` of rows and, where there are so many, ``least`` pixels; a rest is left out."""
    height = x.shape[2] - x.shape[2] % multiple
    row = max(1, len(x) * x.shape[3] * multiple)
    rows = multiple * max(1, -(-least // row), min(STRIP, height // multiple * row // MOST_RUNS) // row)
    return [slice(start, min(start + rows, height)) for start in range(0, height, rows)]


def differentiable_gradients(output: Tensor, inputs: Sequence[Optional[Tensor]], grad: Tensor) -> List[Optional[Tensor]]:
    """One for each of ``inputs``, None where none is wanted."""
    wanted = [one for one in inputs if one is not None and one.requires_grad]
    found = iter(torch.autograd.grad(output, wanted, grad, create_graph=True))
    return [next(found) if one is not None and one.requires_grad else None for one in inputs]


class _MLP(torch.autograd.Function):
    """On (N, T, C). V2 does one image after the other, for V1 they are all one."""

    @staticmethod
    def forward(ctx, x, eps, keep_hidden, dtype, *parameters):
        cast = _cast(parameters, dtype)
        images = x if cast.grn_gamma is not None else x.reshape(1, -1, x.shape[-1])
        # As in the plain operators, V1's residual stream is in the precision of the layer scale under autocast.
        exact = dtype if cast.layer_scale is None else torch.promote_types(dtype, cast.layer_scale.dtype)
        out = images.new_empty(images.shape, dtype=exact)
        hidden = [_forward(image, cast, eps, keep_hidden, own_out) for image, own_out in zip(images, out)]
        ctx.save_for_backward(x, *parameters, *(run for image in hidden for run in image))
        ctx.eps, ctx.dtype = eps, dtype
        return out.view(x.shape)

    @staticmethod
    def backward(ctx, grad):
        x, *saved = ctx.saved_tensors
        parameters, hidden = saved[:len(Parameters._fields)], saved[len(Parameters._fields):]
        cast = _cast(parameters, ctx.dtype)
        if torch.is_grad_enabled():  # create_graph=True: these gradients are differentiated again
            with torch.autocast(x.device.type, enabled=False):
                dx, *rest = differentiable_gradients(plain_mlp(x, cast, ctx.eps), [x, *parameters], grad)
            return dx, None, None, None, *rest
        images, grads = (one if cast.grn_gamma is not None else one.reshape(1, -1, x.shape[-1]) for one in (x, grad))
        dx = torch.empty_like(images)
        # Added up over the runs in fp32 or better, whatever the products are in.
        sums = Parameters(*(None if one is None else torch.zeros_like(one, dtype=torch.promote_types(one.dtype, torch.float32))
                            for one in parameters))
        kept = len(hidden) // max(1, len(images))  # runs of an image
        for i, image in enumerate(images):
            _backward(image, cast, ctx.eps, hidden[i * kept:(i + 1) * kept], grads[i].contiguous(), dx[i], sums)
        w2, b2 = parameters[4:6]
        if sums.layer_scale is not None:  # so far the second layer's are those of its product with the layer scale
            sums.layer_scale.copy_(torch.einsum('ij,ij->i', sums.w2, w2.to(sums.w2.dtype))).addcmul_(sums.b2, b2)
            sums.w2.mul_(parameters[6][:, None])
            sums.b2.mul_(parameters[6])
        else:
            sums.grn_beta.copy_(sums.b2 @ w2.to(sums.w2.dtype))
            sums.w2.addr_(sums.b2, parameters[8].to(sums.b2.dtype))
        return dx.view(x.shape), None, None, None, *(None if one is None else one.to(like.dtype) for one, like in zip(sums, parameters))


def _cast(parameters, dtype):
    """To the precision of the products, but for what is multiplied with them afterwards."""
    parameters = Parameters(*parameters)
    cast = Parameters(*(None if one is None else one.to(dtype) for one in parameters))
    return cast._replace(layer_scale=parameters.layer_scale, grn_gamma=parameters.grn_gamma)


def _forward(x, parameters, eps, keep_hidden, out):
    """Fill ``out``, (T, C), for one image. Returns the first product, run by run, if it is to be kept."""
    norm_weight, norm_bias, w1, b1, w2, b2, layer_scale, grn_gamma, grn_beta = parameters
    norm_weight, norm_bias = norm_weight.to(x.dtype), norm_bias.to(x.dtype)
    pieces = runs(x)
    activated = _Scratch(pieces[0], w1)  # memory that is used again is in the cache, and costs no page faults

    def first_product(run, activation='none'):
        return linear(F.layer_norm(x[run], x.shape[1:], norm_weight, norm_bias, eps).to(w1.dtype), w1, b1, activation)
    hidden = []
    if grn_gamma is not None:
        hidden = [first_product(run) for run in pieces]
        b2 = torch.addmv(b2, w2, grn_beta)
        w2 = (w2 * response_scale(_energy(hidden), grn_gamma)).to(w2.dtype)
    for i, run in enumerate(pieces):
        if grn_gamma is None and keep_hidden:
            hidden.append(first_product(run))
        product = linear(_gelu(hidden[i], activated(run)) if hidden else first_product(run, 'gelu'), w2, b2)
        if layer_scale is None:
            out[run] = product
        else:
            torch.mul(product, layer_scale, out=out[run])
    return hidden if keep_hidden else []


def _backward(x, parameters, eps, hidden, grad, dx, sums):
    """Fill ``dx`` for one image and add to the gradients of the parameters."""
    norm_weight, norm_bias, w1, b1, w2, _, layer_scale, grn_gamma, _ = parameters
    norm_weight, norm_bias = norm_weight.to(x.dtype), norm_bias.to(x.dtype)
    pieces = runs(x)
    activated = _Scratch(pieces[0], w1)

    def normed_run(run):
        normed, *statistics = torch.native_layer_norm(x[run], x.shape[1:], norm_weight, norm_bias, eps)
        return normed.to(w1.dtype), statistics
    if grn_gamma is not None:
        hidden = hidden or [linear(normed_run(run)[0], w1, b1) for run in pieces]
        with torch.enable_grad():
            gamma, energy = grn_gamma.detach().requires_grad_(), _energy(hidden).requires_grad_()
            scale = response_scale(energy, gamma)
        product = torch.zeros_like(sums.w2)  # of grad and GELU: from it come the gradients of the second layer and of the scale
        for run, h in zip(pieces, hidden):
            _add_product(product, grad[run].t(), _gelu(h, activated(run)))
        dgamma, denergy = torch.autograd.grad(scale, (gamma, energy), torch.einsum('ij,ij->j', product, w2.to(product.dtype)))
        sums.grn_gamma.add_(dgamma)
        sums.w2.addcmul_(product, scale.detach())
        pull = (denergy / energy.detach().clamp(min=torch.finfo(energy.dtype).tiny)).to(w2.dtype)
        w2 = (w2 * scale.detach()).to(w2.dtype)
    for i, run in enumerate(pieces):
        normed, statistics = normed_run(run)
        h = hidden[i] if hidden else linear(normed, w1, b1)
        g = _gelu(h, activated(run))
        if grn_gamma is None:
            _add_product(sums.w2, grad[run].t().to(w2.dtype), g)
            dh = linear((grad[run] * layer_scale).to(w2.dtype), w2.t())
        else:
            dh = linear(grad[run], w2.t()).addcmul_(g, pull)
        torch.ops.aten.gelu_backward.grad_input(dh, h, grad_input=dh)
        _add_product(sums.w1, dh.t(), normed)
        sums.b1.add_(dh.sum(0, dtype=sums.b1.dtype))
        dx[run], *affine = torch.ops.aten.native_layer_norm_backward(
            linear(dh, w1.t()).to(x.dtype), x[run], x.shape[1:], *statistics, norm_weight, norm_bias, [True] * 3)
        sums.norm_weight.add_(affine[0])
        sums.norm_bias.add_(affine[1])
        del normed, h, g, dh  # or they live until the next ones are there
    sums.b2.add_(grad.sum(0, dtype=sums.b2.dtype))


class _Scratch:
    """Memory for what is 4C wide of a run."""

    def __init__(self, longest: slice, w1: Tensor):
        self.buffer = w1.new_empty(longest.stop - longest.start, len(w1))

    def __call__(self, run: slice) -> Tensor:
        return self.buffer[:run.stop - run.start]


def _gelu(h, out):
    return torch.ops.aten.gelu.out(h, out=out)


def _energy(hidden):
    return response_energy(torch.stack([response_energy(F.gelu(run)) for run in hidden]))


def _add_product(total, a, b):
    total.addmm_(a, b) if total.dtype == a.dtype else total.add_(a @ b)
