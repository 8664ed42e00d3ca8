"""Write docs/commands.md: what each command prints for ``--help``.

    make commands

The page is kept in the repository, so that the site is built without torch and mmdet, which the
commands import. A test compares it with the commands.
"""

import contextlib
import io
import os
import re
from importlib import import_module
from pathlib import Path
from unittest import mock

from convnext_dense.__main__ import describe

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'commands.md'
HEAD = """# Commands

Written by `make commands`. Which names do where a command wants a config is told in
[installed.md](installed.md#commands).

| | |
|---|---|
"""


def help_of(name: str) -> str:
    """What the command prints, the same in every Python: 3.13 says ``-o, --out OUT`` where others
    say ``-o OUT, --out OUT``."""
    main = import_module(f'convnext_dense.commands.{name.replace("-", "_")}').main
    program = mock.patch('sys.argv', [f'convnext-dense {name}'])
    width = mock.patch.dict(os.environ, COLUMNS='100', NO_COLOR='1')
    printed = contextlib.redirect_stdout(io.StringIO())
    with program, width, printed as text, contextlib.suppress(SystemExit):
        main(['--help'])
    return re.sub(r'(-\w) [A-Z]+, (--)', r'\1, \2', text.getvalue()).strip()


def page() -> str:
    rows, blocks = [], []
    for line in describe().partition('commands:\n')[2].splitlines():
        name, sentence = line.split(maxsplit=1)
        rows.append(f'| [{name}](#{name}) | {sentence} |\n')
        blocks.append(f'\n## {name}\n\n```text\n{help_of(name)}\n```\n')
    return ''.join([HEAD, *rows, *blocks])


if __name__ == '__main__':
    PAGE.write_text(page(), 'utf-8')
