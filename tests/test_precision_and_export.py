"""Low precision, torch.export and ONNX."""
import pytest
import torch
from conftest import needs
from test_backbone import randomise

from convnext_dense import ConvNeXt


def relative_differences(maps, expected):
    return [((a.float() - b).abs().max() / b.abs().max()).item() for a, b in zip(maps, expected)]


@pytest.fixture
def net():
    return randomise(ConvNeXt('atto'))


def test_bfloat16_on_the_cpu(net):
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = net(image)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            automatic = net(image)
        maps = net.bfloat16()(image.bfloat16())
    assert all(m.dtype == torch.bfloat16 for m in maps)
    assert max(relative_differences(maps, expected)) < .05
    assert max(relative_differences(automatic, expected)) < .05


@needs('half convolution on the CPU')
def test_half_precision_on_the_cpu(net):
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = net(image)
        maps = net.half()(image.half())
    assert max(relative_differences(maps, expected)) < .01


@needs('export with dynamic sizes')
def test_exported_program_runs_at_other_sizes(net):
    height, width = torch.export.Dim('height', min=64, max=2048), torch.export.Dim('width', min=64, max=2048)
    program = torch.export.export(net, (torch.randn(1, 3, 64, 96),), dynamic_shapes=({2: height, 3: width},))
    for size in ((70, 90), (224, 320)):
        image = torch.randn(1, 3, *size)
        assert max(relative_differences(program.module()(image), net(image))) < 1e-5


@needs('ONNX export')
def test_onnx_runs_at_other_sizes(net, tmp_path):
    import onnxruntime
    height, width = torch.export.Dim('height', min=64, max=2048), torch.export.Dim('width', min=64, max=2048)
    torch.onnx.export(net, (torch.randn(1, 3, 64, 96),), tmp_path / 'net.onnx', dynamo=True, verbose=False,
                      dynamic_shapes=({2: height, 3: width},))
    session = onnxruntime.InferenceSession(tmp_path / 'net.onnx')
    for size in ((70, 90), (224, 320)):
        image = torch.randn(1, 3, *size)
        maps = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        with torch.no_grad():
            assert max(relative_differences([torch.from_numpy(m) for m in maps], net(image))) < 1e-4
