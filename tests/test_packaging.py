"""The package as it is distributed: files, metadata, dependencies, description."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string

import pytest
import yaml
from markdown_it import MarkdownIt
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_readme import anchors

import convnext_dense
from conftest import ROOT, needs
from convnext_dense.config_names import read_config
from convnext_dense.evaluation.recipe_tables import TASKS, read_recipes

# Two families have the same import names, so that the package asks for neither. They bring OpenCV
# and pycocotools.
FAMILIES = {'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'cv2', 'pycocotools'}
DISTRIBUTIONS = {'PIL': 'pillow', 'yaml': 'pyyaml'}


def build(kind, source, out):
    """What pip and others call to build a distribution, with the setuptools that is here."""
    code = f'import setuptools.build_meta as backend; backend.build_{kind}({str(out)!r})'
    subprocess.run([sys.executable, '-c', code], cwd=source, check=True, stdout=subprocess.DEVNULL)
    return max(out.iterdir(), key=lambda path: path.stat().st_mtime)


def unpacked(archive, folder):
    kind = zipfile.ZipFile if archive.suffix == '.whl' else tarfile.open
    with kind(archive) as file:
        file.extractall(folder)
    return folder


@pytest.fixture(scope='module')
def distributions(tmp_path_factory):
    """Wheel and sdist of a clone that was installed and built from before."""
    folder = tmp_path_factory.mktemp('distributions')
    ignored = shutil.ignore_patterns('.*', 'build', 'dist', 'work_dirs', '*.egg-info')
    shutil.copytree(ROOT, folder / 'clone', ignore=ignored)
    (folder / 'clone/build/lib/convnext_dense').mkdir(parents=True)
    (folder / 'clone/build/lib/convnext_dense/gone.py').touch()
    (folder / 'clone/configs/coco/__pycache__').mkdir()
    (folder / 'clone/configs/coco/__pycache__/recipe.cpython-311.pyc').touch()
    built = {}
    for kind in ('editable', 'sdist', 'wheel'):
        (folder / kind).mkdir()
        built[kind] = build(kind, folder / 'clone', folder / kind)
    return built


@pytest.fixture(scope='module')
def installed(distributions, tmp_path_factory):
    """Kind of installation -> folder from which ``convnext_dense`` is imported."""
    folder = tmp_path_factory.mktemp('installed')
    (source,) = unpacked(distributions['sdist'], folder / 'source').iterdir()
    (folder / 'from sdist').mkdir()
    wheel_of_sdist = build('wheel', source, folder / 'from sdist')
    return {
        'editable': distributions['editable'].parents[1] / 'clone',
        'wheel': unpacked(distributions['wheel'], folder / 'wheel'),
        'wheel of sdist': unpacked(wheel_of_sdist, folder / 'wheel of sdist'),
    }


@pytest.fixture(scope='module')
def metadata(installed):
    (file,) = installed['wheel'].glob('*.dist-info/METADATA')
    return message_from_string(file.read_text('utf-8'))


def contents(folder):
    """Path -> bytes, of all files in a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file() and path.suffix != '.pyc'
    }


# ---- files ----


@pytest.mark.parametrize('kind', ['wheel', 'wheel of sdist', 'editable'])
def test_each_installation_has_the_recipes_byte_for_byte(installed, kind):
    mim = installed[kind] / 'convnext_dense/.mim'
    assert contents(mim / 'configs') == contents(ROOT / 'configs')
    for name in yaml.safe_load((mim / 'model-index.yml').read_text())['Import']:
        assert (mim / name).is_file()


def test_wheels_have_the_package_and_nothing_else(installed):
    mim = {f'.mim/{name}' for name in contents(installed['wheel'] / 'convnext_dense/.mim')}
    package = {name for name in contents(ROOT / 'convnext_dense') if not name.startswith('.mim')}
    assert {'py.typed', 'templates/base_page.html'} <= package
    for kind in ('wheel', 'wheel of sdist'):
        modules, info = sorted(path.name for path in installed[kind].iterdir())
        assert modules == 'convnext_dense' and info.endswith('.dist-info')
        assert set(contents(installed[kind] / modules)) == package | mim
        assert not list(installed[kind].rglob('*.pyc'))
    assert not [
        name for name in mim if not re.match(r'\.mim/(configs/|tools/\w+\.py|model-)', name)
    ]


