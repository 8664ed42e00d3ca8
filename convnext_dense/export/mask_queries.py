"""Detectors whose queries have a mask of the whole picture: Mask2Former's instances."""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import Mask2FormerHead
from mmdet.models.detectors import MaskFormer
from mmdet.models.seg_heads.panoptic_fusion_heads import MaskFormerFusionHead
from torch import Tensor

from ..errors import ConfigError
from .common import Graph, refuse_overridden, sides
from .detections import NOTHING


class MaskQueries(Graph):
    """``MaskFormer.predict`` of mmdet with Mask2Former's head, where it gives instances.

    mmdet resizes masks before it cuts them at their threshold, and a score depends on the mask. So
    this takes the size of the output, as segmentors do.

    Raises:
        ConfigError: the detector or its head predicts in another way, or not instances.
    """

    inputs = 'image', 'size'
    outputs = 'boxes', 'scores', 'labels', 'masks'

    def __init__(self, model: Any):
        refuse_overridden(model, MaskFormer, ('forward', 'predict', 'add_pred_to_datasample'))
        fusion = model.panoptic_fusion_head
        refuse_overridden(model.panoptic_head, Mask2FormerHead, ('predict', 'forward'))
        refuse_overridden(fusion, MaskFormerFusionHead, ('predict', 'instance_postprocess'))
        cfg = fusion.test_cfg
        if cfg.get('panoptic_on', True) or not cfg.get('instance_on', False):
            raise ConfigError(
                'MaskFormer cannot be exported: its results are panoptic, by '
                'MaskFormerFusionHead.panoptic_postprocess; known are instances: --cfg-options '
                'model.test_cfg.panoptic_on=False model.test_cfg.instance_on=True'
            )
        super().__init__(model)
        self.most = int(cfg.get('max_per_image', 100))
        self.things, self.classes = fusion.num_things_classes, fusion.num_classes
        self.thresholds = {}

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            image: (N, H, W, 3) uint8, RGB.
            size: (2,) int64: height and width of the output.

        Returns:
            ``boxes`` (N, M, 4) around the masks, in pixels of the output, ``scores`` (N, M) in
            falling order, -1 where there is nothing, ``labels`` (N, M) and ``masks``
            (N, M, height, width) uint8, 0 or 1.
        """
        height, width = image.shape[1:3]
        x = self.preprocessing(image)
        maps = self.model.extract_feat(x)
        samples = [SimpleNamespace(metainfo={})]  # of the whole batch: it only counts them
        logits, masks = (outputs[-1] for outputs in self.model.panoptic_head(maps, samples))
        masks = F.interpolate(masks, x.shape[2:], mode='bilinear', align_corners=False)
        masks = masks[..., :height, :width]
        masks = F.interpolate(masks, sides(size), mode='bilinear', align_corners=False)
        inside = masks > 0
        area = inside.flatten(2).sum(2)
        certainty = torch.where(inside, masks.sigmoid(), 0.0).flatten(2).sum(2) / (area + 1e-6)
        scores, places = logits.softmax(-1)[..., :-1].flatten(1).topk(self.most)
        queries, labels = places // self.classes, places % self.classes
        scores = torch.where(labels < self.things, scores * certainty.gather(1, queries), NOTHING)
        scores, order = scores.sort(descending=True)
        queries, labels = queries.gather(1, order), labels.gather(1, order)
        boxes = around(inside).gather(1, queries[..., None].expand(-1, -1, 4))
        chosen = queries[..., None, None].expand(-1, -1, *inside.shape[2:])
        return boxes, scores, labels, inside.to(torch.uint8).gather(1, chosen)


def around(masks: Tensor) -> Tensor:
    """The boxes (N, M, 4) of masks (N, M, H, W) bool: left, top, right, bottom; 0 without any."""
    firsts, lasts = [], []
    for axis in (2, 3):  # columns, rows
        there = masks.any(axis)
        place = torch.arange(there.shape[-1])
        last = torch.where(there, place + 1, 0).amax(-1)
        firsts.append(torch.where(there, place, last[..., None]).amin(-1))
        lasts.append(last)
    return torch.stack([*firsts, *lasts], -1).float()
