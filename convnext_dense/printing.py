"""What commands print and pages hold: a console, a progress bar, tables, paragraphs."""

import contextlib
import io
import sys
import textwrap
from collections.abc import Collection, Iterable, Sequence
from typing import Literal, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Column, Table

WIDTH = 140  # characters of a line where the output goes into a file
Item = TypeVar('Item')


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def progress(items: Iterable[Item], title: str, total: int | None = None) -> Iterable[Item]:
    """``items`` with a bar that goes away at the end; none where the output goes into a file."""
    return track(items, title, total, transient=True, disable=not sys.stdout.isatty())


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    title: str | None = None,
    justify: Literal['left', 'right'] = 'right',
    red: Collection[int] = (),
) -> Table:
    """For a console.

    Args:
        justify: of all columns but the first: ``'right'`` for figures.
        red: numbers of the rows, from 0, that are red.
    """
    columns = [Column(name, justify=justify) for name in header[1:]]
    result = Table(Column(header[0], overflow='fold'), *columns, title=title)
    for i, row in enumerate(rows):
        cells = [escape(str(cell)) for cell in row]
        result.add_row(*cells, style='red' if i in red else None)
    return result


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], align: str = '---'
) -> str:
    """``align`` is of all columns but the first: ``---:`` for figures."""
    lines = [header, ['---', *[align] * (len(header) - 1)], *rows]
    return '\n'.join(
        f'| {" | ".join(str(cell).replace("|", "/") for cell in line)} |' for line in lines
    )


def paragraph(text: str) -> str:
    """``text`` in lines of at most 100 characters."""
    return textwrap.fill(
        ' '.join(text.split()), 100, break_long_words=False, break_on_hyphens=False
    )


def quiet() -> contextlib.AbstractContextManager:
    """Without what libraries print, as some do when they are imported."""
    return contextlib.redirect_stdout(io.StringIO())
