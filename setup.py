"""What pyproject.toml cannot say: the package has the recipes in it, and README as its description.

``configs/`` and ``tools/`` are the only source. MMEngine and OpenMIM look for them in ``.mim`` of
an installed package, so that a wheel has copies there, and an editable install has links.

The licence is stated here: pyproject.toml has no form of it that both setuptools 69 and the newest
one accept.
"""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithRecipes(build_py):
    def run(self):
        package = (ROOT if self.editable_mode else Path(self.build_lib)) / 'convnext_dense'
        mim = package / '.mim'
        # An earlier build may have left modules that are gone since: they would be installed.
        shutil.rmtree(mim if self.editable_mode else package, ignore_errors=True)
        super().run()
        mim.mkdir(parents=True)
        for name in ('configs', 'tools'):
            if self.editable_mode:
                (mim / name).symlink_to(Path('..', '..', name), target_is_directory=True)
            else:
                # env and site are for clones
                ignored = shutil.ignore_patterns('env', 'site', '__pycache__')
                shutil.copytree(ROOT / name, mim / name, ignore=ignored)
        metafiles = sorted(path.relative_to(ROOT) for path in ROOT.glob('configs/*/metafile.yml'))
        lines = ['Import:', *(f'  - {path.as_posix()}' for path in metafiles)]
        (mim / 'model-index.yml').write_text('\n'.join(lines) + '\n', encoding='utf-8')


def description() -> str:
    """README.md without pictures, and with text in place of links that lead into the repository."""
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    text = re.sub(r'!\[[^]]*\]\((?!https?:)[^)]*\)\n*', '', text)
    text = re.sub(r'(?<!!)\[([^]]*)\]\((?!https?:|#)[^)]*\)', r'\1', text)
    return f'{text}\nThe pages in `docs/`, and `make`, are in the source distribution.\n'


setup(
    license='Apache-2.0',
    cmdclass={'build_py': BuildWithRecipes},
    long_description=description(),
    long_description_content_type='text/markdown',
)
