"""The recipes against the papers: each number of the official runs, the parameter groups, the
learning rates at given iterations, the sizes that augmentation draws, the published counts."""

import functools
import importlib
import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS
from test_configs import load as load_path
from test_configs import parsed
from torch import nn

from conftest import ADE_T, COCO_T, ROOT, randomise
from convnext_dense import PRESETS, ConfigError
from convnext_dense.evaluation import recipe_tables
from convnext_dense.evaluation.flops import count
from convnext_dense.inference.building import build

CHECKPOINTS = 'https://dl.fbaipublicfiles.com/convnext/convnext_'
MASK_RCNN = 'mask-rcnn_convnext-t-in1k_fpn_amp-ms-crop-3x_coco'
LSJ = 'mask-rcnn_convnextv2-{}-fcmae_fpn_amp-lsj-3x_coco'
UPERNET_V2 = 'upernet_convnextv2-{}-fcmae_8xb2-amp-160k_ade20k-512x512'


def cascade(weights, amp='amp-'):
    return f'cascade-mask-rcnn_convnext-{weights}_fpn_4conv1fc-giou_{amp}ms-crop-3x_coco'


def upernet(weights, side, amp='amp-'):
    return f'upernet_convnext-{weights}_8xb2-{amp}160k_ade20k-{side}x{side}'


# recipes 1.1: config -> arch, pretrained file, drop path, lr, decay rate, layers, AMP
COCO = {
    MASK_RCNN: ('tiny', 'tiny_1k_224', 0.4, 1e-4, 0.95, 6, True),
    cascade('t-in1k'): ('tiny', 'tiny_1k_224', 0.4, 2e-4, 0.7, 6, True),
    cascade('s-in1k'): ('small', 'small_1k_224', 0.6, 2e-4, 0.7, 12, True),
    cascade('b-in1k'): ('base', 'base_1k_224', 0.7, 2e-4, 0.8, 12, True),
    cascade('b-in22k'): ('base', 'base_22k_224', 0.6, 1e-4, 0.8, 12, True),
    cascade('l-in22k', ''): ('large', 'large_22k_224', 0.7, 1e-4, 0.7, 12, False),
    cascade('xl-in22k', ''): ('xlarge', 'xlarge_22k_224', 0.8, 1e-4, 0.7, 12, False),
}
# recipes 2.1: the same, and the side of the crop
ADE = {
    upernet('t-in1k', 512): ('tiny', 'tiny_1k_224', 0.4, 1e-4, 0.9, 6, True, 512),
    upernet('s-in1k', 512): ('small', 'small_1k_224', 0.3, 1e-4, 0.9, 12, True, 512),
    upernet('b-in1k', 512): ('base', 'base_1k_224', 0.4, 1e-4, 0.9, 12, True, 512),
    upernet('b-in22k', 640): ('base', 'base_22k_224', 0.4, 1e-4, 0.9, 12, True, 640),
    upernet('l-in22k', 640, ''): ('large', 'large_22k_224', 0.4, 1e-4, 0.9, 12, False, 640),
    upernet('xl-in22k', 640, ''): ('xlarge', 'xlarge_22k_224', 0.4, 8e-5, 0.9, 12, False, 640),
}
OFFICIAL = {**COCO, **ADE}
WIDTHS = dict(
    tiny=[96, 192, 384, 768],
    small=[96, 192, 384, 768],
    base=[128, 256, 512, 1024],
    large=[192, 384, 768, 1536],
    xlarge=[256, 512, 1024, 2048],
    huge=[352, 704, 1408, 2816],
)
# recipes 1.1, 2.1 and 6: millions of parameters (where the papers print them) and GFLOPs
COUNTS = {
    MASK_RCNN: (48, 262),
    cascade('t-in1k'): (86, 741),
    cascade('s-in1k'): (108, 827),
    cascade('b-in1k'): (146, 964),
    cascade('b-in22k'): (146, 964),
    cascade('l-in22k', ''): (255, 1354),
    cascade('xl-in22k', ''): (407, 1898),
    upernet('t-in1k', 512): (60, 939),
    upernet('s-in1k', 512): (82, 1027),
    upernet('b-in1k', 512): (122, 1170),
    upernet('b-in22k', 640): (122, 1828),
    upernet('l-in22k', 640, ''): (235, 2458),
    upernet('xl-in22k', 640, ''): (391, 3335),
    LSJ.format('b'): (None, 486),
    LSJ.format('l'): (None, 875),
    LSJ.format('h'): (None, 2525),
    UPERNET_V2.format('b'): (122, 1170),
    UPERNET_V2.format('l'): (235, 1573),
    UPERNET_V2.format('h'): (707, 3272),
}
EPOCH = 7330  # iterations on COCO at 16 images a step


