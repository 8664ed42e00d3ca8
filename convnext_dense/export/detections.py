"""What the graphs of detectors share: the best of many, suppression, and thresholds.

The number of results is fixed. Where there is nothing the score is -1.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from .common import Graph, refuse_overridden

NOTHING = -1.0
PLENTY = 1_000_000  # boxes that may survive: all


class Detector(Graph):
    """A detector of mmdet. A family says how its maps become detections, by ``detect``."""

    outputs: tuple[str, ...] = ('boxes', 'scores', 'labels')

    def __init__(self, model: Any, base: type):
        refuse_overridden(model, base, ('forward', 'predict', 'add_pred_to_datasample'))
        super().__init__(model)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            image: (N, H, W, 3) uint8, RGB.

        Returns:
            ``boxes`` (N, M, 4) left, top, right, bottom in pixels of the image, ``scores`` (N, M)
            in falling order, -1 where there is nothing, ``labels`` (N, M) and, of a detector with
            masks, ``masks`` (N, M, S, S), probabilities in the box.
        """
        size = image.shape[1], image.shape[2]
        return self.detect(self.model.extract_feat(self.preprocessing(image)), size)

    def detect(self, maps, size) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def operators(self) -> dict:
        return {torch_suppression(): onnx_suppression()}


def best(scores: Tensor, count: int, *others: Tensor) -> tuple[Tensor, ...]:
    """The ``count`` best, in falling order, and the rows of ``others`` with them.

    Args:
        scores: (N, n).
        others: (N, n, C).

    Returns:
        (N, count), filled up by -1, and of each other (N, count, C), filled up by 0.
    """
    scores, places = F.pad(scores, (0, count), value=NOTHING).topk(count)
    results = [scores]
    for other in others:
        filled = F.pad(other, (0, 0, 0, count))
        rows = places[..., None].expand(*places.shape, other.shape[-1])
        results.append(filled.gather(1, rows))
    return tuple(results)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression among the boxes of each group, as mmcv's ``batched_nms`` does it.

    That moves each group to a place of its own, which rounds the boxes; so it is done here.

    Args:
        boxes: (N, G, n, 4).
        scores: (N, G, n); negative: no box.
        groups: (G or 1, n): the number by which a box is moved.
        threshold: of the overlap.

    Returns:
        Scores, -1 where the box is suppressed.
    """
    there = (scores >= 0)[..., None]
    largest = torch.where(there, boxes, 0.0).amax((1, 2, 3), keepdim=True)
    moved = boxes + groups.to(boxes)[..., None] * (largest + 1)
    shape = scores.shape
    kept = torch_suppression()(
        moved.reshape(-1, shape[2], 4), scores.reshape(-1, shape[2]), threshold
    )
    return torch.where(kept.reshape(shape) > 0, scores, NOTHING)


def overlap_threshold(cfg: Mapping, part: str) -> float:
    """Of the suppression that a ``test_cfg`` asks for.

    Raises:
        ConfigError: it asks for another one than plain suppression class by class.
    """
    nms = dict(cfg.get('nms') or {})
    threshold, kind = nms.pop('iou_threshold', None), nms.pop('type', 'nms')
    nms.pop('split_thr', None)  # from how many boxes on mmcv goes class by class
    if threshold is None or kind != 'nms' or any(nms.values()):
        raise ConfigError(
            f'{part} cannot be exported: its suppression is {cfg.get("nms")}; known is '
            "dict(type='nms', iou_threshold=...)"
        )
    return float(threshold)


def count_of(cfg: Mapping, key: str, part: str) -> int:
    """A number of boxes in a ``test_cfg``. Raises ConfigError where it has none."""
    count = cfg.get(key, -1)
    if count < 1:
        raise ConfigError(
            f'{part} cannot be exported: test_cfg.{key} is {count}, and the size of its results '
            f'has to be known: --cfg-options model.test_cfg.{key}=1000'
        )
    return int(count)


# ---- the operator: torch has one, ONNX has one, and torch's exporter does not connect them ----


@cache
def torch_suppression():
    """``operator(boxes (B, n, 4), scores (B, n), threshold) -> (B, n)``: 1 where a box survives."""

    @torch.library.custom_op('convnext_dense::suppression', mutates_args=())
    def suppression(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
        from torchvision.ops import nms

        kept = torch.zeros_like(scores)
        for i in range(len(scores)):
            there = (scores[i] >= 0).nonzero()[:, 0]
            kept[i, there[nms(boxes[i, there], scores[i, there], threshold)]] = 1
        return kept

    suppression.register_fake(lambda boxes, scores, threshold: torch.empty_like(scores))
    return torch.ops.convnext_dense.suppression.default


@cache
def onnx_suppression():
    """The same in ONNX."""
    from onnxscript import opset20

    op: Any = opset20

    def suppression(boxes, scores, threshold: float):
        scores = op.Unsqueeze(scores, op.Constant(value_ints=[1]))  # a class
        found = op.NonMaxSuppression(
            boxes,
            scores,
            op.Constant(value_ints=[PLENTY]),
            op.Constant(value_floats=[threshold]),
            op.Constant(value_floats=[NOTHING / 2]),
        )
        nothing = op.Expand(op.Constant(value_float=0.0), op.Shape(scores))
        ones = op.Expand(op.Constant(value_float=1.0), op.Shape(found, start=0, end=1))
        kept = op.ScatterND(nothing, found, ones)
        return op.Squeeze(kept, op.Constant(value_ints=[1]))

    return suppression
