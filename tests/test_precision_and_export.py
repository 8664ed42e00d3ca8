"""Low precision, torch.export and ONNX."""

import pytest
import torch

from conftest import needs, randomise
from convnext_dense import ConvNeXt, fuse


def relative_differences(maps, expected):
    return [((a.float() - b).abs().max() / b.abs().max()).item() for a, b in zip(maps, expected)]


SIZES = (
    (70, 90),
    (224, 320),
    (64, 129),
)  # none that was traced, and one and a half no multiple of 32


@pytest.fixture(params=['V1', 'V2', 'V1, fused', 'V2, fused'])
def net(request):
    net = randomise(
        ConvNeXt(
            dict(depths=(1, 1, 2, 1), dims=(40, 80, 160, 320), generation=int(request.param[1]))
        )
    )
    return fuse(net) if 'fused' in request.param else net


def with_large_activations(arch):
    """Hidden values in the hundreds.

    At 256 x 256 pixels their squares sum to far more than half precision holds.
    """
    net = randomise(ConvNeXt(arch))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if 'pwconv1.weight' in name:
                parameter.mul_(100)
            elif 'pwconv2.weight' in name:
                parameter.mul_(0.05)
    return net


def assert_close_at_1024_pixels(arch, dtype, bound):
    net, image, hidden = with_large_activations(arch), torch.randn(1, 3, 1024, 1024), []
    net.stages[0][0].pwconv2.register_forward_pre_hook(
        lambda module, inputs: hidden.append(inputs[0].float())
    )
    with torch.no_grad():
        expected = net(image)
        maps = net.to(dtype)(image.to(dtype))
    assert (
        hidden[0].square().sum((1, 2)).max() > 1e7 and hidden[0].abs().max() > 300
    )  # 65504 is half precision's largest
    assert all(m.dtype == dtype and m.isfinite().all() for m in maps)
    assert max(relative_differences(maps, expected)) < bound


@pytest.mark.parametrize('arch', ['atto', 'v2_atto'])
def test_bfloat16_at_1024_pixels(arch):
    assert_close_at_1024_pixels(arch, torch.bfloat16, 0.04)


@needs('half convolution on the CPU')
@pytest.mark.parametrize('arch', ['atto', 'v2_atto'])
def test_half_precision_at_1024_pixels(arch):
    assert_close_at_1024_pixels(arch, torch.float16, 0.006)


@needs('half convolution on the CPU')
def test_naive_response_norm_overflows():
    """The test above would notice: squares summed in half precision are infinite there."""
    net = with_large_activations('v2_atto').half()

    def naive(x):
        energy = x.pow(2).sum((1, 2), keepdim=True).sqrt()
        grn = net.stages[0][0].grn
        return grn.gamma * (x * (energy / (energy.mean(-1, keepdim=True) + 1e-6))) + grn.beta + x

    net.stages[0][0].grn.forward = naive
    with torch.no_grad():
        assert not net(torch.randn(1, 3, 1024, 1024).half())[0].isfinite().all()


def test_bfloat16_on_the_cpu(net):
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = net(image)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            automatic = net(image)
        maps = net.bfloat16()(image.bfloat16())
    assert all(m.dtype == torch.bfloat16 for m in maps)
    assert max(relative_differences(maps, expected)) < 0.05
    assert max(relative_differences(automatic, expected)) < 0.05


@needs('half convolution on the CPU')
def test_half_precision_on_the_cpu(net):
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = net(image)
        maps = net.half()(image.half())
    assert max(relative_differences(maps, expected)) < 0.01


@needs('export with dynamic sizes')
def test_exported_program_runs_at_other_sizes(net):
    height, width = (
        torch.export.Dim('height', min=64, max=2048),
        torch.export.Dim('width', min=64, max=2048),
    )
    program = torch.export.export(
        net, (torch.randn(1, 3, 64, 96),), dynamic_shapes=({2: height, 3: width},)
    )
    for size in SIZES:
        image = torch.randn(1, 3, *size)
        assert max(relative_differences(program.module()(image), net(image))) < 1e-5


@needs('ONNX export')
def test_onnx_runs_at_other_sizes(net, tmp_path):
    import onnxruntime

    height, width = (
        torch.export.Dim('height', min=64, max=2048),
        torch.export.Dim('width', min=64, max=2048),
    )
    torch.onnx.export(
        net,
        (torch.randn(1, 3, 64, 96),),
        tmp_path / 'net.onnx',
        dynamo=True,
        verbose=False,
        dynamic_shapes=({2: height, 3: width},),
    )
    session = onnxruntime.InferenceSession(tmp_path / 'net.onnx')
    for size in SIZES:
        image = torch.randn(1, 3, *size)
        maps = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        with torch.no_grad():
            assert max(relative_differences([torch.from_numpy(m) for m in maps], net(image))) < 1e-4


@pytest.mark.parametrize('backend', ['aot_eager', pytest.param('inductor', marks=pytest.mark.slow)])
def test_compiles_as_one_graph(net, backend):
    torch.compiler.reset()  # each network counts as one more compilation of the same code
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for size in ((64, 96), *SIZES):
            image = torch.randn(1, 3, *size)
            assert max(relative_differences(compiled(image), net(image))) < 1e-4


def test_training_compiles_as_one_graph():
    assert_training_compiles('none')


@needs('compiled recomputation')
@pytest.mark.parametrize('checkpointing', ['mlp', 'block'])
def test_training_with_recomputation_compiles_as_one_graph(checkpointing):
    assert_training_compiles(checkpointing)


def assert_training_compiles(checkpointing):
    """The compiled network has the gradients of the other."""
    net = randomise(ConvNeXt('atto', checkpointing=checkpointing)).train()
    image = torch.randn(1, 3, 64, 96)
    gradients = []
    torch.compiler.reset()
    for model in (net, torch.compile(net, fullgraph=True, backend='aot_eager')):
        net.zero_grad()
        sum(m.square().sum() for m in model(image)).backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    assert all((a - b).norm() < 1e-3 * a.norm() + 1e-4 for a, b in zip(*gradients))
