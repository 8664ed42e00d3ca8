"""What train.py and test.py share: arguments, the config, and messages in place of tracebacks; and how others run them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.runner import Runner

from ..data.locating import data_paths, move_data
from ..errors import ConfigError, WeightsError

PROGRESS = re.compile(r'Iter\((\w+)\) \[ *(\d+)/(\d+)\](?:.* loss: ([\d.]+))?')


def add_common_arguments(parser):
    parser.add_argument('config', help='path of a config')
    parser.add_argument(
        '--work-dir', help='folder for logs and checkpoints (default: work_dirs/NAME_OF_CONFIG)'
    )
    parser.add_argument(
        '--data-root', help='folder of the data, in place of the one that the config names'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override the config, for instance train_dataloader.batch_size=4',
    )
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')


def load_config(args, splits) -> Config:
    """The config with the command line's overrides. Exits if the data of one of its ``splits`` are missing."""
    if not Path(args.config).is_file():
        sys.exit(f'no config at {args.config}')
    cfg = Config.fromfile(args.config)
    if args.data_root:
        move_data(cfg, args.data_root)
    cfg.merge_from_dict(args.cfg_options or {})
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    missing = [path for split in splits for path in data_paths(cfg, split) if not path.exists()]
    if missing:
        sys.exit(
            'The data of this config are not there:\n'
            + '\n'.join(f'  {path}' for path in missing)
            + '\nPut or link them there (README, "Train on COCO or ADE20K"), or name their folder: --data-root FOLDER'
        )
    return cfg


def fit_to_machine(cfg):
    """AMP needs an accelerator: without one the recipe is trained in fp32, and that is said."""
    if cfg.optim_wrapper.get('type') == 'AmpOptimWrapper' and get_device() in ('cpu', 'mps'):
        if int(os.environ.get('RANK', 0)) == 0:
            print('No GPU here: automatic mixed precision is off, training in fp32.')
        cfg.optim_wrapper.type = 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            cfg.optim_wrapper.pop(key, None)


def execute(cfg, method):
    """Build the runner and call its ``method`` (train or test). What this package raises is printed, not traced."""
    try:
        getattr(Runner.from_cfg(cfg), method)()
    except (ConfigError, WeightsError) as error:
        sys.exit(f'\n{type(error).__name__}: {error}')


def follow(command: str, arguments, log) -> Iterator[tuple[str, int, int, float | None]]:
    """Run ``train`` or ``test`` to its end, its output added to the file ``log``.

    Yields:
        train, val or test; iterations done; of how many; loss.

    Raises:
        RuntimeError: it failed, with the last line that it wrote.
    """
    line = 'it wrote nothing'
    with (
        open(log, 'a', encoding='utf-8') as file,
        subprocess.Popen(
            [sys.executable, '-m', 'convnext_dense.commands', command, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        for text in process.stdout:
            file.write(text)
            line = text.strip() or line
            match = PROGRESS.search(text)
            if match:
                yield match[1], int(match[2]), int(match[3]), float(match[4]) if match[4] else None
    if process.returncode:
        raise RuntimeError(f'{command} failed: {line} (the whole log: {log})')
