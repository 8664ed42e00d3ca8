"""Accuracy, speed and memory of segmentors side by side, on your data and your machine.

    on the data that the configs name:
        convnext-dense compare a.py=a.pth b.py=b.pth
    on images and label maps of yours:
        convnext-dense compare a.py=a.pth b.py=b.pth --data-root FOLDER
    beside a file of convnext-dense export:
        convnext-dense compare a.py=a.pth a.py=a.onnx
    every trained model in a folder:
        convnext-dense compare work_dirs
    trained first, from random weights:
        convnext-dense compare 'demo/*_street' --train --data-root FOLDER

Prints a table, and leaves it in --out with a page of plots and pictures. Any model of mmseg takes
part, and models on ConvNeXt a second time, fused; with --dtype bf16, in that as well. Each has a
process of its own. Speed is measured at the end, of all models in turns, so that what else the
machine does hits all alike. A model that fails gets a row that says why. Finished rows are kept in
--out: the same command goes on after an interruption. Detectors of mmdet are compared by AP
likewise.
"""

import sys
from pathlib import Path

import torch
from mmengine.config import DictAction

from ..config_names import find_config
from ..data import label_folder
from ..errors import ConfigError
from ..evaluation.segmentors import Options, compare, find
from ..evaluation.segmentors_page import table
from ..printing import console
from .shared import add_device, add_dtype, errors_as_messages, make_parser

HELP = dict(
    models='a config, with its checkpoint behind =; a pattern of recipes; or a folder of work dirs',
    data_root=f'the data in place of those that the configs name; their own layout, or '
    f'{label_folder.describe()}; images/validation beside annotations/validation is read as '
    'ADE20K, where 0 is unknown',
    classes='of the labels 0, 1, ... in --data-root (default: those of the config); put it behind '
    'the configs',
    ignore='labels that mean unknown, besides 255',
    train='train what has no checkpoint, with its own schedule, on the training split',
    cfg_options='for every config, as of train; train_cfg.max_iters=100 trains for a shorter time',
    tta="also score with each config's test-time augmentation (multi-scale and flip)",
    out='folder for index.html, .csv, .json and label maps (default: %(default)s)',
)
COUNTS = dict(
    runs=(20, 'timed runs of each model'),
    batch=(4, 'images at once for the throughput'),
    examples=(4, 'images on the page'),
)


@errors_as_messages()
def main(argv=None):
    parser = make_parser(__doc__)
    add = parser.add_argument
    add('models', nargs='+', metavar='CONFIG[=CHECKPOINT]', help=HELP['models'])
    add('--data-root', metavar='FOLDER', help=HELP['data_root'])
    add('--classes', nargs='+', metavar='NAME', help=HELP['classes'])
    add('--ignore', nargs='+', type=int, default=[], metavar='LABEL', help=HELP['ignore'])
    add('--train', action='store_true', help=HELP['train'])
    pairs = dict(nargs='+', action=DictAction, default={}, metavar='KEY=VALUE')
    add('--cfg-options', **pairs, help=HELP['cfg_options'])
    add('--tta', action='store_true', help=HELP['tta'])
    for name, (count, text) in COUNTS.items():
        add(f'--{name}', type=int, default=count, help=f'{text} (default: {count})')
    add('--threads', type=int, help="default: torch's, the number of cores")
    add_device(parser)
    add_dtype(parser, 'bf16: a row more of each model, in bfloat16')
    add('--out', default='work_dirs/benchmark_segmentation', type=Path, help=HELP['out'])
    args = parser.parse_args(argv)
    if (args.classes or args.ignore) and not args.data_root:
        parser.error('--classes and --ignore are of the labels in --data-root')
    if min(args.runs, args.batch, args.examples) < 1:
        parser.error('--runs, --batch and --examples are at least 1')
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        entries = find(args.models)
        for entry in entries:  # before the first of them is trained
            find_config(entry.config)
        if args.data_root and not Path(args.data_root).is_dir():
            raise ConfigError(f'--data-root: no folder at {args.data_root}')
    except ConfigError as error:
        parser.error(str(error))
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    options = Options(**{name: getattr(args, name) for name in Options._fields})
    command = ' '.join([sys.argv[0], *(sys.argv[1:] if argv is None else argv)])
    try:
        rows = compare(entries, options, command)
    except KeyboardInterrupt:
        sys.exit(f'\ninterrupted. What is finished is kept in {args.out}: the same command goes on')
    sys.exit(show(rows, args.out))


def show(rows, folder):
    """Print the table and what it lacks. Returns the exit status: 1 where a model failed."""
    screen, failed = console(), sum(row.error is not None for row in rows)
    if failed < len(rows):
        screen.print(table(rows))
        for row in rows:
            if row.note:
                screen.print(f'{row.name}: {row.note}', style='red', markup=False)
        screen.print(
            f'wrote {folder}/index.html, results.csv, results.json; in {folder}/MODEL label maps '
            '(predictions), the config (config.py), and of what was trained here the checkpoint '
            '(train)'
        )
    if failed:
        screen.print(f'{failed} of {len(rows)} models failed, as said above', style='red')
    return int(failed > 0)
