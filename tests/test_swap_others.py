"""Configs of the forms that other people's repositories have, each written here."""

import math

import mmcv
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmdet.models import FPN, FasterRCNN, RetinaNet, RPNHead
from mmdet.structures.bbox import HorizontalBoxes, register_box
from mmengine.config import ConfigDict
from mmengine.dataset import Compose
from mmengine.model import PretrainedInit
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from mmseg.models import EncoderDecoder, FCNHead, SegDataPreProcessor
from torch import nn

from convnext_dense import ConfigError
from convnext_dense.config_names import find_config
from convnext_dense.inference.building import build
from convnext_dense.swap import plan, prove
from convnext_dense.swap.config_files import read_config
from convnext_dense.swap.noise import noise_batch

T = [96, 192, 384, 768]  # dims of tiny
RETINA = 'retinanet_r50_fpn_1x_coco'
C4 = 'faster-rcnn_r50-caffe-c4_ms-1x_coco'
MASK = 'mask-rcnn_r50_fpn_1x_coco'
UPER = 'upernet_r50_4xb4-80k_ade20k-512x512'
IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
CAFFE = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0])


def zoo(name, **model):
    """A config of mmdet or mmseg with parts of its model replaced."""
    cfg = read_config(find_config(name)[0])
    cfg.merge_from_dict(dict(model=model))
    return cfg


def put(cfg, **parts):
    """Replace parts of the model as wholes."""
    for key, value in parts.items():
        cfg.model[key] = ConfigDict(value) if isinstance(value, dict) else value
    return cfg


def warns(swap, *parts):
    return any(all(part in warning for part in parts) for warning in swap.warnings)


# ---- lists of heads, as Co-DETR's ----


@MODELS.register_module()
class ListsOfHeads(FasterRCNN):
    def __init__(self, roi_head, train_cfg, test_cfg, **kwargs):
        heads = dict(roi_head=roi_head[0], train_cfg=train_cfg[0], test_cfg=test_cfg[0])
        super().__init__(**heads, **kwargs)


@pytest.mark.parametrize('name', [C4, 'faster-rcnn_r50-caffe-dc5_1x_coco'])
def test_lists_of_heads(name):
    cfg = zoo(name, type='ListsOfHeads')
    for key in ('roi_head', 'train_cfg', 'test_cfg'):
        cfg.model[key] = [cfg.model[key]]
    swap = plan(cfg, 'atto')
    (head,) = swap.cfg.model.roi_head
    assert head.bbox_head.in_channels == 320 and head.get('shared_head') is None
    assert prove(swap).step == 'loss'


# ---- backbones that return one tensor, as ViTDet's ----


@MODELS.register_module()
class OneTensor(nn.Module):
    def __init__(self, width=64, stride=16):
        super().__init__()
        self.patches = nn.Conv2d(3, width, stride, stride)

    def forward(self, x):
        return self.patches(x)


@MODELS.register_module()
class PyramidOfOneMap(nn.Module):
    """Strides 4, 8, 16, 32 of a map at stride 16, and 64."""

    def __init__(self, width=64, out_channels=256):
        super().__init__()
        self.scales = nn.ModuleList(
            [
                nn.ConvTranspose2d(width, out_channels, 4, 4),
                nn.ConvTranspose2d(width, out_channels, 2, 2),
                nn.Conv2d(width, out_channels, 1),
                nn.Conv2d(width, out_channels, 2, 2),
                nn.Conv2d(width, out_channels, 4, 4),
            ]
        )

    def forward(self, x):
        return tuple(scale(x) for scale in self.scales)


@MODELS.register_module()
class OneMapOfATensor(OneTensor):
    def forward(self, x):
        return (x + 1,)


def one_tensor(name, neck, **backbone):
    return put(zoo(name), backbone=dict(type='OneTensor', **backbone), neck=neck)


