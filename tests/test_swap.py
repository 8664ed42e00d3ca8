"""swap_backbone: widths by hand, what must not change, proofs, messages, and the config that is written."""

import ast
import os
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from conftest import ADE_T, COCO_T, ROOT, run
from convnext_dense import ConfigError, swap_backbone
from convnext_dense.inference.building import build
from convnext_dense.swap import allow_unused, plan, prove, write_config
from convnext_dense.swap.editing import plain
from convnext_dense.swap.finding import at, find_config, read_config

T = [96, 192, 384, 768]  # dims of tiny
DET, SEG = 'mmdet', 'mmseg'
# Config of the zoo -> what of its model has to come out how, written down from the two networks' papers and the heads' docs.
CASES = {
    'mask-rcnn_r50_fpn_1x_coco': {
        'neck.in_channels': T,
        'neck.out_channels': 256,
        'rpn_head.in_channels': 256,
    },
    'retinanet_r50_fpn_1x_coco': {
        'backbone.out_indices': (1, 2, 3),
        'neck.in_channels': T[1:],
        'neck.start_level': 0,
        'neck.num_outs': 5,
    },
    'faster-rcnn_r50-caffe-c4_ms-1x_coco': {
        'backbone.out_indices': (3,),
        'backbone.output_stride': 16,
        'rpn_head.in_channels': 768,
        'roi_head.shared_head': None,
        'roi_head.bbox_roi_extractor.out_channels': 768,
        'roi_head.bbox_roi_extractor.roi_layer.output_size': 7,
        'roi_head.bbox_head.in_channels': 768,
    },
    'faster-rcnn_r50-caffe-dc5_1x_coco': {
        'backbone.output_stride': 16,
        'rpn_head.in_channels': 768,
        'roi_head.bbox_head.in_channels': 768,
        'roi_head.bbox_roi_extractor.out_channels': 768,
        'data_preprocessor.mean': [123.675, 116.28, 103.53],
        'data_preprocessor.bgr_to_rgb': True,
    },
    'detr_r50_8xb2-150e_coco': {
        'backbone.out_indices': (3,),
        'neck.in_channels': [768],
        'neck.num_outs': 1,
    },
    'dino-4scale_r50_8xb2-12e_coco': {
        'backbone.out_indices': (1, 2, 3),
        'neck.in_channels': T[1:],
        'neck.num_outs': 4,
    },
    'mask2former_r50_8xb2-lsj-50e_coco-panoptic': {
        'panoptic_head.in_channels': T,
        'panoptic_head.strides': [4, 8, 16, 32],
        'panoptic_head.feat_channels': 256,
    },
    'ssd300_coco': {
        'backbone.output_stride': 16,
        'neck.in_channels': (192, 768),
        'bbox_head.in_channels': (192, 768, 512, 256, 256, 256),
        'neck.out_channels': (192, 768, 512, 256, 256, 256),
    },
    'yolov3_d53_8xb8-320-273e_coco': {
        'neck.in_channels': [768, 384, 192],
        'neck.out_channels': [512, 256, 128],
    },
    'yolof_r50-c5_8xb8-1x_coco': {
        'neck.in_channels': 768,
        'neck.out_channels': 512,
        'bbox_head.in_channels': 512,
    },
    'rtmdet_tiny_8xb32-300e_coco': {
        'backbone.out_indices': (1, 2, 3),
        'neck.in_channels': T[1:],
        'neck.out_channels': 96,
        'bbox_head.in_channels': 96,
    },
    'rtmdet_x_p6_4xb8-300e_coco': {
        'neck.0.in_channels': T[1:],
        'neck.0.num_outs': 4,
        'neck.1.in_channels': [320] * 4,
    },
    'fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco': {'neck.type': 'HRFPN', 'neck.in_channels': T},
    'centernet_r18_8xb16-crop512-140e_coco': {
        'backbone.out_indices': (3,),
        'neck.in_channels': 768,
        'bbox_head.in_channels': 64,
    },
    'deepsort_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval': {
        'detector.neck.in_channels': T,
        'reid.backbone.type': 'mmpretrain.ResNet',
        'reid.head.in_channels': 2048,
    },
    'soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco': {
        'detector.neck.in_channels': T,
        'data_preprocessor.data_preprocessor.mean': [123.675, 116.28, 103.53],
    },
    'mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco': {'neck.in_channels': T},
    'pspnet_r50-d8_4xb2-40k_cityscapes-512x1024': {
        'backbone.out_indices': (2, 3),
        'backbone.output_stride': 8,
        'pretrained': None,
        'decode_head.in_channels': 768,
        'decode_head.in_index': 1,
        'auxiliary_head.in_channels': 384,
        'auxiliary_head.in_index': 0,
        'decode_head.channels': 512,
    },
    'deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024': {
        'backbone.out_indices': (0, 2, 3),
        'decode_head.c1_in_channels': 96,
        'decode_head.in_channels': 768,
        'decode_head.in_index': 2,
        'auxiliary_head.in_index': 1,
        'auxiliary_head.in_channels': 384,
    },
    'upernet_r50_4xb4-80k_ade20k-512x512': {
        'decode_head.in_channels': T,
        'decode_head.in_index': [0, 1, 2, 3],
        'auxiliary_head.in_channels': 384,
        'auxiliary_head.in_index': 2,
    },
    'knet-s3_r50-d8_pspnet_8xb2-adamw-80k_ade20k-512x512': {
        'decode_head.kernel_generate_head.in_channels': 768,
        'decode_head.kernel_generate_head.in_index': 1,
        'decode_head.kernel_update_head.0.in_channels': 512,
        'auxiliary_head.in_channels': 384,
        'auxiliary_head.in_index': 0,
    },
    'segformer_mit-b0_8xb2-160k_ade20k-512x512': {
        'decode_head.in_channels': T,
        'decode_head.channels': 256,
    },
    'fastfcn_r50-d32_jpu_psp_4xb4-80k_cityscapes-512x1024': {
        'neck.in_channels': (192, 384, 768),
        'decode_head.in_channels': 2048,
        'auxiliary_head.in_channels': 384,
    },
    'fcn_hr18_4xb2-40k_cityscapes-512x1024': {
        'decode_head.in_channels': T,
        'decode_head.channels': 270,
    },
    'beit-base_upernet_8xb2-160k_ade20k-640x640': {
        'neck': None,
        'decode_head.in_channels': T,
        'auxiliary_head.in_channels': 384,
    },
    'unet-s5-d16_fcn_4xb4-40k_drive-64x64': {
        'decode_head.in_channels': T,
        'decode_head.in_index': [0, 1, 2, 3],
        'decode_head.input_transform': 'resize_concat',
        'auxiliary_head.in_channels': 384,
        'auxiliary_head.in_index': 2,
    },
    'mobilenet-v3-d8-s_lraspp_4xb4-320k_cityscapes-512x1024': {
        'backbone.out_indices': (0, 3),
        'decode_head.in_channels': (96, 96, 768),
        'decode_head.in_index': (0, 0, 1),
    },
    'segmenter_vit-s_fcn_8xb1-160k_ade20k-512x512': {
        'decode_head.in_channels': 768,
        'decode_head.channels': 768,
    },
}
PROVEN = [
    'retinanet_r50_fpn_1x_coco',
    'faster-rcnn_r50-caffe-c4_ms-1x_coco',
    'dino-4scale_r50_8xb2-12e_coco',
    'ssd300_coco',
    'rtmdet_tiny_8xb32-300e_coco',
    'deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024',
    'knet-s3_r50-d8_pspnet_8xb2-adamw-80k_ade20k-512x512',
    'unet-s5-d16_fcn_4xb4-40k_drive-64x64',
]
REFUSED = {
    'cornernet_hourglass104_8xb6-210e-mstest_coco': 'HourglassNet cannot be given another backbone: CornerNet',
    'tridentnet_r50-caffe_1x_coco': 'TridentResNet cannot be given another backbone',
    'detectors_cascade-rcnn_r50_1x_coco': 'DetectoRS_ResNet cannot be given another backbone',
    'd2_retinanet_r50-caffe_fpn_ms-90k_coco': 'Detectron2Wrapper cannot be given another backbone',
    'setr_vit-l_pup_8xb2-160k_ade20k-512x512': 'SETRUPHead cannot be given another backbone: it decodes the tokens',
    'segmenter_vit-b_mask_8xb1-160k_ade20k-512x512': 'SegmenterMaskTransformerHead cannot be given another backbone',
    'bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024': 'BiSeNetV2 cannot be given another backbone',
    'san-vit-b16_coco-stuff164k-640x640': 'SideAdapterCLIPHead cannot be given another backbone',
}


