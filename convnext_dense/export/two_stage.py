"""Detectors that propose regions and look at each: Faster, Mask and Cascade R-CNN."""

from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import RPNHead
from mmdet.models.detectors import TwoStageDetector
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor, nn

from ..errors import ConfigError
from .common import refuse_overridden
from .detections import NOTHING, Detector, best, count_of, overlap_threshold, suppress
from .one_stage import PREDICTION

STANDARD = 'predict', 'predict_bbox', 'predict_mask', '_bbox_forward', '_mask_forward'
SINGLE = 'predict_by_feat', '_predict_by_feat_single'


class TwoStage(Detector):
    """``TwoStageDetector.predict`` of mmdet.

    Raises:
        ConfigError: the detector or a head of it predicts in another way.
    """

    def __init__(self, model: Any):
        super().__init__(model, TwoStageDetector)
        head, rpn = model.roi_head, model.rpn_head
        refuse_overridden(rpn, RPNHead, PREDICTION)
        self.is_cascade = isinstance(head, CascadeRoIHead)
        if self.is_cascade:
            refuse_overridden(head, CascadeRoIHead, (*STANDARD, '_refine_roi'))
        else:
            refuse_overridden(head, StandardRoIHead, STANDARD)
        self.stages = list(zip(_listed(head.bbox_head), _listed(head.bbox_roi_extractor)))
        for bbox_head, extractor in self.stages:  # lists: the model has these parts already
            refuse_overridden(bbox_head, BBoxHead, (*SINGLE, 'regress_by_class'))
            _check_extractor(extractor)
            if bbox_head.custom_cls_channels or not bbox_head.with_reg:
                raise ConfigError(
                    f'{type(bbox_head).__name__} cannot be exported: it makes scores or boxes in '
                    'a way of its own'
                )
        if head.with_shared_head:
            raise ConfigError(f'{type(head).__name__} cannot be exported: its heads share a part')
        self.mask_stages = []
        if head.with_mask:
            self.mask_stages = list(zip(_listed(head.mask_head), _listed(head.mask_roi_extractor)))
            self.outputs = *self.outputs, 'masks'
        for mask_head, extractor in self.mask_stages:
            refuse_overridden(mask_head, FCNMaskHead, SINGLE)
            _check_extractor(extractor)
        first, second = rpn.test_cfg, head.test_cfg
        names = type(rpn).__name__, type(head).__name__
        self.before = count_of(first, 'nms_pre', names[0])
        self.proposals = count_of(first, 'max_per_img', names[0])
        self.most = count_of(second, 'max_per_img', names[1])
        self.overlaps = [overlap_threshold(cfg, name) for cfg, name in zip((first, second), names)]
        self.thresholds = dict(score=float(second.score_thr))
        if head.with_mask:
            self.thresholds['mask'] = float(second.mask_thr_binary)

    def detect(self, maps, size):
        boxes, there = self._propose(maps, size)
        boxes, scores = self._classify(maps, boxes, size)
        count, classes = scores.shape[1:]
        scores = torch.where(
            there[..., None] & (scores > self.thresholds['score']), scores, NOTHING
        )
        # of each class boxes of its own
        boxes = boxes.expand(-1, -1, classes, 4).transpose(1, 2)
        labels = torch.arange(classes)[:, None].expand(classes, count)
        scores = suppress(boxes, scores.transpose(1, 2), labels, self.overlaps[1])
        labels = labels.reshape(1, -1, 1).expand(scores.shape[0], -1, 1)
        scores, boxes, labels = best(scores.flatten(1), self.most, boxes.flatten(1, 2), labels)
        labels = labels[..., 0]
        results = boxes, scores, labels
        return (*results, self._masks(maps, boxes, labels)) if self.mask_stages else results

    def _propose(self, maps, size):
        """Boxes (N, K, 4), and whether there is one (N, K)."""
        head = self.model.rpn_head
        scores, deltas = head(maps)
        priors = head.prior_generator.grid_priors(
            [level.shape[-2:] for level in scores], device=scores[0].device
        )
        images, levels = scores[0].shape[0], []
        for logits, delta, prior in zip(scores, deltas, priors):
            logits = logits.permute(0, 2, 3, 1).reshape(images, -1, head.cls_out_channels)
            values = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[..., :-1]
            delta = delta.permute(0, 2, 3, 1).reshape(images, -1, 4)
            prior = prior.expand(images, -1, -1)
            levels.append(best(values[..., 0], self.before, delta, prior))
        scores, deltas, priors = (torch.stack(part, 1) for part in zip(*levels))  # (N, levels, K)
        boxes = head.bbox_coder.decode(priors.reshape(-1, 4), deltas.reshape(-1, 4), max_shape=size)
        boxes = boxes.reshape(*scores.shape, 4)
        least = head.test_cfg.get('min_bbox_size', -1)
        if least >= 0:
            sides = boxes[..., 2:] - boxes[..., :2]
            scores = torch.where((sides > least).all(-1), scores, NOTHING)
        groups = torch.arange(len(levels))[:, None]
        scores = suppress(boxes, scores, groups, self.overlaps[0])
        scores, boxes = best(scores.flatten(1), self.proposals, boxes.flatten(1, 2))
        there = scores >= 0
        return torch.where(there[..., None], boxes, 0.0), there

    def _classify(self, maps, boxes, size):
        """Boxes (N, K, 4) -> boxes (N, K, C or 1, 4) and scores (N, K, C).

        Each stage of a cascade moves the boxes; the scores are of the mean logits.
        """
        shape, logits = boxes.shape[:2], []
        for i, (head, extractor) in enumerate(self.stages):
            scores, deltas = head(regions(extractor, maps, boxes))
            logits.append(scores)
            per_box = 1 if head.reg_class_agnostic else head.num_classes
            boxes = boxes.reshape(-1, 1, 4)
            if i < len(self.stages) - 1:
                if per_box > 1:
                    best_class = scores[:, :-1].argmax(1)[:, None, None].expand(-1, 1, 4)
                    deltas = deltas.reshape(-1, per_box, 4).gather(1, best_class)
                per_box = 1
            deltas = deltas.reshape(-1, 4)
            boxes = boxes.expand(-1, per_box, 4).reshape(-1, 4)
            boxes = head.bbox_coder.decode(boxes, deltas, max_shape=size)
            boxes = boxes.reshape(*shape, per_box, 4)
            if i < len(self.stages) - 1:
                boxes = boxes[:, :, 0]
        mean = sum(logits) / len(logits)
        return boxes, F.softmax(mean, -1)[:, :-1].reshape(*shape, -1)

    def _masks(self, maps, boxes, labels):
        """Probabilities (N, M, S, S), the mean of the stages of a cascade."""
        probabilities = []
        for head, extractor in self.mask_stages:
            mask = head(regions(extractor, maps, boxes)).sigmoid()
            if not head.class_agnostic:
                place = labels.reshape(-1, 1, 1, 1).expand(-1, 1, *mask.shape[2:])
                mask = mask.gather(1, place)
            probabilities.append(mask)
        mean = sum(probabilities) / len(probabilities)
        return mean.reshape(*labels.shape, *mean.shape[2:])


