"""The roadmap from ResNet-50 to ConvNeXt-T: its ends, its cost, and that each step trains."""

import functools
import re

import pytest
import torch
import torchvision
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from conftest import ROOT, randomise
from convnext_dense import ROADMAP, ConfigError, ConvNeXt, Roadmap
from convnext_dense.inference.building import build

FIRST, *_, LAST = ROADMAP
SMALL = dict(depths=(1, 1, 2, 1), width=8)

# ---- what each step is ----

# Table 10 of arXiv 2201.03545, in G at 224 x 224.
PAPER = [4.09, 4.53, 4.42, 2.35, 5.27, 4.64, 4.07, 4.10, 4.15, 4.21, 4.29, 4.15, 4.15, 4.15]
# Where the table does not follow from the architecture: the table's, and ours.
DIFFERENT = dict(layer_norm=(4.46, 4.15), separate_downsampling=(4.49, 4.46))


def multiply_adds(step):
    """Of the classifier, in G: convolutions, and linear layers with the classifier's own."""
    counts = []
    with torch.device('meta'):
        net = Roadmap(step, out_norm=False)
        for layer in net.modules():
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
                layer.register_forward_hook(
                    lambda layer, _, output: counts.append(output.numel() * layer.weight[0].numel())
                )
        *_, last = net(torch.zeros(1, 3, 224, 224))
    return (sum(counts) + last.shape[1] * 1000) / 1e9


def test_multiply_adds_are_those_of_the_paper(monkeypatch):
    # They count nothing here, and are slow on the meta device.
    monkeypatch.setattr(torch.nn.BatchNorm2d, 'forward', lambda self, x: x)
    ours = {step: round(multiply_adds(step), 2) for step in ROADMAP}
    expected = dict(zip(ROADMAP, PAPER)) | {step: pair[1] for step, pair in DIFFERENT.items()}
    assert ours == expected and len(expected) == 16


def test_the_first_step_is_torchvisions_resnet50():
    reference = torchvision.models.resnet50(weights=None).double().eval()
    for module in reference.modules():  # as built, norms change nothing, and errors would not show
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean, module.running_var):
                values.data.uniform_(0.5, 1.5)
    renames = [
        (r'^conv1', 'downsample_layers.0.0'),
        (r'^bn1', 'downsample_layers.0.1'),
        (r'^layer(\d)', lambda match: f'stages.{int(match[1]) - 1}'),
        (r'\.conv(\d)', r'.branch.conv\1'),
        (r'\.bn(\d)', r'.branch.norm\1'),
        (r'\.downsample', '.projection'),
    ]
    weights = {}
    for name, value in reference.state_dict().items():
        for pattern, new in renames:
            name = re.sub(pattern, new, name)
        weights[name] = value
    weights = {name: weights[name] for name in weights if not name.startswith('fc')}
    with torch.device('meta'):
        net = Roadmap(FIRST, out_norm=False).eval()
    net.load_state_dict(weights, assign=True)
    image = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        maps = net(image)
        for name, layer in reference.named_children():
            if name == 'avgpool':
                break
            image = layer(image)
            if name.startswith('layer'):
                ours = maps[int(name[-1]) - 1]
                assert torch.allclose(ours, image, rtol=1e-12, atol=1e-12 * image.abs().max())


def test_the_last_step_is_convnext_tiny():
    """Its names, and its outputs to the bit, in training and in inference (the fast path)."""
    reference = randomise(ConvNeXt('tiny', drop_path_rate=0.1))
    with torch.device('meta'):
        net = Roadmap(LAST, drop_path_rate=0.1)
    net.load_state_dict(reference.state_dict(), assign=True)
    assert [*net.state_dict()] == [*reference.state_dict()]
    image = torch.randn(1, 3, 128, 160)
    for mode in (True, False):
        outputs = []
        for model in (net, reference):
            torch.manual_seed(2)  # for drop path
            with torch.set_grad_enabled(mode):
                outputs.append(model.train(mode)(image))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(*outputs))
    assert net.out_channels == reference.out_channels and net.out_strides == reference.out_strides


def test_the_last_step_begins_with_convnexts_weights():
    torch.manual_seed(1)
    weights = Roadmap(LAST, **SMALL).state_dict()
    torch.manual_seed(1)
    expected = ConvNeXt(dict(depths=SMALL['depths'], dims=(8, 16, 32, 64))).state_dict()
    assert all(torch.equal(weights.pop(name), expected[name]) for name in expected) and not weights


def test_each_step_changes_what_the_table_says():
    """Layers of a block in their order, without those of the skip connection."""

    def layers(step):
        block = Roadmap(step, **SMALL).stages[0][0]
        return [type(layer).__name__ for layer in (*block.branch, block.activation)]

    conv, bn, relu, gelu = 'Conv2d', 'BatchNorm2d', 'ReLU', 'GELU'
    assert layers('kernel_size_11') == [conv, bn, relu, conv, bn, relu, conv, bn, relu]
    assert layers('gelu') == [conv, bn, gelu, conv, bn, gelu, conv, bn, gelu]
    assert layers('fewer_activations') == [conv, bn, conv, bn, gelu, conv, bn, 'Identity']
    assert layers('fewer_norms') == [conv, bn, conv, gelu, conv, 'Identity']
    assert layers('layer_norm') == [conv, 'LayerNorm2d', conv, gelu, conv, 'Identity']


