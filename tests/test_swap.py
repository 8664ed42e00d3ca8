"""Backbone swaps: the widths that come out, what else changes, what stays, proofs, refusals.

tests/test_swap_command.py has the command and the configs that it writes.
"""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from conftest import ADE_T, COCO_T, ROOT
from convnext_dense import ConfigError, swap_backbone
from convnext_dense.config_names import find_config
from convnext_dense.inference.building import build
from convnext_dense.swap import allow_unused, plan, prove
from convnext_dense.swap.config_files import read_config
from convnext_dense.swap.editing import at, dotted, plain

T = [96, 192, 384, 768]  # dims of tiny
IMAGENET_MEAN = [123.675, 116.28, 103.53]
RETINA = 'retinanet_r50_fpn_1x_coco'
DC5 = 'faster-rcnn_r50-caffe-dc5_1x_coco'
MASK2FORMER = 'mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco'
ZOO_CONVNEXT = 'mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco'
UPER = 'upernet_r50_4xb4-80k_ade20k-512x512'
PSP = 'pspnet_r50-d8_4xb2-40k_cityscapes-512x1024'
UNET = 'unet-s5-d16_fcn_4xb4-40k_drive-64x64'
# Config of mmdet or mmseg -> what its model holds once it is on ConvNeXt-T. Written down from the
# papers of the networks and the documentation of the heads. A number is a place in a list.
CASES = {
    'mask-rcnn_r50_fpn_1x_coco': dict(
        neck=dict(in_channels=T, out_channels=256), rpn_head=dict(in_channels=256)
    ),
    RETINA: dict(
        backbone=dict(out_indices=(1, 2, 3)),
        neck=dict(in_channels=T[1:], start_level=0, num_outs=5),
    ),
    'faster-rcnn_r50-caffe-c4_ms-1x_coco': dict(
        backbone=dict(out_indices=(3,), output_stride=16),
        rpn_head=dict(in_channels=768),
        roi_head=dict(
            shared_head=None,
            bbox_roi_extractor=dict(out_channels=768, roi_layer=dict(output_size=7)),
            bbox_head=dict(in_channels=768),
        ),
    ),
    DC5: dict(
        backbone=dict(output_stride=16),
        rpn_head=dict(in_channels=768),
        roi_head=dict(bbox_head=dict(in_channels=768), bbox_roi_extractor=dict(out_channels=768)),
        data_preprocessor=dict(mean=IMAGENET_MEAN, bgr_to_rgb=True),
    ),
    'detr_r50_8xb2-150e_coco': dict(
        backbone=dict(out_indices=(3,)), neck=dict(in_channels=[768], num_outs=1)
    ),
    'dino-4scale_r50_8xb2-12e_coco': dict(
        backbone=dict(out_indices=(1, 2, 3)), neck=dict(in_channels=T[1:], num_outs=4)
    ),
    'mask2former_r50_8xb2-lsj-50e_coco-panoptic': dict(
        panoptic_head=dict(in_channels=T, strides=[4, 8, 16, 32], feat_channels=256)
    ),
    'ssd300_coco': dict(
        backbone=dict(output_stride=16),
        neck=dict(in_channels=(192, 768), out_channels=(192, 768, 512, 256, 256, 256)),
        bbox_head=dict(in_channels=(192, 768, 512, 256, 256, 256)),
    ),
    'yolov3_d53_8xb8-320-273e_coco': dict(
        neck=dict(in_channels=[768, 384, 192], out_channels=[512, 256, 128])
    ),
    'yolof_r50-c5_8xb8-1x_coco': dict(
        neck=dict(in_channels=768, out_channels=512), bbox_head=dict(in_channels=512)
    ),
    'rtmdet_tiny_8xb32-300e_coco': dict(
        backbone=dict(out_indices=(1, 2, 3)),
        neck=dict(in_channels=T[1:], out_channels=96),
        bbox_head=dict(in_channels=96),
    ),
    'rtmdet_x_p6_4xb8-300e_coco': dict(
        neck={0: dict(in_channels=T[1:], num_outs=4), 1: dict(in_channels=[320] * 4)}
    ),
    'fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco': dict(neck=dict(type='HRFPN', in_channels=T)),
    'centernet_r18_8xb16-crop512-140e_coco': dict(
        backbone=dict(out_indices=(3,)), neck=dict(in_channels=768), bbox_head=dict(in_channels=64)
    ),
    'deepsort_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval': dict(
        detector=dict(neck=dict(in_channels=T)),
        reid=dict(backbone=dict(type='mmpretrain.ResNet'), head=dict(in_channels=2048)),
    ),
    'soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco': dict(
        detector=dict(neck=dict(in_channels=T)),
        data_preprocessor=dict(data_preprocessor=dict(mean=IMAGENET_MEAN)),
    ),
    ZOO_CONVNEXT: dict(neck=dict(in_channels=T)),
    PSP: dict(
        backbone=dict(out_indices=(2, 3), output_stride=8),
        pretrained=None,
        decode_head=dict(in_channels=768, in_index=1, channels=512),
        auxiliary_head=dict(in_channels=384, in_index=0),
    ),
    'deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024': dict(
        backbone=dict(out_indices=(0, 2, 3)),
        decode_head=dict(c1_in_channels=96, in_channels=768, in_index=2),
        auxiliary_head=dict(in_index=1, in_channels=384),
    ),
    UPER: dict(
        decode_head=dict(in_channels=T, in_index=[0, 1, 2, 3]),
        auxiliary_head=dict(in_channels=384, in_index=2),
    ),
    'knet-s3_r50-d8_pspnet_8xb2-adamw-80k_ade20k-512x512': dict(
        decode_head=dict(
            kernel_generate_head=dict(in_channels=768, in_index=1),
            kernel_update_head={0: dict(in_channels=512)},
        ),
        auxiliary_head=dict(in_channels=384, in_index=0),
    ),
    'segformer_mit-b0_8xb2-160k_ade20k-512x512': dict(
        decode_head=dict(in_channels=T, channels=256)
    ),
    'fastfcn_r50-d32_jpu_psp_4xb4-80k_cityscapes-512x1024': dict(
        neck=dict(in_channels=(192, 384, 768)),
        decode_head=dict(in_channels=2048),
        auxiliary_head=dict(in_channels=384),
    ),
    'fcn_hr18_4xb2-40k_cityscapes-512x1024': dict(decode_head=dict(in_channels=T, channels=270)),
    'beit-base_upernet_8xb2-160k_ade20k-640x640': dict(
        neck=None, decode_head=dict(in_channels=T), auxiliary_head=dict(in_channels=384)
    ),
    UNET: dict(
        decode_head=dict(in_channels=T, in_index=[0, 1, 2, 3], input_transform='resize_concat'),
        auxiliary_head=dict(in_channels=384, in_index=2),
    ),
    'mobilenet-v3-d8-s_lraspp_4xb4-320k_cityscapes-512x1024': dict(
        backbone=dict(out_indices=(0, 3)),
        decode_head=dict(in_channels=(96, 96, 768), in_index=(0, 0, 1)),
    ),
    'segmenter_vit-s_fcn_8xb1-160k_ade20k-512x512': dict(
        decode_head=dict(in_channels=768, channels=768)
    ),
}
PROVEN = [
    RETINA,
    'faster-rcnn_r50-caffe-c4_ms-1x_coco',
    'dino-4scale_r50_8xb2-12e_coco',
    'ssd300_coco',
    'rtmdet_tiny_8xb32-300e_coco',
    'deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024',
    'knet-s3_r50-d8_pspnet_8xb2-adamw-80k_ade20k-512x512',
    UNET,
]
# Config -> type that cannot be given another backbone, and how the reason begins.
REFUSED = {
    'cornernet_hourglass104_8xb6-210e-mstest_coco': ('HourglassNet', 'CornerNet'),
    'tridentnet_r50-caffe_1x_coco': ('TridentResNet', 'the method is in'),
    'detectors_cascade-rcnn_r50_1x_coco': ('DetectoRS_ResNet', 'the method is in'),
    'd2_retinanet_r50-caffe_fpn_ms-90k_coco': ('Detectron2Wrapper', 'the model is a config of'),
    'setr_vit-l_pup_8xb2-160k_ade20k-512x512': ('SETRUPHead', 'it decodes the tokens'),
    'segmenter_vit-b_mask_8xb1-160k_ade20k-512x512': ('SegmenterMaskTransformerHead', 'it decodes'),
    'bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024': ('BiSeNetV2', 'the method is the backbone'),
    'san-vit-b16_coco-stuff164k-640x640': ('SideAdapterCLIPHead', 'it adapts the frozen'),
}
# Keys that a swap may change in any model.
OLD_WEIGHTS = {'pretrained', 'init_cfg', 'load_from', 'imports'}
NORMALISATION = {'mean', 'std', 'bgr_to_rgb'}
ALWAYS = {'backbone', 'num_layers'} | OLD_WEIGHTS | NORMALISATION


