"""The recipes against the papers: each number of the official runs, the parameter groups, the learning rates at given
iterations, the sizes that augmentation draws, the published counts."""

import copy
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
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope
from torch import nn

from conftest import ALL_CONFIGS, ROOT
from convnext_dense import PRESETS, ConfigError
from convnext_dense.evaluation.flops import count

FB = 'https://dl.fbaipublicfiles.com/convnext/'
CASCADE = 'cascade-mask-rcnn_convnext-{}_fpn_4conv1fc-giou_amp-ms-crop-3x_coco'
CASCADE_FP32 = CASCADE.replace('amp-', '')
# recipes 1.1: config -> arch, pretrained file, drop path, lr, decay rate, layers, AMP
COCO = {
    'mask-rcnn_convnext-t-in1k_fpn_amp-ms-crop-3x_coco': (
        'tiny',
        'convnext_tiny_1k_224',
        0.4,
        1e-4,
        0.95,
        6,
        True,
    ),
    CASCADE.format('t-in1k'): ('tiny', 'convnext_tiny_1k_224', 0.4, 2e-4, 0.7, 6, True),
    CASCADE.format('s-in1k'): ('small', 'convnext_small_1k_224', 0.6, 2e-4, 0.7, 12, True),
    CASCADE.format('b-in1k'): ('base', 'convnext_base_1k_224', 0.7, 2e-4, 0.8, 12, True),
    CASCADE.format('b-in22k'): ('base', 'convnext_base_22k_224', 0.6, 1e-4, 0.8, 12, True),
    CASCADE_FP32.format('l-in22k'): ('large', 'convnext_large_22k_224', 0.7, 1e-4, 0.7, 12, False),
    CASCADE_FP32.format('xl-in22k'): (
        'xlarge',
        'convnext_xlarge_22k_224',
        0.8,
        1e-4,
        0.7,
        12,
        False,
    ),
}
# recipes 2.1: the same, and the crop
ADE = {
    'upernet_convnext-t-in1k_8xb2-amp-160k_ade20k-512x512': (
        'tiny',
        'convnext_tiny_1k_224',
        0.4,
        1e-4,
        0.9,
        6,
        True,
        512,
    ),
    'upernet_convnext-s-in1k_8xb2-amp-160k_ade20k-512x512': (
        'small',
        'convnext_small_1k_224',
        0.3,
        1e-4,
        0.9,
        12,
        True,
        512,
    ),
    'upernet_convnext-b-in1k_8xb2-amp-160k_ade20k-512x512': (
        'base',
        'convnext_base_1k_224',
        0.4,
        1e-4,
        0.9,
        12,
        True,
        512,
    ),
    'upernet_convnext-b-in22k_8xb2-amp-160k_ade20k-640x640': (
        'base',
        'convnext_base_22k_224',
        0.4,
        1e-4,
        0.9,
        12,
        True,
        640,
    ),
    'upernet_convnext-l-in22k_8xb2-160k_ade20k-640x640': (
        'large',
        'convnext_large_22k_224',
        0.4,
        1e-4,
        0.9,
        12,
        False,
        640,
    ),
    'upernet_convnext-xl-in22k_8xb2-160k_ade20k-640x640': (
        'xlarge',
        'convnext_xlarge_22k_224',
        0.4,
        8e-5,
        0.9,
        12,
        False,
        640,
    ),
}
OFFICIAL = {**COCO, **ADE}
WIDTHS = dict(
    tiny=[96, 192, 384, 768],
    small=[96, 192, 384, 768],
    base=[128, 256, 512, 1024],
    large=[192, 384, 768, 1536],
    xlarge=[256, 512, 1024, 2048],
)
# recipes 1.1, 2.1 and 6: millions of parameters (where the papers print them) and GFLOPs
COUNTS = {
    'mask-rcnn_convnext-t-in1k_fpn_amp-ms-crop-3x_coco': (48, 262),
    CASCADE.format('t-in1k'): (86, 741),
    CASCADE.format('s-in1k'): (108, 827),
    CASCADE.format('b-in1k'): (146, 964),
    CASCADE.format('b-in22k'): (146, 964),
    CASCADE_FP32.format('l-in22k'): (255, 1354),
    CASCADE_FP32.format('xl-in22k'): (407, 1898),
    **{
        name: value
        for name, value in zip(
            ADE, ((60, 939), (82, 1027), (122, 1170), (122, 1828), (235, 2458), (391, 3335))
        )
    },
    **{
        f'mask-rcnn_convnextv2-{s}-fcmae_fpn_amp-lsj-3x_coco': (None, g)
        for s, g in (('b', 486), ('l', 875), ('h', 2525))
    },
    **{
        f'upernet_convnextv2-{s}-fcmae_8xb2-amp-160k_ade20k-512x512': v
        for s, v in (('b', (122, 1170)), ('l', (235, 1573)), ('h', (707, 3272)))
    },
}
EPOCH = 7330  # iterations on COCO at 16 images a step