def path_of(name):
    return str(next(ROOT.glob(f'configs/*/{name}.py')).relative_to(ROOT))


def load(name):
    return load_path(path_of(name))


# ---- the numbers of the recipes ----


def get(cfg, path):
    for key in path.split('.'):
        cfg = cfg[int(key)] if key.isdigit() else cfg[key]
    return cfg


COCO_VALUES = {
    'model.backbone.arch': 'tiny',
    'model.backbone.drop_path_rate': 0.4,
    'model.backbone.layer_scale_init_value': 1.0,
    'model.backbone.out_indices': (0, 1, 2, 3),
    'model.backbone.init_cfg.checkpoint': 'tiny_in1k',
    'model.neck': dict(type='FPN', in_channels=[96, 192, 384, 768], out_channels=256, num_outs=5),
    'model.data_preprocessor.mean': [123.675, 116.28, 103.53],
    'model.data_preprocessor.std': [58.395, 57.12, 57.375],
    'model.data_preprocessor.bgr_to_rgb': True,
    'model.data_preprocessor.pad_size_divisor': 32,
    'optim_wrapper.type': 'AmpOptimWrapper',
    'optim_wrapper.optimizer': dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    'optim_wrapper.paramwise_cfg': dict(decay_type='layer_wise', decay_rate=0.95),
    'train_cfg.max_epochs': 36,
    'param_scheduler.1.milestones': [27, 33],
    'param_scheduler.1.gamma': 0.1,
    'train_dataloader.batch_size': 2,
    'auto_scale_lr.base_batch_size': 16,
    'model.test_cfg.rcnn.score_thr': 0.05,
    'model.test_cfg.rcnn.max_per_img': 100,
    'model.train_cfg.rpn_proposal.max_per_img': 1000,
    'model.train_cfg.rcnn.sampler.num': 512,
    'model.roi_head.bbox_roi_extractor.roi_layer': dict(
        type='RoIAlign', output_size=7, sampling_ratio=0
    ),
    'model.roi_head.mask_roi_extractor.roi_layer.output_size': 14,
    'train_dataloader.dataset.pipeline.2.prob': 0.5,
    'train_dataloader.dataset.pipeline.3.transforms.0.0.scales': [
        (side, 1333) for side in range(480, 801, 32)
    ],
    'train_dataloader.dataset.pipeline.3.transforms.1.0.scales': [
        (side, 1333) for side in (400, 500, 600)
    ],
    'train_dataloader.dataset.pipeline.3.transforms.1.1': dict(
        type='RandomCrop',
        crop_type='absolute_range',
        crop_size=(384, 600),
        allow_negative_crop=True,
    ),
    'test_dataloader.dataset.pipeline.1': dict(type='Resize', scale=(1333, 800), keep_ratio=True),
}
ADE_VALUES = {
    'model.backbone.arch': 'tiny',
    'model.backbone.drop_path_rate': 0.4,
    'model.backbone.layer_scale_init_value': 1.0,
    'model.backbone.init_cfg.checkpoint': 'tiny_in1k',
    'model.decode_head.in_channels': [96, 192, 384, 768],
    'model.decode_head.channels': 512,
    'model.decode_head.pool_scales': (1, 2, 3, 6),
    'model.decode_head.dropout_ratio': 0.1,
    'model.decode_head.num_classes': 150,
    'model.decode_head.align_corners': False,
    'model.decode_head.norm_cfg.type': 'SyncBN',
    'model.decode_head.loss_decode.loss_weight': 1.0,
    'model.auxiliary_head.in_channels': 384,
    'model.auxiliary_head.in_index': 2,
    'model.auxiliary_head.channels': 256,
    'model.auxiliary_head.num_convs': 1,
    'model.auxiliary_head.concat_input': False,
    'model.auxiliary_head.loss_decode.loss_weight': 0.4,
    'model.test_cfg': dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
    'model.data_preprocessor.size': (512, 512),
    'model.data_preprocessor.seg_pad_val': 255,
    'optim_wrapper.type': 'AmpOptimWrapper',
    'optim_wrapper.optimizer': dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    'optim_wrapper.paramwise_cfg': dict(decay_type='stage_wise', decay_rate=0.9),
    'train_cfg.max_iters': 160000,
    'train_dataloader.batch_size': 2,
    'train_dataloader.dataset.pipeline.2': dict(
        type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True
    ),
    'train_dataloader.dataset.pipeline.3': dict(
        type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75
    ),
    'test_dataloader.dataset.pipeline.1': dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    'tta_test_cfg': dict(mode='whole'),
    'tta_pipeline.1.transforms.0.0.scale': (1024, 256),
    'tta_pipeline.1.transforms.0.5.scale': (3584, 896),
}


