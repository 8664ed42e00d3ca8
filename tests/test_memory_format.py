"""Losses do not depend on the memory format, though mmcv's RoIAlign misreads channels-last maps."""

import copy
from types import MethodType

import pytest
import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData

from conftest import COCO_T, ROOT


def build(change):
    """Mask R-CNN with real heads, and a fixed batch with fixed proposals.

    ``change`` edits the model.
    """
    cfg = Config.fromfile(ROOT / COCO_T)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.update(arch='atto', init_cfg=None, drop_path_rate=0.0)
    cfg.model.neck.in_channels = [40, 80, 160, 320]
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    change(model)
    return model


def losses_and_gradients(model, image_format):
    generator = torch.Generator().manual_seed(1)
    data = demo_mm_inputs(2, [[3, 128, 160]] * 2, num_items=[3, 3], num_classes=80, with_mask=True)
    data['inputs'] = [
        torch.randint(0, 256, (3, 128, 160), dtype=torch.uint8, generator=generator)
        for _ in range(2)
    ]
    data = model.data_preprocessor(data, training=True)
    maps = model.extract_feat(data['inputs'].contiguous(memory_format=image_format))
    losses = dict(model.rpn_head.loss(maps, [rpn_truth(sample) for sample in data['data_samples']]))
    corner = torch.rand(60, 2, generator=generator) * 90
    proposals = torch.cat([corner, corner + 10 + torch.rand(60, 2, generator=generator) * 40], 1)
    torch.manual_seed(2)  # the samplers draw
    losses |= model.roi_head.loss(
        maps,
        [InstanceData(bboxes=proposals.clone(), scores=torch.ones(60)) for _ in range(2)],
        data['data_samples'],
    )
    loss, values = model.parse_losses(losses)
    loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in model.backbone.parameters()])
    return torch.tensor([v.item() for v in values.values()]), gradients


def rpn_truth(sample):
    sample = copy.deepcopy(sample)
    sample.gt_instances.labels[:] = 0
    return sample


def largest_difference(change, image_format):
    reference = losses_and_gradients(build(lambda model: None), torch.contiguous_format)
    other = losses_and_gradients(build(change), image_format)
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(reference, other))


def channels_last_weights(model):
    model.to(memory_format=torch.channels_last)


@pytest.mark.parametrize('change', [lambda model: None, channels_last_weights])
@pytest.mark.parametrize('image_format', [torch.contiguous_format, torch.channels_last])
def test_losses_do_not_depend_on_the_memory_format(change, image_format):
    assert largest_difference(change, image_format) < 1e-4


def test_channels_last_maps_would_be_noticed():
    def leak(model):
        """The features reach mmdet's own RoI extractor in channels-last memory."""
        extract = model.extract_feat
        model.extract_feat = lambda images: [
            m.contiguous(memory_format=torch.channels_last) for m in extract(images)
        ]
        for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
            extractor.forward = MethodType(SingleRoIExtractor.forward, extractor)

    assert largest_difference(leak, torch.contiguous_format) > 1e-2
