"""Every shipped config is parsed, built and run; the official recipes differ from those that mmdet
and mmseg ship only where they should."""

import copy
import functools
import importlib.util

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from mmengine.structures import PixelData
from PIL import Image

from conftest import ADE_T, ALL_CONFIGS, COCO_T, ROOT
from convnext_dense import PRESETS
from convnext_dense.architectures import get_architecture
from convnext_dense.data.locating import data_paths, move_data
from convnext_dense.inference.building import build

SPLITS = 'train', 'val', 'test'
VAL_FILES = 'panoptic_val2017', 'panoptic_val2017.json', 'instances_val2017.json'


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
        options = dict(num_items=[2, 2], with_mask=True, with_semantic=True, num_classes=3)
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
        for part in ('neck', 'panoptic_head', 'decode_head', 'auxiliary_head'):
            if model.get(part):
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
    mask2former = model.get('panoptic_head') or model.get('decode_head')
    if mask2former and 'Mask2Former' in mask2former.type:
        mask2former.num_queries = 20
        mask2former.transformer_decoder.num_layers = 2
        mask2former.pixel_decoder.encoder.num_layers = 1
    if model.type == 'RTMDet':
        model.neck.norm_cfg.num_groups = 4
    if model.type == 'DINO':
        model.num_queries = 50
        model.encoder.num_layers = model.decoder.num_layers = 1
    if 'decode_head' in model:
        if 'channels' in model.decode_head:
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
    has_panopticapi = importlib.util.find_spec('panopticapi')  # in no environment of the project
    for split in SPLITS:
        for transform in cfg[f'{split}_dataloader'].dataset.pipeline:
            if has_panopticapi or 'Panoptic' not in transform.type:
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


def test_panoptic_maps_move_with_the_data():
    cfg = load('configs/coco/mask2former_convnext-t-in1k_8xb2-lsj-50e_coco-panoptic.py')
    move_data(cfg, 'elsewhere')
    files = ('val2017', *(f'annotations/{name}' for name in VAL_FILES))
    assert {str(path) for path in data_paths(cfg, 'val')} == {f'elsewhere/{file}' for file in files}


@pytest.mark.parametrize('path', [path for path in ALL_CONFIGS if 'frozen' in path])
def test_frozen_recipes_keep_nothing_of_the_backbone_and_change_no_bit_of_it(path, photo):
    """Two steps with the recipe's optimiser under autocast: they keep no tensor of the backbone for
    the backward pass, where the same backbone that is trained keeps many."""
    cfg = reduced(load(path))
    cfg.model.backbone.init_cfg = None
    cfg.optim_wrapper.type = 'OptimWrapper'
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    for _ in range(2):
        with torch.autocast('cpu', torch.bfloat16):
            data = model.data_preprocessor(batch(cfg, photo), training=True)
            loss, _ = model.parse_losses(model(**data, mode='loss'))
        wrapper.update_params(loss)
    changed = {
        name for name, tensor in model.state_dict().items() if (tensor != before[name]).any()
    }
    assert changed and not any(name.startswith('backbone') for name in changed)
    # its decay takes a little of weights without a gradient, too
    assert changed >= {name for name, _ in model.decode_head.named_parameters('decode_head')}
    kept, maps = kept_for_backward(model.backbone, data['inputs'])
    assert kept == 0 and not any(x.requires_grad for x in maps)
    trained = MODELS.build(dict(cfg.model.backbone, frozen_stages=-1)).train()
    kept, maps = kept_for_backward(trained, data['inputs'])
    assert kept > 5 * sum(x.numel() for x in maps)