def load(name):
    cfg = Config.fromfile(next(ROOT.glob(f'configs/*/{name}.py')))
    init_default_scope(cfg.default_scope)
    return cfg


@pytest.mark.parametrize('name', OFFICIAL)
def test_values_of_the_official_recipes(name):
    arch, file, drop_path, lr, rate, _, amp, *crop = OFFICIAL[name]
    cfg = load(name)
    backbone, optim = cfg.model.backbone, cfg.optim_wrapper
    assert (backbone.arch, backbone.drop_path_rate, backbone.layer_scale_init_value) == (
        arch,
        drop_path,
        1.0,
    )
    assert backbone.out_indices == (0, 1, 2, 3) and 'frozen_stages' not in backbone
    assert PRESETS[backbone.init_cfg.checkpoint].source == f'{FB}{file}.pth'
    assert (
        optim.optimizer == dict(type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=0.05)
        and 'clip_grad' not in optim
    )
    assert optim.type == ('AmpOptimWrapper' if amp else 'OptimWrapper') and ('amp' in name) == amp
    assert ('loss_scale' in optim) == amp and 'accumulative_counts' not in optim
    assert optim.paramwise_cfg.decay_rate == rate and optim.paramwise_cfg.decay_type == (
        'stage_wise' if crop else 'layer_wise'
    )
    assert cfg.train_dataloader.batch_size == 2
    if not crop:
        assert cfg.model.neck == dict(
            type='FPN', in_channels=WIDTHS[arch], out_channels=256, num_outs=5
        )
        assert cfg.train_cfg.max_epochs == 36
        return
    (size,) = crop
    assert (
        cfg.model.decode_head.in_channels == WIDTHS[arch]
        and cfg.model.auxiliary_head.in_channels == WIDTHS[arch][2]
    )
    assert cfg.model.test_cfg == dict(
        mode='slide', crop_size=(size, size), stride=({512: 341, 640: 426}[size],) * 2
    )
    assert cfg.model.data_preprocessor.size == (size, size) and cfg.train_cfg.max_iters == 160000
    resize, random_crop = cfg.train_dataloader.dataset.pipeline[2:4]
    assert resize == dict(
        type='RandomResize', scale=(4 * size, size), ratio_range=(0.5, 2.0), keep_ratio=True
    )
    assert random_crop == dict(type='RandomCrop', crop_size=(size, size), cat_max_ratio=0.75)
    for split in ('val', 'test'):
        assert cfg[f'{split}_dataloader'].dataset.pipeline[1] == dict(
            type='Resize', scale=(4 * size, size), keep_ratio=True
        )
    assert [r.scale for r in cfg.tta_pipeline[1].transforms[0]] == [
        (int(4 * size * r), int(size * r)) for r in (0.5, 0.75, 1, 1.25, 1.5, 1.75)
    ]
    assert cfg.tta_test_cfg == dict(mode='whole')


