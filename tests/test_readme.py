"""What the README shows is run; pages of the docs are readable, their links lead somewhere."""

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
from itertools import accumulate

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from safetensors.torch import save_file

from conftest import ROOT, run
from convnext_dense import ConvNeXt
from convnext_dense import __main__ as program
from convnext_dense.swap import plan
from convnext_dense.weights import convert

README = (ROOT / 'README.md').read_text()
PAGES = [ROOT / 'README.md', ROOT / 'CHANGELOG.md', *sorted(ROOT.glob('docs/*.md'))]
WRITTEN_BY_COMMANDS = ('census.md', 'demo.md', 'tutorial.md')
BLOCKS = [
    (language, use, code)
    for language, use, code in re.findall(r'```(\w*) ?(\w*)\n(.*?)```', README, re.DOTALL)
]
SHELL = ''.join(code for language, _, code in BLOCKS if language == 'bash').replace('\\\n', ' ')
COMMANDS = [words for line in SHELL.splitlines() if (words := shlex.split(line, comments=True))]


def blocks(use):
    """Python blocks that are marked with ``use`` behind the language."""
    return [code for language, kind, code in BLOCKS if (language, kind) == ('python', use)]


def commands(*names):
    """Arguments of the lines that run one of these commands, beginning with its name."""
    starts = ['convnext-dense'], ['-m', 'convnext_dense']
    lines = []
    for line in COMMANDS:
        for i, name in enumerate(line):
            if name in names and any(line[:i][-len(start) :] == start for start in starts):
                lines.append(line[i:])
    return lines


@pytest.fixture
def output_of(monkeypatch, capsys, tmp_path):
    """``output_of(command, *arguments)`` runs it in this process, in an empty folder.

    Returns what it prints.
    """
    monkeypatch.chdir(tmp_path)

    def run_here(*arguments):
        monkeypatch.setattr(sys, 'argv', ['convnext-dense', *map(str, arguments)])
        with contextlib.suppress(SystemExit):
            program.main()
        return capsys.readouterr().out

    return run_here


# ---- what it shows ----


def test_python_example_gives_the_shapes_it_promises():
    (code,) = blocks('')
    *setup, last = code.strip().splitlines()
    namespace = {}
    exec('\n'.join(setup), namespace)
    call, promised = last.split('#')
    shapes = [tuple(shape) for shape in eval(call, namespace)]
    assert shapes == list(eval(promised.replace(') (', '), (')))


# Each block is added to the one before.
@pytest.mark.parametrize('code', accumulate(blocks('config')), ids=['backbone', 'and optimiser'])
def test_config_examples_build_and_optimise(code, tmp_path):
    (tmp_path / 'config.py').write_text(code)
    cfg = Config.fromfile(tmp_path / 'config.py')
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    maps = model.extract_feat(torch.rand(1, 3, 64, 64))
    assert len(maps) == 5 and model.backbone.out_channels == (96, 192, 384, 768)
    if 'LayerDecay' in code:
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
        assert optimizer.param_groups[0]['lr_scale'] < 0.7


def test_weights_example_reports_what_it_promises(tmp_path, monkeypatch, capsys):
    (code,) = blocks('weights')
    monkeypatch.chdir(tmp_path)
    save_file(timm.create_model('convnext_tiny').state_dict(), 'convnext_tiny.safetensors')
    exec(code, {})
    promised = code.partition('print(report)\n# ')[2].partition('...')[0]
    assert promised and promised in capsys.readouterr().out


def test_swap_commands_write_what_the_readme_shows(tmp_path, output_of):
    (shown,) = blocks('swapped')
    first, second = commands('swap')
    printed = output_of(*first)
    page = (ROOT / 'docs/swap.md').read_text()  # runs the same command
    (code,) = re.findall(r'```bash\nconvnext-dense (swap .*?)```', page, re.DOTALL)
    assert shlex.split(code.replace('\\\n', '')) == first
    shown_lines = set(re.search(r'```text\n(.*?)```', page, re.DOTALL)[1].splitlines()) - {'…'}
    assert 'wrote retinanet_convnext-t.py' in shown_lines <= set(printed.splitlines())
    written = (tmp_path / 'retinanet_convnext-t.py').read_text()
    assert written.partition('\n')[2] == shown  # but for the comment with the command
    plan(second[1], 'base', layer_decay=True)  # all of the second command but its slow proof


def test_fuse_example():
    (code,) = blocks('fuse')
    namespace = {}
    exec(code, namespace)
    image = torch.zeros(1, 3, 64, 64)
    assert namespace['net'](image)[0].dtype == torch.float32
    assert namespace['half'](image.bfloat16())[0].dtype == torch.bfloat16


