"""A fused model gives the same maps, and refuses what it cannot do."""

import copy
import io

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.models import decode_heads
from pytest import mark, raises

from conftest import DEMO, randomise
from convnext_dense import ConfigError, ConvNeXt, fast_path, fuse, swap_backbone
from convnext_dense.config_names import config_folder
from convnext_dense.heads import UPerHead
from convnext_dense.inference.building import build


@pytest.fixture(autouse=True)
def small_maps_in_chunks(monkeypatch):
    monkeypatch.setattr(fast_path, 'FEW_VALUES', 0)


def errors(maps, expected):
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(maps, expected)]


@mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@mark.parametrize(
    'kwargs',
    [
        dict(arch='tiny'),
        dict(arch='v2_atto'),
        dict(arch='atto', output_stride=8),
        dict(arch='v2_atto', output_stride=16, out_norm=False),
    ],
    ids=str,
)
def test_no_further_from_float64_than_eager(kwargs, dtype):
    net, image = randomise(ConvNeXt(**kwargs)), torch.randn(2, 3, 225, 310)
    with torch.no_grad():
        expected = copy.deepcopy(net).double()(image.double())
        fused = errors(fuse(net).to(dtype)(image.to(dtype)), expected)
        eager = errors(copy.deepcopy(net).to(dtype)(image.to(dtype)), expected)
    assert all(a < 1.1 * b for a, b in zip(fused, eager)), (fused, eager)


@mark.parametrize('arch', ['atto', 'v2_atto'])
def test_exact_in_float64_and_under_autocast(arch):
    net, image = randomise(ConvNeXt(arch)), torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        expected = net.double()(image.double())
        assert max(errors(fuse(net)(image.double()), expected)) < 1e-13
        fused = fuse(net.float())
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert max(errors(fused(image), expected)) < 0.03


@mark.parametrize('task', DEMO)
def test_whole_models_predict_the_same(task):
    cfg = Config.fromfile(DEMO[task])
    init_default_scope(cfg.default_scope)
    model = build(cfg.model, 'cpu')
    randomise(model.backbone)
    fused, image = fuse(model), torch.randn(2, 3, 128, 160)
    with torch.no_grad():
        for a, b in zip(model.extract_feat(image), fused.extract_feat(image)):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * b.abs().max())
    assert any(
        parameter.requires_grad for parameter in model.backbone.parameters()
    )  # the model itself is as it was
    model.train()
    with raises(ConfigError, match='cannot be trained'):
        fused.train()


def upernet():
    cfg = Config.fromfile(DEMO['ade'])
    init_default_scope(cfg.default_scope)
    model = randomise(build(cfg.model, 'cpu'))
    for name, statistic in model.named_buffers():
        if 'running' in name:
            statistic.uniform_(0.5, 1.5)
    return model


def test_norms_of_heads_are_folded_exactly():
    model, image = upernet().double(), torch.randn(1, 3, 128, 160, dtype=torch.float64)
    kinds = [type(module) for module in fuse(model).decode_head.modules()]
    assert torch.nn.BatchNorm2d not in kinds and torch.nn.SyncBatchNorm not in kinds
    with torch.no_grad():
        expected = model(image)
        assert (fuse(model)(image) - expected).norm() < 1e-12 * expected.norm()
        assert torch.equal(model(image), expected)  # the model itself is as it was


def test_heads_of_mmseg_are_rearranged():
    model = upernet()
    model.decode_head.__class__ = decode_heads.UPerHead
    assert type(fuse(model).decode_head) is UPerHead
    assert type(model.decode_head) is decode_heads.UPerHead


def test_a_distilled_model_is_fused(monkeypatch):
    """Its ``train`` and ``eval`` return None."""
    monkeypatch.chdir(config_folder('mmdet').parent)  # where its teacher's config is
    cfg = swap_backbone('ld_r18-gflv1-r101_fpn_1x_coco', 'atto')
    init_default_scope('mmdet')
    model = build(cfg.model, 'cpu')
    assert model.eval() is None
    assert not set(fuse(model).state_dict()) >= set(model.state_dict())


