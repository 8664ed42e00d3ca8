"""docs/contributing.md names what is there, and the automatic checks are those of the Makefile."""

import ast
import re

import yaml

from conftest import ROOT

PAGE = (ROOT / 'docs/contributing.md').read_text()
MAKEFILE = (ROOT / 'Makefile').read_text()
PACKAGE_TREE, OTHER_TREE = re.findall(r'```\n(\w+/\n.*?)```', PAGE, re.DOTALL)


def paths_in(tree):
    """Paths that a tree shows: a name a line, indented by two characters for each folder."""
    folders = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [line.split()[0]]
        yield ROOT.joinpath(*folders)


def make_targets(text):
    return set(re.findall(r'\bmake ([a-z-]+)', text))


# ---- the page ----


def test_the_trees_show_what_is_there():
    paths = [*paths_in(PACKAGE_TREE), *paths_in(OTHER_TREE)]
    assert [path for path in paths if not path.exists()] == []


def test_every_module_is_shown():
    modules = set((ROOT / 'convnext_dense').rglob('*.py'))
    modules -= set((ROOT / 'convnext_dense').glob('*/__init__.py'))
    assert modules - set(paths_in(PACKAGE_TREE)) == set()


def test_the_order_of_imports_is_the_one_that_is_held():
    settings = (ROOT / 'pyproject.toml').read_text()
    layers = ast.literal_eval(re.search(r'^layers = (\[.*?\])', settings, re.M | re.S)[1])
    assert '\n'.join(['```', *layers, '```']) in PAGE


def test_files_that_the_text_names_are_there():
    code = re.findall(r'(?<!`)`([^`\n]+)`(?!`)', PAGE)
    files = {name for name in code if re.fullmatch(r'[\w./-]+\.(py|md|json|txt)', name)}
    # Not files that the reader writes, nor the one that `make gpu` writes.
    files = {name for name in files if not re.search('NAME|METHOD|gpu.md', name)}
    assert len(files) > 20
    for name in files:
        assert (ROOT / name).exists() or (ROOT / 'convnext_dense' / name).exists(), name


def test_tables_that_the_steps_name_are_in_their_files():
    steps = re.findall(r'^\d\. `([\w/.]+\.py)`(.*?)(?=^\d\. |^##)', PAGE, re.M | re.S)
    tables = {(path, name) for path, text in steps for name in re.findall(r'`([A-Z_0-9]+)`', text)}
    assert len(tables) >= 7
    for path, name in tables:
        assert re.search(rf'\b{name}\b.* = ', (ROOT / path).read_text()), (path, name)


def test_make_targets_of_the_page_exist():
    named = set().union(*(make_targets(code) for code in re.findall(r'`([^`\n]+)`', PAGE)))
    assert {'lint', 'test', 'gpu'} <= named
    assert named <= set(re.findall(r'^([a-z-]+):', MAKEFILE, re.M))


# ---- the commands ----


def test_tools_only_run_a_command():
    commands = {path.stem for path in (ROOT / 'convnext_dense/commands').glob('[a-z]*.py')}
    for path in (ROOT / 'tools').glob('*.py'):
        source = path.read_text()
        (command,) = re.findall(r'^from convnext_dense\.commands\.(\w+) import main$', source, re.M)
        commands.remove(command)
        assert len(source.splitlines()) < 10, path
    assert commands == {'shared', 'configs'}


# ---- the automatic checks ----


def test_the_workflow_makes_what_ci_makes():
    workflow = yaml.safe_load((ROOT / '.github/workflows/ci.yml').read_text())
    jobs = workflow['jobs']
    made = {name: make_targets(yaml.dump(job['steps'])) for name, job in jobs.items()}
    assert made['checks'] == make_targets((ROOT / '.ci/run').read_text())
    matrix = jobs['long']['strategy']['matrix']['include']
    assert {row['target'] for row in matrix} == {'test-slow', 'test-upstream'}


def test_the_workflow_is_bounded():
    workflow = yaml.safe_load((ROOT / '.github/workflows/ci.yml').read_text())
    assert workflow['permissions'] == {'contents': 'read'} and workflow['concurrency']
    for job in workflow['jobs'].values():
        assert job['timeout-minutes'] <= 240
        uses = [step['uses'] for step in job['steps'] if 'uses' in step]
        assert uses and all(re.fullmatch(r'actions/[\w-]+@v\d+', name) for name in uses)
        (cache,) = (step['with'] for step in job['steps'] if 'actions/cache@' in str(step))
        assert cache['path'] == '~/.cache/convnext_dense'
        assert "hashFiles('tools/env/*.txt')" in cache['key']


def test_hooks_before_a_commit_run_the_tools_of_make_lint():
    (repository,) = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos']
    assert repository['repo'] == 'local'  # the versions are those that .venv has
    recipe = re.search(r'^lint:.*\n((?:\t.*\n)+)', MAKEFILE, re.M)[1]
    lines = [line.strip().replace('$(RUN)', '.venv/bin/python') for line in recipe.splitlines()]
    # Formatting is done before a commit and only checked by make; the files to look at are added.
    expected = [line.replace(' --check', '').removesuffix(' .') for line in lines]
    assert [hook['entry'] for hook in repository['hooks']] == expected
