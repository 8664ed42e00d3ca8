"""Train, evaluate and show: Mask R-CNN and UperNet on ConvNeXt-atto, from random weights, on generated data.

    python tools/demo.py                                        # about ten minutes on two CPU cores
    python tools/demo.py --seeds 0 1 2 --report docs/demo.md    # the table that the docs show

Leaves OUT/index.html, the pictures in it, and OUT/results.json. Models are trained and tested by tools/train.py and
tools/test.py, exactly as a user would run them.
"""

import json
import time
from pathlib import Path

from PIL import Image

from ..demo import scenes
from ..demo.running import (
    METRICS,
    ROOT,
    TASKS,
    draw_predictions,
    explanation,
    markdown,
    table,
    train_and_test,
    write_page,
)
from .shared import make_parser


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'demo')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument(
        '--report',
        type=Path,
        help='also write the table to this Markdown file, and the picture beside it',
    )
    args = parser.parse_args(argv)

    start, out = time.time(), args.out.resolve()
    data = out / 'data'
    print('The demo takes about ten minutes a seed on two CPU cores.')
    out.mkdir(parents=True, exist_ok=True)
    scenes.write(data, scenes.SPLITS)
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
