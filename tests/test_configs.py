"""Every shipped config is parsed, built and run; the recipes' numbers stand in the two full ones."""

import copy
import os

import mmdet
import mmseg
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, PARAM_SCHEDULERS, TRANSFORMS, init_default_scope
from mmengine.structures import PixelData
from PIL import Image

from conftest import ADE_T, ALL_CONFIGS, COCO_T, ROOT
from convnext_dense import PRESETS
from convnext_dense.architectures import get_architecture
from convnext_dense.inference.building import build


def load(path):
    cfg = Config.fromfile(ROOT / path)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    return cfg


def batch(cfg, photo, size=128):
    """A photo and its mirror image, (3, size, size) uint8, with two instances, or with a label map, as the dataloaders
    hand them over."""
    image = torch.from_numpy(
        np.array(Image.open(photo).convert('RGB').resize((size, size)))
    ).permute(2, 0, 1)
    images = [image, image.flip(2)]
    shape = dict(img_shape=(size, size), ori_shape=(size, size), scale_factor=(1.0, 1.0))
    if cfg.default_scope == 'mmseg':
        from mmseg.structures import SegDataSample

        samples = [SegDataSample(metainfo=shape) for _ in images]
        for sample in samples:
            sample.gt_sem_seg = PixelData(
                data=torch.randint(0, cfg.model.decode_head.num_classes, (1, size, size))
            )
    else:
        from mmdet.testing import demo_mm_inputs

        samples = demo_mm_inputs(
            2, [[3, size, size]] * 2, num_items=[2, 2], with_mask=True, num_classes=3
        )['data_samples']
        for sample in samples:
            sample.set_metainfo(shape)
    return dict(inputs=images, data_samples=samples)


def is_ours(cfg):
    """The street scenes have configs with other backbones too, to compare with."""
    return cfg.model.backbone.type == 'convnext_dense.ConvNeXt'


def reduced(cfg):
    """One block a stage and small heads: what the config wires together stays as it is."""
    model = cfg.model
    if is_ours(cfg):
        arch = get_architecture(model.backbone.arch)
        model.backbone.arch = arch._replace(depths=(1, 1, 1, 1))._asdict()
    if 'size' in model.data_preprocessor:
        model.data_preprocessor.size = (128, 128)  # the crop
    if model.data_preprocessor.get('batch_augments'):
        model.data_preprocessor.batch_augments[0].size = (256, 256)
    if 'roi_head' in model:
        heads = (
            model.roi_head.bbox_head
            if isinstance(model.roi_head.bbox_head, list)
            else [model.roi_head.bbox_head]
        )
        for head in heads:
            head.update(
                {key: 32 for key in ('fc_out_channels', 'conv_out_channels') if key in head}
            )
        model.test_cfg.rpn.max_per_img = model.train_cfg.rpn_proposal.max_per_img = 50
    if model.type == 'DINO':
        model.num_queries = 50
        model.encoder.num_layers = model.decoder.num_layers = 1
    if 'decode_head' in model:
        model.decode_head.channels = min(64, model.decode_head.channels)
        if model.test_cfg.mode == 'slide':
            model.test_cfg.update(crop_size=(96, 96), stride=(64, 64))
    return cfg


