"""The roadmap from ResNet-50 to ConvNeXt under a segmentor: what each group of steps brings.

    python -m convnext_dense.evaluation.ladder --data-root FOLDER

Networks of ConvNeXt-atto's size are trained from random weights under UperNet, each with several
seeds. What is done is kept in --work-dir, and the same command goes on after an interruption.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from matplotlib.figure import Figure  # pyplot would change the backend of the user's program

from ..config_names import find_config, inheriting
from ..data.pictures import save_figure
from ..errors import ConfigError
from ..printing import markdown_table, paragraph
from ..roadmap import settings_of
from .kept_rows import Row
from .segmentors import Entry, Options, measured_row
from .timing import machine

BASE = 'demo/upernet_convnext-atto_street'
COMMAND = 'make ladder'


class Rung(NamedTuple):
    """The last step of a group of the roadmap."""

    step: str
    depths: tuple[int, ...]
    width: int
    imagenet: float  # top-1 accuracy of the full size: figure 2 of arXiv 2201.03545


# Two thirds of the depths of the full sizes, and ConvNeXt-atto's width; before the width grows, two
# thirds of it, as 64 is of 96.
RUNGS = {
    'ResNet': Rung('resnet50', (2, 3, 4, 2), 27, 78.8),
    'macro design': Rung('patchify_stem', (2, 2, 6, 2), 27, 79.5),
    'depthwise and width': Rung('increase_width', (2, 2, 6, 2), 40, 80.5),
    'inverted bottleneck': Rung('inverting_dimensions', (2, 2, 6, 2), 40, 80.6),
    'kernel 7': Rung('kernel_size_7', (2, 2, 6, 2), 40, 80.6),
    'ConvNeXt': Rung('separate_downsampling', (2, 2, 6, 2), 40, 82.0),
}
Scores = Mapping[str, Sequence[float]]  # group -> mIoU in percent of each seed
CONFIG = """_base_ = {base}
model = dict(
    backbone=dict(
        _delete_=True,
        type='convnext_dense.Roadmap',
        step={rung.step!r},
        depths={rung.depths},
        width={rung.width},
    ),
    decode_head=dict(in_channels={channels}),
    auxiliary_head=dict(in_channels={channels[2]}),
)
train_cfg = dict(max_iters={iterations}, val_interval={iterations})
default_hooks = dict(checkpoint=dict(interval={half}))
custom_hooks = []
randomness = dict(seed={seed})
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--data-root', default='data/street', help='street scenes in the layout of CamVid')
    add('--seeds', type=int, nargs='+', default=[0, 1, 2])
    add('--iterations', type=int, default=240, help='of every training (default: %(default)s)')
    add('--work-dir', type=Path, default=Path('work_dirs/ladder'))
    add('--out', type=Path, default=Path('docs/ladder.md'), help='page to write, a plot beside it')
    args = parser.parse_args(argv)
    if len(args.seeds) < 2:
        parser.error('--seeds: a difference is judged by the spread of two seeds or more')
    rows = climb(args.seeds, args.iterations, args.data_root, args.work_dir)
    write(rows, args.iterations, args.out)
    print(f'wrote {args.out}')


def climb(
    seeds: Sequence[int], iterations: int, data_root: str, work_dir: Path
) -> dict[str, list[Row]]:
    """Train and score each rung with each seed. All rungs have had a seed before the next begins.

    Returns:
        Group -> a row for each seed.

    Raises:
        ConfigError: a rung cannot be trained or scored.
    """
    find_config(BASE)  # which says so where it is not installed
    work_dir.mkdir(parents=True, exist_ok=True)
    options = Options(work_dir, data_root=data_root, train=True, examples=1)
    rows: dict[str, list[Row]] = {group: [] for group in RUNGS}
    for seed in seeds:
        for group, rung in RUNGS.items():
            name = f'{rung.step}-{seed}'
            path = work_dir / f'{name}.py'
            path.write_text(config_of(rung, seed, iterations), encoding='utf-8')
            done = [row for kept in rows.values() for row in kept]
            row = measured_row(Entry(name, str(path), None), options, done)
            if row.error:
                raise ConfigError(f'{name}: {row.error}')
            rows[group].append(row)
    return rows


