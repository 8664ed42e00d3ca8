"""The MLP in runs of pixels, and the depthwise layer, are the plain ones: values, gradients, second gradients; and it keeps less."""
import copy

import pytest
import torch
from conftest import randomise
from pytest import mark
from timing import peak_memory

import convnext_dense.depthwise
import convnext_dense.mlp
from convnext_dense import ConvNeXt
from convnext_dense.layers import Block

MODES = ['none', 'mlp', 'block']


@pytest.fixture(autouse=True)
def short_runs(monkeypatch):
    monkeypatch.setattr(convnext_dense.mlp, 'SMALLEST_RUN', 7)
    monkeypatch.setattr(convnext_dense.depthwise, 'STRIP_BYTES', 10_000)
    for module in (convnext_dense.mlp, convnext_dense.depthwise):
        monkeypatch.setattr(module, 'FEW_VALUES', 0)


def net_of(arch, mode='none', dtype=torch.float32):
    return randomise(ConvNeXt(arch, checkpointing=mode)).train().to(dtype)


def gradients(net, image, targets):
    image = image.clone().requires_grad_()
    net.zero_grad()
    sum((one.float() * target.float()).sum() if one.dtype != target.dtype else (one * target).sum()
        for one, target in zip(net(image), targets)).backward()
    return dict(net.named_parameters(), image=image)


def differences(a, b):
    return {name: ((a[name].grad.double() - b[name].grad.double()).norm() / b[name].grad.double().norm()).item() for name in b}


def plain(net):
    """The same in the layers' own operators: a hook on one asks for them."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, Block):
            module.norm.register_forward_hook(lambda *_: None)
            module.recompute = 'none'
    return net


@mark.parametrize('dtype, bound', [(torch.float32, 2e-5), (torch.float64, 1e-12)])
@mark.parametrize('mode', MODES)
@mark.parametrize('arch', ['atto', 'v2_atto'])
def test_gradients_equal_the_plain_ones(arch, mode, dtype, bound):
    net, image = net_of(arch, mode, dtype), torch.randn(2, 3, 70, 96, dtype=dtype)
    targets = [torch.randn_like(one) for one in net(image)]
    found = differences(gradients(net, image, targets), gradients(plain(net), image, targets))
    assert max(found.values()) < bound, found


@mark.parametrize('mode', MODES)
@mark.parametrize('arch', ['atto', 'v2_atto'])
def test_mixed_precision_is_as_precise_as_plain(arch, mode):
    net, image = net_of(arch, mode), torch.randn(2, 3, 64, 96)
    targets = [torch.randn_like(one) for one in net(image)]
    exact = gradients(plain(net).double(), image.double(), [one.double() for one in targets])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        ours, theirs = (differences(gradients(one, image, targets), exact) for one in (net, plain(net)))
    assert sum(ours.values()) < 1.1 * sum(theirs.values()) and max(ours.values()) < .1


@mark.parametrize('mode', MODES)
@mark.parametrize('generation', [1, 2])
def test_first_and_second_derivatives(generation, mode):
    block = randomise(Block(4, generation=generation, recompute=mode)).double().train()
    x = torch.randn(2, 4, 3, 5, dtype=torch.double).contiguous(memory_format=torch.channels_last).requires_grad_()
    inputs = (x, *block.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: block(x), inputs)
    assert torch.autograd.gradgradcheck(lambda x, *_: block(x), inputs)


@mark.parametrize('shape, dilation', [((2, 96, 40, 56), 1), ((3, 24, 9, 31), 2), ((7, 160, 5, 5), 1), ((1, 16, 2, 3), 4)])
@mark.parametrize('strip_bytes', [1, 50_000, 1 << 22])
def test_weight_gradient_of_the_depthwise_layer(shape, dilation, strip_bytes, monkeypatch):
    monkeypatch.setattr(convnext_dense.depthwise, 'STRIP_BYTES', strip_bytes)
    conv = torch.nn.Conv2d(shape[1], shape[1], 7, padding=3 * dilation, dilation=dilation, groups=shape[1])
    x, grad = (torch.randn(shape).contiguous(memory_format=torch.channels_last) for _ in range(2))
    double = copy.deepcopy(conv).double()
    exact, = torch.autograd.grad(double(x.double()), double.weight, grad.double())
    theirs, = torch.autograd.grad(conv(x), conv.weight, grad)
    ours = convnext_dense.depthwise.weight_gradient(x, grad, 7, dilation)
    assert (ours - exact).norm() < 1e-6 * exact.norm() + 2 * (theirs - exact).norm()


def test_a_layer_that_is_watched_or_replaced_has_its_say():
    net, seen = net_of('atto').eval(), []
    image = torch.randn(1, 3, 64, 64)
    expected = net(image)
    net.stages[0][1].pwconv2.register_forward_hook(lambda *_: seen.append(1))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(net(image), expected)) and seen
    torch.nn.utils.parametrizations.weight_norm(net.stages[1][0].pwconv1)  # leaves the weight as it is, but it is another layer
    assert net.stages[1][0].odd_layer() == 'pwconv1'
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(net(image), expected))


def test_an_empty_batch_gives_empty_maps():
    net = net_of('atto')
    maps = net(torch.zeros(0, 3, 64, 64))
    assert [tuple(one.shape) for one in maps] == [(0, 40, 16, 16), (0, 80, 8, 8), (0, 160, 4, 4), (0, 320, 2, 2)]


@mark.parametrize('arch', ['atto', 'v2_atto'])
def test_memory_of_a_training_step(arch, monkeypatch):
    monkeypatch.undo()
    image, peaks = torch.randn(1, 3, 512, 512), {}
    for mode in MODES:
        net = net_of(arch, mode)

        def step():
            net.zero_grad(set_to_none=False)
            sum(one.sum() for one in net(image)).backward()
        step()
        peaks[mode] = peak_memory(step, 'cpu')
    assert peaks['mlp'] < .65 * peaks['none'] and peaks['block'] < .85 * peaks['mlp'], peaks
