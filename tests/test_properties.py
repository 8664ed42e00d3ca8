"""What holds for every architecture: layers and their rates, names in files, swaps.

Examples are drawn by hypothesis, the same ones in each run.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from convnext_dense import ConvNeXt
from convnext_dense.architectures import Architecture, parameter_shapes
from convnext_dense.inference.building import build
from convnext_dense.layer_decay import DECAY_TYPES
from convnext_dense.swap import plan
from convnext_dense.weights import convert
from convnext_dense.weights.converting import TARGETS
from convnext_dense.weights.layouts import LAYOUTS, STEM, to_ours, to_theirs


def examples(count):
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def four(numbers):
    return st.tuples(*[numbers] * 4)


# ---- layers and their rates ----

DEPTHS = st.tuples(*[st.integers(1, 4)] * 2, st.integers(1, 14), st.integers(1, 4))
BASE_RATE = 1e-3


def layers(depths, decay_type):
    """Part of the backbone -> its layer, in the order of the data; and the layer of the heads.

    By the table in the appendix of the ConvNeXt paper and the official code: a new layer begins
    with each stage, and in the third stage after every three blocks. By stages all downsampling is
    in layer 0; the number of the heads' layer is the same.
    """
    parts, layer = {'downsample_layers.0.': 0}, 0
    for stage, depth in enumerate(depths):
        layer += 1
        if stage:
            parts[f'downsample_layers.{stage}.'] = layer if decay_type == 'layer_wise' else 0
        for block in range(depth):
            layer += stage == 2 and block > 0 and block % 3 == 0
            parts[f'stages.{stage}.{block}.'] = layer if decay_type == 'layer_wise' else stage + 1
    return parts, layer + 1


@examples(15)
@given(
    DEPTHS,
    st.sampled_from([1, 2]),
    st.sampled_from(DECAY_TYPES),
    st.floats(0.5, 1.0),
    st.integers(-1, 3),
    st.sets(st.integers(0, 3), min_size=1),
)
def test_each_parameter_has_the_rate_of_its_layer(
    depths, generation, decay_type, decay_rate, frozen_stages, out_indices
):
    arch = dict(depths=depths, dims=(4, 4, 4, 4), generation=generation)
    with torch.device('meta'):
        backbone = ConvNeXt(arch, out_indices=tuple(out_indices), frozen_stages=frozen_stages)
        model = nn.ModuleDict(dict(backbone=backbone, head=nn.Linear(4, 4)))
    groups = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=BASE_RATE, weight_decay=0.05),
            constructor='convnext_dense.LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(decay_rate=decay_rate, decay_type=decay_type),
        ),
    ).optimizer.param_groups
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert sorted(name for group in groups for name in group['param_names']) == sorted(trained)
    assert sum(len(group['params']) for group in groups) == len(trained)

    rates = {name: group['lr'] for group in groups for name in group['param_names']}
    parts, top = layers(depths, decay_type)
    in_order = []
    for part, layer in parts.items():
        of_part = [rate for name, rate in rates.items() if name.startswith(f'backbone.{part}')]
        assert of_part == pytest.approx([BASE_RATE * decay_rate ** (top - layer)] * len(of_part))
        if decay_type == 'layer_wise' or part.startswith('stages'):
            in_order += of_part
    heads = [rate for name, rate in rates.items() if name.startswith(('head', 'backbone.norm'))]
    assert len(heads) == 2 + 2 * len(out_indices) and set(heads) == {BASE_RATE}
    assert in_order == sorted(in_order)
    if decay_rate == 1:
        assert set(rates.values()) == {BASE_RATE}


@examples(8)
@given(DEPTHS, st.sampled_from(DECAY_TYPES))
def test_a_decay_of_one_is_no_decay(depths, decay_type):
    test = test_each_parameter_has_the_rate_of_its_layer.hypothesis.inner_test
    test(depths, 1, decay_type, 1.0, -1, {0, 1, 2, 3})


# ---- names in files ----

# Of the first stage; timm stores the linear layers of four of these as 1x1 convolutions.
WIDTHS = st.sampled_from([1, 2, 4, 7, 40, 48, 64, 80])
PREFIXES = st.sampled_from(['', 'backbone.', 'module.backbone.', 'visual.trunk.'])


@st.composite
def backbones(draw):
    """Names -> tensors of a backbone under our names, all values distinct."""
    depths = draw(st.tuples(*[st.integers(1, 3)] * 2, st.integers(1, 12), st.integers(1, 3)))
    dims = draw(WIDTHS), *draw(st.tuples(*[st.integers(1, 9)] * 3))
    shapes = parameter_shapes(
        Architecture(depths, dims, draw(st.sampled_from([1, 2]))), draw(st.integers(1, 5))
    )
    if draw(st.booleans()):
        shapes |= {'norm.weight': dims[3:], 'norm.bias': dims[3:]}
        shapes |= {'head.weight': (10, dims[3]), 'head.bias': (10,)}
    for i in draw(st.sets(st.integers(0, 3))):
        del shapes[f'norm{i}.weight'], shapes[f'norm{i}.bias']
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    pieces = torch.arange(sum(sizes), dtype=torch.float64).split(sizes)
    return {name: piece.reshape(shape) for (name, shape), piece in zip(shapes.items(), pieces)}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize('layout', LAYOUTS, ids=lambda layout: layout.name)
@examples(15)
@given(backbones(), PREFIXES)
def test_renamed_and_back_is_the_same(layout, tensors, prefix):
    renamed, without_place = to_theirs(tensors, layout)
    assert len(renamed) + len(without_place) == len(tensors)  # no two have the same name
    beside = {'neck.weight': torch.ones(1)} if prefix else {}
    back = to_ours({prefix + name: tensor for name, tensor in renamed.items()} | beside, 'it')
    assert back.layout == layout and back.prefix == prefix
    assert not back.unknown and back.dropped.keys() == beside.keys()
    kept = {name: tensor for name, tensor in tensors.items() if name not in without_place}
    assert equal(back.tensors, kept)
    assert {prefix + name for name in renamed} == {*back.names.values()}


@examples(15)
@given(backbones(), st.sampled_from(sorted(TARGETS)))
def test_converted_and_back_loses_nothing_without_a_word(tensors, target):
    """V2 has no place in torchvision's layout, classifiers none in some; all else comes back."""
    is_v2 = any('.grn.' in name for name in tensors)
    if is_v2 and target == 'torchvision':
        with pytest.raises(Exception, match='has no place for'):
            convert(tensors, target)
        return
    there = convert(tensors, target)
    back = convert(there.tensors, 'ours')
    kept = {name: tensor for name, tensor in tensors.items() if name not in there.dropped}
    assert equal(back.tensors, kept) and not back.dropped
    assert {name.partition('.')[0] for name in there.dropped} <= {'norm', 'head'}
    assert there.architecture == back.architecture
    assert there.architecture.dims[0] == tensors[STEM].shape[0]


