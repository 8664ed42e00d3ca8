"""What the README shows is run."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from safetensors.torch import save_file

from conftest import ROOT, run
from convnext_dense import ConvNeXt
from convnext_dense.swap import plan
from convnext_dense.weights import convert

README = (ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'```(\S+)( config| weights| swapped| fuse)?\n(.*?)```', README, re.DOTALL)
CONFIGS = [code for _, use, code in BLOCKS if use == ' config']
COMMANDS = [
    shlex.split(line, comments=True)
    for kind, _, code in BLOCKS
    if kind == 'bash'
    for line in code.splitlines()
]


def test_python_example_gives_the_shapes_it_promises():
    code = next(code for kind, use, code in BLOCKS if kind == 'python' and not use)
    *setup, last = code.strip().splitlines()
    namespace = {}
    exec('\n'.join(setup), namespace)
    call, promised = last.split('#')
    assert [tuple(shape) for shape in eval(call, namespace)] == list(
        eval(promised.replace(') (', '), ('))
    )


@pytest.mark.parametrize('code', CONFIGS)
def test_config_examples_build_and_optimise(code, tmp_path):
    (tmp_path / 'config.py').write_text(code)
    cfg = Config.fromfile(tmp_path / 'config.py')
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    maps = model.extract_feat(torch.rand(1, 3, 64, 64))
    assert len(maps) == 5 and model.backbone.out_channels == (96, 192, 384, 768)
    if 'LayerDecay' in code:
        from mmengine.optim import build_optim_wrapper

        assert (
            build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups[0]['lr_scale']
            < 0.7
        )


def test_weights_example_reports_what_it_promises(tmp_path, monkeypatch, capsys):
    code = next(code for _, use, code in BLOCKS if use == ' weights')
    monkeypatch.chdir(tmp_path)
    save_file(timm.create_model('convnext_tiny').state_dict(), 'convnext_tiny.safetensors')
    exec(code, {})
    promised = code.partition('print(report)  # ')[2].partition('...')[0]
    assert promised in capsys.readouterr().out


def test_swap_commands_write_what_the_readme_shows(tmp_path):
    shown = next(code for _, use, code in BLOCKS if use == ' swapped')
    first, second = (command for command in COMMANDS if 'tools/swap_backbone.py' in command)
    assert 'wrote retinanet_convnext-t.py' in run(ROOT / first[1], *first[2:], cwd=tmp_path)
    written = (tmp_path / 'retinanet_convnext-t.py').read_text()
    assert (
        written.partition('\n\n')[2] == shown.partition('\n\n')[2]
    )  # the base may be a path where :: is not understood
    plan(second[2], 'base', layer_decay=True)  # the second, but for its slow proof


def test_fuse_example_and_benchmark_command(tmp_path):
    namespace = {}
    exec(next(code for _, use, code in BLOCKS if use == ' fuse'), namespace)
    image = torch.zeros(1, 3, 64, 64)
    assert (
        namespace['net'](image)[0].dtype == torch.float32
        and namespace['half'](image.bfloat16())[0].dtype == torch.bfloat16
    )
    command = next(command for command in COMMANDS if 'tools/benchmark.py' in command)
    arguments = [
        'atto' if a == 'base' else '1x64x64' if 'x' in a and a[0].isdigit() else a
        for a in command[2:]
    ]  # but smaller
    assert 'convnext_dense, fused' in run(ROOT / command[1], *arguments, '--runs', 1, cwd=tmp_path)


def test_figures_of_a_config(tmp_path, exits):
    flops, groups = (
        [ROOT / a if '/' in a else a for a in command[1:]]
        for command in COMMANDS
        if re.search('get_flops|show_param_groups', command[-2])
    )
    counted = run(*flops, cwd=tmp_path)
    assert '262.11' in counted and '1000 boxes' in counted
    assert '0.6983' in run(*groups, cwd=tmp_path)  # of the stem
    assert next(tmp_path.glob('*_param_groups.png')).stat().st_size > 10_000
    assert 'no layer-wise decay' in exits(
        ROOT / 'tools/show_param_groups.py',
        ROOT / 'configs/coco/dino-4scale_convnext-t-in22k_8xb2-12e_coco.py',
    )


def test_conversions_run_one_after_the_other(tmp_path):
    zoo = {f'backbone.{name}': value for name, value in ConvNeXt('atto').state_dict().items()}
    torch.save(
        dict(state_dict=convert(zoo, 'mmpretrain').tensors, meta={}), tmp_path / 'zoo_detector.pth'
    )
    for command in COMMANDS:
        if 'tools/convert_weights.py' in command and '--list' not in command:
            run(ROOT / command[1], *command[2:], cwd=tmp_path)
    assert (tmp_path / 'timm.safetensors').exists()


@pytest.mark.parametrize(
    'command',
    [c for c in COMMANDS if re.search('tools/(train|test).py', ' '.join(c))],
    ids=' '.join,
)
def test_tool_commands_get_as_far_as_the_data(command, tmp_path, exits, monkeypatch):
    """From an empty folder, so that no data are found: tool, config and arguments are all read before that."""
    launched_with, arguments = command[0], command[1:]
    if launched_with.endswith('torchrun'):
        arguments = arguments[arguments.index('tools/train.py') :]
    arguments = [str(ROOT / a) if a.startswith(('tools/', 'configs/')) else a for a in arguments]
    (tmp_path / 'CHECKPOINT').touch()
    monkeypatch.chdir(tmp_path)
    assert 'The data of this config are not there' in exits(*arguments)


@pytest.mark.parametrize(
    'command, message',
    [
        (c, message)
        for c in COMMANDS
        for tool, message in (
            ('benchmark_segmentation', 'no config at mine.py|no folder at .*data/(street|mine)'),
            ('predict', 'no image, folder or video at FOLDER'),
            ('show_features', 'no image at street.jpg'),
        )
        if f'tools/{tool}.py' in c
    ],
    ids=str,
)
def test_commands_that_look_get_as_far_as_the_data(command, message, tmp_path, exits, monkeypatch):
    arguments = [
        path
        for argument in command[2:]
        for path in (map(str, sorted(ROOT.glob(argument))) if '*' in argument else [argument])
    ]
    monkeypatch.chdir(tmp_path)
    output = exits(ROOT / command[1], *arguments)
    assert re.search(message, output) and 'Traceback' not in output
    if 'train' in ' '.join(arguments):
        assert (
            output.count('no folder at') == 6
            and (tmp_path / 'work_dirs/benchmark_segmentation/index.html').exists()
        )


@pytest.mark.parametrize('target', [c[1] for c in COMMANDS if c[0] == 'make'])
def test_make_targets_set_up_once(target, tmp_path):
    def plan():
        return subprocess.run(
            ['make', '-n', target], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    for name in ('Makefile', 'setup.py'):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / 'tools' / 'env', tmp_path / 'tools' / 'env')
    assert 'make_env' in plan()
    (tmp_path / '.venv').mkdir()
    (tmp_path / '.venv' / '.ready').touch()
    assert plan() and 'make_env' not in plan()


def test_links_of_the_docs_lead_somewhere():
    for page in (ROOT / 'README.md', *ROOT.glob('docs/*.md')):
        for link in re.findall(r'\]\(([^)#:]+)\)', page.read_text()):
            assert (page.parent / link).exists(), f'{page}: {link}'


def test_the_package_installs_whole_and_asks_for_no_openmmlab_package(tmp_path):
    subprocess.run(
        [
            sys.executable,
            '-m',
            'pip',
            'install',
            '-q',
            '--no-deps',
            '--no-build-isolation',
            '--target',
            tmp_path,
            ROOT,
        ],
        check=True,
    )
    metadata = next(tmp_path.glob('*.dist-info/METADATA')).read_text()
    assert re.findall('Requires-Dist: (.*)', metadata) == ['torch>=2.1']
    names = {path.name for path in (tmp_path / 'convnext_dense').rglob('*.py')}
    assert names == {path.name for path in (ROOT / 'convnext_dense').rglob('*.py')}