def zoo(name, **model):
    """A config of mmdet or mmseg with parts of its model replaced."""
    cfg = read_config(find_config(name)[0])
    cfg.merge_from_dict(dict(model=model))
    return cfg


def backbone(cfg, arch='tiny', *args, **kwargs):
    return swap_backbone(cfg, arch, *args, **kwargs).model.backbone


def warns(swap, *parts):
    return any(all(part in warning for part in parts) for warning in swap.warnings)


def leaves(tree, path=()):
    """(path, value) of all that is no dict."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def strides(cfg):
    """Of the maps that the heads are given."""
    images = torch.zeros(1, 3, 512, 512, device='meta')
    maps = build(plan(cfg, 'tiny').cfg.model, 'meta').extract_feat(images)
    return [512 // x.shape[-1] for x in maps]


# ---- all kinds of models ----


@pytest.fixture(scope='module', params=CASES)
def case(request):
    """(name of a config, its swap to ConvNeXt-T with weights)."""
    return request.param, plan(request.param, 'tiny', 'tiny_in22k')


def test_widths_and_strides(case):
    name, swap = case
    for path, expected in leaves(CASES[name]):
        assert plain(at(swap.cfg.model, path)) == plain(expected), path


def test_nothing_else_changes(case):
    name, swap = case
    expected = {dotted(path) for path, _ in leaves(CASES[name])}
    changed = {dotted(c.path[1:]) for c in swap.changes if c.path[-1] not in ALWAYS}
    assert changed <= expected | {'neck'}
    assert all(plain(at(swap.cfg, c.path)) != plain(c.old) for c in swap.changes)
    assert swap.cfg.get('train_dataloader') == zoo(name).get('train_dataloader')


def test_twice_is_once_and_again_is_nothing(case):
    name, swap = case
    twice, once = (plan(cfg, 'base', 'base_in22k').cfg for cfg in (swap.cfg, name))
    assert plain(twice.to_dict()) == plain(once.to_dict())
    assert not plan(once, 'base').changes and not plan(once, 'base', 'base_in22k').changes


def test_weights_may_be_named_later():
    twice = plan(plan(RETINA, 'tiny').cfg, 'base', 'base_in22k')
    once = plan(RETINA, 'base', 'base_in22k')
    assert plain(twice.cfg.to_dict()) == plain(once.cfg.to_dict())


@pytest.mark.parametrize('name', REFUSED)
def test_methods_that_cannot_be_given_another_backbone(name):
    kind, reason = REFUSED[name]
    with pytest.raises(ConfigError, match=f'{kind} cannot be given another backbone: {reason}'):
        swap_backbone(name, 'tiny')


@pytest.mark.parametrize('config', [COCO_T, ADE_T])
def test_configs_of_this_project_stay_as_they_are(config):
    assert not plan(ROOT / config, 'tiny').changes
    small = backbone(ROOT / config, 'small', 'small_in1k')
    assert small.drop_path_rate == 0.2 and small.arch == 'small'
    wide = backbone(ROOT / config, 'v2_base')
    assert wide.arch == 'v2_base'
    assert not {'layer_scale_init_value', 'init_cfg'} & {*wide}


# ---- proofs ----


@pytest.mark.parametrize('name', PROVEN)
def test_swapped_models_train(name):
    proof = prove(plan(name, 'atto'))
    assert proof.step == 'loss' and proof.loss > 0 and not proof.without_gradient


def test_unused_maps_are_told():
    """EncNet's head reads three maps and uses two."""
    swap = plan('encnet_r50-d8_4xb2-40k_cityscapes-512x1024', 'atto', output_stride=32)
    proof = prove(swap)
    assert set(proof.without_gradient) == {'norm1.weight', 'norm1.bias'}
    swap = allow_unused(swap, proof.without_gradient)
    assert swap.cfg.find_unused_parameters and swap.changes[-1].path == ('find_unused_parameters',)