def value(cfg, key):
    node = cfg.model
    for part in key.split('.'):
        node = node[int(part) if part.isdigit() else part]
    return node


@pytest.mark.parametrize('name', CASES)
def test_widths_and_strides(name):
    swap = plan(name, 'tiny', 'tiny_in22k')
    for key, wanted in CASES[name].items():
        assert plain(value(swap.cfg, key)) == plain(wanted), key
    # and nothing else, but what names the old weights, normalises images, or follows from the depths
    old = read_config(find_config(name)[0])
    allowed = {
        'backbone',
        'pretrained',
        'mean',
        'std',
        'bgr_to_rgb',
        'init_cfg',
        'load_from',
        'num_layers',
        'imports',
    }
    changed = {
        '.'.join(map(str, change.path[1:]))
        for change in swap.changes
        if change.path[-1] not in allowed
    }
    assert changed <= set(CASES[name]) | {'neck'}
    for change in swap.changes:
        assert plain(at(swap.cfg, change.path)) != plain(change.old)
    assert old.train_dataloader == swap.cfg.train_dataloader if 'train_dataloader' in old else True


@pytest.mark.parametrize('name', PROVEN)
def test_swapped_models_train(name):
    proof = prove(plan(name, 'atto'))
    assert proof.step == 'loss' and proof.loss > 0 and not proof.without_gradient