@pytest.mark.parametrize('path, values', [(COCO_T, COCO_VALUES), (ADE_T, ADE_VALUES)])
def test_recipe_numbers(path, values):
    assert {key: get(parsed(path), key) for key in values} == values


@pytest.mark.parametrize('name', OFFICIAL)
def test_values_of_the_official_recipes(name):
    arch, file, drop_path, lr, rate, _, amp, *crop = OFFICIAL[name]
    cfg = load(name)
    backbone, optim = cfg.model.backbone, cfg.optim_wrapper
    assert (backbone.arch, backbone.drop_path_rate) == (arch, drop_path)
    assert backbone.layer_scale_init_value == 1.0
    assert backbone.out_indices == (0, 1, 2, 3) and 'frozen_stages' not in backbone
    assert PRESETS[backbone.init_cfg.checkpoint].source == f'{CHECKPOINTS}{file}.pth'
    adam = dict(type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=0.05)
    assert optim.optimizer == adam and 'clip_grad' not in optim
    assert optim.type == ('AmpOptimWrapper' if amp else 'OptimWrapper') and ('amp' in name) == amp
    assert 'loss_scale' not in optim and 'accumulative_counts' not in optim
    assert optim.paramwise_cfg.decay_rate == rate
    assert optim.paramwise_cfg.decay_type == ('stage_wise' if crop else 'layer_wise')
    assert cfg.train_dataloader.batch_size == 2
    if not crop:
        fpn = dict(type='FPN', in_channels=WIDTHS[arch], out_channels=256, num_outs=5)
        assert cfg.model.neck == fpn and cfg.train_cfg.max_epochs == 36
        return
    (side,) = crop
    assert cfg.model.decode_head.in_channels == WIDTHS[arch]
    assert cfg.model.auxiliary_head.in_channels == WIDTHS[arch][2]
    stride = {512: 341, 640: 426}[side]
    slide = dict(mode='slide', crop_size=(side, side), stride=(stride, stride))
    assert cfg.model.test_cfg == slide and cfg.tta_test_cfg == dict(mode='whole')
    assert cfg.model.data_preprocessor.size == (side, side) and cfg.train_cfg.max_iters == 160000
    resize, random_crop = cfg.train_dataloader.dataset.pipeline[2:4]
    scale = dict(scale=(4 * side, side), keep_ratio=True)
    assert resize == dict(type='RandomResize', ratio_range=(0.5, 2.0), **scale)
    assert random_crop == dict(type='RandomCrop', crop_size=(side, side), cat_max_ratio=0.75)
    for split in ('val', 'test'):
        assert cfg[f'{split}_dataloader'].dataset.pipeline[1] == dict(type='Resize', **scale)
    scales = [step.scale for step in cfg.tta_pipeline[1].transforms[0]]
    ratios = 0.5, 0.75, 1, 1.25, 1.5, 1.75
    assert scales == [(int(4 * side * ratio), int(side * ratio)) for ratio in ratios]


def test_values_of_the_cascade_heads():
    model = load(cascade('b-in1k')).model
    assert model.type == 'CascadeRCNN' and model.roi_head.stage_loss_weights == [1, 0.5, 0.25]
    assert model.rpn_head.loss_bbox == dict(type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0)
    assert model.train_cfg.rpn.allowed_border == 0
    assert model.train_cfg.rpn_proposal.max_per_img == 2000
    deviations = [0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]
    stages = zip(model.roi_head.bbox_head, model.train_cfg.rcnn, deviations, (0.5, 0.6, 0.7))
    for head, training, stds, iou in stages:
        assert head.type == 'ConvFCBBoxHead' and head.norm_cfg.type == 'SyncBN'
        assert (head.num_shared_convs, head.num_shared_fcs) == (4, 1)
        assert (head.fc_out_channels, head.conv_out_channels) == (1024, 256)
        assert head.bbox_coder.target_stds == stds
        assert head.reg_decoded_bbox and not head.reg_class_agnostic and head.num_classes == 80
        assert head.loss_bbox == dict(type='GIoULoss', loss_weight=10.0)
        assert (training.assigner.pos_iou_thr, training.assigner.match_low_quality) == (iou, False)
        assert (training.sampler.num, training.sampler.pos_fraction) == (512, 0.25)
    cascades = build(load(cascade('t-in1k')).model, 'meta').roi_head
    assert len(cascades.mask_head) == len(cascades.bbox_head) == 3
    assert len(cascades.bbox_roi_extractor) == 3


