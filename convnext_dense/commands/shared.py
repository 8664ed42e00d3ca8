"""What commands share: how arguments are parsed, and messages in place of tracebacks."""

import argparse
import contextlib
import shlex
import sys
import traceback
from collections.abc import Iterator

import mmengine
import torch
from mmengine.config import DictAction

from .. import __version__
from ..errors import ConfigError, WeightsError


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


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Of train and test."""
    work_dir = 'folder for logs and checkpoints (default: work_dirs/NAME_OF_CONFIG)'
    data_root = 'folder of the data, in place of the one that the config names'
    options = 'override the config, for instance train_dataloader.batch_size=4'
    parser.add_argument('config', help='path of a config, or name of a recipe')
    parser.add_argument('--work-dir', help=work_dir)
    parser.add_argument('--data-root', help=data_root)
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help=options
    )
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')


@contextlib.contextmanager
def errors_as_messages() -> Iterator[None]:
    """Errors end the command with a message in place of a traceback."""
    try:
        yield
    except Exception as error:
        sys.exit(message_of(error))


def message_of(error: Exception) -> str:
    """Its text alone if this package raises it on purpose, else where it came from, and what to
    report."""
    if isinstance(error, (ConfigError, WeightsError)):
        return f'\n{type(error).__name__}: {error}'
    frames = traceback.extract_tb(error.__traceback__)
    places = [f'  {frame.filename}:{frame.lineno} in {frame.name}' for frame in frames[-6:]]
    message = str(error).strip() or '(no message)'
    lines = [
        f'\nThis was not foreseen: {type(error).__name__}: {message[:1000]}',
        f'command: {shlex.join(sys.argv)}',
        'place (the last line is where it happened):',
        *places,
        f'convnext_dense {__version__}, torch {torch.__version__}, mmengine {mmengine.__version__}',
        'If the place is in code of yours, the fault may be there. If not, please report these '
        'lines, with the config or the part of it that they are about.',
    ]
    return '\n'.join(lines)
