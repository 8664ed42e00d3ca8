"""Generates the demo's data: scenes of textured shapes, in the layouts of COCO and ADE20K.

Five shapes stand in front of a wall and a floor, each instance with a pattern, a light and a hue of
its own, and cover one another. Masks hold the visible pixels. An instance of which hardly anything
is visible is in no annotation, and its pixels are 0 (ignored) in the semantic map.

Colour is a hint and no more: the hues of a class scatter around one hue (``HUE_SPREAD``) and
overlap with those of its neighbours.
"""

import colorsys
import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as rle

from ..errors import ConfigError
from ..printing import progress

SHAPES = ('disc', 'square', 'triangle', 'star', 'ring')
STUFF = ('wall', 'floor')
SIZE = 192  # pixels
SPLITS = dict(train=600, val=100, test=150)
ADE_FOLDERS = dict(train='training', val='validation', test='test')
HUE_SPREAD = 0.07  # standard deviation in turns; class hues are 0.2 apart
MIN_VISIBLE = 0.3  # share of an instance's area, below which it is not annotated
PALETTE = [
    (0, 0, 0),
    (120, 110, 100),
    (180, 165, 140),
    (220, 60, 60),
    (60, 120, 220),
    (70, 170, 80),
    (235, 180, 50),
    (160, 80, 190),
]


class Scene(NamedTuple):
    image: np.ndarray  # (SIZE, SIZE, 3) uint8
    semantic: np.ndarray  # (SIZE, SIZE) uint8: 0 ignored, then STUFF, then SHAPES
    instances: list[tuple[int, np.ndarray]]  # index of the shape, and visible pixels (SIZE, SIZE)


def pattern(rng: np.random.Generator, hue: float, value: float) -> np.ndarray:
    """(SIZE, SIZE, 3) float RGB, 0 ... 255: two shades of a hue as stripes, checks, dots, waves or
    noise."""
    shades = []
    for factor in (1.1, 0.65):
        shade_hue, saturation = (hue + rng.normal(0, 0.02)) % 1, rng.uniform(0.35, 0.9)
        colour = colorsys.hsv_to_rgb(shade_hue, saturation, np.clip(value * factor, 0, 1))
        shades.append(255 * np.array(colour))
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 16)
    y, x = np.mgrid[:SIZE, :SIZE] * 2 * np.pi / period
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    noise = cv2.GaussianBlur(rng.normal(size=(SIZE, SIZE)), (0, 0), period / 4)
    kinds = [
        lambda: np.sin(u) > 0,
        lambda: np.sin(u) * np.sin(v) > 0,
        lambda: np.cos(u) + np.cos(v) > 0.8,
        lambda: 0.5 + 0.5 * np.sin(u + 2 * np.sin(v / 2)),
        lambda: 0.5 + noise / noise.std() / 4,
        lambda: np.full((SIZE, SIZE), 0.3),
    ]
    mix = kinds[rng.integers(len(kinds))]()
    mix = np.clip(mix, 0, 1)[..., None]
    return shades[0] * mix + shades[1] * (1 - mix)