def test_unused_maps_are_told():
    swap = plan('encnet_r50-d8_4xb2-40k_cityscapes-512x1024', 'atto')
    proof = prove(swap)
    assert set(proof.without_gradient) == {
        'norm1.weight',
        'norm1.bias',
    }  # the head reads three maps and uses two
    swap = allow_unused(swap, proof.without_gradient)
    assert swap.cfg.find_unused_parameters and swap.changes[-1].path == ('find_unused_parameters',)


def test_proof_notices_a_wrong_width():
    swap = plan('retinanet_r50_fpn_1x_coco', 'atto')
    swap.cfg.model.neck.in_channels = [80, 160, 321]
    with pytest.raises(ConfigError, match='(?s)does not train on ConvNeXt.*321'):
        prove(swap)


@pytest.mark.parametrize('name', REFUSED)
def test_methods_that_cannot(name):
    with pytest.raises(ConfigError, match=REFUSED[name]):
        swap_backbone(name, 'tiny')


@pytest.mark.parametrize('name', CASES)
def test_twice_is_once_and_again_is_nothing(name):
    twice = plan(plan(name, 'tiny').cfg, 'base', 'base_in22k')
    once = plan(name, 'base', 'base_in22k')
    assert plain(twice.cfg.to_dict()) == plain(once.cfg.to_dict())
    assert not plan(once.cfg, 'base').changes and not plan(once.cfg, 'base', 'base_in22k').changes


@pytest.mark.parametrize('config', [COCO_T, ADE_T])
def test_our_own_configs_are_left_alone(config):
    assert not plan(ROOT / config, 'tiny').changes
    small = plan(ROOT / config, 'small', 'small_in1k').cfg
    assert small.model.backbone.drop_path_rate == 0.2 and small.model.backbone.arch == 'small'
    wide = plan(ROOT / config, 'v2_base').cfg.model.backbone
    assert (
        wide.arch == 'v2_base' and 'layer_scale_init_value' not in wide and 'init_cfg' not in wide
    )


def test_what_the_user_chose_for_convnext_stays():
    cfg = Config.fromfile(ROOT / COCO_T)
    cfg.model.backbone.update(frozen_stages=2, checkpointing='mlp', in_channels=3)
    new = swap_backbone(cfg, 'base').model.backbone
    assert new.frozen_stages == 2 and new.checkpointing == 'mlp'
    assert cfg.model.backbone.arch == 'tiny'  # the input is not changed


def test_output_stride_on_request():
    swap = plan('pspnet_r50-d8_4xb2-40k_cityscapes-512x1024', 'tiny', output_stride=32)
    assert (
        'output_stride' not in swap.cfg.model.backbone
        and swap.cfg.model.backbone.out_indices == (2, 3)
    )
    assert sum('stride 8' in warning for warning in swap.warnings) == 2


def test_layer_decay_keeps_the_heads_keys():
    swap = plan('mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco', 'tiny', layer_decay=True)
    optim = swap.cfg.optim_wrapper
    assert (
        optim.optimizer
        == read_config(
            find_config('mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco')[0]
        ).optim_wrapper.optimizer
    )
    assert {'query_embed', 'query_feat', 'level_embed'} <= set(optim.paramwise_cfg.custom_keys)
    assert not any('backbone' in key for key in optim.paramwise_cfg.custom_keys)
    init_default_scope('mmdet')
    built = build_optim_wrapper(build(swap.cfg.model, 'meta'), optim).optimizer
    assert min(group['lr'] for group in built.param_groups) < 0.8 * optim.optimizer.lr
    sgd = plan(
        'pspnet_r50-d8_4xb2-40k_cityscapes-512x1024', 'small', layer_decay=True
    ).cfg.optim_wrapper
    assert sgd.optimizer.type == 'AdamW' and sgd.paramwise_cfg.decay_type == 'stage_wise'


