"""Parameter groups against the published rules, written out, and against mmdet's and mmseg's."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from conftest import ADE_T, COCO_T, ROOT
from convnext_dense import ConfigError, ConvNeXt, layer_id, lr_scale

# recipes 3.1, N = 6: prefix of the parameter -> layer; the first that matches counts
LAYER_WISE = {
    'backbone.downsample_layers.0.': 0,
    'backbone.stages.0.': 1,
    'backbone.downsample_layers.1.': 2,
    'backbone.stages.1.': 2,
    'backbone.downsample_layers.2.': 3,
    **{
        f'backbone.stages.2.{block}.': layer
        for layer, blocks in {3: (0, 1, 2), 4: (3, 4, 5), 5: (6, 7, 8)}.items()
        for block in blocks
    },
    'backbone.downsample_layers.3.': 6,
    'backbone.stages.3.': 6,
    '': 7,
}
STAGE_WISE = {
    'backbone.downsample_layers.': 0,
    'backbone.stages.0.': 1,
    'backbone.stages.1.': 2,
    'backbone.stages.2.': 3,
    'backbone.stages.3.': 4,
    '': 7,
}
LAYER_WISE_SCALES = [0.698337, 0.735092, 0.773781, 0.814506, 0.857375, 0.9025, 0.95, 1]  # 0.95
STAGE_WISE_SCALES = {0: 0.478297, 1: 0.531441, 2: 0.59049, 3: 0.6561, 4: 0.729, 7: 1}  # 0.9
SMALL = dict(depths=(2, 2, 6, 2), dims=(2, 2, 2, 2))  # 5 layers


def build(path):
    cfg = Config.fromfile(ROOT / path)
    cfg.model.backbone.init_cfg = None
    cfg.optim_wrapper.update(type='OptimWrapper')
    cfg.optim_wrapper.pop('loss_scale', None)
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model), cfg.optim_wrapper


@pytest.mark.parametrize(
    'path, layers, scales, num_groups',
    [(COCO_T, LAYER_WISE, LAYER_WISE_SCALES, 16), (ADE_T, STAGE_WISE, STAGE_WISE_SCALES, 12)],
)
def test_every_parameter_of_the_full_models(path, layers, scales, num_groups):
    model, optim = build(path)
    groups = build_optim_wrapper(model, optim).optimizer.param_groups
    assert len(groups) == num_groups
    grouping = {
        name: (group, p)
        for group in groups
        for name, p in zip(group['param_names'], group['params'])
    }
    assert len(grouping) == sum(len(group['params']) for group in groups)
    assert set(grouping) == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        group, grouped = grouping[name]
        assert grouped is parameter
        layer = next(layer for prefix, layer in layers.items() if name.startswith(prefix))
        decay = 0 if parameter.dim() == 1 or name.endswith('.bias') else 0.05
        assert group['group_name'] == f'layer_{layer}_{"decay" if decay else "no_decay"}', name
        assert group['weight_decay'] == decay, name
        assert group['lr'] == pytest.approx(1e-4 * scales[layer], rel=1e-5), name
        assert group['lr_scale'] == pytest.approx(scales[layer], rel=1e-5), name


@pytest.mark.parametrize('path', [COCO_T, ADE_T])
def test_groups_equal_those_of_the_frameworks_constructor(path):
    model, optim = build(path)
    ours = build_optim_wrapper(model, optim).optimizer.param_groups
    theirs = build_optim_wrapper(
        model,
        {
            **optim,
            'constructor': 'LearningRateDecayOptimizerConstructor',
            # num_layers: theirs does not know it from the depths
            'paramwise_cfg': dict(optim['paramwise_cfg'], num_layers=6),
        },
    ).optimizer.param_groups
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert a['group_name'] == b['group_name'] and a['param_names'] == b['param_names']
        assert all(a[key] == pytest.approx(b[key]) for key in ('lr', 'lr_scale', 'weight_decay'))
        assert all(x is y for x, y in zip(a['params'], b['params']))


@pytest.mark.parametrize(
    'depths, num_layers',
    [
        ((3, 3, 9, 3), 6),
        ((3, 3, 27, 3), 12),
        ((2, 2, 6, 2), 5),
        ((2, 2, 8, 2), 6),
        ((3, 4, 30, 3), 13),
    ],
)
def test_layers_have_no_gap_and_no_collision(depths, num_layers):
    blocks = [f'stages.{s}.{b}.gamma' for s in range(4) for b in range(depths[s])]
    names = ['downsample_layers.0.0.weight', *blocks, 'norm3.weight']
    ids = [layer_id(name, depths, 'layer_wise') for name in names]
    assert ids == sorted(ids) and set(ids) == set(range(num_layers + 2))
    assert lr_scale(num_layers + 1, 0.7, num_layers) == 1


@pytest.mark.parametrize(
    'cfg, message',
    [
        (dict(), 'needs decay_rate'),
        (dict(decay_rate=0.9), 'needs decay_rate'),
        (dict(decay_rate=0.9, decay_type='layerwise'), 'decay_type is one of'),
        (dict(decay_rate=1.2, decay_type='layer_wise'), r'\(0, 1\]'),
        (dict(decay_rate=0.9, decay_type='layer_wise', num_layers=4), 'too small'),
        (dict(decay_rate=0.9, decay_type='layer_wise', num_layers=5.5), 'too small'),
        (dict(decay_rate=0.9, decay_type='layer_wise', norm_decay_mult=0.0), 'nothing else'),
        (
            dict(
                decay_rate=0.9, decay_type='layer_wise', custom_keys=dict(absent=dict(lr_mult=0.1))
            ),
            "has 'absent'",
        ),
        (
            dict(decay_rate=0.9, decay_type='layer_wise', custom_keys=dict(norm=dict(lr=0.1))),
            'lr_mult and decay_mult',
        ),
    ],
)
def test_what_would_silently_change_the_rates_raises(cfg, message):
    wrapper = dict(
        optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        paramwise_cfg=cfg,
        constructor='convnext_dense.LayerDecayOptimWrapperConstructor',
    )
    with pytest.raises(ConfigError, match=message):
        build_optim_wrapper(nn.ModuleDict(dict(backbone=ConvNeXt('atto'))), wrapper)


def build_groups(model, wrapper=None, decay_type='layer_wise', **paramwise):
    """Parameter name -> its group."""
    groups = build_optim_wrapper(
        model,
        dict(
            wrapper or dict(type='OptimWrapper'),
            optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
            constructor='convnext_dense.LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(decay_rate=0.9, decay_type=decay_type, **paramwise),
        ),
    ).optimizer.param_groups
    by_name = {name: group for group in groups for name in group['param_names']}
    assert len(by_name) == sum(len(group['params']) for group in groups)  # each in one group
    return by_name


def test_the_backbone_is_known_by_its_type_and_must_be_there():
    backbone = nn.ModuleDict(dict(backbone=ConvNeXt('atto', frozen_stages=1)))
    groups = build_groups(nn.ModuleDict(dict(teacher=backbone, head=nn.Linear(2, 2))))
    assert groups['teacher.backbone.stages.3.0.gamma']['lr'] == pytest.approx(0.9e-4)
    assert groups['head.weight']['lr'] == groups['teacher.backbone.norm0.weight']['lr'] == 1e-4
    assert not any(name.startswith('teacher.backbone.stages.0') for name in groups)  # frozen
    with pytest.raises(ConfigError, match='needs a convnext_dense.ConvNeXt'):
        build_groups(nn.Linear(2, 2))


def test_response_norms_of_v2_are_not_decayed():
    model = nn.ModuleDict(dict(backbone=ConvNeXt('v2_atto'), head=nn.Linear(2, 2)))
    groups = build_groups(model)
    assert groups.keys() == dict(model.named_parameters()).keys()
    norms = [group for name, group in groups.items() if '.grn.' in name]
    assert len(norms) == 24 and all(group['weight_decay'] == 0 for group in norms)


@pytest.mark.parametrize(
    'place, layer_wise, stage_wise',
    [
        ('downsample_layers.0', 0, 0),
        ('stages.0', 1, 1),
        ('stages.1.0', 2, 2),
        ('downsample_layers.2', 3, 0),
        ('stages.2.2', 3, 3),
        ('stages.2.3', 4, 3),
        ('stages.2.3.pwconv1', 4, 3),
        ('stages.2', 4, 3),
        ('stages.3', 5, 4),
        ('norm3', 6, 6),
    ],
)
def test_an_adapter_has_the_layer_that_it_sits_in(place, layer_wise, stage_wise):
    for decay_type, layer in dict(layer_wise=layer_wise, stage_wise=stage_wise).items():
        backbone = ConvNeXt(SMALL)
        adapter = nn.ModuleDict(dict(down=nn.Linear(2, 2)))
        backbone.get_submodule(place).add_module('adapter', adapter)
        groups = build_groups(nn.ModuleDict(dict(backbone=backbone)), decay_type=decay_type)
        group = groups[f'backbone.{place}.adapter.down.weight']
        assert group['group_name'] == f'layer_{layer}_decay'


def test_an_adapter_behind_the_blocks_of_the_third_stage_has_their_last_layer():
    backbone = ConvNeXt(SMALL)
    backbone.stages[2].append(nn.Linear(2, 2))  # block 6 by its name: in threes, layer 5
    group = build_groups(nn.ModuleDict(dict(backbone=backbone)))['backbone.stages.2.6.weight']
    assert group['group_name'] == 'layer_4_decay'


@pytest.mark.parametrize(
    'add, name',
    [
        (lambda backbone: backbone.add_module('adapter', nn.Embedding(2, 2)), 'adapter.weight'),
        (lambda backbone: backbone.add_module('norm', nn.Embedding(2, 2)), 'norm.weight'),
        (lambda backbone: backbone.add_module('norm4', nn.Embedding(2, 2)), 'norm4.weight'),
        (lambda backbone: backbone.stages.append(nn.Embedding(2, 2)), 'stages.4.weight'),
        (
            lambda backbone: backbone.register_parameter(
                'pos_embed', nn.Parameter(torch.ones(2, 2))
            ),
            'pos_embed',
        ),
    ],
)
def test_what_sits_nowhere_in_the_backbone_raises(add, name):
    model = nn.ModuleDict(dict(backbone=ConvNeXt(SMALL), adapter=nn.Linear(2, 2)))
    assert build_groups(model)['adapter.weight']['lr'] == 1e-4  # outside: as the heads
    add(model.backbone)
    with pytest.raises(ConfigError, match=f"'{name}' .*expected downsample_layers.* Add it to"):
        build_groups(model)
    with pytest.raises(ConfigError, match=f"'{name}'"):
        layer_id(name, SMALL['depths'], 'stage_wise')
    model.get_parameter(f'backbone.{name}').requires_grad_(False)
    build_groups(model)  # a parameter that is not trained needs no rate


def test_custom_keys_change_rate_and_decay_on_top_of_the_layers():
    model = nn.ModuleDict(dict(backbone=ConvNeXt('atto'), head=nn.Linear(2, 2)))
    plain, changed = (
        build_groups(model),
        build_groups(
            model,
            custom_keys={
                'dwconv': dict(decay_mult=0.0),
                'stages.2': dict(lr_mult=0.5),
                'head': dict(lr_mult=2.0, decay_mult=0.1),
            },
        ),
    )
    assert changed.keys() == plain.keys() == dict(model.named_parameters()).keys()
    for name, group in changed.items():
        in_third_stage = 'stages.2' in name  # the longer key counts
        lr_mult = 0.5 if in_third_stage else 2.0 if 'head' in name else 1.0
        decay_mult = (
            0.0 if 'dwconv' in name and not in_third_stage else 0.1 if 'head' in name else 1.0
        )
        decay = plain[name]['weight_decay'] * decay_mult
        assert group['lr'] == pytest.approx(plain[name]['lr'] * lr_mult), name
        assert group['weight_decay'] == pytest.approx(decay), name


def test_teacher_and_student_and_names_that_wrappers_change():
    plain = build_groups(nn.ModuleDict(dict(backbone=ConvNeXt('atto'))))
    student, teacher = ConvNeXt('atto'), ConvNeXt('atto')
    student.stages[1][0] = checkpoint_wrapper(student.stages[1][0])
    student.stages[2] = torch.compile(student.stages[2])
    wrapped = torch.compile(nn.ModuleDict(dict(backbone=student)))
    groups = build_groups(nn.ModuleDict(dict(student=wrapped, teacher=teacher)))
    assert len(groups) == 2 * len(plain)
    for wrapper in ('student._orig_mod.', 'stages.2._orig_mod.', 'stages.1.0._checkpoint_wrapped_'):
        assert any(wrapper in name for name in groups)
    for name, group in groups.items():
        plain_name = name.replace('student._orig_mod.', '').replace('teacher', 'backbone')
        for wrapper in ('_orig_mod.', '_checkpoint_wrapped_module.'):
            plain_name = plain_name.replace(wrapper, '')
        assert group['group_name'] == plain[plain_name]['group_name'], name
    with pytest.raises(ConfigError, match='several of the same depths'):
        build_groups(nn.ModuleDict(dict(student=ConvNeXt('atto'), teacher=ConvNeXt('tiny'))))


@pytest.mark.parametrize(
    'wrapper',
    [
        dict(type='OptimWrapper', accumulative_counts=4),
        dict(type='OptimWrapper', clip_grad=dict(max_norm=1.0)),
    ],
)
def test_rates_are_the_same_with_accumulation_and_clipping(wrapper):
    model = nn.ModuleDict(dict(backbone=ConvNeXt('atto')))
    plain, wrapped = build_groups(model), build_groups(model, wrapper)
    assert plain.keys() == wrapped.keys()
    assert all(group['lr'] == wrapped[name]['lr'] for name, group in plain.items())