def test_pyramid_of_one_tensor_becomes_an_fpn():
    cfg = one_tensor(MASK, dict(type='PyramidOfOneMap'))
    swap = plan(cfg, 'tiny')
    assert swap.cfg.model.neck == dict(type='FPN', in_channels=T, out_channels=256, num_outs=5)
    images = torch.zeros(1, 3, 512, 512, device='meta')
    maps = build(swap.cfg.model, 'meta').extract_feat(images)
    assert [512 // x.shape[-1] for x in maps] == [4, 8, 16, 32, 64]


def test_a_neck_that_takes_a_tensor_is_refused():
    cfg = one_tensor(MASK, dict(type='OneMapOfATensor'))
    with pytest.raises(ConfigError, match='OneTensor emits one tensor, which its neck takes as it'):
        plan(cfg, 'tiny')


def test_one_tensor_without_a_neck_is_one_map():
    head = dict(type='FCNHead', in_channels=64, channels=64, num_classes=5)
    cfg = put(one_tensor(UPER, None), decode_head=head, auxiliary_head=None)
    swap = plan(cfg, 'tiny')
    assert swap.cfg.model.decode_head.in_channels == 768
    assert swap.cfg.model.backbone.out_indices == (3,)


@MODELS.register_module()
class WrapsAnEncoder(OneTensor):
    """Takes images of the size that the encoder within it is made for."""

    def __init__(self, encoder):
        super().__init__()
        self.side = encoder['img_size']

    def forward(self, x):
        assert x.shape[-1] == self.side
        return super().forward(x)


def test_the_size_of_images_that_an_inner_encoder_states():
    cfg = zoo(UPER)
    put(cfg, backbone=dict(type='WrapsAnEncoder', encoder=dict(img_size=96)), auxiliary_head=None)
    put(cfg, decode_head=dict(type='FCNHead', in_channels=64, channels=8, num_classes=5))
    assert plan(cfg, 'atto').cfg.model.decode_head.in_channels == 320


def test_a_backbone_that_is_a_segmentor_is_named():
    cfg = zoo(UPER)
    put(cfg, backbone=cfg.model.copy(), decode_head=dict(type='FCNHead'))
    with pytest.raises(ConfigError, match='the backbone EncoderDecoder is itself a segmentor'):
        plan(cfg, 'tiny')


# ---- images are normalised once ----


def normalised(cfg, image):
    """An image after the training pipeline's Normalize and the data preprocessor."""
    init_default_scope(cfg.default_scope)
    pipeline = cfg.train_dataloader.dataset.pipeline
    steps = [step for step in pipeline if step.type == 'Normalize']
    image = Compose(steps)(dict(img=image.permute(1, 2, 0).numpy()))['img']
    batch = dict(inputs=[torch.tensor(image).permute(2, 0, 1)], data_samples=None)
    return build(cfg.model.data_preprocessor, 'cpu')(batch)['inputs'][0]


def with_normalize(place=0, **preprocessor):
    cfg = zoo(RETINA, data_preprocessor=preprocessor)
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        pipeline = cfg[key].dataset.pipeline
        pipeline.insert(len(pipeline) - 1, dict(type='Normalize', to_rgb=False, **CAFFE))
    return cfg


@pytest.mark.parametrize(
    'preprocessor',
    [
        dict(mean=None, std=None, bgr_to_rgb=False),
        dict(mean=None, std=None, bgr_to_rgb=True),
        dict(mean=[0, 0, 0], std=[1, 1, 1]),
        {},
    ],
)
def test_images_are_normalised_once(preprocessor):
    swap = plan(with_normalize(**preprocessor), 'tiny', 'tiny_in1k')
    image = torch.rand(3, 64, 64) * 255  # BGR
    mean, std = (torch.tensor(IMAGENET[key])[:, None, None] for key in ('mean', 'std'))
    expected = (image.flip(0) - mean) / std
    torch.testing.assert_close(normalised(swap.cfg, image), expected, atol=1e-3, rtol=1e-3)
    twice = warns(swap, 'normalised twice', 'model.data_preprocessor')
    assert twice == (preprocessor == {})


def test_loaders_that_normalise_differently_are_refused():
    cfg = with_normalize()
    cfg.val_dataloader.dataset.pipeline.pop(-2)
    with pytest.raises(ConfigError, match='those of val_dataloader by the latter alone'):
        plan(cfg, 'tiny', 'tiny_in1k')
    cfg.model.data_preprocessor.mean = cfg.model.data_preprocessor.std = None
    assert warns(plan(cfg, 'tiny', 'tiny_in1k'), 'images of val_dataloader are not normalised')


def test_pipelines_that_nothing_reads_are_left_alone():
    # as in mmdet's configs of guided anchoring, which keep data sets of mmdet 2
    cfg = zoo(RETINA)
    cfg.train_pipeline = cfg.data = [dict(type='Normalize', to_rgb=False, **CAFFE)]
    swap = plan(cfg, 'tiny', 'tiny_in1k')
    assert swap.cfg.model.data_preprocessor.mean == IMAGENET['mean']
    assert swap.cfg.data[0].mean == CAFFE['mean']
    assert warns(swap, 'Normalize of train_pipeline, data is left as it is')


def test_two_stacked_images_are_normalised_alike():
    cfg = zoo(UPER, data_preprocessor=dict(mean=CAFFE['mean'] * 2, std=CAFFE['std'] * 2))
    swap = plan(cfg, 'tiny', 'tiny_in1k')
    assert swap.cfg.model.data_preprocessor.mean == IMAGENET['mean'] * 2
    assert warns(swap, 'the colours of 2 stacked images are not reordered')


# ---- strides are measured ----


@MODELS.register_module()
class MapsAt(nn.Module):
    def __init__(self, strides):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 8 * s, s, s) for s in strides)

    def forward(self, x):
        return tuple(conv(x) for conv in self.convs)


