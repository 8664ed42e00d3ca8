"""The block with every kind of checkpointing: gradients, precision, memory, hooks, compilers."""

import copy
from functools import partial

import timm
import torch
from pytest import mark, raises
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from conftest import needs, randomise
from convnext_dense import ConfigError, ConvNeXt
from convnext_dense.evaluation.timing import peak_memory
from convnext_dense.layers import Block
from convnext_dense.weights import convert

ARCHS = dict(atto='convnext_atto', v2_atto='convnextv2_atto')
MODES = ['none', 'mlp', 'block']


def net_and_peer(arch, mode='none'):
    """Ours in training, and timm's with the same weights."""
    net = randomise(ConvNeXt(arch, checkpointing=mode, out_norm=False)).train()
    peer = timm.create_model(ARCHS[arch], num_classes=0).train()
    peer.head = nn.Identity()
    peer.load_state_dict(convert(net.state_dict(), 'timm').tensors)
    return net, peer.to(memory_format=torch.channels_last)


def gradients(net, image, targets):
    """Of the image and of all parameters, under timm's names."""
    image = image.clone(memory_format=torch.channels_last).requires_grad_()
    net.zero_grad()
    is_ours = isinstance(net, ConvNeXt)
    maps = (
        net(image)
        if is_ours
        else net.forward_intermediates(image, indices=4, intermediates_only=True)
    )
    sum(
        (fmap.float() * target).sum() if target.dtype == torch.float32 else (fmap * target).sum()
        for fmap, target in zip(maps, targets)
    ).backward()
    by_name = {name: parameter.grad for name, parameter in net.named_parameters()}
    return dict(convert(by_name, 'timm').tensors if is_ours else by_name, image=image.grad)


def differences(a, b):
    assert a.keys() == b.keys()
    return {
        name: ((a[name].double() - b[name].double()).norm() / b[name].double().norm()).item()
        for name in b
    }


@mark.parametrize('dtype, bound', [(torch.float32, 2e-5), (torch.float64, 1e-11)])
@mark.parametrize('mode', MODES)
@mark.parametrize('arch', ARCHS)
def test_gradients_equal_timms(arch, mode, dtype, bound):
    net, peer = net_and_peer(arch, mode)
    image = torch.randn(2, 3, 70, 96, dtype=dtype)
    targets = [torch.randn(fmap.shape, dtype=dtype) for fmap in net.to(dtype)(image)]
    errors = differences(gradients(net, image, targets), gradients(peer.to(dtype), image, targets))
    assert max(errors.values()) < bound, errors


@mark.parametrize('mode', MODES)
@mark.parametrize('arch', ARCHS)
def test_mixed_precision_is_as_precise_as_timm(arch, mode):
    net, peer = net_and_peer(arch, mode)
    image = torch.randn(2, 3, 64, 96)
    targets = [torch.randn_like(fmap) for fmap in net(image)]
    exact = gradients(
        copy.deepcopy(peer).double(), image.double(), [target.double() for target in targets]
    )
    with torch.autocast('cpu', dtype=torch.bfloat16):
        ours, theirs = (
            differences(gradients(model, image, targets), exact) for model in (net, peer)
        )
    assert sum(ours.values()) < 1.1 * sum(theirs.values()) and max(ours.values()) < 0.1


@needs('half convolution on the CPU')
@mark.parametrize('mode', MODES)
def test_a_small_layer_scale_overflows_no_gradient(mode):
    """Before the layer scale of 1e-6 a scaled loss has gradients of 1e6, which fp16 cannot hold."""
    block = randomise(Block(16, recompute=mode)).train()
    with torch.no_grad():
        block.gamma.fill_(1e-6)
    x, target = torch.randn(2, 16, 24, 24), 100 * torch.randn(2, 16, 24, 24)
    scale = 2.0**16  # with which a GradScaler begins
    with torch.autocast('cpu', dtype=torch.float16):
        out = block(x)
    (scale * (out.float() * target).sum()).backward()
    half = {name: parameter.grad / scale for name, parameter in block.named_parameters()}
    assert all(gradient.isfinite().all() for gradient in half.values())
    block.zero_grad()
    (block(x) * target).sum().backward()
    for name, parameter in block.named_parameters():
        assert (half[name] - parameter.grad).norm() < 0.02 * parameter.grad.norm(), name


@mark.parametrize('mode', MODES)
@mark.parametrize('generation', [1, 2])
def test_first_and_second_derivatives(generation, mode):
    block = randomise(Block(4, generation=generation, recompute=mode)).double().train()
    x = (
        torch.randn(2, 4, 3, 5, dtype=torch.double)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
    )
    inputs = (x, *block.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: block(x), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x, *_: block(x), inputs, fast_mode=True)