def config_of(rung: Rung, seed: int, iterations: int) -> str:
    """The text of its config. Every rung has the demo's optimiser, without layer-wise decay."""
    channels = settings_of(rung.step, rung.depths, rung.width).out_channels()
    return CONFIG.format(
        base=inheriting(BASE),
        rung=rung,
        channels=channels,
        iterations=iterations,
        half=max(1, iterations // 2),
        seed=seed,
    )


# ---- the page ----


def judged(before: Sequence[float], after: Sequence[float]) -> str:
    """The difference of two means; or none, below two standard deviations of a difference.

    The deviation is that of the two samples' differences: the root of the sum of their variances.
    """
    difference = mean(after) - mean(before)
    deviation = (stdev(before) ** 2 + stdev(after) ** 2) ** 0.5
    return f'{difference:+.1f}' if abs(difference) >= 2 * deviation else 'none'


def table(scores: Scores, rows: Mapping[str, Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells.

    Args:
        rows: group -> one of its rows, for parameters and multiply-adds.
    """
    header = ['group', 'last step', 'parameters, M', 'GFLOPs', 'mIoU', 'difference']
    header += ['to ResNet', 'ImageNet, full size', 'difference']
    groups, cells = list(scores), []
    for i, (group, values) in enumerate(scores.items()):
        rung, row = RUNGS[group], rows[group]
        published = step = total = ''
        if i:
            before = groups[i - 1]
            step, total = judged(scores[before], values), judged(scores[groups[0]], values)
            published = f'{rung.imagenet - RUNGS[before].imagenet:+.1f}'
        cost = f'{(row.parameters or 0) / 1e6:.1f}', f'{(row.flops or 0) / 1e9:.1f}'
        score = f'{mean(values):.1f} ± {stdev(values):.1f}'
        cells.append([group, f'`{rung.step}`', *cost, score, step, total])
        cells[-1] += [f'{rung.imagenet:.1f}', published]
    return header, cells


def write(rows: Mapping[str, Sequence[Row]], iterations: int, out: Path) -> None:
    """The page, and its plot beside it."""
    scores = {group: [row.metrics['mIoU'] for row in kept] for group, kept in rows.items()}
    first = {group: kept[0] for group, kept in rows.items()}
    seeds, images = len(rows['ResNet']), first['ResNet'].images
    facts = machine('cpu')
    about = ', '.join(f'{key} {facts[key]}' for key in ('hardware', 'threads', 'torch'))
    plot = out.with_suffix('.png')
    blocks = [
        '# The ladder from ResNet-50 to ConvNeXt, under a segmentor',
        paragraph(
            f'Written by `{COMMAND}` ({about}). UperNet on CamVid at two thirds of its size, from '
            f'random weights, {iterations} iterations of 8 crops with one optimiser for all; mIoU '
            f'in percent on {images} test images, mean and standard deviation of {seeds} seeds. '
            "Depths are two thirds of the paper's, the width is ConvNeXt-atto's. FLOPs are of the "
            'whole segmentor. A difference below two standard deviations is called none. Beside it '
            "the paper's top-1 accuracy on ImageNet, at full size and trained for 300 epochs "
            '(figure 2 of arXiv 2201.03545).'
        ),
        markdown_table(*table(scores, first)),
        f'![mIoU of each group, and its accuracy on ImageNet in the paper]({plot.name})',
        paragraph(
            'So short a training tells how fast a network begins to learn, and not what it can '
            'reach; the two columns answer different questions.'
        ),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text('\n\n'.join(blocks) + '\n', encoding='utf-8')
    save_figure(draw(scores), plot, 120)


def draw(scores: Scores) -> Figure:
    """mIoU of each seed and its mean, above the paper's accuracies."""
    figure = Figure(figsize=(9, 5), layout='constrained')
    upper, lower = figure.subplots(2, 1, sharex=True)
    groups = list(scores)
    for i, values in enumerate(scores.values()):
        upper.plot([i] * len(values), values, 'o', color='tab:blue', alpha=0.5)
    upper.plot(groups, [mean(values) for values in scores.values()], color='tab:blue')
    upper.set_ylabel('mIoU here, %')
    lower.plot(groups, [RUNGS[group].imagenet for group in groups], 'o-', color='tab:grey')
    lower.set_ylabel("ImageNet top-1, %\n(the paper's, full size)")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    return figure


if __name__ == '__main__':
    main()