def test_maps_at_strides_that_convnext_has_not_are_told():
    cfg = zoo(UPER)
    head = dict(type='FCNHead', in_channels=[8, 1024], in_index=[0, 1], channels=8, num_classes=5)
    head['input_transform'] = 'resize_concat'
    put(cfg, backbone=dict(type='MapsAt', strides=[1, 128]), neck=None)
    put(cfg, decode_head=head, auxiliary_head=None)
    swap = plan(cfg, 'atto')
    assert warns(swap, 'at stride 1 and', 'at stride 8')
    assert warns(swap, 'at stride 128 and', 'at stride 16')
    assert not warns(swap, 'stays')


def test_boxes_are_not_misplaced_by_levels_beyond_32():
    neck = dict(type='FPN', in_channels=[64, 1024], out_channels=256, num_outs=5)
    cfg = zoo(RETINA)
    put(cfg, backbone=dict(type='MapsAt', strides=[8, 128]), neck=neck)
    with pytest.raises(ConfigError, match='boxes would be misplaced'):
        plan(cfg, 'atto')


def test_strides_that_a_head_has_by_default_count():
    neck = dict(type='FPN', in_channels=[96, 192, 384], out_channels=96, num_outs=3)
    cfg = put(zoo('yolox_tiny_8xb8-300e_coco'), neck=neck)
    message = r'bbox_head.strides is .*\[8, 16, 32\] would be at \[8, 16, 16\]'
    with pytest.raises(ConfigError, match=message):
        plan(cfg, 'atto', output_stride=16)


def test_a_vit_whose_maps_get_other_strides_is_told():
    cfg = zoo(UPER)
    put(cfg, backbone=dict(type='MapsAt', strides=[16, 16]), auxiliary_head=None)
    head = dict(type='FCNHead', in_channels=128, in_index=1, channels=8, num_classes=5)
    put(cfg, decode_head=head)
    assert warns(plan(cfg, 'atto'), 'at stride 16 and', 'at stride 32')


# ---- proofs ----


@MODELS.register_module()
class TwoImages(EncoderDecoder):
    """Change detection: both images of a pair go through the backbone."""

    def __init__(self, backbone_inchannels, **kwargs):
        super().__init__(**kwargs)
        self.backbone_inchannels = backbone_inchannels

    def extract_feat(self, inputs):
        pair = torch.split(inputs, self.backbone_inchannels, dim=1)
        before, after = (self.backbone(image) for image in pair)
        return tuple(b - a for b, a in zip(before, after))


@MODELS.register_module()
class PairPreprocessor(SegDataPreProcessor):
    """Has mean and std of both images, which mmseg's refuses."""

    def __init__(self, mean, std, **kwargs):
        super().__init__(**kwargs)
        self._enable_normalize = mean is not None
        for name, value in dict(mean=mean, std=std).items():
            self.register_buffer(name, value and torch.tensor(value).view(-1, 1, 1), False)


@TRANSFORMS.register_module()
class LoadPair(BaseTransform):
    """Of two paths in a list, as Open-CD loads them."""

    def transform(self, results):
        before, after = (mmcv.imread(path) for path in results['img_path'])
        return {**results, 'img': before, 'img2': after, 'img_shape': before.shape[:2]}