def test_values_of_the_cascade_heads():
    cfg = load(CASCADE.format('b-in1k')).model
    assert cfg.type == 'CascadeRCNN' and cfg.roi_head.stage_loss_weights == [1, 0.5, 0.25]
    assert cfg.rpn_head.loss_bbox == dict(type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0)
    assert cfg.train_cfg.rpn.allowed_border == 0 and cfg.train_cfg.rpn_proposal.max_per_img == 2000
    for head, training, stds, iou in zip(
        cfg.roi_head.bbox_head,
        cfg.train_cfg.rcnn,
        ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]),
        (0.5, 0.6, 0.7),
    ):
        assert (head.type, head.num_shared_convs, head.num_shared_fcs, head.fc_out_channels) == (
            'ConvFCBBoxHead',
            4,
            1,
            1024,
        )
        assert (
            head.bbox_coder.target_stds == stds
            and head.norm_cfg.type == 'SyncBN'
            and head.conv_out_channels == 256
        )
        assert head.reg_decoded_bbox and not head.reg_class_agnostic and head.num_classes == 80
        assert head.loss_bbox == dict(type='GIoULoss', loss_weight=10.0)
        assert (training.assigner.pos_iou_thr, training.assigner.match_low_quality) == (iou, False)
        assert (training.sampler.num, training.sampler.pos_fraction) == (512, 0.25)
    cascade = MODELS.build(copy.deepcopy(load(CASCADE.format('t-in1k')).model)).roi_head
    assert len(cascade.mask_head) == len(cascade.bbox_head) == len(cascade.bbox_roi_extractor) == 3


def test_recipes_differ_from_mmdets_cascade_only_where_they_should():
    import mmdet
    from test_configs import BACKBONE, flat

    for size in 'ts':
        path = f'{mmdet.__path__[0]}/.mim/configs/convnext/cascade-mask-rcnn_convnext-{size}-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'
        theirs = flat(Config.fromfile(path, import_custom_modules=False)._cfg_dict.to_dict())
        ours = flat(load(CASCADE.format(f'{size}-in1k'))._cfg_dict.to_dict())
        parts = (
            '.model',
            '.train_',
            '.val_',
            '.test_',
            '.param_scheduler',
            '.optim_wrapper',
            '.auto_scale_lr',
        )
        paths = {
            p
            for p in {*ours, *theirs}
            if p.startswith(parts) and not p.startswith(('.train_pipeline', '.test_pipeline'))
        }
        assert {
            p for p in paths if ours.get(p, 'absent') != theirs.get(p, 'absent')
        } == BACKBONE | {
            '.model.roi_head.bbox_roi_extractor.type',
            '.model.roi_head.mask_roi_extractor.type',
            '.param_scheduler.0.end',
            '.optim_wrapper.loss_scale',
        }


def test_v2_recipes_keep_to_what_is_published():
    for size, widths in (
        ('b', [128, 256, 512, 1024]),
        ('l', [192, 384, 768, 1536]),
        ('h', [352, 704, 1408, 2816]),
    ):
        coco, ade = (
            load(f'mask-rcnn_convnextv2-{size}-fcmae_fpn_amp-lsj-3x_coco'),
            load(f'upernet_convnextv2-{size}-fcmae_8xb2-amp-160k_ade20k-512x512'),
        )
        assert coco.model.neck.in_channels == ade.model.decode_head.in_channels == widths
        assert coco.train_dataloader.batch_size * 8 == coco.auto_scale_lr.base_batch_size == 32
        assert coco.train_cfg.max_epochs == 36 and coco.model.test_cfg.rcnn.nms == dict(
            type='soft_nms', iou_threshold=0.5
        )
        assert coco.optim_wrapper.optimizer == dict(
            type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05
        )
        assert coco.optim_wrapper.paramwise_cfg.decay_rate in (0.9, 0.95)
        assert coco.model.backbone.drop_path_rate in (0.2, 0.3, 0.4, 0.5)
        assert '/pt_only/' in PRESETS[coco.model.backbone.init_cfg.checkpoint].source
        resize, crop = coco.train_dataloader.dataset.pipeline[2:4]
        assert (resize.scale, resize.ratio_range) == (
            (1024, 1024),
            (0.1, 2.0),
        ) and crop.crop_size == (1024, 1024)
        assert (
            ade.optim_wrapper.optimizer.lr in (1e-4, 2e-4, 3e-4)
            and ade.optim_wrapper.optimizer.weight_decay == 0.05
        )
        assert ade.optim_wrapper.paramwise_cfg.decay_rate in (0.8, 0.9)
        assert ade.model.backbone.drop_path_rate in (0.1, 0.2, 0.3, 0.4)
        assert '/im1k/' in PRESETS[ade.model.backbone.init_cfg.checkpoint].source
        assert [r.scale for r in ade.tta_pipeline[1].transforms[0]] == [
            (1536, 384),
            (1792, 448),
            (2048, 512),
            (2304, 576),
            (2560, 640),
        ]


