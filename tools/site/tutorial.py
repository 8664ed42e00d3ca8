"""Follow docs/tutorial.md in a folder, and put into the page what the commands print and draw.

    make tutorial          in build/tutorial, where CamVid is, and small, an environment

Blocks are done from the first to the last. What stands behind the language says how:

    python NAME            the block is written into that file
    bash                   it is run; `bash fails` has to end with an error
    bash by-hand           left to the reader: it fetches packages or data
    text N                 becomes the last N lines of what was printed before; all of it is in
                           printed.txt

A picture is made of the file that the comment above it names.
"""

import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'tutorial.md'
PARTS = re.compile(
    r'^```(?P<language>python|bash|text) ?(?P<note>[^\n]*)\n(?P<code>.*?)^```'
    r'|^<!-- (?P<file>\S+) -->\n!\[[^\]]*\]\((?P<picture>\S+)\)',
    re.MULTILINE | re.DOTALL,
)
COLUMNS, WIDTH = 130, 800  # of what is printed; of a picture in pixels


def follow(page: str, folder: Path, pictures: Path) -> str:
    """Do what ``page`` says in ``folder``. Returns it with what was printed; writes its pictures,
    whose names are relative to ``pictures``."""
    printed = ''

    def do(part: re.Match) -> str:
        nonlocal printed
        note, code = part['note'], part['code']
        if part['picture']:
            shrink(folder / part['file'], pictures / part['picture'])
        elif part['language'] == 'python':
            (folder / note).write_text(code, 'utf-8')
        elif part['language'] == 'text':
            return f'```text {note}\n{end_of(printed, int(note))}\n```'
        elif note != 'by-hand':
            printed = run(code, folder, fails=note == 'fails')
            with open(folder / 'printed.txt', 'a', encoding='utf-8') as log:
                log.write(printed)
        return part[0]

    return PARTS.sub(do, page)


def run(code: str, folder: Path, fails: bool = False) -> str:
    """Run a block as one script. Returns what it prints, without the path of the folder."""
    programs = Path(sys.executable).parent  # not resolved: those of the environment
    shell = dict(os.environ, COLUMNS='100', PATH=f'{programs}:{os.environ["PATH"]}')
    done = subprocess.run(
        ['bash', '-e', '-c', code],
        cwd=folder,
        env=shell,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if (done.returncode != 0) != fails:
        raise RuntimeError(f'{code} ended with status {done.returncode}:\n{done.stdout[-4000:]}')
    return done.stdout.replace(f'{folder.resolve()}/', '')


def end_of(printed: str, count: int) -> str:
    """Its last lines, as far as they fit the page; an ellipsis stands for the rest."""
    lines = [line.rstrip() for line in printed.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    shown = ['…'] * (len(lines) > count) + lines[-count:]
    return '\n'.join(line if len(line) <= COLUMNS else f'{line[: COLUMNS - 2]} …' for line in shown)


def shrink(source: Path, target: Path) -> None:
    """The picture, or of a comparison's page the last four, no larger than the page."""
    picture = Image.open(source) if source.suffix != '.html' else last_example(source)
    picture = picture.convert('RGB')
    picture.thumbnail((WIDTH, WIDTH))
    if target.suffix == '.png':
        picture = picture.quantize(64)
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.save(target, quality=80, optimize=True)


def last_example(page: Path) -> Image.Image:
    """Image and truth, below them the predictions of two models."""
    texts = re.findall(r'data:image/jpeg;base64,([\w+/=]+)', page.read_text('utf-8'))[-4:]
    parts = [Image.open(io.BytesIO(base64.b64decode(text))) for text in texts]
    width, height = parts[0].size
    joined = Image.new('RGB', (2 * width, 2 * height))
    for i, part in enumerate(parts):
        joined.paste(part, (i % 2 * width, i // 2 * height))
    return joined


if __name__ == '__main__':
    PAGE.write_text(follow(PAGE.read_text('utf-8'), Path(sys.argv[1]), PAGE.parent), 'utf-8')
