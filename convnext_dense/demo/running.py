"""The demo: Mask R-CNN and UperNet on ConvNeXt-atto are trained from random weights on generated
data, evaluated and shown."""

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure  # pyplot would change the backend of the user's program
from matplotlib.patches import Patch
from PIL import Image

from ..data.pictures import overlay, save_figure
from ..pages import render
from ..printing import markdown_table
from ..training.running import follow
from . import scenes

TASKS = {'Mask R-CNN': 'mask-rcnn_convnext-atto_shapes', 'UperNet': 'upernet_convnext-atto_shapes'}
METRICS = {  # column of the table -> task, key in the metrics of the test, and what 1 is there
    'box AP': ('Mask R-CNN', 'coco/bbox_mAP', 1),
    'box AP50': ('Mask R-CNN', 'coco/bbox_mAP_50', 1),
    'mask AP': ('Mask R-CNN', 'coco/segm_mAP', 1),
    'mask AP50': ('Mask R-CNN', 'coco/segm_mAP_50', 1),
    'mIoU': ('UperNet', 'mIoU', 100),
}
Results = Mapping[int, Mapping[str, float]]  # seed -> column of METRICS -> value, 0 ... 1


def run_demo(out: Path, seeds: Sequence[int], report: Path | None = None) -> str:
    """Train and test both tasks with every seed, and write what they reach.

    Leaves in ``out``: ``index.html``, the pictures in it, ``results.json``, and a folder for each
    run. The pictures are of the first seed.

    Args:
        report: Markdown file for the table, with a picture beside it.

    Returns:
        The table with its explanation, as Markdown.

    Raises:
        ConfigError: ``out/data`` is there and holds something else.
    """
    scenes.write(out / 'data', scenes.SPLITS)
    results = {seed: train_and_test(seed, out) for seed in seeds}
    folders = {task: out / f'{name}-{seeds[0]}' for task, name in TASKS.items()}
    print('-> pictures', flush=True)
    draw_predictions(folders, out / 'data', out / 'predictions.png')
    header, rows = table(results)
    pictures = {'Predictions beside the truth, on test scenes': 'predictions.png'}
    for task, folder in folders.items():
        title = f'{task}: losses, scores and the learning rate of each layer group'
        pictures[title] = f'{folder.name}/curves.png'
    explained = explanation()
    values = dict(explanation=explained, header=header, rows=rows, pictures=pictures)
    (out / 'index.html').write_text(render('demo_page.html', **values))
    (out / 'results.json').write_text(json.dumps(results, indent=1))
    text = f'{markdown_table(header, rows)}\n\n{textwrap.fill(explained, 100)}\n'
    if report:
        report.write_text(f'# What the demo reaches\n\nWritten by `convnext-dense demo`.\n\n{text}')
        Image.open(out / 'predictions.png').quantize(256).save(report.with_suffix('.png'))
    return text


def train_and_test(seed: int, out: Path) -> dict[str, float]:
    """Column of ``METRICS`` -> value on the test split. Logs, checkpoints and curves stay in a
    folder of ``out`` for each task."""
    metrics = {}
    for task, name in TASKS.items():
        folder, config = out / f'{name}-{seed}', f'demo/{name}'
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        data = out / 'data' / ('coco' if task == 'Mask R-CNN' else 'ade')
        options = ['--data-root', data, '--cfg-options', f'randomness.seed={seed}']
        print(f'-> {task}, seed {seed}', flush=True)
        run_command('train', folder / 'train.log', config, '--work-dir', folder, *options)
        checkpoint, test = (folder / 'last_checkpoint').read_text(), folder / 'test'
        run_command('test', folder / 'test.log', config, checkpoint, '--work-dir', test, *options)
        metrics[task] = json.loads(next(test.glob('*/*.json')).read_text())
    return {name: metrics[task][key] / unit for name, (task, key, unit) in METRICS.items()}


def run_command(name: str, log: Path, *arguments) -> None:
    """``train`` or ``test`` with its output in ``log``, and lines of progress on the screen. If it
    fails, the program ends with the end of the log."""
    start = time.time()
    try:
        for mode, done, total, loss in follow(name, arguments, log):
            if mode == 'train' or done == total:
                shown = '' if loss is None else f'loss {loss:.3f}  '
                seconds = f'{time.time() - start:4.0f} s'
                print(f'   {name}: {mode:5} {done:>4}/{total}  {shown}{seconds}', flush=True)
    except RuntimeError as error:
        sys.exit(f'{"".join(log.read_text().splitlines(True)[-20:])}\n{error}')