@pytest.mark.parametrize('name', OFFICIAL)
def test_group_of_every_parameter(name):
    """Recipes 3.1, written out: id of the layer, lr = base * rate ** (N + 1 - id), decay for all but 1-D and biases."""
    *_, lr, rate, layers, _ = OFFICIAL[name][:7]
    cfg = load(name)
    cfg.model.backbone.init_cfg = None
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.optim_wrapper.pop('loss_scale', None)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    found = {name: group for group in groups for name in group['param_names']}
    assert (
        sum(len(group['params']) for group in groups) == len(found) == len(list(model.parameters()))
    )
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
        group = found[parameter_name]
        assert group['lr'] == pytest.approx(lr * rate ** (layers + 1 - layer), rel=1e-9), (
            parameter_name
        )
        assert group['weight_decay'] == decay, parameter_name


def rates_at(cfg, iterations, epoch=None):
    """What the config's schedulers make of base rates of 1 and 0.01, at the given iterations."""
    optimizer = torch.optim.SGD(
        [{'params': [nn.Parameter(torch.zeros(1))], 'lr': lr} for lr in (1.0, 0.01)]
    )
    schedulers = [PARAM_SCHEDULERS.build(dict(s, optimizer=optimizer)) for s in cfg.param_scheduler]
    wanted, rates = set(iterations), {}
    for i in range(max(iterations) + 1):
        if i in wanted:
            first, second = (group['lr'] for group in optimizer.param_groups)
            assert second == pytest.approx(0.01 * first, rel=1e-9)
            rates[i] = first
        optimizer._step_count = 1  # no warning that nothing was optimised
        for scheduler in schedulers:
            if not scheduler.by_epoch or (i + 1) % epoch == 0:
                scheduler.step()
    return rates


def test_learning_rates_of_coco():
    steps = {
        0: 1e-3,
        1: 1 - (1 - 1 / 500) * 0.999,
        250: 1 - 0.5 * 0.999,
        499: 1 - (1 - 499 / 500) * 0.999,
        500: 1,
        501: 1,
        1499: 1,
        1500: 1,
        1501: 1,
        18 * EPOCH: 1,
        27 * EPOCH - 1: 1,
        27 * EPOCH: 0.1,
        33 * EPOCH - 1: 0.1,
        33 * EPOCH: 0.01,
        36 * EPOCH - 1: 0.01,
    }
    for name in (CASCADE.format('t-in1k'), 'mask-rcnn_convnextv2-b-fcmae_fpn_amp-lsj-3x_coco'):
        found = rates_at(load(name), steps, EPOCH)
        assert {i: pytest.approx(value, rel=1e-9) for i, value in steps.items()} == found
    schedules = {json.dumps(load(name).param_scheduler) for name in COCO}
    assert len(schedules) == 1  # one file for all


def test_learning_rates_of_ade20k():
    def official(
        i,
    ):  # mmcv: polynomial decay over all iterations, and linear warm-up multiplied on top
        return (1 - i / 160000) * (1 - (1 - i / 1500) * (1 - 1e-6) if i < 1500 else 1)

    steps = (0, 1, 250, 499, 500, 501, 1499, 1500, 1501, 80000, 159999)
    found = rates_at(load('upernet_convnext-t-in1k_8xb2-amp-160k_ade20k-512x512'), steps)
    assert {i: pytest.approx(official(i), rel=1e-7, abs=1e-12) for i in steps} == found
    assert len({json.dumps(load(name).param_scheduler) for name in ADE}) == 1