def test_v2_recipes_keep_to_published_values():
    for letter, size in (('b', 'base'), ('l', 'large'), ('h', 'huge')):
        coco, ade = load(LSJ.format(letter)), load(UPERNET_V2.format(letter))
        assert coco.model.neck.in_channels == WIDTHS[size]
        assert ade.model.decode_head.in_channels == WIDTHS[size]
        assert coco.train_dataloader.batch_size * 8 == coco.auto_scale_lr.base_batch_size == 32
        assert coco.train_cfg.max_epochs == 36
        assert coco.model.test_cfg.rcnn.nms == dict(type='soft_nms', iou_threshold=0.5)
        adam = dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
        assert coco.optim_wrapper.optimizer == adam
        assert coco.optim_wrapper.paramwise_cfg.decay_rate in (0.9, 0.95)
        assert coco.model.backbone.drop_path_rate in (0.2, 0.3, 0.4, 0.5)
        assert '/pt_only/' in PRESETS[coco.model.backbone.init_cfg.checkpoint].source
        resize, crop = coco.train_dataloader.dataset.pipeline[2:4]
        assert (resize.scale, resize.ratio_range) == ((1024, 1024), (0.1, 2.0))
        assert crop.crop_size == (1024, 1024)
        assert ade.optim_wrapper.optimizer.lr in (1e-4, 2e-4, 3e-4)
        assert ade.optim_wrapper.optimizer.weight_decay == 0.05
        assert ade.optim_wrapper.paramwise_cfg.decay_rate in (0.8, 0.9)
        assert ade.model.backbone.drop_path_rate in (0.1, 0.2, 0.3, 0.4)
        assert '/im1k/' in PRESETS[ade.model.backbone.init_cfg.checkpoint].source
        scales = [step.scale for step in ade.tta_pipeline[1].transforms[0]]
        assert scales == [(4 * side, side) for side in (384, 448, 512, 576, 640)]


# The runs of Mask2Former that mmdet and mmseg published for Swin; for B a run with the original
# code (facebookresearch/Mask2Former, pull request 34).
MASK2FORMER = {  # config -> size, preset, lr, images a step on 8 GPUs, iterations
    'mask2former_convnext-t-in1k_8xb2-lsj-50e_coco': ('tiny', 'tiny_in1k', 1e-4, 16, 368750),
    'mask2former_convnext-t-in1k_8xb2-lsj-50e_coco-panoptic': (
        'tiny',
        'tiny_in1k',
        1e-4,
        16,
        368750,
    ),
    'mask2former_convnext-t-in1k_8xb2-160k_ade20k-512x512': ('tiny', 'tiny_in1k', 1e-4, 16, 160000),
    'mask2former_convnext-b-in22k_8xb8-50k_ade20k-640x640': (
        'base',
        'base_in22k_in1k_384',
        4e-4,
        64,
        50000,
    ),
}


