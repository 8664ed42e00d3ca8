"""A file in an engine against the framework's own prediction, on real pictures."""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ..data.pictures import labels_of
from ..errors import ConfigError
from ..inference.prediction import instances
from ..runtime.instances import Instances, paste
from ..runtime.resizing import resize
from .common import Graph
from .engines import ENGINES, NAMES, Run, opened

ODD = (333, 517)  # height and width that no stride divides
# A size at which the framework does not predict becomes the first of these at which it does.
OTHERWISE: tuple[Callable[[int], int], ...] = (
    lambda side: -(-side // 32) * 32,
    lambda side: 2 * side + 1,
    lambda side: 4 * side + 3,
)
EDGE = 0.01  # of probabilities in a mask: pixels so near the threshold may differ
SHARE = 0.05
ROUNDING, TRIES = 1e-5, 8  # relative change of weights, and how often it is tried
UNSTABLE = 0.02  # of a picture's detections at most, or nothing is excused
NOTHING = 'a single class', 'no object'  # of segmentors, of detectors
ADVICE = (
    'name a folder of pictures of several classes, --images FOLDER, or a single size, --static '
    'HEIGHT WIDTH',
    'name a folder of pictures with objects of the classes, --images FOLDER, or lower the score '
    'threshold: --cfg-options model.test_cfg.score_thr=0.01, of a two-stage detector '
    'model.test_cfg.rcnn.score_thr=0.01; or name a single size, --static HEIGHT WIDTH',
)


class Tolerance(NamedTuple):
    """What counts as equal."""

    labels: float  # share of all that are equal, at least
    matched: float  # share of all detections that are matched, at least
    logits: float  # largest difference, as a share of the greatest logit
    # Of a match: pixels; share of the longer side that is added to them; difference of scores;
    # overlap of masks at least.
    box: float
    side: float
    score: float
    mask: float


# Of the side: decoders of queries multiply rounding, so that a framework that runs in another
# number of threads differs from itself by more than 0.01 pixels at 517.
EXACT = Tolerance(0.9999, 0.999, 1e-3, 0.01, 3e-5, 1e-4, 0.99)
ROUNDED = Tolerance(0.98, 0.9, 0.2, 2.0, 0.01, 0.1, 0.9)  # to 8 bits, in a part of the model


class Row(NamedTuple):
    """What was compared at one size."""

    size: tuple[int, int]  # height, width
    batch: int
    compared: int  # labels or detections
    equal: int  # of these
    note: str
    classes: int = 0  # that have at least ``SHARE`` of the labels
    engine: str = ENGINES[0]

    def __str__(self) -> str:
        at_once = f', {self.batch} at once' if self.batch > 1 else ''
        share = np.floor(1e6 * self.equal / max(self.compared, 1)) / 1e4  # 100 is all
        place = f'{self.size[0]} x {self.size[1]}{at_once}'
        return f'{place}: {share:g} % equal in {NAMES[self.engine]}, {self.note}'


class Differs(Exception):
    """A file does not predict what the framework does, or could not be made."""


class Verifier:
    """Compares files of a model with the model, in mmdet's or mmseg's ``test_step``.

    Args:
        model: as the framework runs it: not fused, and not the one that is traced.
        graph: of which only the names of what it takes and gives are read, and thresholds.
        pictures: real ones, (H, W, 3) uint8, RGB, of any sizes.
    """

    def __init__(self, model: nn.Module, graph: Graph, pictures: Sequence[np.ndarray]):
        self.model: Any = model
        self.output, self.pictures = graph.outputs[0], pictures
        self.threshold = graph.thresholds.get('score', 0.5)
        self.takes_size = 'size' in graph.inputs
        self.known: dict = {}  # size -> what the framework predicts for the pictures
        self.chance: dict = {}  # size -> as ``_unstable`` returns

    def expected(self, size: tuple[int, int]) -> list:
        """The framework's own predictions for the pictures, resized to (height, width).

        Raises:
            Differs: it does not predict at this size.
            ConfigError: nothing is seen in the pictures, which would prove nothing.
        """
        if size not in self.known:
            samples = self._framework(self.model, size)
            if self.output == 'boxes':
                seen, least = sum(len(sample.pred_instances) for sample in samples), 1
            else:
                labels = [sample.pred_sem_seg.data.unique() for sample in samples]
                seen, least = len(torch.cat(labels).unique()), 2
            if seen < least:
                raise ConfigError(
                    f'at {size[0]} x {size[1]} the model sees {NOTHING[self.output == "boxes"]} in '
                    f'{len(samples)} pictures. That proves nothing, so that no file is written: '
                    + ADVICE[self.output == 'boxes']
                )
            self.known[size] = samples
        return self.known[size]

    def possible(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size, or a larger one, if the framework predicts at none but such: RTMDet needs
        multiples of 32, and LRASPP pools over a window that no small picture fills. Raises as
        ``expected``."""
        try:
            self.expected(size)
        except Differs:
            for change in OTHERWISE:
                larger = change(size[0]), change(size[1])
                with suppress(Differs):
                    self.expected(larger)
                    return larger
            raise
        return size

    def refuse_chance(self, size: tuple[int, int]) -> None:
        """Raise ConfigError where the framework does not predict the same twice, as with SegNeXt's
        head, which begins with random numbers each time; and what ``expected`` raises."""
        first, again = self.expected(size), self._framework(self.model, size)
        if self.output == 'boxes':
            differs = any(
                match(instances(a), instances(b), 0.5, max(size), EXACT)[0]
                for a, b in zip(first, again)
            )
        else:
            labels = [(labels_of(sample.pred_sem_seg),) for sample in again]
            compared, equal, *_ = _same_labels(first, labels, EXACT)
            differs = equal < EXACT.labels * compared
        if differs:
            kind = type(getattr(self.model, 'decode_head', self.model)).__name__
            raise ConfigError(
                f'{kind} cannot be exported: it does not predict the same twice, so that nothing '
                'can be verified'
            )

    def verify(
        self,
        path: Path,
        sizes: Sequence[tuple[int, int]],
        batches: bool,
        tolerance: Tolerance = EXACT,
        engine: str = ENGINES[0],
    ) -> list[Row]:
        """Compare at each size, picture by picture; and all at once at the first size.

        Args:
            sizes: height and width.
            batches: whether the file takes several pictures at once.
            engine: of ``ENGINES``.

        Raises:
            Differs: it predicts something else, or does not run; or the framework does not.
            ConfigError: nothing is seen in the pictures.
        """
        try:
            run = opened(path, engine)
        except Exception as error:  # its types are those of C++
            raise Differs(f'{NAMES[engine]} cannot read the file: {first_line(error)}') from error
        trials = [(size, 1) for size in sizes] + [(sizes[0], len(self.pictures))] * batches
        rows = []
        for size, batch in trials:
            expected, found = self.expected(size), self._file(run, size, batch)
            compare, least = dict(
                labels=(_same_labels, tolerance.labels),
                logits=(self.same_logits, tolerance.labels),
                boxes=(self.same_instances, tolerance.matched),
            )[self.output]
            counts = compare(expected, found, tolerance)
            rows.append(Row(size, batch, *counts)._replace(engine=engine))
            if rows[-1].equal < least * rows[-1].compared or not rows[-1].equal:
                raise Differs(f'it is wrong at {rows[-1]}')
        return rows

    def inputs(self, pictures: Sequence[np.ndarray], size: tuple[int, int]) -> dict:
        """Of the graph, for pictures that are resized to ``size``."""
        images = np.stack([resize(picture, *size) for picture in pictures])
        inputs = dict(size=np.array(self._output_size(size))) if self.takes_size else {}
        return dict(inputs, image=images)

    def _framework(self, model, size):
        results = []
        for picture in self.pictures:
            # as the frameworks read it: BGR
            tensor = torch.from_numpy(resize(picture, *size)[..., ::-1].copy()).permute(2, 0, 1)
            try:
                with torch.no_grad():
                    data = dict(inputs=[tensor], data_samples=[self._sample(size)])
                    results.append(model.test_step(data)[0].cpu())
            except Exception as error:  # of any model
                raise Differs(
                    f'the framework itself does not predict at {size[0]} x {size[1]}: '
                    f'{first_line(error)}'
                ) from error
        return results

    def _output_size(self, size):
        """Of labels, and of masks of the whole picture: not that of the picture."""
        return (size[0] * 5 // 4, size[1] * 5 // 4) if self.takes_size else size

    def _sample(self, size):
        shapes = dict(img_shape=size, ori_shape=self._output_size(size))
        if self.output == 'boxes':
            from mmdet.structures import DetDataSample

            return DetDataSample(metainfo=dict(shapes, scale_factor=(1.0, 1.0), img_id=0))
        from mmseg.structures import SegDataSample

        return SegDataSample(metainfo=shapes)

    def _unstable(self, size) -> list[set[int]]:
        """Of each picture the detections that the framework itself does not predict again when its
        weights change in their last digits: of DINO those of two queries whose rank is a tie."""
        if size not in self.chance:
            chance: list[set[int]] = [set() for _ in self.pictures]
            for seed in range(TRIES):
                again = self._framework(shaken(self.model, seed), size)
                for places, sample, other in zip(chance, self.known[size], again):
                    first, second = instances(sample), instances(other)
                    if not self.takes_size:  # boxes are not made of the masks
                        first, second = first._replace(masks=None), second._replace(masks=None)
                    places.update(match(first, second, 0.5, max(size), EXACT)[0])
            self.chance[size] = chance
        return self.chance[size]

    def _file(self, run: Run, size, batch):
        """Of each picture the outputs of the file."""
        results: list = []
        for i in range(0, len(self.pictures), batch):
            try:
                outputs = run(self.inputs(self.pictures[i : i + batch], size))
            except Exception as error:  # its types are those of C++
                raise Differs(
                    f'it does not run at {size[0]} x {size[1]}: {first_line(error)}'
                ) from error
            results.extend(zip(*outputs))
        return results

    def same_instances(self, expected: Iterable, found: Iterable, tolerance: Tolerance) -> tuple:
        """Samples of the framework against a file's outputs, picture by picture: how many
        detections were compared, how many of them match, and a line on both."""
        head = getattr(self.model, 'roi_head', None)
        threshold = head.test_cfg.mask_thr_binary if head and head.with_mask else 0.5
        compared = equal = ties = unstable = 0
        box = score = 0.0
        for i, (sample, outputs) in enumerate(zip(expected, found)):
            reference, (boxes, scores, labels, *masks) = instances(sample), outputs
            there = scores >= 0
            if self.takes_size:  # masks are of the whole picture
                masks = [part.astype(bool) for part in masks]
            file = Instances(*(part[there] for part in (boxes, scores, labels, *masks)))
            unmatched, *differences = match(
                reference, file, threshold, max(sample.img_shape), tolerance
            )
            box, score = max(box, differences[0]), max(score, differences[1])
            count = len(reference.scores)
            # both lists are full, so that more was seen, of which the least was left out
            if count == len(file.scores) == len(scores):
                last = reference.scores.min() + tolerance.score
                tied = [k for k in unmatched if reference.scores[k] <= last]
                unmatched = [k for k in unmatched if k not in tied]
                count, ties = count - len(tied), ties + len(tied)
            if unmatched:
                chance = self._unstable(sample.img_shape)[i].intersection(unmatched)
                if len(chance) <= UNSTABLE * count:
                    unmatched = [k for k in unmatched if k not in chance]
                    unstable += len(chance)
            # and those that the file alone has
            compared += count + max(0, len(file.scores) - len(reference.scores))
            equal += count - len(unmatched)
        note = f'{compared} detections, boxes to {box:.0e} pixels, scores to {score:.0e}'
        note += f'; {ties} ties for the last places' * bool(ties)
        note += f'; {unstable} others, which the framework changes by rounding' * bool(unstable)
        return compared, equal, note

    def same_logits(self, expected: Iterable, found: Iterable, tolerance: Tolerance) -> tuple:
        """As ``same_instances``, of scores of classes: how many of their labels are equal; none, if
        a score differs by too much."""
        expected, found = list(expected), list(found)
        best = [
            (logits.argmax(0) if len(logits) > 1 else logits[0] > self.threshold,)
            for (logits,) in found
        ]
        compared, equal, note, classes = _same_labels(expected, best, tolerance)
        references = [sample.seg_logits.data.numpy() for sample in expected]
        difference = max(np.abs(a - b).max() for a, (b,) in zip(references, found))
        largest = max(np.abs(logits).max() for logits in references)
        note = f'{note}, logits to {difference / largest:.0e} of the largest'
        return compared, equal if difference < tolerance.logits * largest else 0, note, classes


def shaken(model: nn.Module, seed: int) -> nn.Module:
    """A copy whose weights differ by about ``ROUNDING``, as engines do in what they compute."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + ROUNDING * torch.randn(weight.shape, generator=generator))
    return model


def _same_labels(expected, found, _):
    pairs = [(labels_of(sample.pred_sem_seg), labels) for sample, (labels,) in zip(expected, found)]
    counts = np.bincount(np.concatenate([labels.flatten() for labels, _ in pairs]))
    equal = sum(int((labels == others).sum()) for labels, others in pairs)
    note = f'{np.count_nonzero(counts)} classes'
    return counts.sum(), equal, note, int((counts >= SHARE * counts.sum()).sum())


def match(
    reference: Instances, file: Instances, threshold: float, side: int, tolerance: Tolerance
) -> tuple[list[int], float, float]:
    """Detections of the framework against those of a file, each of which matches one only.

    Args:
        file: masks are probabilities in the boxes, or bool: of the whole picture. Boxes are made of
            such masks, so that a pixel moves them, and it is the masks that have to match.
        threshold: of the file's probabilities.
        side: of the picture, the longer one.

    Returns:
        The detections of the framework that the file does not have, in order; and the largest
        difference of boxes (pixels) and scores among the others.
    """
    pixels = tolerance.box + tolerance.side * side
    if file.masks is not None and file.masks.dtype == bool:
        pixels = np.inf
    missing, free, largest = [], np.ones(len(file.scores), bool), [0.0, 0.0]
    for i, (box, score, label) in enumerate(zip(*reference[:3])):
        boxes = np.abs(file.boxes - box).max(1, initial=0)
        scores = np.abs(file.scores - score)
        near = free & (file.labels == label) & (scores <= tolerance.score) & (boxes <= pixels)
        # the most similar first: detections that are nearly the same are not taken for each other
        difference = boxes[near] / pixels + scores[near] / tolerance.score
        for j in np.flatnonzero(near)[np.argsort(difference)]:
            if reference.masks is None or _same_mask(
                reference.masks[i], file, j, threshold, tolerance.mask
            ):
                free[j] = False
                largest = [max(largest[0], boxes[j]), max(largest[1], scores[j])]
                break
        else:
            missing.append(i)
    return missing, largest[0], largest[1]


def _same_mask(mask, file, j, threshold, overlap) -> bool:
    assert file.masks is not None
    height, width = mask.shape
    place = file.masks[j], file.boxes[j], height, width
    is_whole = place[0].dtype == bool
    pasted = place[0] if is_whole else paste(*place, threshold)
    differs = mask ^ pasted
    # a pixel at the threshold, and a mask of fewer than 100 would not be the same
    allowed = max(1, (1 - overlap) * (mask | pasted).sum())
    if differs.sum() > allowed and not is_whole:  # a thin mask is all edge
        differs &= paste(*place, threshold + EDGE) | ~paste(*place, threshold - EDGE)
    return differs.sum() <= allowed


def first_line(error: BaseException) -> str:
    """What an error says, or the one that it was raised from."""
    while error.__cause__:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0][:300] if lines else "(no message)"}'
