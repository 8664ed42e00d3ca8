"""Detectors whose dense head predicts as most of mmdet's do: RetinaNet, FCOS, ATSS ..."""

from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector

from ..errors import ConfigError
from .common import refuse_overridden
from .detections import NOTHING, Detector, best, count_of, overlap_threshold, suppress

PREDICTION = 'predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process'


class OneStage(Detector):
    """``BaseDenseHead.predict`` of mmdet.

    Raises:
        ConfigError: the detector or its head predicts in another way.
    """

    def __init__(self, model: Any):
        super().__init__(model, SingleStageDetector)
        head = model.bbox_head
        refuse_overridden(head, BaseDenseHead, PREDICTION)
        loss = getattr(head, 'loss_cls', None)  # SSD's head has none
        if getattr(loss, 'custom_cls_channels', False):
            raise ConfigError(
                f'{type(head).__name__} cannot be exported: its {type(loss).__name__} makes scores '
                'in a way of its own'
            )
        cfg, name = head.test_cfg, type(head).__name__
        if cfg.get('min_bbox_size', -1) > 0:
            raise ConfigError(
                f'{name} cannot be exported: its test_cfg.min_bbox_size is in pixels of the '
                'picture before it is resized: --cfg-options model.test_cfg.min_bbox_size=0'
            )
        self.before, self.most = count_of(cfg, 'nms_pre', name), count_of(cfg, 'max_per_img', name)
        self.overlap = overlap_threshold(cfg, name)
        self.thresholds = dict(score=float(cfg.get('score_thr', 0)))

    def detect(self, maps, size):
        head = self.model.bbox_head
        scores, deltas, *factors = head(maps)
        factors = factors[0] if factors else [None] * len(scores)
        sizes = [level.shape[-2:] for level in scores]
        priors = head.prior_generator.grid_priors(sizes, device=scores[0].device)
        levels = [self._level(*level) for level in zip(scores, deltas, factors, priors)]
        scores, labels, deltas, priors = (torch.cat(part, 1) for part in zip(*levels))
        boxes = head.bbox_coder.decode(priors.flatten(0, 1), deltas.flatten(0, 1), max_shape=size)
        boxes = boxes.reshape(*scores.shape, 4)
        least = head.test_cfg.get('min_bbox_size', -1)
        if least >= 0:
            sides = boxes[..., 2:] - boxes[..., :2]
            scores = torch.where((sides > least).all(-1), scores, NOTHING)
        groups = labels[:, None]
        kept = suppress(boxes[:, None], scores[:, None], groups, self.overlap)[:, 0]
        scores, boxes, labels = best(kept, self.most, boxes, labels[..., None])
        return boxes, scores, labels[..., 0]

    def _level(self, scores, deltas, factors, priors):
        """Maps (N, A * C, H, W) of a level -> its best: scores and labels (N, K), deltas and priors
        (N, K, 4 or 2)."""
        head, images = self.model.bbox_head, scores.shape[0]

        def rows(values, width):
            return values.permute(0, 2, 3, 1).reshape(images, -1, width)

        scores = rows(scores, head.cls_out_channels)
        scores = scores.sigmoid() if head.use_sigmoid_cls else scores.softmax(-1)[..., :-1]
        classes = scores.shape[-1]
        scores = scores.flatten(1)
        scores = torch.where(scores > self.thresholds['score'], scores, NOTHING)
        parts = [rows(deltas, head.bbox_coder.encode_size), priors.expand(images, -1, -1)]
        if factors is not None:
            parts.append(rows(factors, 1))
        scores, places = F.pad(scores, (0, self.before), value=NOTHING).topk(self.before)
        anchors, labels = places // classes, places % classes
        chosen = []
        for part in parts:
            part = F.pad(part, (0, 0, 0, self.before))  # where the padding points
            chosen.append(part.gather(1, anchors[..., None].expand(-1, -1, part.shape[-1])))
        if factors is not None:
            scores = torch.where(scores >= 0, scores * chosen.pop()[..., 0].sigmoid(), scores)
        return scores, labels, *chosen