@pytest.mark.parametrize('mean', [IMAGENET['mean'] * 2, None])
def test_change_detection_is_proven(mean):
    cfg = zoo(UPER, type='TwoImages', backbone_inchannels=3)
    head = dict(type='FCNHead', in_channels=2048, channels=8, num_classes=5)
    put(cfg, decode_head=head, auxiliary_head=None)
    cfg.model.data_preprocessor.update(type='PairPreprocessor', mean=mean, std=mean)
    pipeline = [dict(type=kind) for kind in ('LoadPair', 'LoadAnnotations', 'ConcatCDInput')]
    cfg.train_dataloader.dataset.pipeline = [*pipeline, dict(type='PackSegInputs')]
    init_default_scope('mmseg')
    batch = noise_batch(cfg, 6, (64, 64))
    assert [tuple(image.shape) for image in batch['inputs']] == [(6, 64, 64)] * 2
    assert prove(plan(cfg, 'atto')).step == 'loss'


@MODELS.register_module()
class PairOfMaps(nn.Module):
    """A neck that concatenates the maps of two images."""

    def forward(self, before, after):
        return tuple(torch.cat(maps, dim=1) for maps in zip(before, after))


@MODELS.register_module()
class TwoImagesWithNeck(TwoImages):
    def extract_feat(self, inputs):
        return self.neck(*map(self.backbone, torch.split(inputs, self.backbone_inchannels, dim=1)))


@MODELS.register_module()
class TakesPairsApart(FCNHead):
    """Has the width of one image's map, though it is given both, concatenated."""

    def forward(self, inputs):
        before, after = self._transform_inputs(inputs).chunk(2, dim=1)
        return self.cls_seg(self.convs(after - before))


@pytest.mark.parametrize('head, width', [('FCNHead', 2), ('TakesPairsApart', 1)])
def test_a_neck_that_is_given_two_images(head, width):
    cfg = zoo(UPER, type='TwoImagesWithNeck', backbone_inchannels=3)
    head = dict(type=head, in_channels=2048 * width, in_index=3, channels=8, num_classes=5)
    put(cfg, neck=dict(type='PairOfMaps'), decode_head=head, auxiliary_head=None)
    cfg.model.data_preprocessor.update(type='PairPreprocessor', mean=IMAGENET['mean'] * 2)
    cfg.model.data_preprocessor.std = IMAGENET['std'] * 2
    swap = plan(cfg, 'atto')
    assert swap.cfg.model.decode_head.in_channels == 320 * width
    assert prove(swap).step == 'loss'


@MODELS.register_module()
class MixesTwoImages(nn.Module):
    def forward(self, before, after):
        return (after - before,)


def test_a_backbone_that_is_given_two_images_is_refused():
    cfg = zoo(UPER)
    put(cfg, backbone=dict(type='MixesTwoImages'))
    with pytest.raises(
        ConfigError, match='MixesTwoImages cannot be given another backbone: .*more than'
    ):
        plan(cfg, 'atto')


@register_box('rotated_of_test')
class RotatedBoxes(HorizontalBoxes):
    box_dim = 5


@MODELS.register_module()
class RotatedRPN(RPNHead):
    """Takes rotated boxes alone."""

    def loss(self, x, batch_data_samples):
        for sample in batch_data_samples:
            assert sample.gt_instances.bboxes.shape[1] == 5
            sample.gt_instances.bboxes = sample.gt_instances.bboxes[:, :4]
        return super().loss(x, batch_data_samples)


def test_rotated_boxes_come_from_the_pipeline():
    cfg = zoo('rpn_r50_fpn_1x_coco', rpn_head=dict(type='RotatedRPN'))
    cfg.train_dataloader.dataset.pipeline[1].box_type = 'rotated_of_test'
    assert prove(plan(cfg, 'atto')).step == 'loss'


def test_pipelines_that_mix_images_pack_noise_too():
    cfg = zoo('rtmdet_tiny_8xb32-300e_coco')
    init_default_scope('mmdet')
    batch = noise_batch(cfg, 3, (128, 96))
    assert [tuple(image.shape) for image in batch['inputs']] == [(3, 128, 96)] * 2
    assert all(len(sample.gt_instances.bboxes) == 2 for sample in batch['data_samples'])


@MODELS.register_module()
class BrokenHead(FCNHead):
    def forward(self, inputs):
        raise LookupError('no scores on Sundays')


def test_the_proof_accuses_the_original():
    head = dict(type='BrokenHead', in_channels=2048, channels=8, num_classes=5)
    cfg = put(zoo(UPER), decode_head=head, auxiliary_head=None)
    message = '(?s)does not train on ConvNeXt.*The original fails the same step: LookupError: no sc'
    with pytest.raises(ConfigError, match=message):
        prove(plan(cfg, 'atto'))