def test_layers_follow_the_depths():
    """mmdet's own constructor multiplies the last blocks' rate by more than one if the number stays that of a small model."""
    swap = plan('mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco', 'base')
    assert swap.cfg.optim_wrapper.paramwise_cfg.num_layers == 12


# ---- a user's own config ----

USERS = """
# The config of our bridge inspection project. Do not touch the sampler!
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['bridge_modules'])
widths = [256, 512, 1024, 2048]  # used twice below
model = dict(
    type='BridgeDetector',  # ours
    backbone=dict(depth=101, dcn=dict(type='DCN', deform_groups=1), stage_with_dcn=(False, True, True, True)),
    neck=dict(type='BridgeFPN', in_channels=widths, groups=2),
    roi_head=dict(bbox_head=dict(num_classes=7)))
custom_hooks = [dict(type='BridgeHook', every=3)]
optim_wrapper = dict(_delete_=True, type='OptimWrapper', optimizer=dict(type='Adagrad', lr=0.01), clip_grad=dict(max_norm=3.))
train_dataloader = dict(batch_size=3, sampler=dict(type='DefaultSampler', shuffle=False))
load_from = 'bridge_r101.pth'
experiment = dict(name='bridge', tags=('a', 'b'), table={'not an identifier': 1})
"""
MODULES = """
from mmdet.models import FPN, FasterRCNN
from mmdet.registry import HOOKS, MODELS
from mmengine.hooks import Hook

@MODELS.register_module()
class BridgeDetector(FasterRCNN): pass

@MODELS.register_module()
class BridgeFPN(FPN):
    def __init__(self, groups, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups

@HOOKS.register_module()
class BridgeHook(Hook):
    def __init__(self, every): self.every = every
"""


@pytest.fixture(scope='module')
def users(tmp_path_factory):
    """Folder with the config and the modules of a user, who swapped its backbone by the tool."""
    folder = tmp_path_factory.mktemp('users')
    (folder / 'bridge.py').write_text(
        USERS.replace(
            'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
            str(find_config('faster-rcnn_r50_fpn_1x_coco')[0]),
        )
    )
    (folder / 'bridge_modules.py').write_text(MODULES)
    output = run(
        ROOT / 'tools/swap_backbone.py',
        'bridge.py',
        '--arch',
        'atto',
        '-o',
        'new/bridge_atto.py',
        cwd=folder,
        env=dict(os.environ, PYTHONPATH=str(folder)),
    )
    return folder, output


def test_users_config_survives(users, monkeypatch):
    folder, output = users
    monkeypatch.syspath_prepend(folder)
    old, new = (
        Config.fromfile(folder / name).to_dict() for name in ('bridge.py', 'new/bridge_atto.py')
    )
    assert new['model'].pop('backbone') == dict(
        type='convnext_dense.ConvNeXt', arch='atto', drop_path_rate=0.0
    )
    assert new['model']['neck'].pop('in_channels') == [40, 80, 160, 320] and old['model'][
        'neck'
    ].pop('in_channels')
    assert new.pop('load_from') is None and old.pop('load_from')
    old['model'].pop('backbone')
    assert new == old  # hooks, optimiser, imports, data, all
    text = (folder / 'new/bridge_atto.py').read_text()
    assert "_base_ = ['../bridge.py']" in text  # so the comments stay where they are
    assert [node.targets[0].id for node in ast.parse(text).body] == ['_base_', 'model', 'load_from']
    assert len(text.splitlines()) < 15


def test_the_tool_says_what_and_why(users):
    output = users[1]
    for said in (
        'model.neck.in_channels',
        '[256, 512, 1024, 2048]',
        '[40, 80, 160, 320]',
        'widths of the maps',
        'bridge_r101.pth',
        '- depth=101',
        'dcn, stage_with_dcn were layers within ResNet',
        'random weights',
        'Adagrad is kept',
        'widths still holds the old widths',
        'Proof: one training step',
        'wrote new/bridge_atto.py',
    ):
        assert said in output, output


