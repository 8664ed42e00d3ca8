"""RoIAlign as products of matrices is mmcv's, and parts of fused models pass channels-last maps."""

import copy

import pytest
import torch
from mmcv.ops import RoIAlign
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine.registry import init_default_scope

from conftest import ADE_T, COCO_T, randomise
from convnext_dense import fuse, plain_operators, rearrange, region_products
from convnext_dense.config_names import read_config
from convnext_dense.evaluation.flops import samples
from convnext_dense.inference.building import build
from convnext_dense.resized_convolution import memory_format_of

CASES = [
    (50, 80, True, 0, 7),
    (50, 80, False, 0, 7),
    (37, 61, True, 2, (14, 7)),
    (1, 1, True, 0, 7),
]


def boxes_over(height, width, count=200):
    """Some beyond the border, of no size, narrow, or far outside; on two images."""
    torch.manual_seed(0)
    size = torch.tensor([width * 4.0, height * 4.0])
    corner = (1.1 * torch.rand(count, 2) - 0.05) * size
    boxes = torch.cat([corner, corner + torch.rand(count, 2) ** 3 * size], 1)
    boxes[0] = torch.tensor([5.0, 5, 5, 5])
    boxes[1] = torch.tensor([-100.0, -100, -50, -50])
    boxes[2] = torch.cat([size + 50, size + 90])
    boxes[3] = torch.tensor([10.0, 10, 10.5, 10.2])
    return torch.cat([torch.arange(count)[:, None] % 2, boxes], 1)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('height, width, aligned, samples, size', CASES)
def test_regions_are_those_of_mmcv(height, width, aligned, samples, size, layout):
    layer = RoIAlign(size, 0.25, samples, 'avg', aligned)
    boxes = boxes_over(height, width)
    x = torch.randn(2, 8, height, width)
    with torch.no_grad():
        expected = layer(x, boxes)
        regions = region_products.align(layer, x.contiguous(memory_format=layout), boxes)
    assert regions.shape == expected.shape
    assert (regions - expected).abs().max() < 1e-4 and expected.abs().max() > 1
    assert region_products.align(layer, x, boxes[:0]).shape == (0, *expected.shape[1:])


def test_the_number_of_threads_stays():
    layer, before = RoIAlign(7, 0.25, 0), torch.get_num_threads()
    with pytest.raises(IndexError):
        region_products.align(layer, torch.randn(1, 8, 9, 9), torch.tensor([[3.0, 1, 1, 9, 9]]))
    assert torch.get_num_threads() == before


def model_of(name):
    cfg = read_config(name)
    init_default_scope(cfg.default_scope)
    return randomise(build(cfg.model, 'cpu'))


def predicted(model, images):
    with torch.no_grad():
        return model(images, samples(model, images), mode='predict')[0]


def test_mmdets_extractor_is_replaced_and_training_is_as_before():
    model = model_of(COCO_T)
    for name in ('bbox_roi_extractor', 'mask_roi_extractor'):
        getattr(model.roi_head, name).__class__ = SingleRoIExtractor
    ours = copy.deepcopy(model)
    assert rearrange(ours).heads == ['roi_head.bbox_roi_extractor', 'roi_head.mask_roi_extractor']
    extractors = [net.roi_head.bbox_roi_extractor for net in (model, ours)]
    maps = [torch.randn(2, 256, 64 // s, 96 // s) for s in (1, 2, 4, 8)]
    boxes = boxes_over(64, 96)
    with torch.no_grad():
        expected, regions = (extractor(maps, boxes) for extractor in extractors)
    assert regions.is_contiguous() and (regions - expected).abs().max() < 1e-4
    maps[0].requires_grad_()
    calls = []
    ours.roi_head.bbox_roi_extractor.roi_layers[0].register_forward_hook(lambda *_: calls.append(1))
    extractors[1](maps, boxes).sum().backward()
    assert calls and maps[0].grad.abs().sum() > 0


@pytest.mark.parametrize('name', [COCO_T, ADE_T])
def test_fused_models_pass_channels_last_maps_on(name):
    """And predict the same as in plain operators, in mmcv's own RoIAlign."""
    model = model_of(name)
    fused = fuse(model)
    assert fused.backbone.emits_channels_last and not model.backbone.emits_channels_last
    images = torch.randn(1, 3, 192, 256)
    seen = set()
    part = fused.neck.fpn_convs[0] if hasattr(fused, 'rpn_head') else fused.decode_head.conv_seg
    part.register_forward_pre_hook(lambda _, inputs: seen.add(memory_format_of(inputs[0])))
    with plain_operators():
        expected = predicted(model, images)
    found = predicted(fused, images)
    assert seen == {torch.channels_last}
    if 'pred_sem_seg' in found:
        assert (found.pred_sem_seg.data == expected.pred_sem_seg.data).float().mean() > 0.999
        return
    found, expected = found.pred_instances, expected.pred_instances
    assert len(expected) > 20 and len(found) == len(expected)
    near = torch.cdist(found.bboxes, expected.bboxes, p=float('inf')).min(1)
    same = near.values < 0.05
    assert same.float().mean() > 0.95
    masks = found.masks[same] == expected.masks[near.indices[same]]
    assert masks.float().mean() > 0.999


def test_parts_that_are_not_known_are_given_nchw():
    model = model_of(COCO_T)

    class OtherFPN(type(model.neck)):
        pass

    model.neck.__class__ = OtherFPN
    assert not fuse(model).backbone.emits_channels_last
    assert not fuse(model.backbone).emits_channels_last
