"""Every command and Python block of the pages runs: here, in the tests of its page, or not, with
the reason."""

import re
import shlex
import sys

import pytest
from mmengine.config import Config

from conftest import ROOT
from convnext_dense import __main__ as program

FENCED = re.compile(r'^ *```(\w+) ?([^\n]*)\n(.*?)^ *```', re.MULTILINE | re.DOTALL)
FILES = [
    *(ROOT / name for name in ('README.md', 'CHANGELOG.md')),
    *sorted(ROOT.glob('docs/**/*.md')),
    *sorted(ROOT.glob('tools/site/pages/*.md')),
    *sorted(ROOT.glob('configs/*/README.md')),
]
TESTED_BY = {  # pages all of whose blocks have tests of their own
    'README.md': 'test_readme.py',
    'tutorial.md': 'test_tutorial.py',
    'plain-pytorch.md': 'test_plain_pytorch.py',
}
ELSEWHERE = {  # part of a block -> where it runs, or why it does not
    'make lint': 'tests/test_contributing.py compares it with the hooks',
    'pip install onnx': 'fetches packages',
    'mim search': 'openmim is in no environment of ours',
    '#SBATCH': 'needs SLURM; tests/test_runners.py has two torchruns that find each other',
    'DeepSpeedStrategy': 'DeepSpeed is in no environment of ours',
    'epoch_36.pth': 'tests/test_doors.py predicts with a model of its own',
    'mmdet.__path__': 'tests/test_doors.py trains by that script',
    '--cfg-options optim_wrapper.type': 'tests/test_doors.py gives this option',
    'convnext-dense benchmark': 'minutes; tests/test_benchmark.py runs it on small models',
    'import Model': 'tests/test_tutorial.py runs it on the file that it has exported',
    'InferenceSession(': 'tests/test_export_detectors.py runs it on a file',
    'COCOeval(': 'tests/test_export_detectors.py scores with it',
    'cp -r "$(python': 'tests/test_tutorial.py copies the runner so',
    'rglob': 'tests/test_own_data.py runs it on real label maps',
    'may_differ': 'tests/test_checkpoint_hook.py starts from another detector so',
    'convnext-dense doctor': 'tests/test_doctor.py',
    'convnext-dense groups': 'tests/test_readme.py',
    'swap retinanet': 'tests/test_readme.py compares what it prints with the page',
    'for box_head': 'tests/test_own_data.py',
    'model = dict(bbox_head=head)': 'tests/test_own_data.py',
    'python -c "import convnext_dense': 'test_the_count_of_parameters below',
}
BLOCKS = [
    (file.name, language, name, code)
    for file in FILES
    for language, name, code in FENCED.findall(file.read_text())
    if language not in ('text', 'toctree')
]
HERE = [
    block
    for block in BLOCKS
    if block[0] not in TESTED_BY and not any(part in block[-1] for part in ELSEWHERE)
]
COMMANDS = [
    shlex.split(line, comments=True)
    for _, language, _, code in HERE
    if language == 'bash'
    for line in code.replace('\\\n', ' ').splitlines()
]
CONFIGS = [(page, name) for page, language, name, _ in HERE if language == 'python' and name]
# What a command says in an empty folder, where neither a config nor data are.
LACKS = re.compile(r'no (config|recipe|image|weights),? \S|not there|: no \w+ at ')


def test_what_does_not_run_here_is_still_in_a_page():
    assert {language for _, language, _, _ in BLOCKS} <= {'bash', 'python'}
    assert all((ROOT / 'tests' / test).exists() for test in TESTED_BY.values())
    assert [part for part in ELSEWHERE if not any(part in block[-1] for block in BLOCKS)] == []


@pytest.mark.parametrize('command', COMMANDS, ids=' '.join)
def test_commands_get_as_far_as_what_is_not_there(command, tmp_path, monkeypatch, capsys):
    start = command.index('convnext-dense' if 'convnext-dense' in command else 'convnext_dense')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['convnext-dense', *command[start + 1 :]])
    message = ''
    try:
        program.main()
    except SystemExit as stopped:
        message = str(stopped.code or '')
    printed = capsys.readouterr()
    if message:
        assert LACKS.search(message + printed.err), message + printed.err
    else:
        assert printed.out


@pytest.mark.parametrize('page, name', CONFIGS)
def test_configs_can_be_read(page, name, tmp_path):
    for other, _, file, code in HERE:
        if other == page and file:
            (tmp_path / file).write_text(code)
    assert 'model' in Config.fromfile(tmp_path / name)


def test_a_step_of_the_roadmap():
    (code,) = [code for _, language, name, code in HERE if language == 'python' and not name]
    namespace = {}
    exec(code, namespace)
    promised = re.search(r'out_channels +# (\(.*?\))', code)[1]
    assert str(namespace['net'].out_channels) == promised


def test_the_count_of_parameters(capsys):
    page = (ROOT / 'docs/contributing.md').read_text()
    code = re.search(r'python -c "(.*?)"', page, re.DOTALL)[1]
    exec('\n'.join(map(str.strip, code.splitlines())), {})
    counted = capsys.readouterr().out.strip()
    source = (ROOT / 'convnext_dense/architectures.py').read_text()
    assert re.search(f"'tiny': .*# {counted}$", source, re.MULTILINE)
