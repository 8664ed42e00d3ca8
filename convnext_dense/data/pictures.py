"""Reads pictures, draws label maps and saves figures.

Most of it is in ``runtime``, which runs without torch and matplotlib.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.pictures import distinct_colours, overlay, read, save_labels, with_legend

__all__ = [
    'distinct_colours',
    'labels_of',
    'overlay',
    'read',
    'save_figure',
    'save_labels',
    'with_legend',
]


def labels_of(part: Any) -> np.ndarray:
    """The label map (H, W) int64 in a ``PixelData`` of mmseg, (1, H, W) on the CPU.

    Where a model has a single channel, mmseg predicts labels as fractions.
    """
    return part.data.squeeze(0).long().numpy()


def save_figure(figure: Any, path: str | Path, dpi: int) -> None:
    """Write a figure of matplotlib in the format that the name says, PNG by default.

    Raises:
        OSError: it cannot be written. Matplotlib itself says nothing where the disk is full.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format=Path(path).suffix.removeprefix('.') or 'png', dpi=dpi)
    Path(path).write_bytes(picture.getvalue())