def test_a_wheel_finds_its_own_recipes(installed, tmp_path):
    name = 'ade20k/upernet_convnext-t-in1k_8xb2-amp-160k_ade20k-512x512'
    script = f'import convnext_dense; print(convnext_dense.config({name!r}))'
    env = dict(os.environ, PYTHONPATH=str(installed['wheel']))
    output = subprocess.check_output(
        [sys.executable, '-c', script], cwd=tmp_path, env=env, text=True
    )
    assert str(installed['wheel'] / f'convnext_dense/.mim/configs/{name}.py') in output


# ---- metadata ----


@pytest.fixture(scope='module')
def declared(metadata):
    """Names of the required distributions, and of those that extras require."""
    required, optional = set(), set()
    for line in metadata.get_all('Requires-Dist'):
        requirement = Requirement(line)
        names = optional if 'extra' in str(requirement.marker) else required
        names.add(canonicalize_name(requirement.name))
    return required, optional


def imported(tree):
    """Names of the packages that a module imports at once, and of those it may import later."""
    at_once, later = set(), set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        (at_once if node in tree.body else later).update(name.partition('.')[0] for name in names)
    return at_once, later


def test_version_and_dependencies(metadata, declared):
    assert metadata['Version'] == convnext_dense.__version__
    required, optional = declared
    assert not [name for name in required | optional if re.match('onedl|mm', name)]


def test_what_is_imported_is_declared(declared):
    """What modules import at once is a dependency; what a function imports may be an extra."""
    required, optional = declared
    sources = (ROOT / 'convnext_dense').rglob('*.py')
    names = [imported(ast.parse(path.read_text('utf-8'))) for path in sources]
    at_once, later = (
        {
            canonicalize_name(DISTRIBUTIONS.get(name, name))
            for name in set().union(*group) - FAMILIES - sys.stdlib_module_names
        }
        for group in zip(*names)
    )
    assert at_once <= required <= at_once | later
    assert later <= required | optional


@needs('twine')
def test_twine_accepts_both(distributions):
    files = distributions['wheel'], distributions['sdist']
    subprocess.run([sys.executable, '-m', 'twine', 'check', '--strict', *files], check=True)


def test_the_description_is_whole_without_the_repository(metadata, tmp_path):
    page = tmp_path / 'description.md'
    page.write_text(metadata.get_payload())
    tokens = [
        token
        for block in MarkdownIt().parse(page.read_text())
        for token in block.children or ()
        if token.type in ('link_open', 'image')
    ]
    links = [token.attrs.get('href') or token.attrs['src'] for token in tokens]
    assert '#weights' in links
    for link in links:
        assert link.startswith('https://') or link.removeprefix('#') in anchors(page), link


# ---- metafiles ----


@pytest.mark.parametrize('task', TASKS)
def test_each_recipe_has_its_facts_in_the_metafile(task):
    index = yaml.safe_load((ROOT / f'configs/{task}/metafile.yml').read_text())
    collections = {collection['Name'] for collection in index['Collections']}
    assert all((ROOT / collection['README']).is_file() for collection in index['Collections'])
    for model in index['Models']:
        assert model['Config'] == f'configs/{task}/{model["Name"]}.py'
        assert model['In Collection'] in collections
    recipes = read_recipes(task)
    assert [r.name for r in recipes] == sorted(
        p.stem for p in (ROOT / 'configs' / task).glob('*.py')
    )
    for recipe in recipes:
        backbone = read_config(f'{task}/{recipe.name}').model.backbone
        assert backbone.init_cfg.checkpoint == recipe.weights
        assert convnext_dense.PRESETS[recipe.weights].licence == recipe.licence
