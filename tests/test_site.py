"""What the site shows is all there is: pages, sections of the README, the API, the commands."""

import re

import pytest
import yaml

import convnext_dense
from conftest import ROOT
from convnext_dense.__main__ import NAMES
from tools.site import commands, gather

PAGES = ROOT / 'tools/site/pages'
API = ''.join(path.read_text() for path in PAGES.glob('api/*.rst'))


def registered():
    """Names of classes and functions that a registry of the package knows."""
    for path in (ROOT / 'convnext_dense').rglob('*.py'):
        yield from re.findall(
            r'^@\w+\.register_module\(.*\n(?:class|def) (\w+)', path.read_text(), re.M
        )


def test_every_page_is_in_the_menu():
    menus = ''.join(
        menu
        for page in PAGES.glob('*.md')
        for menu in re.findall(r'```{toctree}\n(.*?)```', page.read_text(), re.DOTALL)
    )
    entries = re.findall(r'^(?:.*<(.+)>|([\w/.-]+))$', menus, re.MULTILINE)
    entries = {named or bare for named, bare in entries}
    pages = [path.relative_to(ROOT) for path in ROOT.glob('docs/**/*.md')]
    pages += [path.relative_to(ROOT) for path in ROOT.glob('configs/*/README.md')]
    assert {page.with_suffix('').as_posix() for page in pages} <= entries
    assert {page.stem for page in PAGES.glob('*.md')} - entries == {'index'}


def test_every_section_of_the_readme_has_a_place():
    assert set(gather.places()) == set(gather.read_sections())


def test_the_api_has_all_public_names_and_types():
    shown = re.findall(r'^\.\. (?:autoapi\w+|py:data):: convnext_dense\.(.*)$', API, re.MULTILINE)
    types = {name.rpartition('.')[2] for name in shown}
    assert len(shown) == len(types)
    assert set(convnext_dense.__all__) <= set(shown)
    assert len(types & set(registered())) == len(list(registered())) > 10


def test_the_page_of_the_commands_has_each_with_its_options():
    page = commands.PAGE.read_text()
    for name in NAMES:
        (section,) = re.findall(rf'^## {name.replace("_", "-")}\n(.*?)^```$', page, re.M | re.S)
        source = (ROOT / f'convnext_dense/commands/{name}.py').read_text()
        assert set(re.findall(r"'(--[a-z-]+)'", source)) <= set(re.findall(r'--[a-z-]+', section))
        sentence = source.split('"""')[1].partition('\n\n')[0]
        assert ' '.join(sentence.split()) in ' '.join(section.split())


@pytest.mark.slow  # imports what the commands do
def test_the_page_of_the_commands_is_what_they_print():
    def words(text):  # where lines are broken differs between versions of Python
        return text.split()

    assert words(commands.PAGE.read_text()) == words(commands.page()), 'run `make commands`'


def test_the_workflow_may_only_publish():
    workflow = yaml.safe_load((ROOT / '.github/workflows/site.yml').read_text())
    assert workflow['permissions'] == {'contents': 'read'} and workflow['concurrency']
    publish = workflow['jobs']['publish']
    assert publish['if'] == "github.event_name != 'pull_request'"
    assert publish['permissions'] == {'contents': 'read', 'pages': 'write', 'id-token': 'write'}
    for job in workflow['jobs'].values():
        assert job['timeout-minutes'] <= 30
        uses = [step['uses'] for step in job['steps'] if 'uses' in step]
        assert uses and all(re.fullmatch(r'actions/[\w-]+@v\d+', name) for name in uses)