def test_dino_has_its_own_schedule():
    cfg = load('dino-4scale_convnext-t-in22k_8xb2-12e_coco')
    assert rates_at(cfg, (0, 11 * EPOCH - 1, 11 * EPOCH, 12 * EPOCH - 1), EPOCH) == {
        0: 1,
        11 * EPOCH - 1: 1,
        11 * EPOCH: pytest.approx(0.1),
        12 * EPOCH - 1: pytest.approx(0.1),
    }
    import mmdet
    from test_configs import flat

    theirs = flat(
        Config.fromfile(
            f'{mmdet.__path__[0]}/.mim/configs/dino/dino-4scale_r50_8xb2-12e_coco.py'
        )._cfg_dict.to_dict()
    )
    ours = flat(cfg._cfg_dict.to_dict())
    parts = (
        '.model',
        '.train_dataloader',
        '.test_dataloader',
        '.param_scheduler',
        '.optim_wrapper',
        '.train_cfg',
    )
    paths = {
        p for p in {*ours, *theirs} if p.startswith(parts) and not p.startswith('.model.backbone')
    }
    assert {p for p in paths if ours.get(p, 'absent') != theirs.get(p, 'absent')} == {
        '.model.neck.in_channels',
        '.optim_wrapper.optimizer.betas',  # torch's default, said
        *(
            {
                '.test_dataloader.dataset.pipeline.2.with_mask',
                '.train_dataloader.dataset.pipeline.1.with_mask',
            }
            & paths
        ),
    }


@pytest.mark.parametrize('name', COUNTS)
def test_parameters_and_flops_are_the_published_ones(name):
    parameters, gigaflops = COUNTS[name]
    costs = count(
        load(name),
        (800, 1280) if '_coco' in name else (640, 2560) if '640' in name else (512, 2048),
    )
    total = [sum(column) for column in zip(*costs.values())]
    assert round(total[1] / 1e9) == gigaflops and parameters in (None, round(total[0] / 1e6))


@pytest.mark.parametrize(
    'framework, name, size, parameters, gigaflops',
    [
        (
            'mmseg',
            'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512',
            (512, 2048),
            60,
            945,
        ),
        ('mmdet', 'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco', (800, 1280), 48, 267),
        ('mmdet', 'swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco', (800, 1280), 69, 359),
    ],
)
def test_counts_of_others_models_are_the_published_ones(
    framework, name, size, parameters, gigaflops
):
    """Those of the Swin Transformer paper (arXiv 2103.14030) and its repositories."""
    path = f'{importlib.import_module(framework).__path__[0]}/.mim/configs/{name}.py'
    total = [sum(column) for column in zip(*count(Config.fromfile(path), size).values())]
    assert (round(total[0] / 1e6), round(total[1] / 1e9)) == (parameters, gigaflops)


