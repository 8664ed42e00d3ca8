"""mmseg's EncoderDecoder, for images of any size. It imports mmseg."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder as MMSegEncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor

from .errors import ConfigError
from .registry import MODELS


@MODELS.register_module()
class EncoderDecoder(MMSegEncoderDecoder):
    """mmseg's, with another ``mode`` of ``test_cfg``: ``'strips'``.

    As ``'slide'``, it predicts in windows of ``crop_size`` at every ``stride``, and takes the mean
    of logits where windows overlap. But it goes from the top to the bottom, and keeps the labels of
    the rows that are finished: at the peak there are the image, the label map, a window, and logits
    of a strip as high as a window. ``'slide'`` has those of the whole image twice, 20 GB of 150
    classes at 4096 x 4096, and adds to all of them at each window.

    Labels are those of ``'slide'``. There are no ``seg_logits``, so that test-time augmentation
    cannot use it.

    Raises:
        ConfigError: the images have another size than the labels, because the pipeline resizes or
            flips them: logits would have to be resized.
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
            padding = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
            left, right, top, bottom = padding
            labels = self._labels(image[None])
            height, width = labels.shape
            labels = labels[top : height - bottom, left : width - right]
            size = tuple(meta.get('ori_shape', labels.shape))
            if meta.get('flip') or size != tuple(labels.shape):
                raise ConfigError(
                    "test_cfg.mode='strips' predicts labels at the size of its input, which is "
                    f'{tuple(labels.shape)} (height, width), for an image of {size}: take Resize '
                    "and RandomFlip out of the test pipeline, or use mode='slide'"
                )
            sample.set_data(dict(pred_sem_seg=PixelData(data=labels[None])))
        return samples

    def _labels(self, image: Tensor) -> Tensor:
        """(1, C, H, W) -> (H, W)."""
        height, width = image.shape[2:]
        rows, columns = (
            list(_windows(*numbers))
            for numbers in zip((height, width), self.test_cfg.crop_size, self.test_cfg.stride)
        )
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