def draw_predictions(folders: Mapping[str, Path], data: Path, path: Path, count: int = 6) -> None:
    """Draw a column for each of ``count`` test images, spread evenly: the image, the instances and
    the semantic map, each as they are and as they are predicted.

    Args:
        folders: task -> work directory of its training.
        data: folder of the generated scenes.
    """
    from mmdet.apis import inference_detector, init_detector
    from mmseg.apis import inference_model, init_model
    from pycocotools.coco import COCO

    def trained(init, task):
        config = next(folders[task].glob('*.py'))
        return init(str(config), (folders[task] / 'last_checkpoint').read_text(), device='cpu')

    coco = COCO(str(data / 'coco' / 'annotations' / 'instances_test2017.json'))
    ids = np.linspace(0, len(coco.imgs) - 1, count).astype(int).tolist()
    names = [coco.imgs[i]['file_name'] for i in ids]
    files = [str(data / 'coco' / 'test2017' / name) for name in names]
    # One model after the other: each sets the default scope of the registries to its framework's.
    detector = trained(init_detector, 'Mask R-CNN')
    detections = [inference_detector(detector, file).pred_instances for file in files]
    segmentor = trained(init_model, 'UperNet')
    segmented = [inference_model(segmentor, file).pred_sem_seg for file in files]

    figure = Figure(figsize=(1.9 * count, 9.7), layout='constrained')
    grid = figure.subplots(5, count)
    for column, (i, name) in enumerate(zip(ids, names)):
        image = np.array(Image.open(files[column]))
        truth = coco.loadAnns(coco.getAnnIds(i))
        masks = [coco.annToMask(annotation).astype(bool) for annotation in truth]
        kinds = [annotation['category_id'] - 1 for annotation in truth]
        detected = detections[column]
        detected = detected[detected.scores > 0.5].cpu().numpy()
        label_file = (data / 'ade' / 'annotations' / 'test' / name).with_suffix('.png')
        maps = [
            instance_map(masks, kinds),
            instance_map(detected.masks[::-1], detected.labels[::-1]),  # the surest on top
            np.array(Image.open(label_file)),
            segmented[column].data[0].numpy() + 1,
        ]
        pictures = [image, *(overlay(image, labels, scenes.PALETTE) for labels in maps)]
        for axes, picture in zip(grid[:, column], pictures):
            axes.imshow(picture)
            axes.set(xticks=[], yticks=[])
    titles = (
        'image',
        'instances:\ntruth',
        'instances:\nMask R-CNN',
        'semantic map:\ntruth',
        'semantic map:\nUperNet',
    )
    for axes, title in zip(grid[:, 0], titles):
        axes.set_ylabel(title)
    handles = [Patch(color=colour) for colour in np.array(scenes.PALETTE[1:]) / 255]
    figure.legend(handles, scenes.STUFF + scenes.SHAPES, ncols=7, loc='outside lower center')
    save_figure(figure, path, 90)


def instance_map(masks: Sequence[np.ndarray], kinds: Sequence[int]) -> np.ndarray:
    """Masks (SIZE, SIZE) bool and the indices of their shapes -> indices of the palette (SIZE,
    SIZE), later masks on top."""
    labels = np.zeros((scenes.SIZE, scenes.SIZE), int)
    for mask, kind in zip(masks, kinds):
        labels[mask] = 1 + len(scenes.STUFF) + kind
    return labels


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a row for each seed, and the lowest values where there are several."""
    rows = {str(seed): values for seed, values in results.items()}
    if len(rows) > 1:
        lowest = {name: min(values[name] for values in results.values()) for name in METRICS}
        rows['lowest'] = lowest
    cells = [[name, *(f'{row[metric]:.3f}' for metric in METRICS)] for name, row in rows.items()]
    return ['seed', *METRICS], cells


def hue_hint() -> float:
    """Share of the instances whose class the nearest class hue gives: how far colour alone goes.
    Chance is 0.2."""
    offset = np.random.default_rng(0).normal(0, scenes.HUE_SPREAD, 100000)
    return float(np.mean(np.round((offset % 1) * len(scenes.SHAPES)) % len(scenes.SHAPES) == 0))


def explanation() -> str:
    counts = scenes.SPLITS
    return (
        f'Trained on {counts["train"]} generated scenes from random weights, scored once on '
        f'{counts["test"]} scenes that no setting was chosen on. The data are easy: five shapes, '
        'two kinds of background, and colour hints at the class (guessing the class from the hue '
        f'alone is right for {hue_hint():.0%} of the instances, chance is 20%).'
    )