def test_proof_notices_a_wrong_width():
    swap = plan(RETINA, 'atto')
    swap.cfg.model.neck.in_channels = [80, 160, 321]
    with pytest.raises(ConfigError, match='(?s)does not train on ConvNeXt.*321'):
        prove(swap)


# ---- backbones, and strides of their maps ----


def test_choices_of_a_user_for_convnext_stay():
    cfg = Config.fromfile(ROOT / COCO_T)
    cfg.model.backbone.update(frozen_stages=2, checkpointing='mlp', in_channels=3)
    new = backbone(cfg, 'base')
    assert new.frozen_stages == 2 and new.checkpointing == 'mlp'
    assert cfg.model.backbone.arch == 'tiny'  # the input is not changed


def test_output_stride_on_request():
    swap = plan(PSP, 'tiny', output_stride=32)
    assert 'output_stride' not in swap.cfg.model.backbone
    assert swap.cfg.model.backbone.out_indices == (2, 3)
    assert sum('stride 8' in warning for warning in swap.warnings) == 2


@pytest.mark.parametrize('name', [RETINA, DC5])
def test_boxes_are_not_misplaced_by_another_output_stride(name):
    with pytest.raises(ConfigError, match='boxes would be misplaced'):
        plan(name, 'tiny', output_stride=8)