def test_norms_with_hooks_are_left_alone():
    model, image, seen = upernet(), torch.randn(1, 3, 128, 160), []
    model.decode_head.fpn_bottleneck.norm.register_forward_hook(lambda *_: seen.append('norm'))
    fused = fuse(model)
    with torch.no_grad():
        expected = model(image)
        assert torch.allclose(fused(image), expected, rtol=1e-3, atol=1e-3 * expected.abs().max())
    assert seen == ['norm', 'norm']


def test_a_convolution_with_several_norms_is_folded_for_each():
    """RetinaNet's head with separate norms shares convolutions between levels."""
    model = torch.nn.Module()
    model.backbone = ConvNeXt('atto')
    model.head = torch.nn.ModuleList(ConvModule(8, 8, 3, norm_cfg=dict(type='BN')) for _ in '12')
    model.head[1].conv = model.head[0].conv
    for module in model.head:
        torch.nn.init.uniform_(module.norm.weight, 0.5, 1.5)
    fused, x = fuse(model), torch.randn(1, 8, 6, 6)
    for a, b in zip(model.eval().head, fused.head):
        assert torch.allclose(a(x), b(x), atol=1e-5)


def test_gradient_of_the_image_is_the_models():
    net = randomise(ConvNeXt('v2_atto'))
    image, grads = torch.randn(1, 3, 64, 64), []
    for model in (net, fuse(net)):
        leaf = image.clone().requires_grad_()
        sum(fmap.square().sum() for fmap in model(leaf)).backward()
        grads.append(leaf.grad)
        assert all(parameter.requires_grad == (model is net) for parameter in model.parameters())
    assert (grads[0] - grads[1]).norm() < 1e-4 * grads[0].norm()


def test_saved_and_loaded():
    net, image = randomise(ConvNeXt('v2_atto')), torch.randn(1, 3, 64, 64)
    fused, other, file = fuse(net), fuse(ConvNeXt('v2_atto')), io.BytesIO()
    torch.save(fused.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    whole = io.BytesIO()
    torch.save(fused, whole)
    whole.seek(0)
    with torch.no_grad():
        for again in (other, torch.load(whole, weights_only=False)):
            assert all(torch.equal(a, b) for a, b in zip(fused(image), again(image)))


def test_what_it_refuses():
    net = ConvNeXt('atto')
    fused = fuse(net)
    with raises(
        ConfigError, match='nothing to fuse: the model has no block of convnext_dense.ConvNeXt$'
    ):
        fuse(torch.nn.Conv2d(3, 3, 1))
    with raises(ConfigError, match='that is not fused'):
        fuse(fused)
    for strict in (True, False):  # MMEngine loads with strict=False
        with raises(ConfigError, match='stages.0.0 are not folded'):
            fused.load_state_dict(net.state_dict(), strict=strict)
        model = upernet()
        with raises(ConfigError, match='decode_head.fpn_bottleneck are not folded'):
            fuse(model).load_state_dict(
                {k: v for k, v in model.state_dict().items() if 'fpn_bottleneck' in k}, strict
            )
    net.stages[2][1].pwconv1.register_forward_hook(lambda *_: None)
    with raises(ConfigError, match='pwconv1 of a block has been replaced or has hooks'):
        fuse(net)


@pytest.fixture(params=['atto', 'v2_atto'])
def fused(request):
    return fuse(randomise(ConvNeXt(request.param)))


def test_input_is_left_alone(fused):
    """Blocks write into memory of their own only: what a hook has seen stays as it was."""
    seen = []

    def remember(module, inputs, output):
        seen.extend((tensor, tensor.clone()) for tensor in (inputs[0], output))

    for stage in fused.stages:
        stage.register_forward_hook(remember)
    image = torch.randn(2, 3, 96, 128).contiguous(memory_format=torch.channels_last)
    before = image.clone()
    with torch.no_grad():
        fused(image)
    assert torch.equal(image, before) and len(seen) == 8 and all(torch.equal(a, b) for a, b in seen)
