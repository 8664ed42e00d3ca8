"""A data pipeline whose samples are looked at as they are read."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import images
from .problems import Problem, refuse

FRAMEWORKS = 'mmcv', 'mmdet', 'mmseg'  # whose steps after reading keep the labels' numbers
FILES = 'img_path', 'seg_map_path'  # keys of a sample


class CheckedPipeline:
    """Runs the steps of an MMEngine pipeline, and refuses a sample that

    - a step fails on (the message names its files),
    - lists another size than its image has, or whose label map has another size than its image,
    - has boxes that are not finite, or an object without a mask where masks are read,
    - has labels that are neither a class nor ignored.

    Args:
        pipeline: MMEngine's ``Compose``; its ``transforms`` are shared.
        classes: of a data set with label maps; else none are checked.
        ignored: labels that mean unknown.
        ann_file: where the size that a sample lists comes from.

    Raises:
        DataError: when it is called.
    """

    def __init__(self, pipeline, classes: tuple[str, ...], ignored: set[int], ann_file: str):
        self.pipeline, self.classes, self.ignored = pipeline, classes, ignored
        self.ann_file = ann_file
        self._labels_after = _last_that_may_renumber(pipeline.transforms)

    def __getattr__(self, name: str):
        if name == 'pipeline':  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.pipeline, name)

    def __repr__(self):
        return repr(self.pipeline)

    def __call__(self, sample: dict) -> dict | None:
        files = {key: str(sample[key]) for key in FILES if isinstance(sample.get(key), str)}
        img_id = sample.get('img_id')
        remaining: dict[str, Callable[[Any], Iterator[Problem]]] = dict(
            ori_shape=self._size, gt_seg_map=self._label_map, gt_bboxes=self._boxes
        )
        result: Any = sample
        for i, step in enumerate(self.pipeline.transforms):
            try:
                result = step(result)
            except Exception as error:
                refuse([self._failure(step, error, sample, files)])
            if not isinstance(result, dict):
                return result
            for key in [key for key in remaining if key in result]:
                refuse(remaining.pop(key)(result))
            if self.classes and i == self._labels_after:
                refuse(self._labels(result, files.get('seg_map_path') or str(img_id)))
        return result

    def _size(self, result: dict) -> Iterator[Problem]:
        size, listed = result['ori_shape'], [result.get(key) for key in ('height', 'width')]
        sides = [side for side in listed if isinstance(side, int)]
        if len(sides) == 2 and list(size[:2]) != sides:
            detail = images.size_text(size, sides, self.ann_file)
            yield Problem('sizes differ', str(result.get('img_path')), detail)

    def _label_map(self, result: dict) -> Iterator[Problem]:
        labels, size = result['gt_seg_map'], result.get('ori_shape')
        path, image = result.get('seg_map_path'), result.get('img_path')
        is_volume = getattr(result.get('img'), 'ndim', 3) == 4
        if is_volume or not isinstance(path, str):
            return
        if labels.ndim != 2:
            detail = f'it is read as an array of shape {labels.shape}, expected (height, width)'
            yield Problem('label map', path, detail)
        elif size and labels.shape != tuple(size[:2]):
            yield Problem('sizes differ', path, images.size_text(labels.shape, size, str(image)))

    def _labels(self, result: dict, path: str) -> list[Problem]:
        labels = result.get('gt_seg_map')
        if labels is None:  # packed, or none were read
            packed = getattr(result.get('data_samples'), 'gt_sem_seg', None)
            if packed is None:
                return []
            labels = packed.data.numpy()
        return images.label_problems(labels, path, self.classes, self.ignored)[1]

    def _boxes(self, result: dict) -> Iterator[Problem]:
        boxes = getattr(result['gt_bboxes'], 'tensor', result['gt_bboxes'])
        if not np.isfinite(np.asarray(boxes)).all():
            detail = f'its boxes are not finite: {np.asarray(boxes).tolist()}'
            yield Problem('wrong value', str(result.get('img_path')), detail)

    def _failure(self, step, error: Exception, sample: dict, files: dict) -> Problem:
        sizes = []
        for path in files.values():
            try:
                height, width = images.read_header(path, turns=False, decode=True).size
            except OSError as unread:
                return images.unreadable(path, unread)
            sizes.append(f'{path}, {width} x {height}')
        image = files.get('img_path', '')
        lacks_mask = any('mask' not in instance for instance in sample.get('instances') or ())
        if getattr(step, 'with_mask', False) and lacks_mask:
            detail = f'{_annotations(self.ann_file, sample)} of image {image}: no segmentation'
            return Problem('no segmentation', self.ann_file, detail, image)
        detail = f'{type(step).__name__} fails on it: {type(error).__name__}: {error}'
        return Problem('failed step', ' and '.join(sizes) or 'a sample', detail.strip(), image)


def _last_that_may_renumber(steps: Sequence) -> int:
    """Index of the step after which labels keep their numbers, and before which nothing is cropped
    if possible: the last that reads label maps or is not of the frameworks."""
    return max(
        (
            i
            for i, step in enumerate(steps)
            if type(step).__name__ == 'LoadAnnotations'
            or type(step).__module__.partition('.')[0] not in FRAMEWORKS
        ),
        default=-1,
    )


def _annotations(path: str, sample: dict) -> str:
    """The annotations of a sample that have no segmentation. Reads the whole file again."""
    listed = json.loads(Path(path).read_bytes())['annotations']
    ids = [
        annotation['id']
        for annotation in listed
        if annotation['image_id'] == sample.get('img_id') and not annotation.get('segmentation')
    ]
    return f'annotation{"s" * (len(ids) > 1)} {", ".join(map(str, ids))}'
