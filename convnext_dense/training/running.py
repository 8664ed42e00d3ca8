"""What the train and test commands run: the config, made ready; and how other code starts them."""

import contextlib
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.registry import RUNNERS

from ..config_names import read_config
from ..data.checking import annotation_problems
from ..data.locating import data_paths, move_data
from ..data.problems import refuse
from ..errors import ConfigError
from .config_keys import check_keys, check_options, is_flexible
from .work_dir import check_checkpoint

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
        ConfigError: there is no such config, it has keys that nothing would read, or files of one
            of the splits are missing.
    """
    cfg = read_config(path)
    if data_root:
        move_data(cfg, data_root)
    check_options(cfg, options or {})
    cfg.merge_from_dict(options or {})
    check_keys(cfg)
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
        if 'full_init' in frames:  # which reads and serializes the list
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
        if not is_flexible(cfg):
            wrapper.update(find_unused_parameters=cfg.get('find_unused_parameters', False))
            cfg.setdefault('model_wrapper_cfg', wrapper)
        elif (cfg.get('strategy') or {}).get('type', 'DDPStrategy') == 'DDPStrategy':
            cfg.strategy = cfg.get('strategy') or dict(type='DDPStrategy')
            cfg.strategy.model_wrapper = {**wrapper, **(cfg.strategy.get('model_wrapper') or {})}
        cfg.model = _with_plain_batch_norm(cfg.model)
        changes.append('processes communicate by gloo, SyncBN is BN')
    if changes and int(os.environ.get('RANK', 0)) == 0:
        print(f'No GPU here: {"; ".join(changes)}.')


def build_runner(cfg: Config) -> Any:
    """The runner of a config: MMEngine's, or another that ``runner_type`` names.

    It has DataCheckHook, unless the config turns that off.

    Raises:
        WeightsError: the checkpoint that it begins with is not there, or not whole.
        ConfigError: gradients are clipped under FSDP.
    """
    strategy, clip_grad = cfg.get('strategy') or {}, cfg.get('optim_wrapper', {}).get('clip_grad')
    if 'FSDP' in str(strategy.get('type')) and clip_grad:
        raise ConfigError(
            'optim_wrapper.clip_grad: MMEngine clips the shards of each process by their own norm, '
            'so that processes would scale the parts of one gradient differently. Under FSDP set '
            'optim_wrapper.clip_grad=None'
        )
    checkpoint = cfg.get('load_from')
    if checkpoint and '://' not in str(checkpoint):
        check_checkpoint(checkpoint)
    if is_flexible(cfg):
        cfg.setdefault('env_cfg', dict(dist_cfg=dict(backend='nccl')))  # it cannot be without
    hooks = cfg.setdefault('default_hooks', {})
    if 'DataCheckHook' not in repr(cfg.get('custom_hooks')):
        hooks.setdefault('data_check', dict(type='convnext_dense.DataCheckHook'))
    if hooks.get('data_check') is None:  # MMEngine takes None for its own hooks alone
        hooks.pop('data_check', None)
    return RUNNERS.build(cfg)


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
