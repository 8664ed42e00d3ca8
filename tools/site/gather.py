"""Gather the pages of the site in one folder, from which Sphinx builds it.

    python tools/site/gather.py FOLDER

They lie there as in the repository, so that a link which leads somewhere on GitHub does so on the
site. On GitHub README.md is one page; on the site each section stands where its subject is: pages
of tools/site/pages have a line ``<!-- README: TITLE -->`` in place of it. Links to sections follow.
Only the standard library is used.
"""

import re
import shutil
import sys
from pathlib import Path

SITE = Path(__file__).resolve().parent
ROOT = SITE.parents[1]
PLACE = re.compile(r'^<!-- README: (.*) -->$', re.MULTILINE)


def read_sections() -> dict[str, str]:
    """Title of a section of README.md -> its text."""
    first, *rest = re.split(
        r'^## (.*)\n', (ROOT / 'README.md').read_text('utf-8'), flags=re.MULTILINE
    )
    title, _, text = first.partition('\n')
    return {title.removeprefix('# '): text, **dict(zip(rest[::2], rest[1::2]))}


def places(pages: Path = SITE / 'pages') -> dict[str, str]:
    """Title of a section of README.md -> the page of the site that has it."""
    return {
        title: page.name
        for page in sorted(pages.glob('*.md'))
        for title in PLACE.findall(page.read_text('utf-8'))
    }


def anchor(title: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')


def main() -> None:
    out = Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(SITE / 'pages', out)
    shutil.copytree(ROOT / 'docs', out / 'docs')
    shutil.copy(ROOT / 'CHANGELOG.md', out)
    for name in ('configs', 'convnext_dense'):  # copies: MyST looks where a symbolic link leads
        shutil.copytree(ROOT / name, out / name, ignore=shutil.ignore_patterns('.*', '__pycache__'))

    sections, page_of = read_sections(), places(out)
    links = {f'#{anchor(title)})': f'{page})' for title, page in page_of.items()}
    for page in [*out.glob('*.md'), *out.glob('docs/**/*.md')]:
        text = PLACE.sub(lambda place: sections[place[1]].strip(), page.read_text('utf-8'))
        for link, target in links.items():
            text = text.replace(f'README.md{link}', target)
            if page.parent == out:
                text = text.replace(f']({link}', f']({target}')
        page.write_text(text, 'utf-8')


if __name__ == '__main__':
    main()