@pytest.mark.parametrize('name', MASK2FORMER)
def test_values_of_mask2former(name):
    arch, preset, lr, images, iterations = MASK2FORMER[name]
    cfg = load(name)
    backbone, head = cfg.model.backbone, cfg.model.get('panoptic_head') or cfg.model.decode_head
    assert (backbone.arch, backbone.init_cfg.checkpoint) == (arch, preset)
    assert backbone.drop_path_rate == 0.3 and head.in_channels == WIDTHS[arch]
    assert (head.num_queries, head.transformer_decoder.num_layers) == (100, 9)
    assert cfg.optim_wrapper.optimizer.lr == lr and cfg.optim_wrapper.clip_grad.max_norm == 0.01
    assert cfg.optim_wrapper.type == 'OptimWrapper' and 'constructor' not in cfg.optim_wrapper
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == images
    assert cfg.train_cfg.max_iters == iterations
    side = int(name.rpartition('x')[2]) if 'ade20k' in name else 1024
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert steps['RandomCrop'].crop_size == (side, side)
    if 'ade20k' in name:
        scales = [side * tenths // 10 for tenths in range(5, 21)]
        assert steps['RandomChoiceResize'].scales == scales
    else:
        assert steps['RandomResize'].ratio_range == (0.1, 2.0)


@pytest.mark.parametrize('name', MASK2FORMER)
def test_rates_and_decays_of_mask2former(name):
    """The backbone has a tenth of the rate. Norms, embeddings and layer scale are not decayed,
    biases are."""
    lr = MASK2FORMER[name][2]
    cfg = load(name)
    model = build(cfg.model, 'meta')
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    group_of = {parameter: group for group in groups for parameter in group['params']}
    norms = {
        parameter
        for module in model.modules()
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm))
        for parameter in module.parameters()
    }
    assert len(norms) > 100
    embeddings = 'query_embed.weight', 'query_feat.weight', 'level_embed.weight'
    for parameter_name, parameter in model.named_parameters():
        group = group_of[parameter]
        is_free = parameter in norms or parameter_name.endswith((*embeddings, '.gamma'))
        rate = 0.1 * lr if parameter_name.startswith('backbone.') else lr
        assert group['lr'] == pytest.approx(rate, rel=1e-9), parameter_name
        assert group['weight_decay'] == (0.0 if is_free else 0.05), parameter_name


def test_values_of_the_frozen_recipes():
    """DINOv3's linear evaluation: the defaults of its code (facebookresearch/dinov3)."""
    linear, upernet = (
        load(f'{kind}_convnext-t-dinov3-frozen_1xb16-amp-40k_ade20k-512x512')
        for kind in ('linear', 'upernet')
    )
    for cfg in (linear, upernet):
        assert (cfg.model.backbone.frozen_stages, cfg.model.backbone.out_norm) == (4, False)
        assert cfg.train_dataloader.batch_size == 16 and cfg.train_cfg.max_iters == 40000
        assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    adam = dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01)
    assert linear.optim_wrapper.optimizer == adam
    assert linear.optim_wrapper.clip_grad.max_norm == 35
    assert linear.model.decode_head.dropout_ratio == 0.1
    full = load('upernet_convnext-t-dinov3_8xb2-amp-160k_ade20k-512x512')
    assert upernet.optim_wrapper.optimizer == full.optim_wrapper.optimizer
    assert upernet.model.decode_head == full.model.decode_head


def test_values_of_mask_rcnn_1x_and_rtmdet():
    cfg, longer = load('mask-rcnn_convnext-t-in1k_fpn_amp-1x_coco'), load(MASK_RCNN)
    assert cfg.optim_wrapper == longer.optim_wrapper and cfg.model.backbone.drop_path_rate == 0.2
    assert (cfg.train_cfg.max_epochs, cfg.param_scheduler[1].milestones) == (12, [8, 11])
    cfg = load('rtmdet-ins_l_convnext-t-in22k_4xb32-100e_coco')
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-3, weight_decay=0.05)
    assert cfg.optim_wrapper.paramwise_cfg == dict(decay_type='layer_wise', decay_rate=0.8)
    assert 4 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 128
    assert cfg.train_cfg.max_epochs == 100 and cfg.model.backbone.out_indices == (1, 2, 3)


# ---- groups and schedules ----