def regions(extractor: Any, maps, boxes: Tensor) -> Tensor:
    """What is in boxes (N, K, 4), each on the level that mmdet takes it from: (N K, C, S, S).

    On the other levels it is looked at as a box of no size, which costs next to nothing.
    """
    from torchvision.ops import roi_align

    images, count = boxes.shape[:2]
    number = torch.arange(images)[:, None, None].expand(images, count, 1).to(boxes)
    rois = torch.cat([number, boxes], -1).reshape(-1, 5)
    levels = extractor.map_roi_levels(rois, len(extractor.roi_layers))
    total: Tensor | None = None
    for i, layer in enumerate(extractor.roi_layers):
        here = levels == i
        size = torch.where(here[:, None], rois[:, 1:], 0.0)
        part = roi_align(
            maps[i],
            torch.cat([rois[:, :1], size], 1),
            layer.output_size,
            layer.spatial_scale,
            layer.sampling_ratio,
            layer.aligned,
        )
        part = torch.where(here[:, None, None, None], part, 0.0)
        total = part if total is None else total + part
    assert total is not None
    return total


def _listed(part):
    return list(part) if isinstance(part, nn.ModuleList) else [part]


def _check_extractor(extractor):
    is_ours = type(extractor).__module__ == 'convnext_dense.roi_extractor'  # makes maps contiguous
    names = ('map_roi_levels',) if is_ours else ('forward', 'map_roi_levels')
    refuse_overridden(extractor, SingleRoIExtractor, names)
    for layer in extractor.roi_layers:
        if type(layer).__name__ != 'RoIAlign' or getattr(layer, 'pool_mode', 'avg') != 'avg':
            raise ConfigError(f'{layer} cannot be exported; known is RoIAlign, which takes means')
