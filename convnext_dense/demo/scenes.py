"""Generate the demo's data: scenes of textured shapes, in the true COCO and ADE20K layouts."""

import colorsys
import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as rle
from rich.progress import track

SHAPES = ('disc', 'square', 'triangle', 'star', 'ring')
STUFF = ('wall', 'floor')
SIZE = 192  # pixels
SPLITS = dict(train=600, val=100, test=150)
ADE_FOLDERS = dict(train='training', val='validation', test='test')
HUE_SPREAD = 0.07  # standard deviation in turns; class hues are 0.2 apart
MIN_VISIBLE = 0.3  # of an instance's own area
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


def pattern(rng: np.random.Generator, hue: float, value: float) -> np.ndarray:
    """(SIZE, SIZE, 3) float RGB in 0 ... 255: two shades of a hue as stripes, checks, dots, waves or noise."""
    shades = [
        np.array(
            colorsys.hsv_to_rgb(
                (hue + rng.normal(0, 0.02)) % 1,
                rng.uniform(0.35, 0.9),
                np.clip(value * factor, 0, 1),
            )
        )
        * 255
        for factor in (1.1, 0.65)
    ]
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 16)
    y, x = np.mgrid[:SIZE, :SIZE] * 2 * np.pi / period
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    noise = cv2.GaussianBlur(rng.normal(size=(SIZE, SIZE)), (0, 0), period / 4)
    mix = [
        lambda: np.sin(u) > 0,
        lambda: np.sin(u) * np.sin(v) > 0,
        lambda: np.cos(u) + np.cos(v) > 0.8,
        lambda: 0.5 + 0.5 * np.sin(u + 2 * np.sin(v / 2)),
        lambda: 0.5 + noise / noise.std() / 4,
        lambda: np.full((SIZE, SIZE), 0.3),
    ][rng.integers(6)]()
    mix = np.clip(mix, 0, 1)[..., None]
    return shades[0] * mix + shades[1] * (1 - mix)


def outline(rng: np.random.Generator, shape: str):
    """Binary mask (SIZE, SIZE) of one shape at a random place, size, turn and aspect."""
    radius, centre = rng.uniform(15, 40), rng.uniform(12, SIZE - 12, 2)
    corners = dict(disc=40, ring=40, square=4, triangle=3, star=10)[shape]
    angles = np.arange(corners) * 2 * np.pi / corners + rng.uniform(0, 2 * np.pi)
    radii = np.where(np.arange(corners) % 2, 0.42, 1.0) if shape == 'star' else np.ones(corners)
    points = (
        radius
        * (radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1))
        * [1, rng.uniform(0.75, 1)]
    )
    turn = rng.uniform(0, np.pi)
    points = points @ [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for scale, fill in ((1, 1), (0.5, 0))[: 2 if shape == 'ring' else 1]:
        cv2.fillPoly(
            mask, [np.round((points * scale + centre) * 16).astype(np.int32)], fill, shift=4
        )
    return mask.astype(bool), centre, radius


def scene(rng: np.random.Generator):
    """Returns image (SIZE, SIZE, 3) uint8, semantic map (SIZE, SIZE) uint8, and [(class index, mask)]."""
    horizon = int(rng.uniform(0.35, 0.75) * SIZE)
    image = pattern(rng, rng.uniform(), rng.uniform(0.5, 0.9)) * 0.5 + rng.uniform(90, 160)
    image[horizon:] = pattern(rng, rng.uniform(), rng.uniform(0.3, 0.6))[
        horizon:
    ] * 0.6 + rng.uniform(10, 60)
    semantic = np.where(np.arange(SIZE)[:, None] < horizon, 1, 2) * np.ones(SIZE, np.uint8)
    owner = np.full((SIZE, SIZE), -1)
    drawn = []
    for index in range(rng.integers(3, 8)):
        kind = int(rng.integers(len(SHAPES)))
        mask, centre, radius = outline(rng, SHAPES[kind])
        hue = kind / len(SHAPES) + rng.normal(0, HUE_SPREAD)
        body = pattern(rng, hue, rng.uniform(0.55, 0.95))
        y, x = np.mgrid[:SIZE, :SIZE]
        body *= (1 - 0.35 * np.clip(((x - centre[0]) + (y - centre[1])) / radius, -1, 1))[
            ..., None
        ] * 0.5 + 0.5
        shadow = cv2.GaussianBlur(np.roll(mask, (4, 4), (0, 1)).astype(np.float32), (0, 0), 3)[
            ..., None
        ]
        image = np.where(mask[..., None], body, image * (1 - 0.45 * shadow))
        owner[mask] = index
        drawn.append((kind, mask.sum()))
    instances = []
    for index, (kind, area) in enumerate(drawn):
        visible = owner == index
        named = visible.sum() > max(MIN_VISIBLE * area, 40)
        semantic[visible] = 1 + len(STUFF) + kind if named else 0
        if named:
            instances.append((kind, visible))
    image += rng.normal(0, 4, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), semantic.astype(np.uint8), instances


def write(folder: Path, counts: dict, seed: int = 0) -> None:
    """Write ``folder/coco`` and ``folder/ade``, all or nothing. Does nothing if they are there, from this generator."""
    made_by = hashlib.sha256(
        Path(__file__).read_bytes() + repr((counts, seed)).encode()
    ).hexdigest()
    stamp = folder / 'made_by'
    if folder.exists():
        if stamp.exists() and stamp.read_text() == made_by:
            return
        if not stamp.exists():
            raise SystemExit(
                f'{folder} is there and was not made by this script: name another folder, or delete it'
            )
        shutil.rmtree(folder)  # of an older generator, or of other arguments
    partial = folder.with_name(folder.name + '.partial')
    shutil.rmtree(partial, ignore_errors=True)
    for split_index, (split, count) in enumerate(counts.items()):
        coco_images = partial / 'coco' / f'{split}2017'
        ade_images, ade_labels = (
            partial / 'ade' / kind / ADE_FOLDERS[split] for kind in ('images', 'annotations')
        )
        for path in (coco_images, ade_images, ade_labels, partial / 'coco' / 'annotations'):
            path.mkdir(parents=True, exist_ok=True)
        truth = dict(
            info=dict(description='generated by tools/demo_data.py'),
            licenses=[],
            images=[],
            annotations=[],
            categories=[
                dict(id=i + 1, name=name, supercategory='shape') for i, name in enumerate(SHAPES)
            ],
        )
        for index in track(range(count), f'{split} scenes'):
            image, semantic, instances = scene(np.random.default_rng([seed, split_index, index]))
            name = f'{index:012d}'
            Image.fromarray(image).save(coco_images / f'{name}.jpg', quality=92)
            shutil.copy(coco_images / f'{name}.jpg', ade_images / f'{name}.jpg')
            label = Image.fromarray(semantic, mode='P')
            label.putpalette(np.ravel(PALETTE).tolist())
            label.save(ade_labels / f'{name}.png')
            truth['images'].append(dict(id=index, file_name=f'{name}.jpg', width=SIZE, height=SIZE))
            for kind, mask in instances:
                code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
                truth['annotations'].append(
                    dict(
                        id=len(truth['annotations']) + 1,
                        image_id=index,
                        category_id=kind + 1,
                        iscrowd=0,
                        area=int(mask.sum()),
                        bbox=rle.toBbox(code).tolist(),
                        segmentation=dict(size=code['size'], counts=code['counts'].decode()),
                    )
                )
        (partial / 'coco' / 'annotations' / f'instances_{split}2017.json').write_text(
            json.dumps(truth)
        )
    (partial / 'made_by').write_text(made_by)
    partial.rename(folder)
