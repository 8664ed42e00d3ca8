"""Reads pictures as people see them, and draws label maps: overlays, legends, PNG files.

A class has the same colour wherever it is shown.
"""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .instances import Instances

Colours = Sequence[Sequence[int]]  # RGB of each class, 0 ... 255


def distinct_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """Colours for classes that have none. Neighbours differ most: their hues are a golden angle
    apart, in three shades."""
    colours = []
    for i in range(count):
        saturation, value = (0.75, 0.5, 0.9)[i % 3], (0.9, 0.7, 0.55)[i // 3 % 3]
        red, green, blue = colorsys.hsv_to_rgb(i * 0.618034 % 1, saturation, value)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colours)


def read(file: Path | BinaryIO) -> tuple[np.ndarray, str | None]:
    """Read a picture and turn it upright, as its EXIF data say.

    Returns:
        RGB (H, W, 3) uint8; and what was changed in it (bits, colour space, alpha) or None.

    Raises:
        OSError, SyntaxError, ValueError: the file is empty, cut off or no picture.
    """
    if isinstance(file, Path) and not file.stat().st_size:
        raise OSError('the file is empty')
    with Image.open(file) as opened:
        opened.load()
        mode, picture = opened.mode, ImageOps.exif_transpose(opened)
    if mode == 'F':
        raise ValueError('its pixels are floating-point numbers, expected 8 or 16 bits')
    note = {'CMYK': 'CMYK, converted to RGB', 'RGBA': 'the alpha channel is left out'}.get(mode)
    if mode.startswith('I'):
        upper = np.asarray(picture).astype(np.int64) >> 8
        picture = Image.fromarray(upper.clip(0, 255).astype(np.uint8))
        note = '16 bits, the upper 8 are used'
    return np.asarray(picture.convert('RGB')), note


def overlay(
    image: np.ndarray, labels: np.ndarray, colours: Colours, opacity: float = 0.55
) -> np.ndarray:
    """Paint a label map over an image, with white lines between classes.

    Args:
        image: (H, W, 3) uint8.
        labels: (H, W). Where a label has no colour (255: unknown) the image stays as it is.
        opacity: of the colours.

    Returns:
        (H, W, 3) uint8.
    """
    known = labels < len(colours)
    painted = image.copy()
    mixed = image * (1 - opacity) + np.asarray(colours)[np.where(known, labels, 0)] * opacity
    painted[known] = mixed[known].round()
    edge = np.zeros(labels.shape, bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    painted[edge] = 255
    return painted


def draw_instances(
    image: np.ndarray,
    found: Instances,
    names: Sequence[str],
    colours: Colours,
    score: float,
    opacity: float = 0.5,
) -> np.ndarray:
    """Boxes, masks and names of detections of at least ``score``: (H, W, 3) uint8 -> the same."""
    chosen = np.flatnonzero(found.scores >= score)[::-1]  # the best are drawn last
    painted = image.copy()
    masks = found.masks
    for i in chosen if masks is not None else ():
        assert masks is not None
        colour = np.asarray(colours[found.labels[i]])
        mixed = painted[masks[i]] * (1 - opacity) + colour * opacity
        painted[masks[i]] = mixed.round()
    picture = Image.fromarray(painted)
    draw = ImageDraw.Draw(picture)
    size = max(12, min(28, image.shape[1] // 40))  # of the letters, in pixels
    font = ImageFont.load_default(size)
    for i in chosen:
        fill, (left, top, right, bottom) = tuple(colours[found.labels[i]]), found.boxes[i].tolist()
        draw.rectangle((left, top, right, bottom), outline=fill, width=2)
        text = f'{names[found.labels[i]]} {found.scores[i]:.2f}'
        draw.rectangle(draw.textbbox((left, top), text, font=font), fill=fill)
        draw.text((left, top), text, fill='white', font=font)
    return np.asarray(picture)


def with_legend(picture: np.ndarray, names: Sequence[str], colours: Colours) -> np.ndarray:
    """Add rows of coloured squares and names below a picture: (H, W, 3) uint8 -> (H + h, W, 3)."""
    width = picture.shape[1]
    size = max(12, min(28, width // 40))  # of the letters, in pixels
    font, line = ImageFont.load_default(size), round(size * 1.6)
    corners, x, y = [], 0, 0  # of the entries
    for name in names:
        needed = round(line + font.getlength(name) + size)
        if x and x + needed > width:
            x, y = 0, y + line
        corners.append((x, y))
        x += needed
    strip = Image.new('RGB', (width, y + line + size // 2 if names else 0), 'white')
    draw = ImageDraw.Draw(strip)
    for (x, y), name, colour in zip(corners, names, colours):
        x, y = x + size // 2, y + size // 2
        draw.rectangle((x, y, x + size, y + size), fill=tuple(colour), outline='black')
        draw.text((x + size * 1.4, y + size / 2), name, fill='black', font=font, anchor='lm')
    return np.concatenate([picture, np.asarray(strip)])


def save_labels(labels: np.ndarray, colours: Colours, path: str | Path) -> None:
    """Save a label map as a PNG whose pixels are the labels, and which viewers show in colours.

    Args:
        labels: (H, W).
        colours: of the classes. With more than 256, or labels above 255, the PNG has 16 bits, and
            no colours.
    """
    if len(colours) > 256 or labels.max(initial=0) > 255:
        Image.fromarray(labels.astype(np.uint16)).save(path)
        return
    picture = Image.fromarray(labels.astype(np.uint8)).convert('P')
    # A palette of fewer than 256 colours would let Pillow write fewer bits a pixel, and lose 255.
    picture.putpalette(np.asarray(colours, np.uint8).tobytes().ljust(3 * 256, b'\0'))
    picture.save(path)
