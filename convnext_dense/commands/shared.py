"""What commands share: how arguments are parsed, and messages in place of tracebacks."""

import argparse
import contextlib
import errno
import shlex
import sys
import traceback
from collections.abc import Iterator

import mmengine
import torch
from mmengine.config import DictAction

from .. import __version__
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


def add_dtype(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument('--dtype', choices=('fp32', 'bf16'), default='fp32', help=text)


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
    """Decorates the commands: errors end them with a message in place of a traceback, and with
    status 1."""
    try:
        yield
    except Exception as error:
        sys.exit(message_of(error))


def message_of(error: Exception) -> str:
    """The text alone of what this package raises on purpose or the operating system refuses; else
    where the error came from, and what to report."""
    name, text = type(error).__name__, str(error).strip() or '(no message)'
    if isinstance(error, (ConfigError, DataError, WeightsError, FloatingPointError)):
        # from a process that loads data it comes with a traceback of there
        return f'\n{name}: {text.rpartition(f"{name}: ")[2] if "Traceback" in text else text}'
    if isinstance(error, OSError) and error.errno in ADVICE:
        return f'\n{name}: {text}; {ADVICE[error.errno]}'
    frames = traceback.extract_tb(error.__traceback__)
    places = [f'  {frame.filename}:{frame.lineno} in {frame.name}' for frame in frames[-6:]]
    lines = [
        f'\nThis was not foreseen: {name}: {text[:1000]}',
        f'command: {shlex.join(sys.argv)}',
        'place (the last line is where it happened):',
        *places,
        f'convnext_dense {__version__}, torch {torch.__version__}, mmengine {mmengine.__version__}',
        'If the place is in code of yours, the fault may be there. If not, please report these '
        'lines, with the config or the part of it that they are about.',
    ]
    return '\n'.join(lines)