def test_tool_leaves_what_is_there_alone(users, exits, monkeypatch):
    folder = users[0]
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    tool = ROOT / 'tools/swap_backbone.py'
    before = (folder / 'bridge.py').read_text()
    assert 'is CONFIG itself' in exits(tool, 'bridge.py', '--arch', 'atto', '-o', 'bridge.py')
    assert (folder / 'bridge.py').read_text() == before


# ---- the file that is written ----


@pytest.mark.parametrize(
    'name',
    [
        'mask-rcnn_r50_fpn_1x_coco',
        'rtmdet_x_p6_4xb8-300e_coco',
        'detr_r50_8xb2-150e_coco',
        'pspnet_r50-d8_4xb2-40k_cityscapes-512x1024',
        'ocrnet_hr18_4xb2-40k_cityscapes-512x1024',
        'unet-s5-d16_fcn_4xb4-40k_drive-64x64',
        'mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco',
    ],
)
def test_written_configs_are_short_and_come_out_the_same(name, tmp_path):
    source, scoped = find_config(name)
    for arch in ('tiny', 'v2_base'):
        swap, out = plan(source, arch, layer_decay=True), tmp_path / f'{arch}.py'
        write_config(swap, source, scoped, out, 'made by hand')
        assert plain(read_config(out).model.to_dict().get('neck')) == plain(
            swap.cfg.model.to_dict().get('neck')
        )
        model = MODELS.build
        init_default_scope(swap.cfg.default_scope)
        assert (
            model(Config.fromfile(out).model)
            if 'mmpretrain' not in name and arch == 'tiny'
            else True
        )
        text = out.read_text()
        assert max(map(len, text.splitlines()[2:])) <= 120 and len(text.splitlines()) < 50


def test_text_of_a_written_config(tmp_path):
    swap = plan('retinanet_r50_fpn_1x_coco', 'tiny', 'tiny_in1k')
    write_config(
        swap, find_config('retinanet_r50_fpn_1x_coco')[0], 'base.py', tmp_path / 'new.py', 'COMMAND'
    )
    assert (
        (tmp_path / 'new.py').read_text().partition(']\n\n')[2]
        == """model = dict(
    backbone=dict(
        _delete_=True,
        type='convnext_dense.ConvNeXt',
        arch='tiny',
        drop_path_rate=0.1,
        out_indices=(1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint='tiny_in1k')),
    neck=dict(in_channels=[192, 384, 768], start_level=0))
"""
    )


def test_teacher_and_student_are_both_swapped(tmp_path):
    base = read_config(find_config('retinanet_r50_fpn_1x_coco')[0])
    cfg = Config(
        dict(
            default_scope='mmdet',
            model=dict(type='Pair', teacher=base.model, student=base.model.copy()),
        )
    )
    swap = plan(cfg, 'tiny')
    assert len(swap.owners) == 2
    assert (
        swap.cfg.model.teacher.neck.in_channels
        == swap.cfg.model.student.neck.in_channels
        == [192, 384, 768]
    )


def test_mmpretrain_need_not_be_there(tmp_path):
    """The zoo's ConvNeXt configs import it, and it often does not import."""
    code = f"""
import sys
sys.modules['mmpretrain'] = None
from convnext_dense.swap import plan, write_config, find_config
from convnext_dense.swap.finding import read_config
name = 'convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512'
swap = plan(name, 'base')
assert swap.cfg.model.decode_head.in_channels == [128, 256, 512, 1024]
write_config(swap, find_config(name)[0], name, __import__('pathlib').Path({str(tmp_path / 'new.py')!r}), '')
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
cfg = Config.fromfile({str(tmp_path / 'new.py')!r})
init_default_scope('mmseg')
MODELS.build(cfg.model)
"""
    (tmp_path / 'check.py').write_text(code)
    run(tmp_path / 'check.py')


# ---- bad input ----


def write(folder, text):
    (folder / 'config.py').write_text(text)
    return str(folder / 'config.py')