def test_levels_keep_their_strides_when_a_neck_skips_maps_beyond_32():
    p6 = dict(_delete_=True, type='CSPNeXt', arch='P6', out_indices=(1, 2, 3, 4, 5))
    cfg = zoo(RETINA, backbone=p6, neck=dict(in_channels=[128, 256, 512, 768, 1024]))
    assert strides(cfg) == [8, 16, 32, 64, 128]


def test_levels_keep_their_strides_when_the_neck_is_a_list():
    widths, levels = [256, 512, 1024, 2048], dict(in_channels=[256] * 4, start_level=1, num_outs=5)
    cfg = zoo(RETINA)
    cfg.model.neck = [
        dict(type='ChannelMapper', in_channels=widths, out_channels=256, num_outs=4),
        dict(type='FPN', out_channels=256, add_extra_convs='on_input', **levels),
    ]
    assert strides(cfg) == [8, 16, 32, 64, 128]


def test_a_level_beyond_32_goes_before_a_list_of_necks():
    cfg = zoo(RETINA)
    cfg.model.backbone = dict(type='CSPNeXt', arch='P6', out_indices=(2, 3, 4, 5))
    cfg.model.neck = [
        dict(type='FPN', in_channels=[256, 512, 768, 1024], out_channels=256, num_outs=5),
        dict(type='BFP', in_channels=256, num_levels=5, refine_level=1),
    ]
    kinds = [part.type for part in swap_backbone(cfg, 'tiny').model.neck]
    assert kinds == ['ChannelMapper', 'FPN', 'BFP']