@pytest.mark.parametrize('name', OFFICIAL)
def test_group_of_every_parameter(name):
    """Recipes 3.1, written out: layer ids, lr = base * rate ** (N + 1 - id), and decay for all but
    1-D parameters and biases.
    """
    *_, lr, rate, layers, _ = OFFICIAL[name][:7]
    cfg = load(name)
    cfg.model.backbone.init_cfg = None
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.optim_wrapper.pop('loss_scale', None)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    group_of = {parameter: group for group in groups for parameter in group['param_names']}
    assert sum(len(group['params']) for group in groups) == len(group_of)
    assert len(group_of) == len(list(model.parameters()))
    assert len(groups) == (12 if name in ADE else 16 if layers == 6 else 28)
    for parameter_name, parameter in model.named_parameters():
        match = re.match(r'backbone\.(downsample_layers|stages)\.(\d)\.(\d+)\.', parameter_name)
        if not match:
            layer = layers + 1
        else:
            kind, stage, block = match[1], int(match[2]), int(match[3])
            if name in ADE:
                layer = 0 if kind == 'downsample_layers' else stage + 1
            elif kind == 'downsample_layers':
                layer = {0: 0, 1: 2, 2: 3, 3: layers}[stage]
            else:
                layer = {0: 1, 1: 2, 2: 3 + block // 3, 3: layers}[stage]
        decay = 0.0 if parameter.dim() == 1 or parameter_name.endswith('.bias') else 0.05
        group = group_of[parameter_name]
        expected = pytest.approx(lr * rate ** (layers + 1 - layer), rel=1e-9)
        assert group['lr'] == expected, parameter_name
        assert group['weight_decay'] == decay, parameter_name


def rates(cfg, iterations, epoch=None):
    """What the config's schedulers make of a base rate of 1, and of 0.01 in proportion, at each of
    the iterations. ``epoch`` is in iterations.
    """
    groups = [{'params': [nn.Parameter(torch.zeros(1))], 'lr': lr} for lr in (1.0, 0.01)]
    optimizer = torch.optim.SGD(groups)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(scheduler, optimizer=optimizer))
        for scheduler in cfg.param_scheduler
    ]
    optimizer.step()  # else they warn that nothing was optimised
    wanted, answer = set(iterations), {}
    for i in range(max(iterations) + 1):
        if i in wanted:
            first, second = (group['lr'] for group in optimizer.param_groups)
            assert abs(second - 0.01 * first) <= 1e-11 * first
            answer[i] = first
        for scheduler in schedulers:
            if not scheduler.by_epoch or (i + 1) % epoch == 0:
                scheduler.step()
    return answer


@pytest.mark.parametrize('name', [cascade('t-in1k'), LSJ.format('b')])
def test_learning_rates_of_coco(name):
    warm_up = {i: 1 - (1 - i / 500) * 0.999 for i in range(500)}  # from a thousandth
    expected = warm_up | dict.fromkeys(range(500, 1502), 1) | {18 * EPOCH: 1, 27 * EPOCH - 1: 1}
    expected |= {27 * EPOCH: 0.1, 33 * EPOCH - 1: 0.1, 33 * EPOCH: 0.01, 36 * EPOCH - 1: 0.01}
    assert rates(load(name), expected, EPOCH) == pytest.approx(expected, rel=1e-9)


def test_learning_rates_of_ade20k():
    """mmcv: polynomial decay over all iterations, and linear warm-up multiplied on top."""
    i = np.arange(160000)
    expected = (1 - i / 160000) * np.where(i < 1500, 1 - (1 - i / 1500) * (1 - 1e-6), 1)
    values = np.array(list(rates(load(upernet('t-in1k', 512)), range(160000)).values()))
    assert np.allclose(values, expected, rtol=0, atol=1e-11)
    assert np.allclose(values[:-1], expected[:-1], rtol=1e-7, atol=1e-12)


def test_recipes_of_a_task_share_a_schedule():
    for names in (COCO, ADE):
        assert len({json.dumps(load(name).param_scheduler) for name in names}) == 1


def test_schedule_of_dino():
    cfg = load('dino-4scale_convnext-t-in22k_8xb2-12e_coco')
    expected = {0: 1, 11 * EPOCH - 1: 1, 11 * EPOCH: 0.1, 12 * EPOCH - 1: 0.1}
    assert rates(cfg, expected, EPOCH) == pytest.approx(expected)


# ---- counts and the pages ----


@functools.cache
def costs_of(path, size):
    return count(Config.fromfile(path), size)


def totals(costs):
    """Millions of parameters and GFLOPs."""
    parameters, macs = (sum(column) for column in zip(*costs.values()))
    return round(parameters / 1e6), round(macs / 1e9)


@pytest.mark.parametrize('name', COUNTS)
def test_parameters_and_flops_are_the_published_ones(name):
    size = (800, 1280) if '_coco' in name else (640, 2560) if '640' in name else (512, 2048)
    parameters, gigaflops = totals(costs_of(str(ROOT / path_of(name)), size))
    assert (parameters if COUNTS[name][0] else None, gigaflops) == COUNTS[name]


def framework_config(framework, name):
    folder = importlib.import_module(framework).__path__[0]
    return Config.fromfile(f'{folder}/.mim/configs/{name}.py')


