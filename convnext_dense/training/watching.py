"""Hooks that show how a training goes: curves and examples as pictures in the work dir, renewed at every evaluation."""

from io import BytesIO
from pathlib import Path

import numpy as np
from mmengine.dist import master_only
from mmengine.fileio import get
from mmengine.hooks import Hook
from PIL import Image

from ..data.pictures import overlay, read, with_legend
from ..registry import HOOKS

STEPS = 'watch/iter'  # at which evaluations took place, kept in the message hub like all curves: a resumed run goes on with them
POINTS = 200  # of a loss curve; between them it is averaged


@HOOKS.register_module()
class CurvesHook(Hook):
    """``WORK_DIR/curves.png``: losses, metrics, and the learning rate of every layer group."""

    priority = 'LOW'  # after the metrics have reached the message hub

    @master_only
    def after_val_epoch(self, runner, metrics=None) -> None:
        if runner.iter and metrics:
            runner.message_hub.update_scalar(STEPS, runner.iter)
            _try(runner, lambda: self._draw(runner, _place(runner, 'curves.png')))

    def _draw(self, runner, path):
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure  # not pyplot: it would change the user's backend

        figure = Figure(figsize=(15, 5.6), layout='constrained')
        FigureCanvasAgg(figure)
        loss, metric, rate = figure.subplots(1, 3)
        for axis in (loss, metric):
            axis.set_prop_cycle(color=colormaps['tab10'].colors + colormaps['Dark2'].colors)
        curves = {name: buffer.data[0] for name, buffer in runner.message_hub.log_scalars.items()}
        for name, values in sorted(curves.items()):
            kind, _, name = name.partition('/')
            if kind == 'train' and 'loss' in name:
                loss.plot(*_averaged(values), label=name, linewidth=2.5 if name == 'loss' else 1)
            elif (
                kind == 'val' and not name.endswith('time') and (values >= 0).any()
            ):  # COCO says -1 where there are no such objects
                at = curves[STEPS][
                    -len(values) :
                ]  # a run that began without this hook has more values
                metric.plot(at, values[-len(at) :], marker='o', markersize=4, label=name)
        base = curves.get('train/base_lr', curves.get('train/lr', np.zeros(0)))
        scales = sorted(
            {group.get('lr_scale', 1.0) for group in _groups(runner.optim_wrapper)}, reverse=True
        )
        for i, scale in enumerate(scales):
            rate.plot(
                np.arange(1, len(base) + 1),
                base * scale,
                color=(0.1, 0.2 + 0.6 * i / len(scales), 0.9 - 0.6 * i / len(scales)),
                label=f'layers at {scale:.3g} of it'
                if i
                else 'heads'
                if len(scales) > 1
                else 'all',
            )
        for axis, title in (
            (loss, 'training losses'),
            (metric, 'evaluation'),
            (rate, 'learning rate'),
        ):
            axis.set(title=title, xlabel='iteration')
            axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            axis.grid(alpha=0.3)
            if axis.lines:
                axis.legend(
                    fontsize=8, loc='upper center', bbox_to_anchor=(0.5, -0.12), ncols=3
                )  # below: it would hide lines
        loss.set_ylim(0)
        figure.savefig(path, dpi=100)


@HOOKS.register_module()
class ExamplesHook(Hook):
    """``WORK_DIR/examples/iter_N.png``: a few images of the validation split, the same ones every time, with the truth on the left
    and the prediction on the right.

    Args:
        count: number of images, spread evenly over the split.
    """

    def __init__(self, count: int = 4):
        self.count, self._rows = count, []

    def before_val_epoch(self, runner) -> None:
        self._rows = []
        total = len(runner.val_dataloader)
        self._chosen = {i * total // self.count for i in range(min(self.count, total))}

    @master_only
    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if runner.iter and batch_idx in self._chosen:
            _try(
                runner, lambda: self._rows.append(draw_example(runner.visualizer, outputs[0].cpu()))
            )

    @master_only
    def after_val_epoch(self, runner, metrics=None) -> None:
        if self._rows:
            _try(runner, lambda: self._save(runner))

    def _save(self, runner):
        width = max(row.shape[1] for row, _ in self._rows)
        rows = [
            np.pad(row, ((0, 8), (0, width - row.shape[1]), (0, 0)), constant_values=255)
            for row, _ in self._rows
        ]
        present = sorted(set().union(*(present for _, present in self._rows)))
        names, colours = (
            [runner.visualizer.dataset_meta[key][i] for i in present]
            for key in ('classes', 'palette')
        )
        picture = with_legend(np.concatenate(rows), names, colours)
        Image.fromarray(picture).save(_place(runner, f'examples/iter_{runner.iter}.png'))
        runner.visualizer.add_image('examples', picture, step=runner.iter)


def draw_example(visualizer, sample) -> tuple[np.ndarray, set[int]]:
    """A data sample of mmseg or mmdet with its ``img_path`` -> (H, W, 3) uint8, truth and prediction side by side; and the classes in
    it that need a legend."""
    image, meta = read(BytesIO(get(sample.img_path)))[0], visualizer.dataset_meta
    if 'pred_sem_seg' not in sample:
        own = type(visualizer)()  # with no backend that would keep the picture
        own.dataset_meta = meta
        own.add_datasample('example', image, sample)
        return own.get_image(), set()
    maps = [
        sample.get(name).data.squeeze(0).numpy()
        for name in ('gt_sem_seg', 'pred_sem_seg')
        if name in sample
    ]
    present = set(np.unique(maps).tolist()) & set(range(len(meta['classes'])))
    return np.concatenate([overlay(image, one, meta['palette']) for one in maps], axis=1), present


def _averaged(values):
    """Values of every iteration -> iterations and values of at most POINTS points."""
    parts = np.array_split(np.arange(len(values)), min(POINTS, len(values)))
    return [part[-1] + 1 for part in parts], [np.mean(values[part]) for part in parts]


def _groups(optim_wrapper):
    """Of one optimiser, or of several in a dict."""
    parts = (
        [optim_wrapper]
        if hasattr(optim_wrapper, 'param_groups')
        else [part for _, part in optim_wrapper.items()]
    )
    return [group for part in parts for group in part.param_groups]


def _place(runner, name):
    path = Path(runner.work_dir, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _try(runner, draw):
    """A picture that cannot be drawn (a full disk, samples of another kind) is no reason to end the training."""
    try:
        draw()
    except Exception as error:
        runner.logger.warning(f'no picture of the training: {type(error).__name__}: {error}')