def test_no_convolution_before_a_batch_norm_has_a_bias():
    for step in [*ROADMAP][:-1]:
        for module in Roadmap(step, **SMALL).modules():
            if isinstance(module, torch.nn.Sequential):
                for layer, after in zip(module, [*module][1:] + [None]):
                    if isinstance(layer, torch.nn.Conv2d):
                        is_batch_norm = isinstance(after, torch.nn.BatchNorm2d)
                        assert (layer.bias is None) == is_batch_norm, step


# ---- as a backbone ----


@pytest.mark.parametrize('step', ROADMAP)
def test_maps_are_as_announced_and_every_parameter_gets_a_gradient(step):
    net = Roadmap(step, **SMALL, in_channels=4, out_indices=(-1, 1), drop_path_rate=0.2)
    maps = net(torch.randn(2, 4, 64, 96))
    assert net.out_channels == tuple(fmap.shape[1] for fmap in maps)
    assert net.out_strides == (8, 32) and [fmap.shape[2:] for fmap in maps] == [(8, 12), (2, 3)]
    assert all(fmap.is_contiguous() for fmap in maps)
    sum(fmap.square().sum() for fmap in maps).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(step='resnet'), "unknown step 'resnet': expected one of resnet50, stage_ratio"),
        (dict(depths=(1, 1)), r'four positive integers.* got depths=\(1, 1\)'),
        (dict(depths=3), 'four positive integers'),
        (dict(width=0), 'width is one.* width=0'),
        (dict(out_indices=(0, 4)), 'stages 0'),
        (dict(drop_path_rate=1), 'drop_path_rate lies in'),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Roadmap(**{'step': LAST, **SMALL, **options})
    with pytest.raises(ConfigError, match='expected images'):
        Roadmap(LAST, **SMALL)(torch.randn(1, 4, 64, 64))


# ---- under detectors and segmentors ----


def heads_of(config, **smaller):
    cfg = Config.fromfile(ROOT / 'configs/demo' / config)
    cfg.merge_from_dict(dict(model=smaller))
    return cfg.model


NARROW = dict(in_channels=8, num_classes=2)
SMALLER = dict(
    mmdet=dict(
        config='mask-rcnn_convnext-atto_shapes.py',
        neck=dict(out_channels=8),
        rpn_head=dict(in_channels=8, feat_channels=8),
        roi_head=dict(
            bbox_roi_extractor=dict(out_channels=8),
            bbox_head=dict(NARROW, fc_out_channels=8),
            mask_roi_extractor=dict(out_channels=8),
            mask_head=dict(NARROW, num_convs=1, conv_out_channels=8),
        ),
        train_cfg=dict(rpn_proposal=dict(nms_pre=20), rcnn=dict(sampler=dict(num=8))),
    ),
    mmseg=dict(
        config='upernet_convnext-atto_shapes.py',
        data_preprocessor=dict(size=(64, 64)),
        decode_head=dict(channels=8),
        auxiliary_head=dict(channels=8),
    ),
)


@functools.cache
def model_with(library, widths):
    """The demo's model, smaller, for a backbone that emits maps of these widths."""
    cfg = heads_of(**SMALLER[library])
    if library == 'mmdet':
        cfg.neck.in_channels = list(widths)
    else:
        cfg.decode_head.in_channels, cfg.auxiliary_head.in_channels = list(widths), widths[2]
    return build(cfg, 'cpu')


def on_step(library, step):
    init_default_scope(library)
    backbone = MODELS.build(dict(type='convnext_dense.Roadmap', step=step, **SMALL))
    model = model_with(library, backbone.out_channels)
    model.backbone = backbone
    return model.train()


def batch(library):
    if library == 'mmdet':
        shapes = [(3, 64, 64)] * 2
        return demo_mm_inputs(2, shapes, num_items=[2, 2], num_classes=2, with_mask=True)
    labels = PixelData(data=(torch.arange(64 * 64) // 1024).reshape(1, 64, 64))
    sample = SegDataSample(gt_sem_seg=labels, metainfo=dict(img_shape=(64, 64)))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    return dict(inputs=[*images], data_samples=[sample, sample.clone()])


@pytest.mark.parametrize('library', SMALLER)
@pytest.mark.parametrize('step', ROADMAP)
def test_each_step_trains_with_plain_adamw(step, library):
    model = on_step(library, step)
    adamw = dict(type='AdamW', lr=1e-3, weight_decay=0.05)
    optimiser = build_optim_wrapper(model, dict(type='OptimWrapper', optimizer=adamw))
    before = {name: value.clone() for name, value in model.backbone.named_parameters()}
    losses = model.train_step(batch(library), optimiser)
    assert losses['loss'].isfinite()
    after = dict(model.backbone.named_parameters())
    assert [name for name in before if torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize('step', [FIRST, LAST])
def test_layer_wise_decay_refuses_the_roadmap(step):
    wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
        constructor='convnext_dense.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(decay_rate=0.9, decay_type='stage_wise'),
    )
    with pytest.raises(ConfigError, match="got none in EncoderDecoder.* Roadmap's steps"):
        build_optim_wrapper(on_step('mmseg', step), wrapper)