@pytest.mark.parametrize(
    'framework, name, size, expected',
    [
        (
            'mmseg',
            'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512',
            (512, 2048),
            (60, 945),
        ),
        ('mmdet', 'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco', (800, 1280), (48, 267)),
        ('mmdet', 'swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco', (800, 1280), (69, 359)),
    ],
)
def test_counts_of_others_models_are_the_published_ones(framework, name, size, expected):
    """Those of the Swin Transformer paper (arXiv 2103.14030) and its repositories."""
    assert totals(count(framework_config(framework, name), size)) == expected


TWO_STAGES = {'backbone', 'neck', 'rpn_head', 'roi_head.bbox_head', 'roi_head.mask_head'}


@pytest.mark.parametrize(
    'framework, name, parts',
    [
        ('mmdet', 'retinanet/retinanet_r50_fpn_1x_coco', {'backbone', 'neck', 'bbox_head'}),
        (
            'mmdet',
            'faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco',
            {'backbone', 'rpn_head', 'roi_head.shared_head', 'roi_head.bbox_head'},
        ),
        ('mmdet', 'htc/htc_r50_fpn_1x_coco', {*TWO_STAGES, 'roi_head.semantic_head'}),
        (
            'mmseg',
            'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512',
            {'backbone', 'decode_head'},
        ),
        (
            'mmseg',
            'point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024',
            {'backbone', 'neck', 'decode_head'},
        ),
    ],
)
def test_every_part_of_others_models_is_counted(framework, name, parts):
    costs = count(framework_config(framework, name), (256, 256))
    assert {part for part, cost in costs.items() if cost.macs} - {'rest'} == parts


def test_a_size_that_a_model_cannot_take_is_an_error():
    with pytest.raises(ConfigError, match='does not run on an image of 16 x 16'):
        count(load(MASK_RCNN), (16, 16))


def test_pages_show_the_figures_of_the_configs(monkeypatch):
    """Deformable attention is slow to count: figures of what has it are taken from the page."""
    monkeypatch.setattr(recipe_tables, 'count', lambda cfg, size: costs_of(cfg.filename, size))
    for task in recipe_tables.TASKS:
        page = (ROOT / 'configs' / task / 'README.md').read_text()
        rows = re.findall(r'^\| \[((?:dino|mask2former)\S+)\].*?\| (\d+) \| (\d+) \|', page, re.M)
        assert recipe_tables.page(task, {name: counts for name, *counts in rows}) == page


# ---- sizes ----


@functools.cache
def noise(height, width):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


def photo_sample(width=160, height=120, **more):
    shape = height, width
    return dict(img=noise(*shape), img_shape=shape, ori_shape=shape, **more)


def no_boxes():
    from mmdet.structures.bbox import HorizontalBoxes

    return HorizontalBoxes(torch.zeros(0, 4))


def drawn_shapes(step, count, **sample):
    """Heights and widths of ``count`` images that the step, or several, made of a sample."""
    transform = Compose(step if isinstance(step, list) else [step])
    return np.array([transform(photo_sample(**sample))['img_shape'] for _ in range(count)])


def assert_uniform(values, expected):
    """Each of ``expected`` is drawn as often as the others, to four standard deviations, and
    nothing else is.
    """
    counts, n, p = Counter(values), len(values), 1 / len(expected)
    assert set(counts) == set(expected)
    assert all(abs(c - n * p) < 4 * (n * p * (1 - p)) ** 0.5 for c in counts.values()), counts


def assert_mean_of_uniform(values, low, high):
    """To four standard deviations."""
    deviation = (high - low) / 12**0.5 / len(values) ** 0.5
    assert abs(np.mean(values) - (low + high) / 2) < 4 * deviation