def kept_for_backward(module, inputs):
    """Elements of the tensors that a forward under autocast keeps, and its output."""
    saved = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x),
        torch.autocast('cpu', torch.bfloat16),
    ):
        outputs = module(inputs)
    return sum(x.numel() for x in saved), outputs


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
    files lie, not how is trained. Types of mmdet may have its scope before them.
    """
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)) and any(
        isinstance(inner, (dict, list, tuple)) for inner in value
    ):
        items = enumerate(value)
    else:
        value = value.removeprefix('mmdet.') if isinstance(value, str) else value
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


GROUP_NORM = 'type', 'num_groups'
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


SCALES_OF_TTA = {leaf for leaf in SEGMENTOR if leaf.startswith('tta_pipeline')}
DEFAULTS = {  # of mmcv and mmdet, which mmseg's Mask2Former says
    *(f'pixel_decoder.encoder.layer_cfg.self_attn_cfg.{key}' for key in ('init_cfg', 'norm_cfg')),
    'pixel_decoder.encoder.layer_cfg.self_attn_cfg.im2col_step',
    *('pixel_decoder.encoder.init_cfg', 'pixel_decoder.init_cfg'),
    *(f'transformer_decoder.layer_cfg.ffn_cfg.{key}' for key in ('add_identity', 'dropout_layer')),
    *(
        f'transformer_decoder.layer_cfg.{kind}_attn_cfg.{key}'
        for kind in ('self', 'cross')
        # the first is ours, an older name for the next two
        for key in ('dropout', 'attn_drop', 'proj_drop', 'dropout_layer')
    ),
}
OF_ADE20K = {leaf for leaf in SEGMENTOR if leaf.endswith('reduce_zero_label')} | SCALES_OF_TTA
SEMANTIC = OF_ADE20K | {f'model.decode_head.{key}' for key in DEFAULTS}
INIT = {'model.init_cfg', 'model.panoptic_fusion_head.init_cfg'}
NAMED = 'mask2former/mask2former_swin'


@pytest.mark.parametrize(
    'path, framework, name, expected',
    [
        (
            'configs/coco/mask2former_convnext-t-in1k_8xb2-lsj-50e_coco.py',
            'mmdet',
            f'{NAMED}-t-p4-w7-224_8xb2-lsj-50e_coco',
            INIT
            | {
                'train_dataloader.dataset.pipeline.3.resize_type',  # the default
                # of panoptic maps, which are not read
                *(f'{split}_dataloader.dataset.data_prefix.seg' for split in SPLITS),
            },
        ),
        (
            'configs/coco/mask2former_convnext-t-in1k_8xb2-lsj-50e_coco-panoptic.py',
            'mmdet',
            f'{NAMED}-t-p4-w7-224_8xb2-lsj-50e_coco-panoptic',
            INIT,
        ),
        (
            'configs/ade20k/mask2former_convnext-t-in1k_8xb2-160k_ade20k-512x512.py',
            'mmseg',
            f'{NAMED}-t_8xb2-160k_ade20k-512x512',
            SEMANTIC,
        ),
        (
            'configs/ade20k/mask2former_convnext-b-in22k_8xb8-50k_ade20k-640x640.py',
            'mmseg',
            f'{NAMED}-b-in22k-384x384-pre_8xb2-160k_ade20k-640x640',
            SEMANTIC
            | {
                # of the published run
                'auto_scale_lr.base_batch_size',
                'optim_wrapper.optimizer.lr',
                'param_scheduler.0.end',
                'train_cfg.max_iters',
                'train_dataloader.batch_size',
                'model.data_preprocessor.test_cfg.size_divisor',  # as mmseg has it at 512 x 512
            },
        ),
        (
            'configs/coco/mask-rcnn_convnext-t-in1k_fpn_amp-1x_coco.py',
            'mmdet',
            'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco',
            (DETECTOR - BACKBONE)
            | {
                # ConvNeXt's, as in the 3x recipe
                'optim_wrapper.type',
                'optim_wrapper.constructor',
                'optim_wrapper.paramwise_cfg.decay_rate',
                'optim_wrapper.paramwise_cfg.decay_type',
            },
        ),
    ],
)
def test_recipes_are_those_for_swin_but_for_the_backbone(path, framework, name, expected):
    leaves = differences(path, framework, name, (*RECIPE, 'log_processor'))
    own = 'model.backbone.', 'optim_wrapper.paramwise_cfg.custom_keys.'
    assert {leaf for leaf in leaves if not leaf.startswith(own)} == expected


def test_rtmdet_ins_is_mmdets_trained_as_its_rtmdet_on_convnext():
    path = 'configs/coco/rtmdet-ins_l_convnext-t-in22k_4xb32-100e_coco.py'
    model = differences(path, 'mmdet', 'rtmdet/rtmdet-ins_l_8xb32-300e_coco', ('model', 'val_'))
    data = {'mean', 'std', 'bgr_to_rgb'}  # the same, said in RGB
    norm = {'model.bbox_head.norm_cfg.requires_grad'}
    norm |= {f'model.{part}.norm_cfg.{key}' for part in ('neck', 'bbox_head') for key in GROUP_NORM}
    expected = {f'model.data_preprocessor.{key}' for key in data} | norm
    assert {leaf for leaf in model if not leaf.startswith('model.backbone.')} == {
        *expected,
        'model.neck.in_channels',
    }
    pipeline = 'train_dataloader', 'test_dataloader', 'test_evaluator'
    assert not differences(path, 'mmdet', 'rtmdet/rtmdet-ins_l_8xb32-300e_coco', pipeline)
    schedule = 'param_scheduler', 'train_cfg', 'optim_wrapper', 'model.neck.norm_cfg', 'model.data_'
    leaves = differences(path, 'mmdet', 'rtmdet/rtmdet_l_convnext_b_4xb32-100e_coco', schedule)
    # what mmdet's constructor of layer-wise decay does not read, and what follows from the depths
    unread = 'bias_decay_mult', 'bypass_duplicate', 'norm_decay_mult', 'num_layers'
    unread = {f'optim_wrapper.paramwise_cfg.{key}' for key in unread}
    assert leaves == unread | {'optim_wrapper.constructor'}
    cfg, folder = parsed(path), importlib.import_module('mmdet').__path__[0]
    name = 'rtmdet/rtmdet-ins_l_8xb32-300e_coco'
    theirs = Config.fromfile(f'{folder}/.mim/configs/{name}.py').custom_hooks
    ours, last = cfg.default_hooks, cfg.train_cfg.dynamic_intervals[0][0]
    averaged = dict(ours.ema, priority=49)
    assert averaged == theirs[0] and ours.switch.switch_epoch == last == 90
    assert flat(ours.switch.switch_pipeline) == flat(theirs[1].switch_pipeline)