@pytest.mark.parametrize(
    'text, message',
    [
        ('model = dict(', 'is not a config that MMEngine can read: .*SyntaxError|never closed'),
        ('', 'no model with a type'),
        ("model = dict(type='Nothing')", 'Nothing has no backbone'),
        (
            "model = dict(type='FasterRCNN', backbone=dict(type='Missing'))",
            'the backbone Missing cannot be built and run.*Missing',
        ),
        (
            "custom_imports = dict(imports=['not_there'])\nmodel = dict()",
            'custom_imports names not_there.*PYTHONPATH',
        ),
        ("_base_ = 'missing.py'", 'is not a config that MMEngine can read'),
    ],
)
def test_bad_configs(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        swap_backbone(write(tmp_path, text), 'tiny')


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('mask-rcnn_r50_fpn_1x_coco', 'huge'), "unknown arch 'huge': expected one of atto, "),
        (
            ('mask-rcnn_r50_fpn_1x_coco', 'tiny', 'base_in22k'),
            'the preset base_in22k is of arch base, not tiny',
        ),
        (('no_such_config', 'tiny'), 'no config no_such_config: expected a path'),
        (('mmdet::no/such.py', 'tiny'), 'no config mmdet::no/such.py'),
        (('nothing::no/such.py', 'tiny'), 'no config nothing::'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        swap_backbone(*arguments)


def test_tool_prints_no_traceback(exits, tmp_path):
    tool, out = ROOT / 'tools/swap_backbone.py', tmp_path / 'x.py'
    assert 'ConfigError: unknown arch' in exits(
        tool, 'mask-rcnn_r50_fpn_1x_coco', '--arch', 'nope', '-o', out
    )
    assert 'a config is a .py file' in exits(
        tool, 'mask-rcnn_r50_fpn_1x_coco', '--arch', 'tiny', '-o', tmp_path / 'x'
    )
    assert 'cannot be given another backbone' in exits(
        tool, 'tridentnet_r50-caffe_1x_coco', '--arch', 'tiny', '-o', out
    )
    (tmp_path / 'broken.pth').write_bytes(b'not weights')
    assert 'WeightsError' in exits(
        tool,
        'retinanet_r50_fpn_1x_coco',
        '--arch',
        'atto',
        '-o',
        out,
        '--checkpoint',
        tmp_path / 'broken.pth',
    )
    assert not out.exists()
    (tmp_path / 'file').touch()
    assert 'cannot be written' in exits(
        tool,
        'retinanet_r50_fpn_1x_coco',
        '--arch',
        'atto',
        '--no-proof',
        '-o',
        tmp_path / 'file/x.py',
    )


NEW_STYLE = """
from mmdet.models import FPN, ResNet, RetinaNet
from mmengine.config import read_base
with read_base():
    from .runtime import *
model = dict(type=RetinaNet, backbone=dict(type=ResNet, depth=50), neck=dict(
    type=FPN, in_channels=[256, 512, 1024, 2048], out_channels=256, start_level=1, num_outs=5))
"""


def test_new_style_configs_are_told_how_to_export(tmp_path):
    (tmp_path / 'runtime.py').write_text("default_scope = 'mmdet'\n")
    with pytest.raises(ConfigError, match='new-style config') as error:
        swap_backbone(write(tmp_path, NEW_STYLE), 'tiny')
    command = str(error.value).partition('-c "')[2].rpartition('"')[0]
    (tmp_path / 'export.py').write_text(command)
    run(tmp_path / 'export.py', cwd=tmp_path)
    assert swap_backbone(tmp_path / 'exported.py', 'tiny').model.neck.in_channels == [192, 384, 768]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    swap = plan('retinanet_r50_fpn_1x_coco', 'tiny')
    (tmp_path / 'new.py').write_text('mine = 1\n')
    with pytest.raises(ConfigError, match='could not be written'):
        write_config(swap, tmp_path / 'gone.py', str(tmp_path / 'gone.py'), tmp_path / 'new.py', '')
    assert (tmp_path / 'new.py').read_text() == 'mine = 1\n'


# ---- what a second pair of eyes found ----

RETINA, UPER, PSP = (
    'retinanet_r50_fpn_1x_coco',
    'upernet_r50_4xb4-80k_ade20k-512x512',
    'pspnet_r50-d8_4xb2-40k_cityscapes-512x1024',
)


def changed(name, **model):
    """A config of the zoo with parts of its model replaced."""
    cfg = read_config(find_config(name)[0])
    cfg.merge_from_dict(dict(model=model))
    return cfg


def test_rates_do_not_rise_after_the_optimiser_is_replaced():
    """mmseg's schedules end at 1e-4, which was a hundredth of SGD's rate and is all of AdamW's."""
    assert read_config(find_config(PSP)[0]).param_scheduler[0].eta_min == 1e-4
    assert plan(PSP, 'tiny', layer_decay=True).cfg.param_scheduler[0].eta_min == 0
    assert plan(PSP, 'tiny').cfg.param_scheduler[0].eta_min == 1e-4


@pytest.mark.parametrize('name', [RETINA, 'faster-rcnn_r50-caffe-dc5_1x_coco'])
def test_boxes_are_not_misplaced_by_another_output_stride(name):
    with pytest.raises(ConfigError, match='boxes would be misplaced'):
        plan(name, 'tiny', output_stride=8)


def test_levels_keep_their_strides_when_a_neck_skips_maps_beyond_32():
    cfg = changed(
        RETINA,
        backbone=dict(_delete_=True, type='CSPNeXt', arch='P6', out_indices=(1, 2, 3, 4, 5)),
        neck=dict(in_channels=[128, 256, 512, 768, 1024]),
    )
    swap = plan(cfg, 'tiny')
    maps = build(swap.cfg.model, 'meta').extract_feat(torch.zeros(1, 3, 512, 512, device='meta'))
    assert [512 // one.shape[-1] for one in maps] == [8, 16, 32, 64, 128]


def test_levels_keep_their_strides_when_the_neck_is_a_list():
    cfg = changed(RETINA)
    cfg.model.neck = [
        dict(
            type='ChannelMapper', in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=4
        ),
        dict(
            type='FPN',
            in_channels=[256] * 4,
            out_channels=256,
            start_level=1,
            num_outs=5,
            add_extra_convs='on_input',
        ),
    ]
    maps = build(plan(cfg, 'tiny').cfg.model, 'meta').extract_feat(
        torch.zeros(1, 3, 512, 512, device='meta')
    )
    assert [512 // one.shape[-1] for one in maps] == [8, 16, 32, 64, 128]
    cfg.model.backbone = dict(type='CSPNeXt', arch='P6', out_indices=(2, 3, 4, 5))
    cfg.model.neck = [
        dict(type='FPN', in_channels=[256, 512, 768, 1024], out_channels=256, num_outs=5),
        dict(type='BFP', in_channels=256, num_levels=5, refine_level=1),
    ]
    assert [part.type for part in plan(cfg, 'tiny').cfg.model.neck] == [
        'ChannelMapper',
        'FPN',
        'BFP',
    ]


def test_a_second_backbone_is_left_alone():
    cfg = changed(UPER, depth_backbone=dict(type='MSCAN', embed_dims=[256, 512, 1024, 2048]))
    swap = plan(cfg, 'tiny')
    assert swap.cfg.model.depth_backbone == cfg.model.depth_backbone
    assert any(
        'depth_backbone (' in warning and 'is another network' in warning
        for warning in swap.warnings
    )


def test_only_a_backbone_that_was_frozen_whole_stays_so():
    some = changed(
        UPER,
        backbone=dict(_delete_=True, type='MobileNetV2', out_indices=(1, 2, 4, 6), frozen_stages=4),
        decode_head=dict(in_channels=[24, 32, 96, 320]),
        auxiliary_head=dict(in_channels=96),
    )
    assert 'frozen_stages' not in plan(some, 'tiny').cfg.model.backbone
    assert (
        plan(
            changed(RETINA, backbone=dict(frozen_stages=4)), 'tiny'
        ).cfg.model.backbone.frozen_stages
        == 4
    )


@pytest.mark.parametrize('checkpoint', ['tiny_in1kk', 'no/such/file.pth'])
def test_missing_weights_are_noticed_at_once(checkpoint):
    with pytest.raises(ConfigError, match=f'no weights at {checkpoint}: expected a preset'):
        plan(RETINA, 'tiny', checkpoint)


@pytest.mark.parametrize(
    'model',
    [
        dict(data_preprocessor=dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])),
        dict(data_preprocessor=dict(mean=[430.0, 480.0, 350.0], bgr_to_rgb=False)),
        dict(backbone=dict(in_channels=4), data_preprocessor=dict(mean=None, std=None)),
    ],
)
def test_other_images_keep_their_normalisation(model):
    cfg = changed(UPER, **model)
    swap = plan(cfg, 'tiny', 'tiny_in1k')
    assert swap.cfg.model.data_preprocessor == cfg.model.data_preprocessor
    assert any('is for other images than RGB of 8 bits' in warning for warning in swap.warnings)


def test_images_keep_their_normalisation_without_weights():
    cfg = read_config(find_config('faster-rcnn_r50-caffe-dc5_1x_coco')[0])
    assert plan(cfg, 'tiny').cfg.model.data_preprocessor == cfg.model.data_preprocessor


def test_an_optimiser_without_weight_decay_gets_torchs():
    cfg = read_config(find_config(RETINA)[0])
    cfg.optim_wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=1e-4),
        paramwise_cfg=dict(bias_lr_mult=2.0),
    )
    swap = plan(cfg, 'tiny', layer_decay=True)
    assert swap.cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-4, weight_decay=0.01)
    assert any(
        'gone, layer-wise decay has no place for them: bias_lr_mult' in warning
        for warning in swap.warnings
    )
    build_optim_wrapper(build(swap.cfg.model, 'meta'), swap.cfg.optim_wrapper)


