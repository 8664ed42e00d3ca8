"""Every shipped config is parsed, built and run; the official recipes differ from those that mmdet
and mmseg ship only where they should."""

import copy
import functools
import importlib

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from mmengine.structures import PixelData
from PIL import Image

from conftest import ADE_T, ALL_CONFIGS, COCO_T, ROOT
from convnext_dense import PRESETS
from convnext_dense.architectures import get_architecture
from convnext_dense.inference.building import build


@functools.cache
def parsed(path):
    return Config.fromfile(ROOT / path)


def load(path):
    """A config of the clone, to be changed at will, and its registries as the default ones."""
    cfg = copy.deepcopy(parsed(path))
    init_default_scope(cfg.default_scope)
    return cfg


def batch(cfg, photo, size=128):
    """A photo and its mirror image, (3, size, size) uint8, with two instances, or with a label map,
    as the dataloaders hand them over.
    """
    picture = Image.open(photo).convert('RGB').resize((size, size))
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    images = [image, image.flip(2)]
    shape = dict(img_shape=(size, size), ori_shape=(size, size), scale_factor=(1.0, 1.0))
    if cfg.default_scope == 'mmseg':
        from mmseg.structures import SegDataSample

        samples = [SegDataSample(metainfo=shape) for _ in images]
        for sample in samples:
            labels = torch.randint(0, cfg.model.decode_head.num_classes, (1, size, size))
            sample.gt_sem_seg = PixelData(data=labels)
    else:
        from mmdet.testing import demo_mm_inputs

        shapes = [[3, size, size]] * 2
        options = dict(num_items=[2, 2], with_mask=True, num_classes=3)
        samples = demo_mm_inputs(2, shapes, **options)['data_samples']
        for sample in samples:
            sample.set_metainfo(shape)
    return dict(inputs=images, data_samples=samples)


def is_ours(cfg):
    """The street scenes have configs with other backbones too, to compare with."""
    return cfg.model.backbone.type == 'convnext_dense.ConvNeXt'


def eighth(width):
    """Of a width, or of each of a list: what differed before differs after it."""
    if isinstance(width, (list, tuple)):
        return [eighth(inner) for inner in width]
    assert width % 8 == 0
    return width // 8


def reduced(cfg):
    """One block a stage, an eighth of the channels and small heads: how the config wires them
    together stays as it is.
    """
    model = cfg.model
    if is_ours(cfg):
        arch = get_architecture(model.backbone.arch)
        narrow = arch._replace(depths=(1, 1, 1, 1), dims=eighth(arch.dims))
        model.backbone.arch = narrow._asdict()
        for part in ('neck', 'decode_head', 'auxiliary_head'):
            if part in model:
                model[part].in_channels = eighth(model[part].in_channels)
    if 'size' in model.data_preprocessor:
        model.data_preprocessor.size = (128, 128)  # the crop
    if model.data_preprocessor.get('batch_augments'):
        model.data_preprocessor.batch_augments[0].size = (160, 160)
    if 'roi_head' in model:
        boxes = model.roi_head.bbox_head
        for head in [*(boxes if isinstance(boxes, list) else [boxes]), model.roi_head.mask_head]:
            sizes = ('fc_out_channels', 'conv_out_channels')
            head.update({key: 32 for key in sizes if key in head})
        model.test_cfg.rpn.max_per_img = model.train_cfg.rpn_proposal.max_per_img = 50
        model.test_cfg.rcnn.max_per_img = 10
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
    """Written and parsed again it is the same; the model is built at its full size; a smaller one
    takes a training step in which each parameter gets a gradient, as DDP with
    find_unused_parameters=False wants it, and predicts.
    """
    cfg = load(path)
    cfg.model.backbone.init_cfg = None  # so that no weights are fetched
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()
    for split in ('train', 'val', 'test'):
        for transform in cfg[f'{split}_dataloader'].dataset.pipeline:
            TRANSFORMS.build(copy.deepcopy(transform))
    full = build(cfg.model, 'meta')
    if is_ours(cfg):
        assert full.backbone.architecture == get_architecture(cfg.model.backbone.arch)
    model = revert_sync_batchnorm(MODELS.build(reduced(cfg).model).train())
    model.init_weights()  # mmdet leaves some parameters as the memory was until then
    data = model.data_preprocessor(batch(cfg, photo), training=True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        prediction = model.eval().test_step(batch(cfg, photo))[0]
    if cfg.default_scope == 'mmseg':
        assert prediction.pred_sem_seg.data.shape == (1, 128, 128)
    else:
        assert prediction.pred_instances.bboxes.shape[1] == 4


def test_weights_of_every_config_are_known_presets_of_its_architecture():
    for path in ALL_CONFIGS:
        if 'demo' not in path:
            backbone = parsed(path).model.backbone
            assert PRESETS[backbone.init_cfg.checkpoint].arch == backbone.arch, path


def test_a_leaf_with_hooks_of_its_own_keeps_ours():
    for path in ALL_CONFIGS:
        text = f'_base_ = {str(ROOT / path)!r}\ncustom_hooks = []\ndefault_hooks = dict(timer=None)'
        hooks = Config.fromstring(text, '.py').default_hooks
        types = {hooks[name].type for name in ('checkpoint', 'finite', 'data_check')}
        expected = {'CheckpointHook', 'FiniteHook', 'DataCheckHook'}
        assert types == {f'convnext_dense.{name}' for name in expected}, path


@pytest.mark.parametrize('path', [p for p in ALL_CONFIGS if 'demo' not in p])
def test_leaf_configs_are_short(path):
    assert sum(bool(line.strip()) for line in (ROOT / path).read_text().splitlines()) <= 20


@pytest.mark.parametrize('path', [COCO_T, ADE_T])
def test_grey_images_pass_the_pipelines(path, tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (60, 80), np.uint8)
    Image.fromarray(grey).save(tmp_path / 'grey.png')
    steps = load(path).test_dataloader.dataset.pipeline
    pipeline = Compose([step for step in steps if step.type != 'LoadAnnotations'])
    packed = pipeline(dict(img_path=str(tmp_path / 'grey.png'), img_id=0))
    assert packed['inputs'].shape[0] == 3


# ---- beside the frameworks' recipes ----


def flat(value, path=''):
    """Nested config -> dict: dotted path -> leaf. ``backend_args`` are left out: they say where
    files lie, not how is trained.
    """
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)) and any(
        isinstance(inner, (dict, list, tuple)) for inner in value
    ):
        items = enumerate(value)
    else:
        return {path: tuple(value) if isinstance(value, list) else value}
    leaves = {}
    for key, inner in items:
        if key != 'backend_args':
            leaves |= flat(inner, f'{path}.{key}' if path else f'{key}')
    return leaves


