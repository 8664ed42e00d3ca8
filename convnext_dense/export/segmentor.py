"""A segmentor of mmseg as one graph: a picture and a size -> labels of that size."""

from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.segmentors import CascadeEncoderDecoder, EncoderDecoder
from torch import Tensor

from ..errors import ConfigError
from ..segmentor import EncoderDecoder as OurEncoderDecoder
from .common import Graph, refuse_overridden, sides

PREDICTION = (
    ('forward', 'predict', 'inference', 'whole_inference', 'slide_inference')
    + ('encode_decode', 'extract_feat', 'postprocess_result')
)  # fmt: skip


class Segmentor(Graph):
    """``EncoderDecoder.predict`` of mmseg, whatever the head.

    Args:
        output: ``'labels'``, or ``'logits'``: the scores of the classes (a sigmoid's of a model
            with one channel), whose greatest is the label.

    Raises:
        ConfigError: the model predicts in another way.
    """

    inputs = 'image', 'size'

    def __init__(self, model: Any, output: str):
        cascade = isinstance(model, CascadeEncoderDecoder)
        kinds = CascadeEncoderDecoder, OurEncoderDecoder, EncoderDecoder
        kind = next((kind for kind in kinds if isinstance(model, kind)), EncoderDecoder)
        refuse_overridden(model, kind, PREDICTION)
        super().__init__(model)
        self.output, self.outputs = output, (output,)
        last = model.decode_head[-1] if cascade else model.decode_head
        self.thresholds = dict(score=last.threshold) if model.out_channels == 1 else {}
        cfg = model.test_cfg
        if cfg.get('mode') == 'strips':
            raise ConfigError(
                f"{kind.__name__} cannot be exported with test_cfg.mode='strips', which is for "
                'pictures that are too large for one graph: --cfg-options model.test_cfg.mode=slide'
            )
        self.slides = cfg.get('mode') == 'slide'
        if self.slides:  # two windows, since a dimension of 1 is taken for a constant
            (height, width), (down, across) = cfg.crop_size, cfg.stride
            self.least = max(self.least[0], height + down), max(self.least[1], width + across)

    def forward(self, image: Tensor, size: Tensor) -> Tensor:
        """
        Args:
            image: (N, H, W, 3) uint8, RGB.
            size: (2,) int64: height and width of the output.

        Returns:
            (N, height, width) uint8 (int32 if there are more than 256 classes), or logits
            (N, C, height, width).
        """
        height, width = image.shape[1:3]
        x = self.preprocessing(image)
        logits = (self._slide(x) if self.slides else self._decode(x))[..., :height, :width]
        logits = F.interpolate(
            logits, sides(size), mode='bilinear', align_corners=self.model.align_corners
        )
        channels = logits.shape[1]
        if channels == 1:
            logits = logits.sigmoid()
        if self.output == 'logits':
            return logits
        labels = logits.argmax(1)
        if channels == 1:
            labels = logits[:, 0] > self.thresholds['score']
        return labels.to(torch.uint8 if channels <= 256 else torch.int32)

    def _decode(self, x):
        """(N, 3, H, W) -> logits (N, C, H, W)."""
        size = x.shape[2:]
        meta = dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0] * 4)
        return self.model.encode_decode(x, [meta])  # heads read the first

    def _slide(self, x):
        """As ``_decode``, the mean of what is predicted in windows that overlap.

        All windows are a batch, since their number depends on the size.
        """
        cfg, images = self.model.test_cfg, x.shape[0]
        rows, columns = (
            _windows(*numbers) for numbers in zip(x.shape[2:], cfg.crop_size, cfg.stride)
        )
        (down, height), (across, width) = rows.shape, columns.shape
        windows = x[:, :, rows.flatten()][..., columns.flatten()]
        windows = windows.reshape(images, -1, down, height, across, width)
        windows = windows.permute(0, 2, 4, 1, 3, 5).reshape(-1, x.shape[1], height, width)
        logits = self._decode(windows)
        channels = logits.shape[1]
        logits = logits.reshape(images, down, across, channels, height, width)
        logits = logits.permute(0, 3, 1, 4, 2, 5).reshape(images, channels, down * height, -1)
        return _mean_at(_mean_at(logits, 3, columns, x.shape[3]), 2, rows, x.shape[2])


def _windows(length, crop, stride) -> Tensor:
    """(windows, side): the places in each window. The last one ends where the image ends."""
    side = torch.sym_min(length, crop)
    count = (length - side + stride - 1) // stride + 1
    begin = (torch.arange(count) * stride).clamp(max=length - side)
    return begin[:, None] + torch.arange(side)


def _mean_at(values, dim, places, length) -> Tensor:
    """Values of windows side by side in a dimension -> at their ``places``, the mean where windows
    overlap."""
    places = places.flatten()
    shape = list(values.shape)
    shape[dim] = length
    total = values.new_zeros(shape).index_add(dim, places, values)
    count = values.new_zeros(length).index_add(0, places, torch.ones_like(places).to(values))
    return total / (count if dim == 3 else count[:, None])
