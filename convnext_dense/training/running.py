"""What the train and test commands run: the config, made ready; and how other code starts them."""

import contextlib
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_distributed

from ..config_names import read_config
from ..data.checking import annotation_problems
from ..data.locating import data_paths, move_data
from ..data.problems import refuse
from ..errors import ConfigError

LOGGED = re.compile(r'Iter\((\w+)\) \[ *(\d+)/(\d+)\](?:.* loss: ([\d.]+))?')


class Progress(NamedTuple):
    mode: str  # train, val or test
    done: int  # iterations
    total: int
    loss: float | None


def load_config(
    path: str,
    splits: Sequence[str],
    work_dir: str | None = None,
    data_root: str | None = None,
    options: dict | None = None,
    launcher: str = 'none',
) -> Config:
    """A config with the command line's overrides, ready for MMEngine's runner.

    Args:
        splits: those that the run reads, of ``'train'``, ``'val'`` and ``'test'``.
        work_dir: default: what the config says, else ``work_dirs/NAME_OF_CONFIG``.
        data_root: folder of the data, in place of the config's.
        options: dotted key -> value.

    Raises:
        ConfigError: there is no such config, or files of one of the splits are missing.
    """
    cfg = read_config(path)
    if data_root:
        move_data(cfg, data_root)
    cfg.merge_from_dict(options or {})
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or f'work_dirs/{Path(path).stem}'
    missing = [file for split in splits for file in data_paths(cfg, split) if not file.exists()]
    if missing:
        raise ConfigError(
            'The data of this config are not there:\n'
            + '\n'.join(f'  {file}' for file in missing)
            + '\nPut or link them there (README, "Train on COCO or ADE20K"), '
            'or name their folder: --data-root FOLDER'
        )
    return cfg


def check_data(cfg: Config) -> None:
    """Put DataCheckHook into a config that does not have it, nor has it turned off."""
    hooks = cfg.setdefault('default_hooks', {})
    if 'DataCheckHook' not in repr(cfg.get('custom_hooks')):
        hooks.setdefault('data_check', dict(type='convnext_dense.DataCheckHook'))


@contextlib.contextmanager
def annotations_explained(cfg: Config) -> Iterator[None]:
    """Where a data set cannot be loaded, DataError names the entries of its annotation file."""
    try:
        yield
    except Exception as error:
        chain: BaseException | None = error
        frames: list[str] = []
        while chain:
            frames += [frame.name for frame in traceback.extract_tb(chain.__traceback__)]
            chain = chain.__cause__ or chain.__context__
        if 'load_data_list' in frames:
            refuse(annotation_problems(cfg))
        raise


def fit_to_machine(cfg: Config) -> None:
    """Where there is no accelerator, change what needs one, and say so.

    Mixed precision is off. Processes of ``torchrun`` exchange gradients by gloo, and each
    normalises its batches by itself.
    """
    if get_device() not in ('cpu', 'mps'):
        return
    changes = []
    if cfg.get('optim_wrapper', {}).get('type') == 'AmpOptimWrapper':
        cfg.optim_wrapper.type = 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            cfg.optim_wrapper.pop(key, None)
        changes.append('automatic mixed precision is off, training in fp32')
    if cfg.launcher == 'pytorch':
        if not is_distributed():  # MMEngine would select a GPU before it does this
            torch.distributed.init_process_group('gloo')
        wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
        wrapper.update(find_unused_parameters=cfg.get('find_unused_parameters', False))
        cfg.setdefault('model_wrapper_cfg', wrapper)
        cfg.model = _with_plain_batch_norm(cfg.model)
        changes.append('processes communicate by gloo, SyncBN is BN')
    if changes and int(os.environ.get('RANK', 0)) == 0:
        print(f'No GPU here: {"; ".join(changes)}.')


def _with_plain_batch_norm(value):
    if isinstance(value, dict):
        return type(value)({key: _with_plain_batch_norm(inner) for key, inner in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(_with_plain_batch_norm(inner) for inner in value)
    return 'BN' if isinstance(value, str) and value in ('SyncBN', 'MMSyncBN') else value


def follow(command: str, arguments: Sequence, log: str | Path) -> Iterator[Progress]:
    """Run the command ``train`` or ``test`` in a process of its own, to its end.

    Args:
        arguments: of its command line.
        log: file that its output is added to.

    Yields:
        What it logs of its progress, when it does.

    Raises:
        RuntimeError: it failed; the message has the last line that it wrote.
    """
    last_line = 'it wrote nothing'
    process = subprocess.Popen(
        [sys.executable, '-m', 'convnext_dense', command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with open(log, 'a', encoding='utf-8') as file, process:
        for line in process.stdout or ():
            file.write(line)
            last_line = line.strip() or last_line
            match = LOGGED.search(line)
            if match:
                mode, done, total, loss = match.groups()
                yield Progress(mode, int(done), int(total), float(loss) if loss else None)
    if process.returncode:
        raise RuntimeError(f'{command} failed: {last_line} (the whole log: {log})')