@pytest.mark.slow
def test_benchmark_command(output_of):
    (command,) = commands('benchmark')
    smaller = {'base': 'atto', '1x512x512': '1x64x64'}
    assert set(smaller) <= set(command)
    printed = output_of(*(smaller.get(word, word) for word in command), '--runs', 1)
    assert 'convnext_dense, fused' in printed


def test_figures_of_a_config(tmp_path, output_of, exits):
    (flops,), (groups,) = commands('flops'), commands('groups')
    counted = output_of(*flops)
    assert '262.11' in counted and '1000 boxes' in counted
    # In a process of its own: MMEngine's logger prints into the output of the first test that logs.
    printed = run('-m', 'convnext_dense', *groups, cwd=tmp_path)
    assert '0.6983' in printed  # the scale of the stem
    assert next(tmp_path.glob('*_param_groups.png')).stat().st_size > 10_000
    without_decay = 'dino-4scale_convnext-t-in22k_8xb2-12e_coco'
    assert 'no layer-wise decay' in exits('groups', without_decay)


def test_conversions_run_one_after_the_other(tmp_path, output_of):
    detector = {f'backbone.{name}': value for name, value in ConvNeXt('atto').state_dict().items()}
    zoo = dict(state_dict=convert(detector, 'mmpretrain').tensors, meta={})
    torch.save(zoo, tmp_path / 'zoo_detector.pth')
    presets, *conversions = commands('convert')
    assert 'tiny_in22k' in output_of(*presets)
    for command in conversions:
        output_of(*command)
    assert (tmp_path / 'timm.safetensors').exists()


@pytest.mark.parametrize('command', commands('train', 'test'), ids=' '.join)
def test_tool_commands_get_as_far_as_the_data(command, tmp_path, exits, monkeypatch):
    """In an empty folder there are no data: tool, config and arguments are all read before that."""
    (tmp_path / 'CHECKPOINT').touch()
    monkeypatch.chdir(tmp_path)
    assert 'The data of this config are not there' in exits(*command)


MISSING = {  # command -> what it says in an empty folder
    'compare': 'no config mine.py|no folder at .*data/(street|mine)',
    'predict': 'no image, folder or video at FOLDER',
    'features': 'no image at street.jpg',
    'export': 'no config CONFIG',
}


@pytest.mark.parametrize(
    'command, message',
    [(command, message) for name, message in MISSING.items() for command in commands(name)],
    ids=str,
)
def test_commands_that_look_get_as_far_as_the_data(command, message, tmp_path, exits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = exits(*command)
    assert re.search(message, output) and 'Traceback' not in output
    if '--train' in command:
        assert output.count('no folder at') == 1 and not list(tmp_path.iterdir())


def test_recipes_are_listed_and_inherited(output_of, exits):
    listed, inherited = commands('configs')
    assert 'upernet_convnext-t-in1k' in output_of(*listed)
    assert 'no config RECIPE' in exits(*inherited)


def test_no_command_is_without_a_test():
    names = {line[1] for line in COMMANDS if line[0] == 'convnext-dense' and line[1:]}
    tested = ['benchmark', 'configs', 'convert', 'flops', 'groups', 'swap', 'test', 'train']
    assert names == {*MISSING, *tested, 'doctor'}  # the last by tests/test_doctor.py


@pytest.mark.parametrize('target', [c[1] for c in COMMANDS if c[0] == 'make'])
def test_make_targets_set_up_once(target, tmp_path):
    def planned():
        command = ['make', '-n', target]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    for name in ('Makefile', 'setup.py', 'pyproject.toml'):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / 'tools' / 'env', tmp_path / 'tools' / 'env')
    assert 'make_env' in planned()
    (tmp_path / '.venv').mkdir()
    (tmp_path / '.venv' / '.ready').touch()
    assert planned() and 'make_env' not in planned()


# ---- how it reads ----


@pytest.mark.parametrize(
    'use', ['Train on COCO or ADE20K', 'Compare segmentors', 'Swap a backbone']
)
def test_each_use_fits_a_screen(use):
    (section,) = re.findall(rf'^## {use}\n.*?(?=^## )', README, re.MULTILINE | re.DOTALL)
    assert len(section.splitlines()) <= 40


@pytest.mark.parametrize(
    'page', [page for page in PAGES if page.name not in WRITTEN_BY_COMMANDS], ids=lambda p: p.name
)
def test_lines_have_100_characters_at_most(page):
    lines = page.read_text().splitlines()
    assert [line for line in lines if len(line) > 100 and not line.startswith('|')] == []


def anchors(page):
    """What GitHub makes of the headings: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r'^#+ (.*)', page.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', [*PAGES, *ROOT.glob('configs/*/README.md')], ids=str)
def test_links_lead_somewhere(page):
    for link in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
        path, _, anchor = link.partition('#')
        if '://' not in link:
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_pages_name_no_path_of_a_machine(page):
    assert not re.findall(r'(?<![\w.])/(?:work|tmp|root|home|mnt)/\S*', page.read_text())
