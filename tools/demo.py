#!/usr/bin/env python3
"""Train, evaluate and show: Mask R-CNN and UperNet on ConvNeXt-atto, from random weights, on generated data.

    python tools/demo.py                                        # about ten minutes on two CPU cores
    python tools/demo.py --seeds 0 1 2 --report docs/demo.md    # the table that the docs show

Leaves OUT/index.html, the pictures in it, and OUT/results.json. Models are trained and tested by tools/train.py and
tools/test.py, exactly as a user would run them.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import demo_data
import matplotlib
import numpy as np
from common import follow
from PIL import Image

from convnext_dense.pictures import overlay

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
TASKS = {'Mask R-CNN': 'mask-rcnn_convnext-atto_shapes', 'UperNet': 'upernet_convnext-atto_shapes'}
METRICS = {  # column of the table -> key in the metrics of tools/test.py, and its unit
    'box AP': ('Mask R-CNN', 'coco/bbox_mAP', 1),
    'box AP50': ('Mask R-CNN', 'coco/bbox_mAP_50', 1),
    'mask AP': ('Mask R-CNN', 'coco/segm_mAP', 1),
    'mask AP50': ('Mask R-CNN', 'coco/segm_mAP_50', 1),
    'mIoU': ('UperNet', 'mIoU', 100),
}


def run_tool(title, log, *command):
    """Run a tool with its output in ``log``; of its progress, one short line at a time reaches the screen."""
    start = time.time()
    try:
        for mode, done, total, loss in follow(command, log):
            if mode == 'train' or done == total:
                print(
                    f'   {title}: {mode:5} {done:>4}/{total}  {f"loss {loss:.3f}  " if loss else ""}{time.time() - start:4.0f} s',
                    flush=True,
                )
    except RuntimeError as error:
        sys.exit(f'{"".join(Path(log).read_text().splitlines(True)[-20:])}\n{error}')


def train_and_test(task, seed, folder, data):
    """Returns the metrics on the test split. Logs, checkpoint and curves stay in ``folder``."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = ROOT / 'configs' / 'demo' / f'{TASKS[task]}.py'
    options = [
        '--data-root',
        data / ('coco' if task == 'Mask R-CNN' else 'ade'),
        '--cfg-options',
        f'randomness.seed={seed}',
    ]
    print(f'-> {task}, seed {seed}', flush=True)
    run_tool(
        'train',
        folder / 'train.log',
        ROOT / 'tools' / 'train.py',
        config,
        '--work-dir',
        folder,
        *options,
    )
    checkpoint = (folder / 'last_checkpoint').read_text()
    run_tool(
        'test',
        folder / 'test.log',
        ROOT / 'tools' / 'test.py',
        config,
        checkpoint,
        '--work-dir',
        folder / 'test',
        *options,
    )
    return json.loads(next((folder / 'test').glob('*/*.json')).read_text())


def instance_map(masks, kinds):
    """Masks (K, H, W) and class indices (K,) -> palette indices, later masks on top; and a map of the instances."""
    label = np.zeros((demo_data.SIZE, demo_data.SIZE), int)
    for mask, kind in zip(masks, kinds):
        label[mask] = 1 + len(demo_data.STUFF) + kind
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
                overlay(image, labels, demo_data.PALETTE)
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
        plt.Rectangle((0, 0), 1, 1, color=colour)
        for colour in np.array(demo_data.PALETTE[1:]) / 255
    ]
    figure.legend(handles, demo_data.STUFF + demo_data.SHAPES, ncols=7, loc='outside lower center')
    figure.savefig(path, dpi=90)
    plt.close(figure)


def hue_hint():
    """Share of instances whose class the nearest class hue gives: what colour alone is worth. Chance is 0.2."""
    offset = np.random.default_rng(0).normal(0, demo_data.HUE_SPREAD, 100000)
    return float(
        np.mean(np.round((offset % 1) * len(demo_data.SHAPES)) % len(demo_data.SHAPES) == 0)
    )


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
    counts = demo_data.SPLITS
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


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'demo')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument(
        '--report',
        type=Path,
        help='also write the table to this Markdown file, and the picture beside it',
    )
    args = parser.parse_args()

    start, out = time.time(), args.out.resolve()
    data = out / 'data'
    print('The demo takes about ten minutes a seed on two CPU cores.')
    out.mkdir(parents=True, exist_ok=True)
    demo_data.write(data, demo_data.SPLITS)
    results = {}
    for seed in args.seeds:
        measured = {
            task: train_and_test(task, seed, out / f'{name}-{seed}', data)
            for task, name in TASKS.items()
        }
        results[seed] = {
            name: measured[task][key] / unit for name, (task, key, unit) in METRICS.items()
        }
    folders = {task: out / f'{name}-{args.seeds[0]}' for task, name in TASKS.items()}
    print('-> pictures', flush=True)
    draw_predictions(folders, data, out / 'predictions.png')
    rows = table(results)
    write_page(out / 'index.html', rows, folders)
    (out / 'results.json').write_text(json.dumps(results, indent=1))
    if args.report:
        args.report.write_text(
            f'# What the demo reaches\n\nWritten by `make demo-seeds`.\n\n{markdown(rows)}\n\n'
            f'{explanation()}\n'
        )
        Image.open(out / 'predictions.png').quantize(256).save(args.report.with_suffix('.png'))
    print(
        f'\n{markdown(rows)}\n\n{explanation()}\nDone in {(time.time() - start) / 60:.1f} minutes. Open {out}/index.html'
    )


if __name__ == '__main__':
    main()