RECIPE = (
    'model',
    'train_',
    'val_',
    'test_',
    'param_scheduler',
    'optim_wrapper',
    'tta_pipeline',
    'auto_scale_lr',
)


def differences(path, framework, name, sections=RECIPE):
    """Dotted paths in ``sections`` that have other values in our config than in the framework's."""
    folder = importlib.import_module(framework).__path__[0]
    files = ROOT / path, f'{folder}/.mim/configs/{name}.py'
    ours, theirs = (
        flat(Config.fromfile(file, import_custom_modules=False).to_dict()) for file in files
    )
    return {
        leaf
        for leaf in {*ours, *theirs}
        if leaf.startswith(sections)
        and not leaf.startswith(('train_pipeline', 'test_pipeline'))  # parts of the dataloaders
        and ours.get(leaf, 'absent') != theirs.get(leaf, 'absent')
    }


BACKBONE = {
    'model.backbone.type',
    'model.backbone.gap_before_final_norm',
    'model.backbone.init_cfg.checkpoint',
    'model.backbone.init_cfg.prefix',
    'optim_wrapper.constructor',
    'optim_wrapper.paramwise_cfg.num_layers',
}
DETECTOR = BACKBONE | {
    'model.roi_head.bbox_roi_extractor.type',
    'model.roi_head.mask_roi_extractor.type',
    'param_scheduler.0.end',  # the official warm-up is 500 iterations
}
SEGMENTOR = BACKBONE | {
    'model.pretrained',
    'model.type',  # computes the same, as the next two do
    'model.decode_head.type',
    'model.auxiliary_head.type',
    'param_scheduler.0.end',
    'optim_wrapper.loss_scale',  # dynamic, which is the wrapper's default
    'param_scheduler.1.begin',
    'param_scheduler.1.end',
    # ADE20KDataset says it
    'train_dataloader.dataset.pipeline.1.reduce_zero_label',
    'val_dataloader.dataset.pipeline.2.reduce_zero_label',
    'test_dataloader.dataset.pipeline.2.reduce_zero_label',
    *(
        f'tta_pipeline.1.transforms.0.{i}.{key}'
        for i in range(6)
        for key in ('scale', 'scale_factor')
    ),
    'tta_pipeline.1.transforms.1.0.direction',
}
CASCADE = 'cascade-mask-rcnn_convnext-{}_fpn_4conv1fc-giou_amp-ms-crop-3x_coco'


@pytest.mark.parametrize(
    'path, framework, name, expected',
    [
        (COCO_T, 'mmdet', 'mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco', DETECTOR),
        *(
            (
                f'configs/coco/{CASCADE.format(f"{size}-in1k")}.py',
                'mmdet',
                CASCADE.format(f'{size}-p4-w7'),
                DETECTOR,
            )
            for size in 'ts'
        ),
        (ADE_T, 'mmseg', 'convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512', SEGMENTOR),
    ],
)
def test_recipes_differ_from_the_frameworks_only_where_they_should(path, framework, name, expected):
    assert differences(path, framework, f'convnext/{name}') == expected


def test_dino_differs_from_mmdets_only_in_its_backbone():
    path = 'configs/coco/dino-4scale_convnext-t-in22k_8xb2-12e_coco.py'
    sections = (
        'model',
        'train_dataloader',
        'test_dataloader',
        'param_scheduler',
        'optim_wrapper',
        'train_cfg',
    )
    leaves = differences(path, 'mmdet', 'dino/dino-4scale_r50_8xb2-12e_coco', sections)
    masks = {  # not all versions of mmdet set it
        'test_dataloader.dataset.pipeline.2.with_mask',
        'train_dataloader.dataset.pipeline.1.with_mask',
    }
    rest = {leaf for leaf in leaves if not leaf.startswith('model.backbone')} - masks
    # betas are torch's default, said
    assert rest == {'model.neck.in_channels', 'optim_wrapper.optimizer.betas'}