def test_teacher_and_student_are_both_swapped():
    base = zoo(RETINA).model
    pair = dict(type='Pair', teacher=base, student=base.copy())
    swap = plan(Config(dict(default_scope='mmdet', model=pair)), 'tiny')
    assert len(swap.owners) == 2
    for part in (swap.cfg.model.teacher, swap.cfg.model.student):
        assert part.neck.in_channels == [192, 384, 768]


def test_a_second_backbone_is_left_alone():
    cfg = zoo(UPER, depth_backbone=dict(type='MSCAN', embed_dims=[256, 512, 1024, 2048]))
    swap = plan(cfg, 'tiny')
    assert swap.cfg.model.depth_backbone == cfg.model.depth_backbone
    assert warns(swap, 'depth_backbone (', 'is another network')


def test_only_a_backbone_that_was_frozen_whole_stays_so():
    mobile = dict(_delete_=True, type='MobileNetV2', out_indices=(1, 2, 4, 6), frozen_stages=4)
    partly = zoo(
        UPER,
        backbone=mobile,
        decode_head=dict(in_channels=[24, 32, 96, 320]),
        auxiliary_head=dict(in_channels=96),
    )
    assert 'frozen_stages' not in backbone(partly)
    assert backbone(zoo(RETINA, backbone=dict(frozen_stages=4))).frozen_stages == 4


def test_a_decoder_with_several_heads_is_refused():
    cfg = zoo(UNET)
    cfg.model.update(type='CascadeEncoderDecoder', decode_head=[cfg.model.decode_head])
    with pytest.raises(ConfigError, match='from deep to shallow; only a single decode_head'):
        plan(cfg, 'tiny')


# ---- images and weights ----


@pytest.mark.parametrize(
    'model',
    [
        dict(data_preprocessor=dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])),
        dict(data_preprocessor=dict(mean=[430.0, 480.0, 350.0], bgr_to_rgb=False)),
        dict(backbone=dict(in_channels=4), data_preprocessor=dict(mean=None, std=None)),
    ],
)
def test_other_images_keep_their_normalisation(model):
    cfg = zoo(UPER, **model)
    swap = plan(cfg, 'tiny', 'tiny_in1k')
    assert swap.cfg.model.data_preprocessor == cfg.model.data_preprocessor
    assert warns(swap, 'is for other images than RGB of 8 bits')


def test_images_keep_their_normalisation_without_weights():
    assert swap_backbone(DC5, 'tiny').model.data_preprocessor == zoo(DC5).model.data_preprocessor


@pytest.mark.parametrize('checkpoint', ['tiny_in1kk', 'no/such/file.pth'])
def test_missing_weights_are_noticed_at_once(checkpoint):
    with pytest.raises(ConfigError, match=f'no weights at {checkpoint}: expected a preset'):
        plan(RETINA, 'tiny', checkpoint)


def test_the_old_run_is_not_resumed():
    cfg = zoo(RETINA)
    cfg.update(resume=True, work_dir='work_dirs/mine', load_from='detector.pth')
    swap = plan(cfg, 'tiny')
    assert swap.cfg.resume is False and swap.cfg.load_from is None
    assert warns(swap, 'work_dir is work_dirs/mine')


def test_only_pretrained_weights_leave_a_list_of_initialisations():
    old = dict(type='Pretrained', checkpoint='old.pth')
    cfg = zoo(
        RETINA,
        backbone=dict(init_cfg=[dict(type='Kaiming', layer='Conv2d')]),
        init_cfg=[dict(type='Normal', layer='Linear'), old],
    )
    assert swap_backbone(cfg, 'tiny').model.init_cfg == [dict(type='Normal', layer='Linear')]