@mark.parametrize('arch', ARCHS)
def test_memory_of_a_training_step(arch):
    image = torch.randn(1, 3, 512, 512).contiguous(memory_format=torch.channels_last)
    timm_net = net_and_peer(arch)[1]
    timm_maps = partial(timm_net.forward_intermediates, indices=4, intermediates_only=True)
    nets = {mode: net_and_peer(arch, mode)[0] for mode in MODES}

    def step(net, maps):
        net.zero_grad(set_to_none=False)
        sum(fmap.sum() for fmap in maps(image)).backward()

    peaks = {}
    for name, net, maps in [('timm', timm_net, timm_maps)] + [(m, n, n) for m, n in nets.items()]:
        step(net, maps)  # the gradients are there from the first
        peaks[name] = peak_memory(partial(step, net, maps), 'cpu')
    assert peaks['none'] < 1.05 * peaks['timm'], peaks
    assert peaks['mlp'] < 0.5 * peaks['none'] and peaks['block'] < peaks['mlp'], peaks


@mark.parametrize('mode', ['mlp', 'block'])
def test_a_dropout_in_the_recomputed_part_keeps_its_mask(mode):
    blocks = [randomise(Block(8, recompute=recompute)).train() for recompute in ('none', mode)]
    blocks[1].load_state_dict(blocks[0].state_dict())
    x, grads = torch.randn(2, 8, 16, 16), []
    for block in blocks:
        block.pwconv2 = nn.Sequential(nn.Dropout(0.5), block.pwconv2)
        torch.manual_seed(3)
        block(x).square().sum().backward()
        grads.append(block.pwconv1.weight.grad)
    assert (grads[0] - grads[1]).norm() < 1e-5 * grads[0].norm()


def test_a_layer_that_is_watched_or_replaced_has_its_say():
    net, seen = randomise(ConvNeXt('atto')), []
    image = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        expected = net(image)
        net.stages[0][1].pwconv2.register_forward_hook(lambda *_: seen.append(1))
        net.stages[1].register_forward_hook(lambda *_: seen.append(2))
        net.downsample_layers[1][0].register_forward_pre_hook(lambda *_: seen.append(3))
        net.norm3.register_forward_hook(lambda *_: seen.append(4))
        # It leaves the weight as it is, but it is another layer.
        nn.utils.parametrizations.weight_norm(net.stages[1][0].pwconv1)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(net(image), expected))
        assert seen == [1, 3, 2, 4]
        net.stages[1][0].pwconv1.parametrizations.weight.original0.mul_(2)
        assert not torch.allclose(net(image)[1], expected[1], atol=1e-2)


def test_an_empty_batch_gives_empty_maps():
    net = ConvNeXt('atto')
    for mode in (True, False):
        maps = net.train(mode)(torch.zeros(0, 3, 64, 64))
        assert [tuple(fmap.shape) for fmap in maps] == [
            (0, 40, 16, 16),
            (0, 80, 8, 8),
            (0, 160, 4, 4),
            (0, 320, 2, 2),
        ]


@mark.parametrize('part', ['stage', 'block'])
@mark.parametrize('training', [True, False])
def test_a_compiled_part_is_called(part, training):
    net, graphs = randomise(ConvNeXt('atto')).train(training), []
    image = torch.randn(1, 3, 256, 256)
    with torch.set_grad_enabled(training):
        expected = net(image)
        torch.compiler.reset()
        module = net.stages[1] if part == 'stage' else net.stages[1][0]
        module.compile(backend=lambda graph, inputs: graphs.append(1) or graph)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(net(image), expected)) and graphs


@mark.parametrize('arch', ARCHS)
def test_torch_func_transforms(arch):
    net, image = randomise(ConvNeXt(arch)), torch.randn(2, 3, 256, 256)
    parameters = dict(net.named_parameters())

    def loss(parameters, image):
        return sum(fmap.square().sum() for fmap in functional_call(net, parameters, (image,)))

    loss(parameters, image).backward()
    for name, gradient in grad(loss)(parameters, image).items():
        assert torch.allclose(
            gradient, parameters[name].grad, rtol=1e-3, atol=1e-3 * gradient.abs().max().item()
        ), name
    with torch.no_grad():
        expected = net(image)
        batched = vmap(lambda single: net(single[None])[-1][0])(image)
        assert torch.allclose(batched, expected[-1], atol=1e-4 * expected[-1].abs().max().item())
        tangent = torch.randn_like(image)
        _, derivative = jvp(lambda image: net(image)[-1], (image,), (tangent,))
        double = net.double()
        difference = (
            double(image + 1e-5 * tangent.double())[-1]
            - double(image - 1e-5 * tangent.double())[-1]
        ) / 2e-5
        assert (derivative - difference).norm() < 1e-3 * difference.norm()


@mark.parametrize('mode', ['mlp', 'block'])
def test_torch_func_is_refused_where_torch_recomputes(mode):
    net = ConvNeXt('atto', checkpointing=mode).train()
    with raises(ConfigError, match="Use checkpointing='none'"):
        grad(
            lambda parameters: functional_call(net, parameters, (torch.randn(1, 3, 64, 64),))[
                -1
            ].sum()
        )(dict(net.named_parameters()))


def test_torchs_flop_counter_sees_every_product():
    net, image, counts = ConvNeXt('atto'), torch.randn(1, 3, 512, 512), []
    for mode in (True, False):
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(mode):
            net.train(mode)(image)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 5e9
