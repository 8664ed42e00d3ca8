"""What all commands share: how arguments are parsed, and messages in place of tracebacks."""

import argparse
import contextlib
import sys
from collections.abc import Iterator

import torch

from ..errors import ConfigError, WeightsError


def make_parser(doc: str) -> argparse.ArgumentParser:
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


@contextlib.contextmanager
def errors_as_messages() -> Iterator[None]:
    """What this package raises on purpose ends the command in a message of its own."""
    try:
        yield
    except (ConfigError, WeightsError) as error:
        sys.exit(f'\n{type(error).__name__}: {error}')
