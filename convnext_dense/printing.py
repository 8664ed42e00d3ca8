"""What the commands print and the pages hold: one console, one progress bar, one Markdown table."""

import contextlib
import io
import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

WIDTH = 140  # characters of a line where the output goes into a file
Item = TypeVar('Item')


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def progress(items: Iterable[Item], title: str, total: int | None = None) -> Iterable[Item]:
    """``items`` with a bar that goes away at the end; none where the output goes into a file."""
    return track(items, title, total, transient=True, disable=not sys.stdout.isatty())


def markdown_table(header: Sequence[str], rows: Iterable[Sequence], align: str = '---') -> str:
    """``align`` is of all columns but the first: ``---:`` for figures."""
    lines = [header, ['---', *[align] * (len(header) - 1)], *rows]
    return '\n'.join(
        f'| {" | ".join(str(cell).replace("|", "/") for cell in line)} |' for line in lines
    )


def quiet() -> contextlib.AbstractContextManager:
    """Without what libraries print, as some do when they are imported."""
    return contextlib.redirect_stdout(io.StringIO())
