"""Parameter groups against the published rules, written out, and against mmdet's and mmseg's own constructors."""
import pytest
import torch
from conftest import ADE_T, COCO_T, ROOT
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from convnext_dense import ConfigError, ConvNeXt, layer_id, lr_scale

# recipes 3.1, N = 6: prefix of the parameter -> layer; the first that matches counts
LAYER_WISE = {'backbone.downsample_layers.0.': 0, 'backbone.stages.0.': 1,
              'backbone.downsample_layers.1.': 2, 'backbone.stages.1.': 2, 'backbone.downsample_layers.2.': 3,
              **{f'backbone.stages.2.{block}.': 3 + group for group, blocks in enumerate(((0, 1, 2), (3, 4, 5), (6, 7, 8)))
                 for block in blocks},
              'backbone.downsample_layers.3.': 6, 'backbone.stages.3.': 6, '': 7}
STAGE_WISE = {'backbone.downsample_layers.': 0, 'backbone.stages.0.': 1, 'backbone.stages.1.': 2,
              'backbone.stages.2.': 3, 'backbone.stages.3.': 4, '': 7}
LAYER_WISE_SCALES = [.698337, .735092, .773781, .814506, .857375, .9025, .95, 1]  # 0.95
STAGE_WISE_SCALES = {0: .478297, 1: .531441, 2: .59049, 3: .6561, 4: .729, 7: 1}  # 0.9


def build(path):
    cfg = Config.fromfile(ROOT / path)
    cfg.model.backbone.init_cfg = None
    cfg.optim_wrapper.update(type='OptimWrapper')
    cfg.optim_wrapper.pop('loss_scale', None)
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model), cfg.optim_wrapper


@pytest.mark.parametrize('path, layers, scales, num_groups', [
    (COCO_T, LAYER_WISE, LAYER_WISE_SCALES, 16), (ADE_T, STAGE_WISE, STAGE_WISE_SCALES, 12)])
def test_every_parameter_of_the_full_models(path, layers, scales, num_groups):
    model, optim = build(path)
    groups = build_optim_wrapper(model, optim).optimizer.param_groups
    assert len(groups) == num_groups
    found = {name: (group, p) for group in groups for name, p in zip(group['param_names'], group['params'])}
    assert len(found) == sum(len(group['params']) for group in groups)
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        group, grouped = found[name]
        assert grouped is parameter
        layer = next(layer for prefix, layer in layers.items() if name.startswith(prefix))
        decay = 0 if parameter.dim() == 1 or name.endswith('.bias') else .05
        assert group['group_name'] == f'layer_{layer}_{"decay" if decay else "no_decay"}', name
        assert group['weight_decay'] == decay, name
        assert group['lr'] == pytest.approx(1e-4 * scales[layer], rel=1e-5), name
        assert group['lr_scale'] == pytest.approx(scales[layer], rel=1e-5), name


@pytest.mark.parametrize('path', [COCO_T, ADE_T])
def test_groups_equal_those_of_the_frameworks_constructor(path):
    model, optim = build(path)
    ours = build_optim_wrapper(model, optim).optimizer.param_groups
    theirs = build_optim_wrapper(model, {**optim, 'constructor': 'LearningRateDecayOptimizerConstructor', 'paramwise_cfg': dict(
        optim['paramwise_cfg'], num_layers=6)}).optimizer.param_groups  # theirs does not know it from the depths
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert a['group_name'] == b['group_name'] and a['param_names'] == b['param_names']
        assert all(a[key] == pytest.approx(b[key]) for key in ('lr', 'lr_scale', 'weight_decay'))
        assert all(x is y for x, y in zip(a['params'], b['params']))


@pytest.mark.parametrize('depths, num_layers', [((3, 3, 9, 3), 6), ((3, 3, 27, 3), 12), ((2, 2, 6, 2), 5),
                                                ((2, 2, 8, 2), 6), ((3, 4, 30, 3), 13)])
def test_layers_have_no_gap_and_no_collision(depths, num_layers):
    names = ['downsample_layers.0.0.weight'] + [f'stages.{s}.{b}.gamma' for s in range(4) for b in range(depths[s])]
    ids = [layer_id(name, depths, 'layer_wise') for name in [*names, 'norm3.weight']]
    assert ids == sorted(ids) and set(ids) == set(range(num_layers + 2))
    assert lr_scale(num_layers + 1, .7, num_layers) == 1


@pytest.mark.parametrize('cfg, message', [
    (dict(), 'needs decay_rate'), (dict(decay_rate=.9), 'needs decay_rate'),
    (dict(decay_rate=.9, decay_type='layerwise'), 'decay_type is one of'),
    (dict(decay_rate=1.2, decay_type='layer_wise'), r'\(0, 1\]'),
    (dict(decay_rate=.9, decay_type='layer_wise', num_layers=4), 'too small'),
    (dict(decay_rate=.9, decay_type='layer_wise', num_layers=5.5), 'too small'),
    (dict(decay_rate=.9, decay_type='layer_wise', norm_decay_mult=0.), 'nothing else'),
    (dict(decay_rate=.9, decay_type='layer_wise', custom_keys=dict(absent=dict(lr_mult=.1))), "has 'absent'"),
    (dict(decay_rate=.9, decay_type='layer_wise', custom_keys=dict(norm=dict(lr=.1))), 'lr_mult and decay_mult'),
])
def test_what_would_silently_change_the_rates_raises(cfg, message):
    wrapper = dict(optimizer=dict(type='AdamW', lr=1e-4, weight_decay=.05), paramwise_cfg=cfg,
                   constructor='convnext_dense.LayerDecayOptimWrapperConstructor')
    with pytest.raises(ConfigError, match=message):
        build_optim_wrapper(torch.nn.ModuleDict(dict(backbone=ConvNeXt('atto'))), wrapper)


