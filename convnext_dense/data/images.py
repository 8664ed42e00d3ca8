"""Image files and label maps: their sizes by their headers, and whether they can be decoded."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .problems import Problem

ORIENTATION = 0x0112  # EXIF tag; 5 to 8 are turned by 90 degrees
Size = tuple[int, int]  # height, width in pixels


class AsRead(NamedTuple):
    """An image as a pipeline gets it."""

    size: Size
    is_turned: bool  # or mirrored, by EXIF data
    mode: str  # of Pillow, on the disk; RGB is 8 bits of each


def read_header(path: str | Path, turns: bool, decode: bool = False) -> AsRead:
    """
    Args:
        turns: whether the pipeline follows EXIF data.
        decode: read all of the file, not only its header.

    Raises:
        OSError: there is no such file, or it is no image or cut off.
    """
    with Image.open(path) as image:
        width, height = image.size
        orientation = image.getexif().get(ORIENTATION, 1) if turns else 1
        if decode:
            try:
                image.load()
            except (SyntaxError, ValueError) as error:  # of Pillow's readers of PNG and TIFF
                raise OSError(str(error)) from error
        size = (width, height) if orientation >= 5 else (height, width)
        return AsRead(size, orientation != 1, image.mode)


def unreadable(path: str | Path, error: Exception) -> Problem:
    path = Path(path)
    if not path.exists():
        return Problem('missing file', str(path))
    if path.is_file() and not path.stat().st_size:
        return Problem('unreadable file', str(path), 'it is empty')
    if isinstance(error, PermissionError):
        return Problem('unreadable file', str(path), 'no permission to read it')
    message = 'it is no image' if type(error).__name__ == 'UnidentifiedImageError' else str(error)
    return Problem('unreadable file', str(path), message)


def image_problems(
    path: str, listed: Size | None, listed_in: str, turns: bool, decode: bool
) -> Iterator[Problem]:
    """
    Args:
        listed: its size in the annotation file ``listed_in``, or None.
    """
    try:
        size, is_turned, mode = read_header(path, turns, decode)
    except OSError as error:
        yield unreadable(path, error)
        return
    if is_turned:
        yield Problem('turned', path, image=path)
    if mode != 'RGB':
        yield Problem('not RGB', path, f"Pillow's name for its pixels is {mode}", path)
    if max(size) > 20 * min(size):
        yield Problem('narrow', path, f'it is {size[1]} x {size[0]}', path)
    if listed and size != listed:
        detail = size_text(size, listed, listed_in)
        yield Problem('sizes differ', path, detail, path)


def label_map_problems(path: str, image_path: str, turns: bool) -> Iterator[Problem]:
    """Of the header of a label map: its channels, its bits, and its size beside the image's."""
    try:
        with Image.open(path) as labels:
            size, mode = labels.size[::-1], labels.mode
    except OSError as error:
        yield unreadable(path, error)
        return
    if mode not in ('L', 'P', '1') and not mode.startswith('I'):
        channels = len(Image.new(mode, (1, 1)).getbands())
        detail = f'it has {channels} channels ({mode}), expected one'
        yield Problem('label map', path, detail, path)
    try:
        image_size = read_header(image_path, turns).size
    except OSError:
        return  # a problem of the image
    if size != image_size:
        yield Problem('sizes differ', path, size_text(size, image_size, image_path), image_path)


def size_text(size: Sequence[int], other: Sequence[int], where: str) -> str:
    return f'it is {size[1]} x {size[0]}, and {other[1]} x {other[0]} (width x height) in {where}'


def label_problems(
    labels: np.ndarray, path: str, classes: Sequence[str], ignored: set[int], image_path: str = ''
) -> tuple[Counter, list[Problem]]:
    """
    Args:
        labels: (H, W), as the pipeline reads them.
        ignored: labels that mean unknown.

    Returns:
        Class -> number of pixels, and what is wrong.
    """
    if labels.dtype == np.uint8:  # as mmseg reads them; several times as fast
        counts = np.bincount(labels.ravel())
        numbers = counts.nonzero()[0]
        counts = counts[numbers]
    else:
        numbers, counts = np.unique(labels, return_counts=True)
    pixels = Counter({int(label): int(count) for label, count in zip(numbers, counts)})
    known = {label: count for label, count in pixels.items() if label not in ignored}
    problems = []
    wrong = {label: count for label, count in known.items() if not 0 <= label < len(classes)}
    if wrong:
        listed = ', '.join(f'{label} ({count} pixels)' for label, count in wrong.items())
        detail = f'it holds {listed}; the {len(classes)} classes are 0 to {len(classes) - 1}'
        rows, columns = np.isin(labels, list(wrong)).nonzero()
        box = columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1
        problems.append(Problem('label out of range', path, detail, image_path, tuple(box)))
    if not known:
        problems.append(Problem('no labels', path, image=image_path))
    named = {classes[i]: count for i, count in known.items() if i not in wrong}
    return Counter(named), problems
