"""Batches of noise, as the training pipeline of a config would pack them."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import FUNCTIONS, TRANSFORMS
from PIL import Image

from ..errors import ConfigError

Size = tuple[int, int]  # height and width of an image, pixels


def noise_batch(cfg: Config, bands: int, size: Size, images: int = 2) -> dict[str, Any]:
    """Noise, two objects and labels of two classes an image, packed by the training pipeline.

    Each step of the pipeline is tried. Those that need a whole dataset or another format of files
    fail, and are left out; so are those that change the size of images.

    Args:
        cfg: the whole config.
        bands: of an image as the model takes it, or of several that are stacked.

    Returns:
        ``inputs``, a list of tensors ``(bands, H, W)``, and ``data_samples``; or what the config's
        ``collate_fn`` makes of these.

    Raises:
        ConfigError: there is no pipeline that packs an image with its annotations.
    """
    loader = cfg.get('train_dataloader') or {}
    steps = pipeline_steps(loader.get('dataset') or {})
    if not steps:
        raise ConfigError('the config has no training pipeline')
    with TemporaryDirectory() as folder, same_random_numbers():
        samples = [pack_noise(Path(folder), size, steps) for _ in range(images)]
    for sample in samples:
        image = sample['inputs']
        repeated = torch.cat([image] * (1 + bands // len(image)))
        sample['inputs'] = repeated[:bands] if len(image) != bands else image
    collate = dict(loader.get('collate_fn') or dict(type='pseudo_collate'))
    return FUNCTIONS.get(collate.pop('type'))(samples, **collate)


def pipeline_steps(dataset: dict) -> list[dict]:
    """Of the pipelines of a dataset and of those that it wraps, in the order in which they run."""
    wrapped = dataset.get('dataset') or (dataset.get('datasets') or [{}])[0]
    return (pipeline_steps(wrapped) if wrapped else []) + list(dataset.get('pipeline') or [])


def pack_noise(folder: Path, size: Size, steps: list[dict]) -> dict[str, Any]:
    """What a pipeline makes of noise, which is written to ``image.png`` in ``folder``.

    Raises:
        ConfigError: it packs no sample.
    """
    return _pack(_raw(folder, size, steps), steps, size)


def _raw(folder: Path, size: Size, steps: list[dict]) -> dict[str, Any]:
    """What a dataset hands to the first step, as far as the libraries agree upon it."""
    height, width = size
    picture, labels = folder / 'image.png', folder / 'labels.png'
    noise = np.random.randint(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(picture)
    Image.fromarray(np.arange(height * width).reshape(size).astype(np.uint8) % 2).save(labels)
    objects = []
    for x, y in ((width // 8, height // 8), (width // 3, height // 3)):
        right, bottom = x + width // 2, y + height // 2
        corners = [x, y, right, y, right, bottom, x, bottom]
        box = {
            4: [x, y, right, bottom],
            5: [(x + right) / 2, (y + bottom) / 2, width / 2, height / 2, 0.3],
            8: corners,
        }[_numbers_of_a_box(steps)]
        polygon = [[float(value) for value in corners]]
        objects.append(dict(bbox=box, bbox_label=0, ignore_flag=0, mask=polygon))
    return dict(
        img_path=str(picture),
        img_path2=str(picture),
        img_id=0,
        height=height,
        width=width,
        instances=objects,
        seg_map_path=str(labels),
        label_map=None,
        reduce_zero_label=False,
        seg_fields=[],
        sample_idx=0,
        # of steps that change the size or flip, which are left out
        scale_factor=(1.0, 1.0),
        flip=False,
        flip_direction=None,
    )


def _numbers_of_a_box(steps: list[dict]) -> int:
    """4, or what the rotated boxes have that the pipeline loads."""
    kinds = [step['box_type'] for step in steps if step.get('box_type')]
    if not kinds:
        return 4
    from mmdet.structures.bbox import get_box_type

    return get_box_type(kinds[0])[1].box_dim


def _pack(results: dict, steps: list[dict], size: Size) -> dict[str, Any]:
    reasons = []
    for step in steps:
        for start in (results, _with_two_images(results)):
            try:
                after = TRANSFORMS.build(copy.deepcopy(dict(step)))(copy.deepcopy(start))
                if 'data_samples' in after and isinstance(after['inputs'], torch.Tensor):
                    return after
                shapes = {np.shape(image)[:2] for image in _images(after)}
                if shapes - {size}:
                    raise ValueError('changes the size of images')
            except Exception as error:
                reasons.append(f'{step.get("type")}: {type(error).__name__}: {error}')
                continue
            results = after
            break
    raise ConfigError('the training pipeline packs no noise: ' + '; '.join(reasons))


def _with_two_images(results: dict) -> dict:
    """Change detection names two images in place of one."""
    path = results['img_path']
    return {**results, 'img_path': path if isinstance(path, list) else [path, path]}


def _images(results: dict) -> list:
    image = results.get('img')
    if image is None:
        return []
    return list(image) if isinstance(image, (list, tuple)) else [image]


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """The same noise each time, and the caller's random numbers as they were."""
    states = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