def test_the_old_run_is_not_resumed():
    cfg = read_config(find_config(RETINA)[0])
    cfg.update(resume=True, work_dir='work_dirs/mine', load_from='detector.pth')
    swap = plan(cfg, 'tiny')
    assert swap.cfg.resume is False and swap.cfg.load_from is None
    assert any('work_dir is work_dirs/mine' in warning for warning in swap.warnings)


def test_names_of_old_layers_are_told():
    cfg = read_config(find_config(RETINA)[0])
    cfg.custom_hooks = [
        dict(type='FreezeHook', prefixes=['backbone.layer1', 'backbone.stages.0', 'bbox_head.cls'])
    ]
    warnings = plan(cfg, 'tiny').warnings
    assert 'custom_hooks.0.prefixes names what ConvNeXt has not: backbone.layer1' in warnings


def test_lists_of_initialisations():
    cfg = changed(
        RETINA,
        backbone=dict(init_cfg=[dict(type='Kaiming', layer='Conv2d')]),
        init_cfg=[
            dict(type='Normal', layer='Linear'),
            dict(type='Pretrained', checkpoint='old.pth'),
        ],
    )
    assert plan(cfg, 'tiny').cfg.model.init_cfg == [dict(type='Normal', layer='Linear')]


def test_a_decoder_with_several_heads_is_refused():
    cfg = read_config(find_config('unet-s5-d16_fcn_4xb4-40k_drive-64x64')[0])
    cfg.model.update(type='CascadeEncoderDecoder', decode_head=[cfg.model.decode_head])
    with pytest.raises(ConfigError, match='from deep to shallow; only a single decode_head'):
        plan(cfg, 'tiny')


