"""Train, evaluate and show: Mask R-CNN and UperNet on ConvNeXt-atto, from random weights, on generated data."""

import json
import shutil
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from ..data.pictures import overlay
from ..training.running import follow
from . import scenes

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TASKS = {'Mask R-CNN': 'mask-rcnn_convnext-atto_shapes', 'UperNet': 'upernet_convnext-atto_shapes'}
METRICS = {  # column of the table -> key in the metrics of tools/test.py, and its unit
    'box AP': ('Mask R-CNN', 'coco/bbox_mAP', 1),
    'box AP50': ('Mask R-CNN', 'coco/bbox_mAP_50', 1),
    'mask AP': ('Mask R-CNN', 'coco/segm_mAP', 1),
    'mask AP50': ('Mask R-CNN', 'coco/segm_mAP_50', 1),
    'mIoU': ('UperNet', 'mIoU', 100),
}


def run_command(name, log, *arguments):
    """``train`` or ``test`` with its output in ``log``, and a line of progress on the screen."""
    start = time.time()
    try:
        for mode, done, total, loss in follow(name, arguments, log):
            if mode == 'train' or done == total:
                shown = '' if loss is None else f'loss {loss:.3f}  '
                seconds = f'{time.time() - start:4.0f} s'
                print(f'   {name}: {mode:5} {done:>4}/{total}  {shown}{seconds}', flush=True)
    except RuntimeError as error:
        sys.exit(f'{"".join(Path(log).read_text().splitlines(True)[-20:])}\n{error}')


def train_and_test(task, seed, folder, data):
    """Returns the metrics on the test split. Logs, checkpoint and curves stay in ``folder``."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = ROOT / 'configs' / 'demo' / f'{TASKS[task]}.py'
    data /= 'coco' if task == 'Mask R-CNN' else 'ade'
    options = ['--data-root', data, '--cfg-options', f'randomness.seed={seed}']
    print(f'-> {task}, seed {seed}', flush=True)
    run_command('train', folder / 'train.log', config, '--work-dir', folder, *options)
    arguments = config, (folder / 'last_checkpoint').read_text(), '--work-dir', folder / 'test'
    run_command('test', folder / 'test.log', *arguments, *options)
    return json.loads(next((folder / 'test').glob('*/*.json')).read_text())


def instance_map(masks, kinds):
    """Masks (K, H, W) and class indices (K,) -> palette indices, later masks on top; and a map of the instances."""
    label = np.zeros((scenes.SIZE, scenes.SIZE), int)
    for mask, kind in zip(masks, kinds):
        label[mask] = 1 + len(scenes.STUFF) + kind
    return label


def draw_predictions(folders, data, path, count=6):
    """Rows: image, true instances, predicted instances, true map, predicted map, for test images spread evenly."""
    from mmdet.apis import inference_detector, init_detector
    from mmseg.apis import inference_model, init_model
    from pycocotools.coco import COCO

    def last(task):
        return str(next(folders[task].glob('*.py'))), (
            folders[task] / 'last_checkpoint'
        ).read_text()

    coco = COCO(str(data / 'coco' / 'annotations' / 'instances_test2017.json'))
    ids = np.linspace(0, len(coco.imgs) - 1, count).astype(int)
    names = [coco.imgs[int(i)]['file_name'] for i in ids]
    files = [str(data / 'coco' / 'test2017' / name) for name in names]
    detector = init_detector(*last('Mask R-CNN'), device='cpu')
    detections = [inference_detector(detector, file).pred_instances for file in files]
    segmentor = init_model(*last('UperNet'), device='cpu')
    maps = [inference_model(segmentor, file).pred_sem_seg.data[0].numpy() + 1 for file in files]

    figure, axes = plt.subplots(5, count, figsize=(1.9 * count, 9.7), constrained_layout=True)
    titles = (
        'image',
        'instances:\ntruth',
        'instances:\nMask R-CNN',
        'semantic map:\ntruth',
        'semantic map:\nUperNet',
    )
    for column, (i, name, file, found, predicted) in enumerate(
        zip(ids, names, files, detections, maps)
    ):
        image = np.array(Image.open(file))
        truth = coco.loadAnns(coco.getAnnIds(int(i)))
        found = found[found.scores > 0.5].cpu().numpy()
        semantic = np.array(
            Image.open((data / 'ade' / 'annotations' / 'test' / name).with_suffix('.png'))
        )
        rows = [
            image,
            *(
                overlay(image, labels, scenes.PALETTE)
                for labels in (
                    instance_map(
                        [coco.annToMask(a).astype(bool) for a in truth],
                        [a['category_id'] - 1 for a in truth],
                    ),
                    instance_map(found.masks[::-1], found.labels[::-1]),
                    semantic,
                    predicted,
                )
            ),
        ]
        for axis, picture in zip(axes[:, column], rows):
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[:, 0], titles):
        axis.set_ylabel(title)
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=colour) for colour in np.array(scenes.PALETTE[1:]) / 255
    ]
    figure.legend(handles, scenes.STUFF + scenes.SHAPES, ncols=7, loc='outside lower center')
    figure.savefig(path, dpi=90)
    plt.close(figure)


def hue_hint():
    """Share of instances whose class the nearest class hue gives: what colour alone is worth. Chance is 0.2."""
    offset = np.random.default_rng(0).normal(0, scenes.HUE_SPREAD, 100000)
    return float(np.mean(np.round((offset % 1) * len(scenes.SHAPES)) % len(scenes.SHAPES) == 0))


def table(results):
    """Results by seed -> rows of strings: header, one row a seed, and the lowest where there are several."""
    rows = [['seed', *METRICS]]
    rows += [
        [seed, *(f'{values[name]:.3f}' for name in METRICS)] for seed, values in results.items()
    ]
    if len(results) > 1:
        rows.append(
            [
                'lowest',
                *(f'{min(values[name] for values in results.values()):.3f}' for name in METRICS),
            ]
        )
    return rows


def markdown(rows):
    lines = [f'| {" | ".join(map(str, row))} |' for row in rows]
    return '\n'.join([lines[0], '|---' * len(rows[0]) + '|', *lines[1:]])


def explanation():
    counts = scenes.SPLITS
    return (
        f'Trained on {counts["train"]} generated scenes from random weights, scored once on {counts["test"]} scenes '
        'that no setting was chosen on. The data are easy: five shapes, two kinds of background, and colour hints at '
        f'the class (guessing the class from the hue alone is right for {hue_hint():.0%} of the instances, chance '
        'is 20%).'
    )


def write_page(path, rows, folders):
    body = ''.join('<tr>' + ''.join(f'<td>{cell}</td>' for cell in row) + '</tr>' for row in rows)
    pictures = ''.join(
        f'<h2>{title}</h2><img src="{file}" alt="{title}">'
        for title, file in (
            ('Predictions beside the truth, on test scenes', 'predictions.png'),
            *(
                (
                    f'{task}: losses, scores and the learning rate of each layer group',
                    f'{folder.name}/curves.png',
                )
                for task, folder in folders.items()
            ),
        )
    )
    path.write_text(
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>convnext_dense demo</title>'
        '<style>body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}'
        'img{max-width:100%}table{border-collapse:collapse}td{padding:.3rem .9rem;border-bottom:1px solid #ccc;'
        'text-align:right}tr:first-child{font-weight:600}</style>'
        f'<h1>ConvNeXt-atto under Mask R-CNN and UperNet</h1><p>{explanation()}</p><table>{body}</table>{pictures}</html>'
    )