@pytest.mark.parametrize('path', ALL_CONFIGS)
def test_config_dumps_builds_and_runs(path, tmp_path, photo):
    cfg = load(path)
    cfg.dump(tmp_path / 'dumped.py')
    assert load(tmp_path / 'dumped.py')._cfg_dict == cfg._cfg_dict
    for split in ('train', 'val', 'test'):
        for transform in cfg[f'{split}_dataloader'].dataset.pipeline:
            TRANSFORMS.build(copy.deepcopy(transform))
    full = build(cfg.model, 'meta')  # at its full size
    assert not is_ours(cfg) or full.backbone.architecture == get_architecture(
        cfg.model.backbone.arch
    )
    model = revert_sync_batchnorm(MODELS.build(reduced(cfg).model).train())
    model.init_weights()  # mmdet leaves some parameters as the memory was until then
    data = model.data_preprocessor(batch(cfg, photo), training=True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(
        p.grad is not None for p in model.parameters() if p.requires_grad
    )  # find_unused_parameters=False
    with torch.no_grad():
        prediction = model.eval().test_step(batch(cfg, photo))[0]
    if cfg.default_scope == 'mmseg':
        assert prediction.pred_sem_seg.data.shape == (1, 128, 128)
    else:
        assert prediction.pred_instances.bboxes.shape[1] == 4


def test_full_and_empty_weights_of_every_config_are_known_presets():
    for path in ALL_CONFIGS:
        if 'demo' not in path:
            backbone = Config.fromfile(ROOT / path).model.backbone
            assert PRESETS[backbone.init_cfg.checkpoint].arch == backbone.arch, path


@pytest.mark.parametrize('path', [p for p in ALL_CONFIGS if 'demo' not in p])
def test_leaf_configs_are_short(path):
    assert sum(bool(line.strip()) for line in (ROOT / path).read_text().splitlines()) <= 20


@pytest.mark.parametrize('path', [COCO_T, ADE_T])
def test_grey_images_pass_the_pipelines(path, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80), np.uint8)).save(
        tmp_path / 'grey.png'
    )
    cfg = load(path)
    pipeline = Compose(
        [t for t in cfg.test_dataloader.dataset.pipeline if t.type != 'LoadAnnotations']
    )
    packed = pipeline(dict(img_path=str(tmp_path / 'grey.png'), img_id=0))
    assert packed['inputs'].shape[0] == 3


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
        (480, 1333),
        (512, 1333),
        (544, 1333),
        (576, 1333),
        (608, 1333),
        (640, 1333),
        (672, 1333),
        (704, 1333),
        (736, 1333),
        (768, 1333),
        (800, 1333),
    ],
    'train_dataloader.dataset.pipeline.3.transforms.1.0.scales': [
        (400, 1333),
        (500, 1333),
        (600, 1333),
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
    cfg = Config.fromfile(ROOT / path)
    assert {key: get(cfg, key) for key in values} == values


def flat(value, path=''):
    """Nested config -> dict: dotted path -> leaf. ``backend_args`` say where files lie, not how is trained."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)) and any(
        isinstance(v, (dict, list, tuple)) for v in value
    ):
        items = enumerate(value)
    else:
        return {path: tuple(value) if isinstance(value, list) else value}
    return {
        p: leaf
        for key, v in items
        if key != 'backend_args'
        for p, leaf in flat(v, f'{path}.{key}').items()
    }


BACKBONE = {
    f'.model.backbone.{key}'
    for key in ('type', 'gap_before_final_norm', 'init_cfg.checkpoint', 'init_cfg.prefix')
} | {'.optim_wrapper.constructor', '.optim_wrapper.paramwise_cfg.num_layers'}


@pytest.mark.parametrize(
    'ours, framework, theirs, differ',
    [
        (
            COCO_T,
            mmdet,
            'mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco',
            BACKBONE
            | {
                '.model.roi_head.bbox_roi_extractor.type',
                '.model.roi_head.mask_roi_extractor.type',
                '.optim_wrapper.loss_scale',  # dynamic, which is the wrapper's default
                '.param_scheduler.0.end',
            },
        ),  # the official warm-up is 500 iterations
        (
            ADE_T,
            mmseg,
            'convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512',
            BACKBONE
            | {
                '.model.pretrained',
                '.param_scheduler.0.end',
                '.param_scheduler.1.begin',
                '.param_scheduler.1.end',
                *(
                    f'.{split}_dataloader.dataset.pipeline.{i}.reduce_zero_label'  # ADE20KDataset says it
                    for split, i in (('train', 1), ('val', 2), ('test', 2))
                ),
                *(
                    f'.tta_pipeline.1.transforms.0.{i}.{key}'
                    for i in range(6)
                    for key in ('scale', 'scale_factor')
                ),
                '.tta_pipeline.1.transforms.1.0.direction',
            },
        ),
    ],
)
def test_recipes_differ_from_the_frameworks_own_only_where_they_should(
    ours, framework, theirs, differ
):
    path = f'{os.path.dirname(framework.__file__)}/.mim/configs/convnext/{theirs}.py'
    a, b = (
        flat(Config.fromfile(p, import_custom_modules=False)._cfg_dict.to_dict())
        for p in (ROOT / ours, path)
    )
    parts = (
        'model',
        'train_',
        'val_',
        'test_',
        'param_scheduler',
        'optim_wrapper',
        'tta_pipeline',
        'auto_scale_lr',
    )
    relevant = {
        p
        for p in {*a, *b}
        if p[1:].startswith(parts) and not p.startswith(('.train_pipeline', '.test_pipeline'))
    }
    assert {p for p in relevant if a.get(p, 'absent') != b.get(p, 'absent')} == differ


def learning_rates(cfg, iterations):
    """Rate relative to the base at each iteration, from the config's own schedulers."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(s, optimizer=optimizer))
        for s in cfg.param_scheduler
        if not s.by_epoch
    ]
    rates = []
    for _ in range(iterations):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return torch.tensor(rates, dtype=torch.float64)


def warm_up(iterations, ratio, length):
    """mmcv's linear warm-up, the one that the official runs had."""
    i = torch.arange(iterations, dtype=torch.float64)
    return torch.where(i < length, 1 - (1 - i / length) * (1 - ratio), torch.ones_like(i))


def test_schedules_follow_the_official_curves():
    assert torch.allclose(learning_rates(load(COCO_T), 1000), warm_up(1000, 1e-3, 500), atol=1e-11)
    ade = learning_rates(load(ADE_T), 160000)
    i = torch.arange(160000, dtype=torch.float64)
    assert torch.allclose(ade, (1 - i / 160000) * warm_up(160000, 1e-6, 1500), rtol=0, atol=1e-11)
