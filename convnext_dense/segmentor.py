"""mmseg's EncoderDecoder: less is done to logits, and images have any size. It imports mmseg."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder as MMSegEncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor

from .errors import ConfigError
from .registry import MODELS


@MODELS.register_module()
class EncoderDecoder(MMSegEncoderDecoder):
    """mmseg's: labels and logits are the same, to the bit.

    Logits of 150 classes are 157 MB at 512 x 512, and mmseg makes several such maps of them. Here
    windows are added where they lie, one window over the whole image is not averaged, and logits
    that have the image's size are not resized to it.

    There is another ``mode`` of ``test_cfg``: ``'strips'``. As ``'slide'``, it predicts in windows
    of ``crop_size`` at every ``stride``, and takes the mean of logits where windows overlap. But it
    goes from the top to the bottom, and keeps the labels of the rows that are finished: at the peak
    there are the image, the label map, a window, and logits of a strip as high as a window.
    ``'slide'`` has those of the whole image, 10 GB of 150 classes at 4096 x 4096. Labels are those
    of ``'slide'``. There are no ``seg_logits``, so that test-time augmentation cannot use it.

    Raises:
        ConfigError: in mode ``'strips'`` the images have another size than the labels, because the
            pipeline resizes or flips them: logits would have to be resized.
    """

    def predict(
        self, inputs: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Images (N, C, H, W) -> samples with ``pred_sem_seg``, (1, h, w) uint8, or int32 of more
        than 256 classes."""
        if self.test_cfg.get('mode') != 'strips':
            return super().predict(inputs, data_samples)
        samples = data_samples or [SegDataSample() for _ in inputs]
        for image, sample in zip(inputs, samples):
            meta = sample.metainfo
            labels = _without_padding(self._labels(image[None]), meta)
            size = tuple(meta.get('ori_shape', labels.shape))
            if meta.get('flip') or size != tuple(labels.shape):
                raise ConfigError(
                    "test_cfg.mode='strips' predicts labels at the size of its input, which is "
                    f'{tuple(labels.shape)} (height, width), for an image of {size}: take Resize '
                    "and RandomFlip out of the test pipeline, or use mode='slide'"
                )
            sample.set_data(dict(pred_sem_seg=PixelData(data=labels[None])))
        return samples

    def slide_inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Images (N, C, H, W) -> mean logits of the windows, (N, classes, H, W)."""
        size = inputs.shape[2:]
        rows, columns = self._grid(size)
        total: Any = None
        for first, last in rows:
            for left, right in columns:
                window = inputs[:, :, first:last, left:right]
                metas = [dict(batch_img_metas[0], img_shape=window.shape[2:])]  # heads read one
                logits = self.encode_decode(window, metas + batch_img_metas[1:]).to(inputs.dtype)
                if len(rows) == len(columns) == 1:
                    return logits
                if total is None:
                    total = logits.new_zeros(*logits.shape[:2], *size)
                total[:, :, first:last, left:right] += logits
        across = _counts(columns, size[1], inputs)
        return total.div_(_counts(rows, size[0], inputs)[:, None] * across)

    def postprocess_result(
        self, seg_logits: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Logits (N, classes, H, W) -> samples with ``seg_logits`` (classes, h, w) at the size of
        the file, and ``pred_sem_seg`` (1, h, w)."""
        samples = data_samples or [SegDataSample() for _ in seg_logits]
        for logits, sample in zip(seg_logits, samples):
            if data_samples:
                logits = self._as_the_file(logits, sample.metainfo)
            if len(logits) > 1:
                labels = logits.argmax(0, keepdim=True)
            else:
                logits = logits.sigmoid()
                labels = (logits > self.decode_head.threshold).to(logits)
            sample.set_data(
                dict(seg_logits=PixelData(data=logits), pred_sem_seg=PixelData(data=labels))
            )
        return samples

    def _as_the_file(self, logits: Tensor, meta: Mapping) -> Tensor:
        """Logits without padding, turned back and at the size of the image's file."""
        logits = _without_padding(logits, meta)
        if meta.get('flip'):
            logits = logits.flip(dict(horizontal=2, vertical=1)[meta['flip_direction']])
        size = tuple(meta['ori_shape'])
        if logits.shape[1:] == size:
            return logits
        return F.interpolate(
            logits[None], size, mode='bilinear', align_corners=self.align_corners
        ).squeeze(0)

    def _grid(self, size: Sequence[int]) -> list[list[tuple[int, int]]]:
        """Begin and end of the windows: along the height, and along the width."""
        return [
            list(_windows(*numbers))
            for numbers in zip(size, self.test_cfg.crop_size, self.test_cfg.stride)
        ]

    def _labels(self, image: Tensor) -> Tensor:
        """(1, C, H, W) -> (H, W)."""
        height, width = image.shape[2:]
        rows, columns = self._grid((height, width))
        across = _counts(columns, width, image)
        down = _counts(rows, height, image)
        dtype = torch.uint8 if self.out_channels <= 256 else torch.int32
        labels = torch.empty(height, width, dtype=dtype, device=image.device)
        strip = image.new_zeros(self.out_channels, rows[0][1], width)  # sums from row ``top`` on
        top = 0
        for i, (first, last) in enumerate(rows):
            for left, right in columns:
                window = image[:, :, first:last, left:right]
                meta = dict.fromkeys(('ori_shape', 'img_shape', 'pad_shape'), window.shape[2:])
                logits = self.encode_decode(window, [dict(meta, padding_size=[0] * 4)])[0]
                strip[:, first - top : last - top, left:right] += logits
            end = rows[i + 1][0] if i + 1 < len(rows) else height  # rows before it are finished
            done = strip[:, : end - top]
            done /= down[top:end, None] * across
            labels[top:end] = self._best(done)
            others = strip[:, end - top :].clone()
            strip.zero_()[:, : others.shape[1]] = others
            top = end
        return labels

    def _best(self, logits: Tensor) -> Tensor:
        if len(logits) > 1:
            return logits.argmax(0)
        head: Any = self.decode_head
        return logits[0].sigmoid() > head.threshold


def _without_padding(x: Tensor, meta: Mapping) -> Tensor:
    """(..., H, W), without what the preprocessor or the pipeline has added to the image."""
    left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
    height, width = x.shape[-2:]
    return x[..., top : height - bottom, left : width - right]


def _windows(length: int, side: int, stride: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each window; the last one ends where the image does."""
    side = min(side, length)
    for begin in range(0, length - side + stride, stride):
        begin = min(begin, length - side)
        yield begin, begin + side


def _counts(windows: Sequence[tuple[int, int]], length: int, like: Tensor) -> Tensor:
    """In how many windows each place lies: (length,)."""
    counts = like.new_zeros(length)
    for begin, end in windows:
        counts[begin:end] += 1
    return counts