def test_the_proof_accuses_the_swap():
    swap = plan(zoo('fcos_r50-caffe_fpn_gn-head_1x_coco'), 'atto')
    swap.cfg.model.neck.in_channels = [80, 160, 321]
    with pytest.raises(ConfigError, match='(?s)321.*old backbone the same model runs that step'):
        prove(swap)


# ---- necks that multiply the widths that they are told ----


@MODELS.register_module()
class ScaledNeck(nn.Module):
    """Rounds as MMYOLO does, up to a multiple of ``divisor``; or down to a whole number."""

    def __init__(self, in_channels, out_channels, widen_factor, divisor=8):
        super().__init__()
        scaled = [c * widen_factor for c in in_channels]
        scaled = [math.ceil(c / divisor) * divisor if divisor > 1 else int(c) for c in scaled]
        self.convs = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in scaled)

    def forward(self, x):
        return tuple(conv(level) for conv, level in zip(self.convs, x))


def scaled(factor, divisor):
    """A config whose neck is told other widths than it reads."""
    cfg = zoo('rtmdet_tiny_8xb32-300e_coco', backbone=dict(widen_factor=factor))
    told = dict(in_channels=[256, 512, 1024], widen_factor=factor, divisor=divisor)
    return put(cfg, neck=dict(type='ScaledNeck', out_channels=96, **told))


@pytest.mark.parametrize('divisor, expected', [(8, [213, 426, 853]), (1, [214, 427, 854])])
def test_scaled_widths(divisor, expected):
    """80, 160 and 320 channels, of which the neck is told those that it makes them of."""
    swap = plan(scaled(0.375, divisor), 'atto')
    assert swap.cfg.model.neck.in_channels == expected
    images = torch.zeros(1, 3, 128, 128, device='meta')
    assert len(build(swap.cfg.model, 'meta').extract_feat(images)) == 3


def test_scaled_widths_that_cannot_come_out_are_refused():
    with pytest.raises(
        ConfigError, match='widen_factor=0.375 and rounds them, and runs on no maps of'
    ):
        plan(scaled(0.375, 96), 'atto')


@MODELS.register_module()
class AddsToWhatItEmits(nn.Module):
    """As YOLOv8's neck, adds a map that it is given to one that it emits."""

    def __init__(self, in_channels, out_channels, widen_factor):
        super().__init__()
        widths = zip(in_channels, out_channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(int(i * widen_factor), int(o * widen_factor), 1) for i, o in widths
        )

    def forward(self, maps):
        return tuple(conv(level) + level for conv, level in zip(self.convs, maps))


def test_a_neck_that_emits_maps_as_wide_as_those_that_it_is_given():
    told = [512, 1024, 2048, 4096]
    neck = dict(in_channels=told, out_channels=list(told), widen_factor=0.5)
    swap = plan(put(zoo(UPER), neck=dict(type='AddsToWhatItEmits', **neck)), 'tiny')
    model = swap.cfg.model
    assert model.neck.in_channels == model.neck.out_channels == [192, 384, 768, 1536]
    assert model.decode_head.in_channels == [96, 192, 384, 768]
    assert prove(swap).step == 'loss'


# ---- classes in place of names ----


def test_classes_as_types():
    cfg, text = zoo(RETINA), zoo(RETINA)
    cfg.model.type, cfg.model.neck.type = RetinaNet, FPN
    cfg.optim_wrapper.optimizer.type = torch.optim.SGD
    cfg.model.backbone.init_cfg.type = PretrainedInit
    swap = plan(cfg, 'tiny', layer_decay=True)
    assert swap.cfg.to_dict() == plan(text, 'tiny', layer_decay=True).cfg.to_dict()
    assert cfg.model.type is RetinaNet


# ---- learning rates ----


def test_rates_for_other_batch_sizes_stand_in_the_changes():
    cfg = zoo(RETINA)
    cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size = 4, 64
    swap = plan(cfg, 'tiny', layer_decay=True)
    (change,) = [c for c in swap.changes if c.path == ('optim_wrapper', 'optimizer')]
    assert 'with 4 on a GPU to about 5e-05 (one GPU) or 0.00014 (eight)' in change.why
    assert swap.cfg.auto_scale_lr.base_batch_size == 16
