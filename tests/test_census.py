"""The census of all configs: a small one is taken; its page; the page that the project keeps."""

import re
from pathlib import Path

import pytest

from conftest import ROOT, run
from convnext_dense.commands.census import main
from convnext_dense.evaluation.census import PLANNING, Row, report


def test_census_of_a_family(tmp_path):
    """Segmenter's four mask heads decode tokens of a plain ViT, its FCN head takes any map.

    In a process of its own: torch trains in no process that is forked from one that has trained.
    """
    out = tmp_path / 'census.md'
    command = ROOT / 'tools/census.py', '--only', 'segmenter', '--arch', 'atto', '--out', out
    run(*command, cwd=tmp_path)
    page = out.read_text()
    kept = list((tmp_path / 'work_dirs/census').iterdir())
    assert len(kept) == 5 + 1  # each was swapped, and the one that can be was trained
    assert re.search(
        r'\| segmenter \| 5 \| 1 \|  \| 1 \| 4 \|  \|  \|  \| output_stride=16; Segm', page
    )
    assert '1 of 1 families' in page and '1 trained a step' in page
    refused = 'SegmenterMaskTransformerHead cannot be given another backbone: it decodes the tokens'
    assert re.search(f'and 1 more: {refused}', page)
    assert '## Fails\n\nNone.' in page


def test_a_step_of_training_reads_nothing_that_plans_a_swap():
    """Else a change of the planning could change an answer that is kept."""
    package = ROOT / 'convnext_dense'
    assert all((package / f'{name}.py').exists() for name in PLANNING)
    kept = [path for path in (package / 'swap').glob('*.py') if path.stem != '__init__']
    kept = [path for path in kept if f'swap/{path.stem}' not in PLANNING]
    for path in (*kept, package / 'evaluation/judgement.py'):
        read = re.findall(r'from (?:\.|\.\.swap\.)(\w+) import', path.read_text())
        # planning.py has the class of a swap
        assert {f'swap/{name}' for name in read} & set(PLANNING) <= {'swap/planning'}, path


@pytest.fixture(scope='module')
def page():
    """Of six configs of three families, of which four have the same model."""
    like_a = dict(state='works', graph='A', step='loss', unused=['norm0.weight'])

    def row(config, **values):
        return Row(config, ROOT, ROOT, **values)

    rows = [
        row('mmdet/a/1.py', trained=True, not_judged=['no pipeline'], **like_a),
        *(row(f'mmdet/a/{i}.py', **like_a) for i in (2, 3, 4)),
        row('mmdet/b/1.py', state='broken', why='no CUDA here'),
        row('mmseg/c/1.py', state='fails', why='more than 900 s', graph='C', trained=True),
    ]
    return report(rows, 'tiny')


@pytest.mark.parametrize(
    'text',
    [
        '**1 of 2 families** whose backbone is exchangeable work, and 4 of 5 of their configs',
        '6 configs with a model were swapped. Their swapped models are 2 distinct ones',
        '| a | 4 | 1 | 4 |  |  |  |  |  |  |',
        '| b | 1 | 0 |  |  |  | 1 |  |  | see below |',
        '| c | 1 | 1 |  |  |  |  | 1 |  | see below |',
        '## Does not run before the swap\n\n- `mmdet/b/1.py`: no CUDA here',
        '## Fails\n\n- `mmseg/c/1.py`: more than 900 s',
        '## Cannot\n\nNone.',
        'which the tool sets:\n\n- `mmdet/a/1.py`: norm0.weight\n',
    ],
)
def test_page_of_a_census(page, text):
    assert text in page


def test_census_that_is_kept_says_enough_families_work():
    families = re.search(r'\*\*(\d+) of (\d+) families', (ROOT / 'docs/census.md').read_text())
    assert int(families[1]) >= 0.95 * int(families[2]) > 100


def test_census_of_exports_that_is_kept_gives_a_reason_for_each():
    text = (ROOT / 'docs/census-export.md').read_text()
    families, equal = re.search(r'(\d+) families: (\d+) equal', text).groups()
    rows = [line.strip('| ').split(' | ') for line in text.splitlines() if line.startswith('| mm')]
    assert len(rows) == int(families) > 150 and int(equal) > 80
    assert sum(row[2] == 'equal' for row in rows) == int(equal)
    assert all(len(row[3]) > 10 for row in rows)  # how dynamic it is, or why not


@pytest.mark.slow
def test_census_of_exports(tmp_path, monkeypatch):
    """A family's row is kept for the next run."""
    monkeypatch.chdir(tmp_path)
    main(['--export', '--only', 'configs/sem_fpn/', '--out', 'page.md'])
    page = Path('page.md').read_text()
    assert '| equal | any number of pictures, any height and width | ' in page
    (kept,) = Path('work_dirs/census_export').iterdir()
    kept.write_text(kept.read_text().replace('equal', 'refused'))
    main(['--export', '--only', 'configs/sem_fpn/', '--out', 'page.md'])
    assert '| refused |' in Path('page.md').read_text()
