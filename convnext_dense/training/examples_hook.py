"""Draws examples while a model is trained: the truth beside the prediction."""

from io import BytesIO

import numpy as np
from mmengine.dist import master_only
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

from ..data.pictures import labels_of, overlay, read, with_legend
from ..registry import HOOKS
from .drawing import failures_as_warnings, path_in_work_dir


@HOOKS.register_module()
class ExamplesHook(Hook):
    """Writes ``WORK_DIR/examples/iter_N.png`` at every evaluation: a few images of the validation
    split, always the same, with the truth on the left and the prediction on the right.

    Args:
        count: number of images, spread evenly over the split.
    """

    def __init__(self, count: int = 4):
        self.count = count

    def before_val_epoch(self, runner: Runner) -> None:
        total = len(runner.val_dataloader)
        self._chosen = {i * total // self.count for i in range(min(self.count, total))}
        self._examples: list[tuple[np.ndarray, set[int]]] = []

    @master_only
    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if runner.iter and batch_idx in self._chosen:
            with failures_as_warnings(runner):
                self._examples.append(draw_example(runner.visualizer, outputs[0].cpu()))

    @master_only
    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        if self._examples:
            with failures_as_warnings(runner):
                picture = self._below_each_other(runner.visualizer.dataset_meta)
                path = path_in_work_dir(runner, f'examples/iter_{runner.iter}.png')
                Image.fromarray(picture).save(path)
                runner.visualizer.add_image('examples', picture, step=runner.iter)

    def _below_each_other(self, meta):
        pictures, classes = zip(*self._examples)
        width = max(picture.shape[1] for picture in pictures)
        rows = [
            np.pad(picture, ((0, 8), (0, width - picture.shape[1]), (0, 0)), constant_values=255)
            for picture in pictures
        ]
        present = sorted(set().union(*classes))
        names, colours = ([meta[key][i] for i in present] for key in ('classes', 'palette'))
        return with_legend(np.concatenate(rows), names, colours)


def draw_example(visualizer, sample) -> tuple[np.ndarray, set[int]]:
    """The truth and the prediction of an image, side by side.

    Args:
        visualizer: of mmdet or mmseg; its ``dataset_meta`` has the classes and colours.
        sample: data sample of mmdet or mmseg with its ``img_path``, on the CPU.

    Returns:
        Picture (H, 2 W, 3) uint8, and the classes in it that need a legend: mmdet's visualizer
        writes the names of the classes into the picture.
    """
    image, meta = read(BytesIO(get(sample.img_path)))[0], visualizer.dataset_meta
    if 'pred_sem_seg' not in sample:
        drawing = type(visualizer)()  # without the backends, which would save this picture as well
        drawing.dataset_meta = meta
        drawing.add_datasample('example', image, sample)
        return drawing.get_image(), set()
    parts = [sample.get(name) for name in ('gt_sem_seg', 'pred_sem_seg') if name in sample]
    maps = [labels_of(part) for part in parts]
    present = set(np.unique(maps).tolist()) & set(range(len(meta['classes'])))
    painted = [overlay(image, labels, meta['palette']) for labels in maps]
    return np.concatenate(painted, axis=1), present