def test_the_backbone_is_found_by_its_type_and_must_be_there():
    wrapper = dict(optimizer=dict(type='AdamW', lr=1e-4, weight_decay=.05),
                   paramwise_cfg=dict(decay_rate=.9, decay_type='layer_wise'),
                   constructor='convnext_dense.LayerDecayOptimWrapperConstructor')
    nested = torch.nn.ModuleDict(dict(teacher=torch.nn.ModuleDict(dict(backbone=ConvNeXt('atto', frozen_stages=1))),
                                      head=torch.nn.Linear(2, 2)))
    rates = {name: group['lr'] for group in build_optim_wrapper(nested, wrapper).optimizer.param_groups
             for name in group['param_names']}
    assert rates['teacher.backbone.stages.3.0.gamma'] == pytest.approx(.9e-4)
    assert rates['head.weight'] == rates['teacher.backbone.norm0.weight'] == 1e-4
    assert not any(name.startswith('teacher.backbone.stages.0') for name in rates)  # frozen
    with pytest.raises(ConfigError, match='needs a convnext_dense.ConvNeXt'):
        build_optim_wrapper(torch.nn.Linear(2, 2), wrapper)


def test_response_norms_of_v2_are_not_decayed():
    model = torch.nn.ModuleDict(dict(backbone=ConvNeXt('v2_atto'), head=torch.nn.Linear(2, 2)))
    groups = build_optim_wrapper(model, dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, weight_decay=.05),
        constructor='convnext_dense.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(decay_rate=.9, decay_type='layer_wise'))).optimizer.param_groups
    found = {name: group for group in groups for name in group['param_names']}
    assert found.keys() == dict(model.named_parameters()).keys()
    norms = [group for name, group in found.items() if '.grn.' in name]
    assert len(norms) == 24 and all(group['weight_decay'] == 0 for group in norms)


def build_groups(model, wrapper=None, **paramwise):
    groups = build_optim_wrapper(model, dict(
        wrapper or dict(type='OptimWrapper'), optimizer=dict(type='AdamW', lr=1e-4, weight_decay=.05),
        constructor='convnext_dense.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(decay_rate=.9, decay_type='layer_wise', **paramwise))).optimizer.param_groups
    found = {name: group for group in groups for name in group['param_names']}
    assert len(found) == sum(len(group['params']) for group in groups)  # each in one group
    return found


def test_custom_keys_change_rate_and_decay_on_top_of_the_layers():
    model = torch.nn.ModuleDict(dict(backbone=ConvNeXt('atto'), head=torch.nn.Linear(2, 2)))
    plain, found = build_groups(model), build_groups(model, custom_keys={
        'dwconv': dict(decay_mult=0.), 'stages.2': dict(lr_mult=.5), 'head': dict(lr_mult=2., decay_mult=.1)})
    assert found.keys() == plain.keys() == dict(model.named_parameters()).keys()
    for name, group in found.items():
        lr_mult = .5 if 'stages.2' in name else 2. if 'head' in name else 1.  # the longer key counts
        decay_mult = 0. if 'dwconv' in name and 'stages.2' not in name else .1 if 'head' in name else 1.
        assert group['lr'] == pytest.approx(plain[name]['lr'] * lr_mult), name
        assert group['weight_decay'] == pytest.approx(plain[name]['weight_decay'] * decay_mult), name


def test_teacher_and_student_and_names_that_wrappers_change():
    class Wrapped(torch.nn.Module):  # as FSDP, with use_orig_params, and activation checkpointing name things
        def __init__(self, module):
            super().__init__()
            self._fsdp_wrapped_module = module

        def forward(self, *args):
            return self._fsdp_wrapped_module(*args)
    plain = build_groups(torch.nn.ModuleDict(dict(backbone=ConvNeXt('atto'))))
    student, teacher = ConvNeXt('atto'), ConvNeXt('atto')
    student.stages[2] = Wrapped(student.stages[2])
    student.stages[2]._fsdp_wrapped_module[0] = Wrapped(student.stages[2]._fsdp_wrapped_module[0])
    found = build_groups(torch.nn.ModuleDict(dict(student=Wrapped(torch.nn.ModuleDict(dict(backbone=student))), teacher=teacher)))
    for name, group in found.items():
        own = name.replace('_fsdp_wrapped_module.', '').replace('student.backbone', 'backbone').replace('teacher', 'backbone')
        assert group['group_name'] == plain[own]['group_name'], name
    with pytest.raises(ConfigError, match='several of the same depths'):
        build_groups(torch.nn.ModuleDict(dict(student=ConvNeXt('atto'), teacher=ConvNeXt('tiny'))))


@pytest.mark.parametrize('wrapper', [dict(type='OptimWrapper', accumulative_counts=4),
                                     dict(type='OptimWrapper', clip_grad=dict(max_norm=1.))])
def test_rates_are_the_same_with_accumulation_and_clipping(wrapper):
    model = torch.nn.ModuleDict(dict(backbone=ConvNeXt('atto')))
    plain, found = build_groups(model), build_groups(model, wrapper)
    assert {name: group['lr'] for name, group in plain.items()} == {name: group['lr'] for name, group in found.items()}
