"""Accuracy, speed and memory of segmentors side by side, on your data and your machine: a table, and a page of plots and pictures.

    python tools/benchmark_segmentation.py a.py=a.pth b.py=b.pth                       on the data that the configs name
    python tools/benchmark_segmentation.py a.py=a.pth b.py=b.pth --data-root FOLDER    on images and label maps of yours
    python tools/benchmark_segmentation.py work_dirs                                   every trained model in a folder
    python tools/benchmark_segmentation.py configs/demo/*_street.py --train --data-root FOLDER    trains first, from random weights

Any model of mmseg takes part, and models on ConvNeXt a second time, fused. Each has a process of its own. What one image takes is
measured of all models in turns, at the end, so that what else the machine does hits all alike. A model that fails gets a row that says
why. Finished rows are kept in --out: the same command goes on after an interruption. Detectors of mmdet are compared by AP likewise.
"""

import sys
from pathlib import Path

import torch
from mmengine.config import DictAction

from ..data import label_folder
from ..errors import ConfigError
from ..evaluation.segmentors import compare, find
from .shared import add_device, make_parser


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        'models',
        nargs='+',
        metavar='CONFIG[=CHECKPOINT]',
        help='or a folder of work dirs, each with a config and a checkpoint',
    )
    parser.add_argument(
        '--data-root',
        metavar='FOLDER',
        help='the data in place of those that the configs name; their own layout, or '
        + label_folder.describe()
        + '; images/validation beside annotations/validation is read as ADE20K, where 0 is unknown',
    )
    parser.add_argument(
        '--classes',
        nargs='+',
        metavar='NAME',
        help='of the labels 0, 1, ... in --data-root (default: those of the config); behind the configs',
    )
    parser.add_argument(
        '--ignore',
        nargs='+',
        type=int,
        default=[],
        metavar='LABEL',
        help='labels that mean unknown, besides 255',
    )
    parser.add_argument(
        '--train',
        action='store_true',
        help='train what has no checkpoint, with its own schedule, on the training split',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='for every config, as in tools/train.py; train_cfg.max_iters=100 is a shorter training',
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help="also score with each config's test-time augmentation (multi-scale and flip)",
    )
    parser.add_argument(
        '--runs', type=int, default=20, help='timed runs of each model (default: 20)'
    )
    parser.add_argument(
        '--batch', type=int, default=4, help='images at once for the throughput (default: 4)'
    )
    parser.add_argument('--examples', type=int, default=4, help='images on the page (default: 4)')
    parser.add_argument('--threads', type=int, help="default: torch's, the number of cores")
    add_device(parser)
    parser.add_argument(
        '--out',
        default='work_dirs/benchmark_segmentation',
        type=Path,
        help='folder for index.html, .csv, .json and label maps',
    )
    args = parser.parse_args(argv)
    if (args.classes or args.ignore) and not args.data_root:
        parser.error('--classes and --ignore are of the labels in --data-root')
    if min(args.runs, args.batch, args.examples) < 1:
        parser.error('--runs, --batch and --examples are at least 1')
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        entries = find(args.models)
    except ConfigError as error:
        parser.error(str(error))
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        sys.exit(compare(entries, args))
    except KeyboardInterrupt:
        sys.exit(f'\ninterrupted. What is finished is kept in {args.out}: the same command goes on')
