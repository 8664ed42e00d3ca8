"""Detections: masks put into the image, and annotations in COCO's format."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Instances(NamedTuple):
    """What a detector found in an image, K detections."""

    boxes: np.ndarray  # (K, 4): left, top, right, bottom in pixels
    scores: np.ndarray  # (K,)
    labels: np.ndarray  # (K,), numbers of classes from 0
    masks: np.ndarray | None = None  # (K, H, W) bool


def paste(
    probabilities: np.ndarray, box: np.ndarray, height: int, width: int, threshold: float
) -> np.ndarray:
    """A mask of a detection in the whole image.

    The values are interpolated bilinearly and fade to 0 half a cell beyond the box, as mmdet's
    FCNMaskHead has it.

    Args:
        probabilities: (S, S) in the box.
        box: (4,): left, top, right, bottom in pixels of the image.

    Returns:
        (height, width) bool: where the value is ``threshold`` or more.
    """
    mask = np.zeros((height, width), bool)
    padded = np.pad(np.asarray(probabilities, np.float32), 1)
    places = []
    for first, last, length, cells in (
        (box[1], box[3], height, probabilities.shape[0]),
        (box[0], box[2], width, probabilities.shape[1]),
    ):
        pixels = np.arange(max(int(first) - 1, 0), min(int(np.ceil(last)) + 1, length))
        # of a box of no size: the middle
        cell: np.ndarray = np.full(len(pixels), cells / 2, np.float32)
        if last > first:
            cell[:] = (pixels + np.float32(0.5) - first) / (last - first) * cells
        cell = (cell + np.float32(0.5)).clip(0, cells + 1)  # in the padded mask
        before = cell.astype(np.int64).clip(max=cells)
        places.append((pixels, before, cell - before))
    (rows, top, down), (columns, left, right) = places
    if not len(rows) or not len(columns):
        return mask
    lines = padded[top] * (1 - down)[:, None] + padded[top + 1] * down[:, None]
    values = lines[:, left] * (1 - right) + lines[:, left + 1] * right
    mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = values >= threshold
    return mask


def run_lengths(mask: np.ndarray) -> dict:
    """A mask (H, W) bool as COCO's compressed run-length code.

    The lengths of runs of 0 and 1, column by column, each but the first three less the one before
    the last; in digits of 5 bits, low ones first, of which bit 6 says that another follows.
    """
    flat = np.asarray(mask, bool).flatten(order='F')
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    if flat.size and flat[0]:
        counts.insert(0, 0)
    text = []
    for i, count in enumerate(counts):
        number = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            digit = number & 31
            number >>= 5  # keeps the sign
            more = number != (-1 if digit & 16 else 0)
            text.append(chr(48 + digit + 32 * more))
    return dict(size=list(mask.shape), counts=''.join(text))


def annotations(found: Instances) -> Iterator[dict]:
    """In COCO's format; category 1 is the first class."""
    for i, (left, top, right, bottom) in enumerate(found.boxes.tolist()):
        width, height = right - left, bottom - top
        annotation = dict(
            category_id=int(found.labels[i]) + 1,
            bbox=[left, top, width, height],
            score=float(found.scores[i]),
            area=width * height,
            iscrowd=0,
        )
        if found.masks is not None:
            mask = found.masks[i]
            annotation.update(segmentation=run_lengths(mask), area=int(mask.sum()))
        yield annotation