@pytest.mark.parametrize(
    'cfg, message',
    [
        ({}, 'expected a Config, a path or a name, not a dict'),
        ('a.b::c.py', 'no config'),
        ('../x::y.py', 'no config'),
        ('*', 'no config'),
        ('retinanet_r50_fpn_1x_coc', 'Near to it are .*retinanet_r50_fpn_1x_coco'),
    ],
)
def test_what_is_no_config(cfg, message):
    with pytest.raises(ConfigError, match=message):
        swap_backbone(cfg, 'tiny')


def test_ambiguous_names_are_refused():
    with pytest.raises(
        ConfigError, match='may be any of mmdet::grounding_dino/.*, mmdet::mm_grounding_dino/'
    ):
        swap_backbone('grounding_dino_swin-t_pretrain_odinw13', 'tiny')


def test_unusual_values_come_back(tmp_path):
    source = write(tmp_path, UNUSUAL.format(str(find_config(PSP)[0])))
    (tmp_path / 'out').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'out', target_is_directory=True)
    swap = plan(source, 'tiny', layer_decay=True)
    write_config(swap, Path(source), source, tmp_path / 'link/new.py', '')
    written = Config.fromfile(tmp_path / 'out/new.py')
    assert (
        written.model.auxiliary_head[0].init_cfg == {'lambda': float('inf'), 'class': 2}
        and written.nothing != written.nothing
    )
    assert written.model.auxiliary_head[0]._scope_ == 'mmseg'


UNUSUAL = """
_base_ = {!r}
nothing = float('nan')
optim_wrapper = dict(paramwise_cfg=None)
model = dict(auxiliary_head=[dict(type='FCNHead', _scope_='mmseg', in_channels=1024, in_index=2, channels=256, num_classes=19,
                                  init_cfg={{'lambda': float('inf'), 'class': 2}})])
"""


# ---- the census ----


def test_census_of_a_family(tmp_path):
    out = tmp_path / 'census.md'
    run('tools/census.py', '--only', 'yolof', '--arch', 'atto', '--out', out)
    assert re.search(r'\| yolof \| \d \| 1 \| \d \|  \|  \|  \|  \|', out.read_text())
    assert '1 of 1 families' in out.read_text()
    run('tools/census.py', '--only', 'tridentnet', '--arch', 'atto', '--out', out)
    assert re.search(
        r'TridentResNet cannot be given another backbone: the method is in the backbone',
        out.read_text(),
    )


def test_census_that_is_kept_says_enough_families_work():
    families = re.search(r'\*\*(\d+) of (\d+) families', (ROOT / 'docs/census.md').read_text())
    assert int(families[1]) >= 0.95 * int(families[2]) > 100
