"""Pictures read as people see them, and label maps as pictures: the same colours and the same legend wherever a class is shown."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

Colours = Sequence[Sequence[int]]  # (classes, 3), RGB, 0 ... 255


def distinct_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """For classes that come without: hues by the golden angle, in three shades, so that neighbours differ most."""
    return tuple(
        tuple(
            round(255 * part)
            for part in colorsys.hsv_to_rgb(
                i * 0.618034 % 1, (0.75, 0.5, 0.9)[i % 3], (0.9, 0.7, 0.55)[i // 3 % 3]
            )
        )
        for i in range(count)
    )


def read(file: Path | BinaryIO) -> tuple[np.ndarray, str | None]:
    """A picture as people see it: RGB (H, W, 3) uint8, turned as its EXIF data say; and what had to be done to it, if that is worth a word.

    Raises:
        OSError, SyntaxError, ValueError: the file is empty, cut off or no picture.
    """
    if isinstance(file, Path) and not file.stat().st_size:
        raise OSError('the file is empty')
    with Image.open(file) as picture:
        picture.load()
        mode = picture.mode
        picture = ImageOps.exif_transpose(picture)
        if mode == 'F':
            raise ValueError('its pixels are floating-point numbers, expected 8 or 16 bits')
        if mode.startswith('I'):
            picture = Image.fromarray(
                (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
            )
        note = {'CMYK': 'CMYK, converted to RGB', 'RGBA': 'the alpha channel is left out'}.get(mode)
        return np.asarray(
            picture.convert('RGB')
        ), '16 bits, the upper 8 are used' if mode.startswith('I') else note


def overlay(
    image: np.ndarray, labels: np.ndarray, colours: Colours, opacity: float = 0.55
) -> np.ndarray:
    """Image (H, W, 3) uint8 under the colours of a label map (H, W), with white lines between classes. Labels without a
    colour (255: unknown) leave the image as it is."""
    known = labels < len(colours)
    painted = image.copy()
    mixed = image * (1 - opacity) + np.asarray(colours)[np.where(known, labels, 0)] * opacity
    painted[known] = mixed[known].round()
    edge = np.zeros(labels.shape, bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    painted[edge] = 255
    return painted


def with_legend(picture: np.ndarray, names: Sequence[str], colours: Colours) -> np.ndarray:
    """Picture (H, W, 3) uint8 -> (H + h, W, 3): rows of coloured squares with their names below it."""
    width = picture.shape[1]
    size = max(12, min(28, width // 40))  # of the letters, in pixels
    font, line = ImageFont.load_default(size), round(size * 1.6)
    places, x, y = [], 0, 0
    for name in names:
        needed = round(line + font.getlength(name) + size)
        if x and x + needed > width:
            x, y = 0, y + line
        places.append((x, y))
        x += needed
    strip = Image.new('RGB', (width, y + line + size // 2 if names else 0), 'white')
    draw = ImageDraw.Draw(strip)
    for (x, y), name, colour in zip(places, names, colours):
        x, y = x + size // 2, y + size // 2
        draw.rectangle((x, y, x + size, y + size), fill=tuple(colour), outline='black')
        draw.text((x + size * 1.4, y + size / 2), name, fill='black', font=font, anchor='lm')
    return np.concatenate([picture, np.asarray(strip)])


def save_labels(labels: np.ndarray, colours: Colours, path) -> None:
    """A label map (H, W) of numbers below 256 as a PNG whose pixels are these numbers, and which viewers show in the colours."""
    picture = Image.fromarray(labels.astype(np.uint8)).convert('P')
    picture.putpalette(
        np.asarray(colours, np.uint8).tobytes().ljust(3 * 256, b'\0')
    )  # whole, or 255 would be written in 4 bits
    picture.save(path)