def test_sizes_that_coco_training_draws():
    np.random.seed(0)
    flip, choice = load(cascade('t-in1k')).train_dataloader.dataset.pipeline[2:4]
    flips = [bool(Compose([flip])(photo_sample(8, 6)).get('flip')) for _ in range(1000)]
    assert abs(sum(flips) - 500) < 4 * 250**0.5
    sides = list(range(480, 801, 32))
    resize_only, (short_resize, crop, resize_again) = choice.transforms
    for step, expected in (
        (list(resize_only), sides),
        (short_resize, [400, 500, 600]),
        (resize_again, sides),
    ):
        shapes = drawn_shapes(step, 500)
        assert_uniform(shapes.min(1).tolist(), expected)
        assert (abs(shapes.max(1) / shapes.min(1) - 4 / 3) < 0.01).all() and shapes.max() <= 1333
    # the crop: each side uniform from min(side, 384) to min(side, 600)
    shapes = drawn_shapes(crop, 1000, width=800, height=500, gt_bboxes=no_boxes())
    for column, low, high in ((0, 384, 500), (1, 384, 600)):
        assert shapes[:, column].min() >= low and shapes[:, column].max() <= high
        assert_mean_of_uniform(shapes[:, column], low, high)
    # the two branches, half and half: after a crop the aspect ratio is hardly ever the image's
    shapes = drawn_shapes(choice, 400, gt_bboxes=no_boxes())
    kept = (abs(shapes.max(1) / shapes.min(1) - 4 / 3) < 0.005).sum()
    assert 160 < kept < 260  # 200, and the few crops that keep the ratio


def test_sizes_that_large_scale_jittering_draws():
    np.random.seed(0)
    resize, crop = load(LSJ.format('b')).train_dataloader.dataset.pipeline[2:4]
    long_sides = drawn_shapes(resize, 400).max(1)
    assert long_sides.min() >= 102 and long_sides.max() <= 2048
    assert_mean_of_uniform(long_sides, 0.1 * 1024, 2 * 1024)
    (cropped,) = drawn_shapes(crop, 1, width=1600, height=1300, gt_bboxes=no_boxes())
    assert cropped.tolist() == [1024, 1024]


@pytest.mark.parametrize(
    'name, side', [(upernet('b-in1k', 512), 512), (upernet('b-in22k', 640), 640)]
)
def test_sizes_that_ade20k_training_draws(name, side):
    np.random.seed(0)
    resize, crop = load(name).train_dataloader.dataset.pipeline[2:4]
    short_sides = drawn_shapes(resize, 400).min(1)
    assert side // 2 - 1 <= short_sides.min() and short_sides.max() <= 2 * side
    assert_mean_of_uniform(short_sides, 0.5 * side, 2 * side)
    labels = np.zeros((900, 1000), np.uint8)
    (cropped,) = drawn_shapes(crop, 1, width=1000, height=900, gt_seg_map=labels)
    assert cropped.tolist() == [side, side]


def test_multi_scale_testing_averages_twelve_views(photo):
    """The sizes fed to the network are the published ones; the result is the mean of the views'
    probabilities.
    """
    cfg = load(upernet('t-in1k', 512))
    cfg.model.backbone.update(arch=dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)), init_cfg=None)
    cfg.model.decode_head.update(in_channels=[8] * 4, channels=8, num_classes=5)
    cfg.model.auxiliary_head = None
    cfg.model.test_cfg = cfg.tta_test_cfg
    model = randomise(MODELS.build(dict(cfg.tta_model, module=cfg.model)))
    backbone, head = model.module.backbone, model.module.decode_head
    sizes = []
    backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    pipeline = [step for step in cfg.tta_pipeline if step.type != 'LoadAnnotations']
    branches = pipeline[1].transforms
    pipeline[1].transforms = [steps for steps in branches if steps[0].type != 'LoadAnnotations']
    sample = dict(img_path=str(photo), img_id=0, reduce_zero_label=True, seg_fields=[])
    views = Compose(pipeline)(sample)
    assert len(views['inputs']) == 12
    data = {key: [[part] for part in parts] for key, parts in views.items()}
    with torch.no_grad():
        result = model.test_step(data)[0].pred_sem_seg.data
    height, width = views['data_samples'][0].ori_shape
    expected = []
    for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75):
        long_side, short_side = int(2048 * ratio), int(512 * ratio)
        scale = min(long_side / max(height, width), short_side / min(height, width))
        expected += [(int(height * scale + 0.5), int(width * scale + 0.5))] * 2
    assert sorted(sizes) == sorted(expected)

    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    resize = functools.partial(nn.functional.interpolate, mode='bilinear', align_corners=False)
    probabilities = 0
    with torch.no_grad():
        for view, sample in zip(views['inputs'], views['data_samples']):
            image = (view.flip(0).float() - mean) / std
            logits = resize(head(backbone(image[None])), image.shape[1:])
            logits = logits.flip(3) if sample.flip else logits
            probabilities = probabilities + resize(logits, (height, width)).softmax(1) / 12
    agreement = (probabilities.argmax(1) == result).float().mean()
    assert agreement > 0.999 and len(result.unique()) > 1
