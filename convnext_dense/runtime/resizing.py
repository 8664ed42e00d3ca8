"""The size of an image in a model's pipeline, and the resizing, as mmcv and OpenCV do them."""

from collections.abc import Mapping

import numpy as np


def target_size(height: int, width: int, rule: Mapping) -> tuple[int, int]:
    """Height and width after mmcv's ``Resize``.

    Args:
        rule: ``scale`` (width, height) with ``keep_ratio``, or ``scale_factor`` (of width, of
            height), in which case ``keep_ratio`` is that to a whole number of pixels; or empty:
            images keep their size.
    """
    if 'scale_factor' in rule:
        factors = rule['scale_factor']
        scale = [int(side * factor + 0.5) for side, factor in zip((width, height), factors)]
    elif 'scale' in rule:
        scale = rule['scale']
    else:
        return height, width
    if not rule['keep_ratio']:
        return scale[1], scale[0]
    # as large as fits: the longer side into the longer one of the scale, whichever way it lies
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear between pixel centres, without antialiasing: OpenCV's INTER_LINEAR.

    It is computed in whole numbers, as OpenCV does for 8 bits, so that it is equal where OpenCV
    uses no other instructions. Pillow averages more pixels when it shrinks a picture.

    Args:
        image: (H, W, C) uint8.

    Returns:
        (height, width, C) uint8.
    """
    # at the left and right border all weight is on one pixel; above and below it is on two copies
    left, right, of_left, of_right = _neighbours(image.shape[1], width, is_clamped=True)
    above, below, of_above, of_below = _neighbours(image.shape[0], height, is_clamped=False)
    rows = image[:, left] * of_left[:, None] + image[:, right] * of_right[:, None]
    rows >>= 4
    values = (of_above[:, None, None] * rows[above]) >> 16
    values += (of_below[:, None, None] * rows[below]) >> 16
    return ((values + 2) >> 2).astype(np.uint8)


def _neighbours(length, wanted, is_clamped):
    """Of each of the ``wanted`` places: the pixel before it, the one behind it, and their weights,
    in 2048ths."""
    centres = ((np.arange(wanted) + 0.5) * (length / wanted) - 0.5).astype(np.float32)
    before = np.floor(centres).astype(np.int64)
    share = centres - before.astype(np.float32)
    if is_clamped:
        share[(before < 0) | (before >= length - 1)] = 0
    weights = np.rint(np.stack([1 - share, share]) * np.float32(2048)).astype(np.int32)
    last = length - 1
    return before.clip(0, last), (before + 1).clip(0, last), *weights
