"""What commands share: how arguments are parsed, and messages in place of tracebacks."""

import argparse
import contextlib
import errno
import sys
from collections.abc import Iterator

import torch
from mmengine.config import DictAction

from ..errors import ConfigError, DataError, WeightsError


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help begins with the docstring of the command's module."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        choices=('cpu', 'cuda'),
        help='default: a GPU where torch sees one',
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Of commands that read the data of a config."""
    data_root = 'folder of the data, in place of the one that the config names'
    options = 'override the config, for instance train_dataloader.batch_size=4'
    parser.add_argument('config', help='path of a config, or name of a recipe')
    parser.add_argument('--data-root', help=data_root)
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help=options
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Of train and test."""
    add_data_arguments(parser)
    work_dir = 'folder for logs and checkpoints (default: work_dirs/NAME_OF_CONFIG)'
    parser.add_argument('--work-dir', help=work_dir)
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')


# Number of an OSError -> how to mend it.
ADVICE = {
    errno.EACCES: 'name another place, or change who may read and write there',
    errno.ENOENT: 'is the name right?',
    errno.ENOSPC: 'the disk is full: make room on it, or name a place on another',
}
ADVICE[errno.EPERM] = ADVICE[errno.EROFS] = ADVICE[errno.EACCES]
ADVICE[errno.EDQUOT] = ADVICE[errno.ENOSPC]


@contextlib.contextmanager
def errors_as_messages() -> Iterator[None]:
    """Decorates the commands: what this package raises on purpose, and what the operating system
    refuses, ends them with a message in place of a traceback, and with status 1."""
    try:
        yield
    except (ConfigError, DataError, WeightsError, FloatingPointError) as error:
        name = type(error).__name__
        # from a process that loads data it comes with a traceback of there
        text = str(error).rpartition(f'{name}: ')[2] if 'Traceback' in str(error) else error
        sys.exit(f'\n{name}: {text}')
    except OSError as error:
        advice = ADVICE.get(error.errno or 0)
        sys.exit(f'\n{type(error).__name__}: {error}' + (f'; {advice}' if advice else ''))