@pytest.mark.parametrize(
    'framework, name, parts',
    [
        ('mmdet', 'retinanet/retinanet_r50_fpn_1x_coco', {'backbone', 'neck', 'bbox_head'}),
        (
            'mmdet',
            'faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco',
            {'backbone', 'rpn_head', 'roi_head.shared_head', 'roi_head.bbox_head'},
        ),
        (
            'mmdet',
            'htc/htc_r50_fpn_1x_coco',
            {
                'backbone',
                'neck',
                'rpn_head',
                'roi_head.bbox_head',
                'roi_head.mask_head',
                'roi_head.semantic_head',
            },
        ),
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
    cfg = Config.fromfile(
        f'{importlib.import_module(framework).__path__[0]}/.mim/configs/{name}.py'
    )
    costs = count(cfg, (256, 256))
    assert {part for part, cost in costs.items() if cost.macs} - {'rest'} == parts


def test_a_size_that_a_model_cannot_take_is_an_error():
    with pytest.raises(ConfigError, match='does not run on an image of 16 x 16'):
        count(load('mask-rcnn_convnext-t-in1k_fpn_amp-ms-crop-3x_coco'), (16, 16))


def test_tables_are_what_the_configs_give():
    from convnext_dense.evaluation import recipe_tables as make_tables

    for task in make_tables.TASKS:
        page = (ROOT / 'configs' / task / 'README.md').read_text()
        assert (
            make_tables.table(
                task, dict(re.findall(r'^\| \[(dino\S+)\].*?\| (\d+ \| \d+) \|', page, re.M))
            )
            == page
        )
    assert json.loads((ROOT / 'configs/published.json').read_text()).keys() == {
        path.rpartition('/')[2][:-3]
        for path in ALL_CONFIGS
        if 'demo' not in path and '_own' not in path
    }


def photo_sample(width=160, height=120):
    rng = np.random.default_rng(0)
    return dict(
        img=rng.integers(0, 255, (height, width, 3), np.uint8),
        img_shape=(height, width),
        ori_shape=(height, width),
    )


def assert_uniform(values, expected):
    """Each of ``expected`` is drawn as often as the others, to four standard deviations, and nothing else is."""
    counts, n, p = Counter(values), len(values), 1 / len(expected)
    assert set(counts) == set(expected)
    assert all(abs(c - n * p) < 4 * (n * p * (1 - p)) ** 0.5 for c in counts.values()), counts


def test_sizes_that_coco_training_draws():
    np.random.seed(0)
    pipeline = load(CASCADE.format('t-in1k')).train_dataloader.dataset.pipeline
    flip, choice = pipeline[2:4]
    drawn = [bool(Compose([flip])(photo_sample(8, 6)).get('flip')) for _ in range(1000)]
    assert abs(sum(drawn) - 500) < 4 * 250**0.5
    sides = range(480, 801, 32)
    resize_only, (short_resize, crop, resize_again) = choice.transforms
    for steps, expected in (
        (resize_only, sides),
        ([short_resize], (400, 500, 600)),
        ([resize_again], sides),
    ):
        transform = Compose(steps)
        samples = [transform(photo_sample())['img_shape'] for _ in range(500)]
        assert_uniform([min(shape) for shape in samples], list(expected))
        assert all(abs(max(s) / min(s) - 4 / 3) < 0.01 and max(s) <= 1333 for s in samples)
    # the crop: each side uniform from min(side, 384) to min(side, 600)
    transform = Compose([crop])
    shapes = np.array(
        [
            transform(dict(photo_sample(800, 500), gt_bboxes=no_boxes()))['img_shape']
            for _ in range(1000)
        ]
    )
    for column, low, high in ((0, 384, 500), (1, 384, 600)):
        assert shapes[:, column].min() >= low and shapes[:, column].max() <= high
        assert (
            abs(shapes[:, column].mean() - (low + high) / 2)
            < 4 * (high - low) / 12**0.5 / 1000**0.5
        )
    # the two branches, half and half: after a crop the aspect ratio is hardly ever the image's
    transform = Compose([choice])
    kept = sum(
        abs(max(s) / min(s) - 4 / 3) < 0.005
        for s in (
            transform(dict(photo_sample(), gt_bboxes=no_boxes()))['img_shape'] for _ in range(400)
        )
    )
    assert 160 < kept < 260  # 200, and the few crops that keep the ratio


def no_boxes():
    from mmdet.structures.bbox import HorizontalBoxes

    return HorizontalBoxes(torch.zeros(0, 4))


def test_sizes_that_large_scale_jittering_draws():
    np.random.seed(0)
    load('mask-rcnn_convnextv2-b-fcmae_fpn_amp-lsj-3x_coco')
    resize, crop = load(
        'mask-rcnn_convnextv2-b-fcmae_fpn_amp-lsj-3x_coco'
    ).train_dataloader.dataset.pipeline[2:4]
    transform = Compose([resize])
    long_sides = np.array([max(transform(photo_sample())['img_shape']) for _ in range(400)])
    assert long_sides.min() >= 102 and long_sides.max() <= 2048
    assert abs(long_sides.mean() - 1.05 * 1024) < 4 * 1.9 * 1024 / 12**0.5 / 400**0.5
    cropped = Compose([crop])(dict(photo_sample(1600, 1300), gt_bboxes=no_boxes()))
    assert cropped['img_shape'] == (1024, 1024)


@pytest.mark.parametrize('size', [512, 640])
def test_sizes_that_ade20k_training_draws(size):
    np.random.seed(0)
    resize, crop = load(
        f'upernet_convnext-b-in{"1k" if size == 512 else "22k"}_8xb2-amp-160k_ade20k-{size}x{size}'
    ).train_dataloader.dataset.pipeline[2:4]
    transform = Compose([resize])
    short_sides = np.array([min(transform(photo_sample())['img_shape']) for _ in range(400)])
    assert size // 2 - 1 <= short_sides.min() and short_sides.max() <= 2 * size
    assert abs(short_sides.mean() - 1.25 * size) < 4 * 1.5 * size / 12**0.5 / 400**0.5
    sample = dict(photo_sample(1000, 900), gt_seg_map=np.zeros((900, 1000), np.uint8))
    assert Compose([crop])(sample)['img_shape'] == (size, size)


def test_multi_scale_testing_averages_twelve_views(photo):
    """The sizes fed to the network are the published ones; the result is the mean of their probabilities."""
    cfg = load('upernet_convnext-t-in1k_8xb2-amp-160k_ade20k-512x512')
    cfg.model.backbone.update(arch=dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)), init_cfg=None)
    cfg.model.decode_head.update(in_channels=[8] * 4, channels=8)
    cfg.model.auxiliary_head = None
    cfg.model.test_cfg = cfg.tta_test_cfg
    from conftest import randomise

    model = randomise(MODELS.build(dict(cfg.tta_model, module=cfg.model)))
    seen = []
    model.module.backbone.register_forward_pre_hook(
        lambda module, inputs: seen.append(tuple(inputs[0].shape[2:]))
    )
    pipeline = [step for step in cfg.tta_pipeline if step.type != 'LoadAnnotations']
    pipeline[1].transforms = [
        step for step in pipeline[1].transforms if step[0].type != 'LoadAnnotations'
    ]
    views = Compose(pipeline)(
        dict(img_path=str(photo), img_id=0, reduce_zero_label=True, seg_fields=[])
    )
    assert len(views['inputs']) == 12
    data = dict(
        inputs=[[view] for view in views['inputs']],
        data_samples=[[s] for s in views['data_samples']],
    )
    with torch.no_grad():
        result = model.test_step(data)[0].pred_sem_seg.data
    height, width = views['data_samples'][0].ori_shape
    expected = []
    for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75):
        scale = min(int(2048 * ratio) / max(height, width), int(512 * ratio) / min(height, width))
        expected += [(int(height * scale + 0.5), int(width * scale + 0.5))] * 2
    assert sorted(seen) == sorted(expected)

    probabilities = 0
    with torch.no_grad():
        for view, sample in zip(views['inputs'], views['data_samples']):
            image = (
                view.flip(0).float() - torch.tensor([123.675, 116.28, 103.53])[:, None, None]
            ) / torch.tensor([58.395, 57.12, 57.375])[:, None, None]
            logits = model.module.decode_head(model.module.backbone(image[None]))
            logits = nn.functional.interpolate(
                logits, image.shape[1:], mode='bilinear', align_corners=False
            )
            logits = logits.flip(3) if sample.flip else logits
            logits = nn.functional.interpolate(
                logits, (height, width), mode='bilinear', align_corners=False
            )
            probabilities = probabilities + logits.softmax(1) / 12
    agreement = (probabilities.argmax(1) == result).float().mean()
    assert agreement > 0.999 and len(result.unique()) > 1