def outline(rng: np.random.Generator, shape: str) -> tuple[np.ndarray, np.ndarray, float]:
    """A shape at a random place, size, turn and aspect: its pixels (SIZE, SIZE) bool, centre (x, y)
    and radius."""
    radius, centre = rng.uniform(15, 40), rng.uniform(12, SIZE - 12, 2)
    corners = dict(disc=40, ring=40, square=4, triangle=3, star=10)[shape]
    angles = np.arange(corners) * 2 * np.pi / corners + rng.uniform(0, 2 * np.pi)
    radii = np.where(np.arange(corners) % 2, 0.42, 1.0) if shape == 'star' else np.ones(corners)
    points = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    points = radius * points * [1, rng.uniform(0.75, 1)]
    turn = rng.uniform(0, np.pi)
    points = points @ [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for scale, fill in ((1, 1), (0.5, 0))[: 2 if shape == 'ring' else 1]:
        polygon = np.round((points * scale + centre) * 16).astype(np.int32)  # in 1/16 pixels
        cv2.fillPoly(mask, [polygon], fill, shift=4)
    return mask.astype(bool), centre, radius


def scene(rng: np.random.Generator) -> Scene:
    horizon = int(rng.uniform(0.35, 0.75) * SIZE)
    image = pattern(rng, rng.uniform(), rng.uniform(0.5, 0.9)) * 0.5 + rng.uniform(90, 160)
    floor = pattern(rng, rng.uniform(), rng.uniform(0.3, 0.6)) * 0.6 + rng.uniform(10, 60)
    image[horizon:] = floor[horizon:]
    semantic = np.where(np.arange(SIZE)[:, None] < horizon, 1, 2) * np.ones(SIZE, np.uint8)
    owner = np.full((SIZE, SIZE), -1)  # index of the shape that a pixel shows
    drawn = []
    y, x = np.mgrid[:SIZE, :SIZE]
    for index in range(rng.integers(3, 8)):
        kind = int(rng.integers(len(SHAPES)))
        mask, centre, radius = outline(rng, SHAPES[kind])
        hue = kind / len(SHAPES) + rng.normal(0, HUE_SPREAD)
        body = pattern(rng, hue, rng.uniform(0.55, 0.95))
        slope = np.clip(((x - centre[0]) + (y - centre[1])) / radius, -1, 1)
        body *= (1 - 0.35 * slope)[..., None] * 0.5 + 0.5  # light from the upper left
        below = np.roll(mask, (4, 4), (0, 1)).astype(np.float32)
        shadow = cv2.GaussianBlur(below, (0, 0), 3)[..., None]
        image = np.where(mask[..., None], body, image * (1 - 0.45 * shadow))
        owner[mask] = index
        drawn.append((kind, mask.sum()))
    instances = []
    for index, (kind, area) in enumerate(drawn):
        visible = owner == index
        is_annotated = visible.sum() > max(MIN_VISIBLE * area, 40)
        semantic[visible] = 1 + len(STUFF) + kind if is_annotated else 0
        if is_annotated:
            instances.append((kind, visible))
    image += rng.normal(0, 4, image.shape)
    return Scene(np.clip(image, 0, 255).astype(np.uint8), semantic.astype(np.uint8), instances)


def write(folder: Path, counts: Mapping[str, int], seed: int = 0) -> None:
    """Write ``folder/coco`` and ``folder/ade``, all or nothing; the same arguments give the same
    files. Does nothing if they are there already, from this very code.

    Args:
        counts: split (train, val, test) -> number of scenes.

    Raises:
        ConfigError: the folder is there, and was not made by this function.
    """
    source = Path(__file__).read_bytes() + repr((dict(counts), seed)).encode()
    made_by, stamp = hashlib.sha256(source).hexdigest(), folder / 'made_by'
    if folder.exists():
        if not stamp.exists():
            raise ConfigError(
                f'{folder} is there and was not made by this script: name another folder, or '
                'delete it'
            )
        if stamp.read_text() == made_by:
            return
        shutil.rmtree(folder)  # made by older code, or with other arguments
    partial = folder.with_name(folder.name + '.partial')
    shutil.rmtree(partial, ignore_errors=True)
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context('fork')) as pool:
        for i, (split, count) in enumerate(counts.items()):
            seeds = [(seed, i, number) for number in range(count)]
            made = pool.map(_seeded_scene, seeds, chunksize=16)
            _write_split(partial, split, progress(made, f'{split} scenes', count))
    (partial / 'made_by').write_text(made_by)
    partial.rename(folder)


def _seeded_scene(seed: tuple[int, ...]) -> Scene:
    return scene(np.random.default_rng(seed))


def _write_split(folder, split, scenes):
    coco_images = folder / 'coco' / f'{split}2017'
    coco_annotations = folder / 'coco' / 'annotations'
    ade_images = folder / 'ade' / 'images' / ADE_FOLDERS[split]
    ade_labels = folder / 'ade' / 'annotations' / ADE_FOLDERS[split]
    for path in (coco_images, coco_annotations, ade_images, ade_labels):
        path.mkdir(parents=True, exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for number, (image, semantic, instances) in enumerate(scenes):
        name = f'{number:012d}'
        Image.fromarray(image).save(coco_images / f'{name}.jpg', quality=92)
        shutil.copy(coco_images / f'{name}.jpg', ade_images / f'{name}.jpg')
        label = Image.fromarray(semantic, mode='P')
        label.putpalette(np.ravel(PALETTE).tolist())
        label.save(ade_labels / f'{name}.png')
        images.append(dict(id=number, file_name=f'{name}.jpg', width=SIZE, height=SIZE))
        for kind, mask in instances:
            code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotation = dict(
                id=len(annotations) + 1,
                image_id=number,
                category_id=kind + 1,
                iscrowd=0,
                area=int(mask.sum()),
                bbox=rle.toBbox(code).tolist(),
                segmentation=dict(size=code['size'], counts=code['counts'].decode()),
            )
            annotations.append(annotation)
    categories = [dict(id=i, name=name, supercategory='shape') for i, name in enumerate(SHAPES, 1)]
    truth = dict(
        info=dict(description='generated by convnext-dense demo-data'),
        licenses=[],
        images=images,
        annotations=annotations,
        categories=categories,
    )
    (coco_annotations / f'instances_{split}2017.json').write_text(json.dumps(truth))
