"""The fast path: the same maps in less memory, and only where ``takes_over`` says so."""

import copy
import subprocess
import sys

import pytest
import torch
from pytest import mark
from torch import nn
from torch.autograd import forward_ad
from torch.func import vmap
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from conftest import randomise
from convnext_dense import ConvNeXt, fast_path, fuse, plain_operators
from convnext_dense.evaluation.timing import peak_memory
from convnext_dense.fast_path import takes_over
from convnext_dense.layers import Block

ARCHS = ['atto', 'v2_atto']


@pytest.fixture
def short_chunks(monkeypatch):
    """So that small maps go in many runs."""
    monkeypatch.setattr(fast_path, 'SMALLEST_CHUNK', 7)
    monkeypatch.setattr(fast_path, 'FEW_VALUES', 0)


@mark.parametrize('is_fused', [False, True])
@mark.parametrize(
    'kwargs',
    [dict(arch='atto'), dict(arch='v2_atto'), dict(arch='v2_atto', output_stride=8)],
    ids=str,
)
def test_runs_give_the_maps_of_plain_operators(kwargs, is_fused, short_chunks):
    net, image = randomise(ConvNeXt(**kwargs)).double(), torch.randn(3, 3, 225, 94).double()
    with torch.no_grad():
        with plain_operators():
            expected = net(image)
        maps = (fuse(net) if is_fused else net)(image)
    assert all((a - b).norm() < 1e-13 * b.norm() for a, b in zip(maps, expected))
    assert all(fmap.is_contiguous() for fmap in maps)


@mark.parametrize('arch', ARCHS)
def test_plain_operators_is_the_switch(arch):
    """On the fast path no map of 4C is there as a whole (V2: none of more than one image)."""
    net, image, peaks = ConvNeXt(arch).eval(), torch.randn(4, 3, 384, 384), []
    with torch.no_grad():
        peaks.append(peak_memory(lambda: net(image), 'cpu'))
        with plain_operators():
            peaks.append(peak_memory(lambda: net(image), 'cpu'))
        peaks.append(peak_memory(lambda: net(image), 'cpu'))
    assert peaks[0] == peaks[2] < 0.6 * peaks[1], peaks


def test_when_it_takes_over():
    net, x = ConvNeXt('atto').eval(), torch.randn(1, 40, 64, 64)
    block = net.stages[0][0]
    assert not takes_over(x, block)  # a gradient is recorded
    with torch.no_grad():
        assert takes_over(x, block) and takes_over(x.bfloat16(), block)
        assert not takes_over(x, copy.deepcopy(block).train())
        assert not takes_over(x.to('meta'), block) and not takes_over(x[:, :, :32], block)
        assert not takes_over(nn.Parameter(x), block)  # a subclass may do anything
        with plain_operators():
            assert not takes_over(x, block)
        assert takes_over(x, block)
        with FlopCounterMode(display=False):
            assert not takes_over(x, block)
        with forward_ad.dual_level():
            assert not takes_over(x, block)
        seen = []
        vmap(lambda row: seen.append(takes_over(x, block)) or row)(x)
        torch.jit.trace(lambda x: seen.append(takes_over(x, block)) or x, x, check_trace=False)
        torch.compile(lambda x: x + takes_over(x, block), backend='eager')(x)
        assert seen == [False, False]
        handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
        assert not takes_over(x, block)
        handle.remove()
        for module in (block, block.pwconv1):
            handle = module.register_forward_hook(lambda *_: None)
            assert not takes_over(x, block, fast_path.LAYER_TYPES)
            handle.remove()
        assert takes_over(x, block, fast_path.LAYER_TYPES)
        block.act = nn.ReLU()
        assert not takes_over(x, block, fast_path.LAYER_TYPES)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    assert takes_over(x, block) and not takes_over(x.requires_grad_(), block)


@mark.parametrize('arch', ARCHS)
def test_the_type_of_a_map_does_not_depend_on_its_size(arch):
    for net in (
        randomise(ConvNeXt(arch, out_norm=False)),
        fuse(randomise(ConvNeXt(arch, out_norm=False))),
    ):
        with torch.autocast('cpu', dtype=torch.bfloat16), torch.no_grad():
            types = {
                tuple(fmap.dtype for fmap in net(torch.randn(1, 3, side, side)))
                for side in (64, 512)
            }
        assert len(types) == 1, types


@mark.parametrize('arch', ARCHS)
def test_a_cpu_without_onednn(arch, monkeypatch):
    """Switched off by the user, or of a kind for which oneDNN has no bf16 (AVX2 alone)."""
    net, image = randomise(ConvNeXt(arch)), torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        expected = net(image)
        with (
            torch.backends.mkldnn.flags(enabled=False),
            profile(activities=[ProfilerActivity.CPU]) as record,
        ):
            maps = net(image)
        assert not any('mkldnn' in event.key for event in record.key_averages())
        assert all(
            torch.allclose(a, b, atol=1e-4 * b.abs().max().item()) for a, b in zip(maps, expected)
        )
        maps = net.bfloat16()(image.bfloat16())
    assert all((a.float() - b).norm() < 0.05 * b.norm() for a, b in zip(maps, expected))


def test_a_subclass_with_a_forward_of_its_own_has_its_say():
    class Doubled(Block):
        def forward(self, x):
            return 2 * super().forward(x)

    net, image = randomise(ConvNeXt('atto')), torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        expected = net.stages[0](net.downsample_layers[0](image))
        net.stages[0][1].__class__ = Doubled
        other = net.stages[0](net.downsample_layers[0](image))
        assert torch.allclose(other, 2 * expected)
        assert torch.allclose(net(image)[0], net.norm0(other), atol=1e-4)


def test_without_torchs_private_functions_the_plain_operators_run():
    code = """
import torch, mmengine.model, mmengine.optim  # which may use them at import
for module, name in ((torch._utils, 'is_compiling'), (torch._C, '_len_torch_dispatch_stack')):
    if hasattr(module, name):
        delattr(module, name)
from convnext_dense import ConvNeXt
from convnext_dense.fast_path import takes_over
from convnext_dense.layers import Block
net = ConvNeXt('atto').eval()
with torch.no_grad():
    assert not takes_over(torch.zeros(1, 40, 64, 64), net.stages[0])
    net(torch.randn(1, 3, 256, 256))
"""
    subprocess.run([sys.executable, '-c', code], check=True)