def test_names_of_old_layers_are_told():
    cfg = zoo(RETINA)
    prefixes = ['backbone.layer1', 'backbone.stages.0', 'bbox_head.cls']
    cfg.custom_hooks = [dict(type='FreezeHook', prefixes=prefixes)]
    warnings = plan(cfg, 'tiny').warnings
    assert 'custom_hooks.0.prefixes names what ConvNeXt has not: backbone.layer1' in warnings


# ---- optimisers ----


def test_layer_decay_keeps_the_heads_keys():
    swap = plan(MASK2FORMER, 'tiny', layer_decay=True)
    optim = swap.cfg.optim_wrapper
    assert optim.optimizer == zoo(MASK2FORMER).optim_wrapper.optimizer
    keys = set(optim.paramwise_cfg.custom_keys)
    assert {'query_embed', 'query_feat', 'level_embed'} <= keys
    assert not any('backbone' in key for key in keys)
    init_default_scope('mmdet')
    groups = build_optim_wrapper(build(swap.cfg.model, 'meta'), optim).optimizer.param_groups
    assert min(group['lr'] for group in groups) < 0.8 * optim.optimizer.lr


def test_layer_decay_replaces_sgd():
    optim = plan(PSP, 'small', layer_decay=True).cfg.optim_wrapper
    assert optim.optimizer.type == 'AdamW' and optim.paramwise_cfg.decay_type == 'stage_wise'


def test_layers_follow_the_depths():
    """mmdet's own constructor multiplies the rate of the last blocks by more than 1 otherwise."""
    assert swap_backbone(ZOO_CONVNEXT, 'base').optim_wrapper.paramwise_cfg.num_layers == 12


def test_rates_do_not_rise_after_the_optimiser_is_replaced():
    """mmseg's schedules end at 1e-4: a hundredth of SGD's rate, and all of AdamW's."""
    assert zoo(PSP).param_scheduler[0].eta_min == 1e-4
    assert plan(PSP, 'tiny', layer_decay=True).cfg.param_scheduler[0].eta_min == 0
    assert plan(PSP, 'tiny').cfg.param_scheduler[0].eta_min == 1e-4


def test_an_optimiser_without_weight_decay_gets_torchs():
    cfg, adamw = zoo(RETINA), dict(type='AdamW', lr=1e-4)
    paramwise = dict(bias_lr_mult=2.0)
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=adamw, paramwise_cfg=paramwise)
    swap = plan(cfg, 'tiny', layer_decay=True)
    assert swap.cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-4, weight_decay=0.01)
    assert warns(swap, 'gone, layer-wise decay has no place for them: bias_lr_mult')
    build_optim_wrapper(build(swap.cfg.model, 'meta'), swap.cfg.optim_wrapper)


# ---- bad input ----


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
    (tmp_path / 'config.py').write_text(text)
    with pytest.raises(ConfigError, match=message):
        swap_backbone(str(tmp_path / 'config.py'), 'tiny')


@pytest.mark.parametrize(
    'arguments, message',
    [
        ((RETINA, 'huge'), "unknown arch 'huge': expected one of atto, "),
        ((RETINA, 'tiny', 'base_in22k'), 'the preset base_in22k is of arch base, not tiny'),
        (('no_such_config', 'tiny'), 'no config no_such_config: expected a path'),
        (('mmdet::no/such.py', 'tiny'), 'no config mmdet::no/such.py'),
        (('nothing::no/such.py', 'tiny'), 'no config nothing::'),
        (('a.b::c.py', 'tiny'), 'no config'),
        (('../x::y.py', 'tiny'), 'no config'),
        (('*', 'tiny'), 'no config'),
        (('retinanet_r50_fpn_1x_coc', 'tiny'), f'Near to it are .*{RETINA}'),
        (
            ('grounding_dino_swin-t_pretrain_odinw13', 'tiny'),
            'may be any of mmdet::grounding_dino/.*, mmdet::mm_grounding_dino/',
        ),
        (({}, 'tiny'), 'expected a Config, a path or a name, not a dict'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        swap_backbone(*arguments)
