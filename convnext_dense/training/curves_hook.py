"""Draws the curves of a training: losses, metrics and learning rates."""

from pathlib import Path

import numpy as np
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..data.pictures import save_figure
from ..registry import HOOKS
from .drawing import failures_as_warnings, path_in_work_dir

# The iterations of the evaluations. They are kept in the message hub, as all curves are, and so in
# checkpoints: the curves of a resumed run begin with those of the first.
EVALUATED_AT = 'watch/iter'
POINTS = 200  # of a loss curve; each is the mean over the iterations since the last


@HOOKS.register_module()
class CurvesHook(Hook):
    """Writes ``WORK_DIR/curves.png`` anew at every evaluation: the losses, the metrics, and the
    learning rate of every layer group, over iterations."""

    priority = 'LOW'  # after the metrics have reached the message hub

    @master_only
    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        if runner.iter and metrics:
            runner.message_hub.update_scalar(EVALUATED_AT, runner.iter)
            with failures_as_warnings(runner):
                draw_curves(runner, path_in_work_dir(runner, 'curves.png'))


def draw_curves(runner: Runner, path: Path) -> None:
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # pyplot would change the backend of the user's program

    figure = Figure(figsize=(15, 5.6), layout='constrained')
    losses, evaluation, rates = figure.subplots(1, 3)
    palettes = ('tab10', 10), ('Dark2', 8)
    colours = [colormaps[name](i) for name, count in palettes for i in range(count)]
    losses.set_prop_cycle(color=colours)
    evaluation.set_prop_cycle(color=colours)
    scalars = runner.message_hub.log_scalars.items()
    curves = {name: buffer.data[0] for name, buffer in scalars}
    for full_name, values in sorted(curves.items()):
        kind, _, name = full_name.partition('/')
        if kind == 'train' and 'loss' in name:
            losses.plot(*_averaged(values), label=name, linewidth=2.5 if name == 'loss' else 1)
        # COCO's metric is -1 where there are no objects of the kind
        elif kind == 'val' and not name.endswith('time') and (values >= 0).any():
            # a run that began without this hook has more values than known iterations
            at = curves[EVALUATED_AT][-len(values) :]
            evaluation.plot(at, values[-len(at) :], marker='o', markersize=4, label=name)
    _draw_rates(rates, curves, runner.optim_wrapper)
    titles = 'training losses', 'evaluation', 'learning rate'
    for axes, title in zip((losses, evaluation, rates), titles):
        axes.set(title=title, xlabel='iteration')
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
        if axes.lines:  # the legend is below them, where it hides none
            axes.legend(fontsize=8, loc='upper center', bbox_to_anchor=(0.5, -0.12), ncols=3)
    losses.set_ylim(0)
    save_figure(figure, path, 100)


def _draw_rates(axes, curves, optim_wrapper):
    """A line for each scale that layer-wise decay gives a group, from the heads to the stem."""
    base = curves.get('train/base_lr', curves.get('train/lr', np.zeros(0)))
    # of one optimiser, or of several in a dict
    is_single = hasattr(optim_wrapper, 'param_groups')
    wrappers = [optim_wrapper] if is_single else [wrapper for _, wrapper in optim_wrapper.items()]
    groups = [group for wrapper in wrappers for group in wrapper.param_groups]
    scales = sorted({group.get('lr_scale', 1.0) for group in groups}, reverse=True)
    for i, scale in enumerate(scales):
        share = i / len(scales)
        label = f'layers at {scale:.3g} of it' if i else 'heads' if len(scales) > 1 else 'all'
        colour = 0.1, 0.2 + 0.6 * share, 0.9 - 0.6 * share
        axes.plot(np.arange(1, len(base) + 1), base * scale, color=colour, label=label)


def _averaged(values):
    """Values of every iteration -> iterations and mean values of at most ``POINTS`` points."""
    parts = np.array_split(np.arange(len(values)), min(POINTS, len(values)))
    return [part[-1] + 1 for part in parts], [np.mean(values[part]) for part in parts]