# ---- swaps ----

SIDE = 256


def maps_of(model, images):
    return [(x.shape[1], SIDE // x.shape[-1]) for x in model.extract_feat(images)]


def built(model):
    return build(model, 'meta'), torch.zeros(1, 3, SIDE, SIDE, device='meta')


@st.composite
def old_backbones(draw):
    """A ResNet and what it emits: (config, indices of the stages, their widths)."""
    base = draw(st.integers(1, 6)) * 8
    first = draw(st.integers(0, 3))
    # A deepest map at stride 4 would become one at 8: ConvNeXt's last stage is never finer.
    indices = tuple(range(first, draw(st.integers(max(first, 1), 3)) + 1))
    backbone = dict(type='ResNet', depth=18, base_channels=base, stem_channels=16)
    return dict(backbone, out_indices=indices), indices, [base * 2**i for i in indices]


@examples(6)
@given(old_backbones(), st.integers(1, 8), st.data())
def test_a_detector_keeps_its_pyramid(old, eighths, data):
    backbone, indices, widths = old
    start = data.draw(st.integers(0, len(indices) - 1), 'start_level')
    levels = len(indices) - start + data.draw(st.integers(0, 2), 'extra levels')
    strides = [4 * 2 ** (indices[start] + level) for level in range(levels)]
    neck = dict(type='FPN', in_channels=widths, out_channels=8 * eighths, num_outs=levels)
    neck.update(start_level=start, add_extra_convs='on_input')
    anchors = dict(type='AnchorGenerator', scales=[8], ratios=[1.0], strides=strides)
    head = dict(type='RetinaHead', num_classes=3, in_channels=8 * eighths, stacked_convs=1)
    head.update(feat_channels=8, anchor_generator=anchors)
    cfg = Config(
        dict(
            default_scope='mmdet',
            model=dict(type='RetinaNet', backbone=backbone, neck=neck, bbox_head=head),
        )
    )
    init_default_scope('mmdet')
    before = maps_of(*built(cfg.model))
    assert before == [(8 * eighths, stride) for stride in strides]
    swapped = plan(cfg, 'atto').cfg
    model, images = built(swapped.model)
    assert maps_of(model, images) == before
    scores, boxes = model(images)
    assert [score.shape[1] for score in scores] == [3] * levels and len(boxes) == levels
    norms = [name for name, _ in model.backbone.named_parameters() if name.startswith('norm')]
    assert len(norms) == 2 * (len(indices) - start)  # no map that nothing reads


@examples(6)
@given(old_backbones(), st.integers(1, 8), st.data())
def test_a_segmentors_heads_read_maps_of_the_same_stride(old, eighths, data):
    backbone, indices, widths = old
    places = range(len(indices))
    norm = dict(type='BN')

    def fcn(place, channels):
        index = place - data.draw(st.sampled_from([0, len(indices)]), 'counted from the end')
        head = dict(type='FCNHead', in_channels=widths[place], in_index=index, num_convs=1)
        return dict(head, channels=channels, num_classes=5, norm_cfg=norm)

    if data.draw(st.booleans(), 'pyramid'):
        head = dict(type='UPerHead', in_channels=widths, in_index=list(places), num_classes=5)
        head.update(channels=8 * eighths, pool_scales=(1, 2), norm_cfg=norm)
    else:
        head = fcn(data.draw(st.sampled_from(places), 'in_index'), 8 * eighths)
    auxiliary = fcn(data.draw(st.sampled_from(places), 'in_index'), 8)
    model = dict(type='EncoderDecoder', backbone=backbone, decode_head=head)
    model.update(auxiliary_head=auxiliary, train_cfg=dict(), test_cfg=dict(mode='whole'))
    cfg = Config(dict(default_scope='mmseg', model=model))
    init_default_scope('mmseg')
    swapped = plan(cfg, 'atto').cfg
    read = []
    for config in (cfg, swapped):
        model, images = built(config.model)
        emitted, maps = maps_of(model, images), model.extract_feat(images)
        heads = model.decode_head, model.auxiliary_head
        chosen = [head.in_index for head in heads]
        chosen = [index if isinstance(index, list) else [index] for index in chosen]
        read.append([[emitted[i][1] for i in indices] for indices in chosen])
        read.append([SIDE // head(maps).shape[-1] for head in heads])
    assert read[:2] == read[2:]
