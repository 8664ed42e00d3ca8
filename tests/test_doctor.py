"""convnext-dense doctor: faults are put into copies of packages, folders and the environment, or
into the facts; none of the verdicts is."""

import os
import re
import shutil
import subprocess
import sys
from http.server import HTTPServer, SimpleHTTPRequestHandler
from importlib import metadata
from pathlib import Path
from threading import Thread

import mmcv
from packaging.requirements import Requirement
from pytest import fixture, mark

from conftest import ROOT
from convnext_dense.doctor import checks, probing
from convnext_dense.doctor.checks import FAMILIES, diagnose
from convnext_dense.doctor.probing import Distribution

FAMILY = 'upstream' if metadata.packages_distributions()['mmengine'] == ['mmengine'] else 'onedl'
OTHER = {'onedl': 'upstream', 'upstream': 'onedl'}[FAMILY]
PINS = FAMILIES[FAMILY]
COMPILE = f'--no-build-isolation --no-cache-dir --force-reinstall --no-deps {PINS["mmcv"]}'


# The machine that tests may have little room: the commands see a disk with 100 GB free.
ROOM = (
    'import runpy, shutil; '
    'shutil.disk_usage = lambda _: shutil._ntuple_diskusage(200e9, 100e9, 100e9); '
    "runpy.run_module('convnext_dense', run_name='__main__', alter_sys=True)"
)


@fixture(scope='module')
def sound():
    facts = probing.facts(offline=True)._replace(free={})
    assert diagnose(facts) == []
    return facts


def doctor(folder, *options, **env):
    command = [sys.executable, '-c', ROOM, 'doctor', '--offline']
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, [*options, ROOT])), **env)
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def lines_of(facts):
    return '\n'.join(f'{finding.wrong}\n{finding.mend}' for finding in diagnose(facts))


def test_silence_where_all_is_sound(tmp_path):
    result = doctor(tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


def test_pins_are_those_of_the_set_up():
    for family, pins in FAMILIES.items():
        lines = (ROOT / f'tools/env/{family}.in').read_text().splitlines()
        assert {pin for pin in pins.values() if '==' in pin} <= set(lines)
        versions = dict(line.split('==') for line in lines if re.match(r'[\w-]+==', line))
        for name in ('numpy', 'setuptools'):
            assert Requirement(pins[name]).specifier.contains(versions[name])


# ---- packages ----


@fixture
def copy_of_mmcv(tmp_path):
    """First on the path: mmcv without its compiled ops."""
    without_ops = shutil.ignore_patterns('_ext.*', 'csrc', '__pycache__', '.mim')
    shutil.copytree(Path(mmcv.__file__).parent, tmp_path / 'path/mmcv', ignore=without_ops)
    return tmp_path / 'path'


def test_ops_are_missing(copy_of_mmcv, tmp_path):
    result = doctor(tmp_path, copy_of_mmcv, CXX='nothing')
    assert result.returncode == 1
    no_compiler, no_ops = re.findall('(.*)\n  mend: (.*)\n', result.stdout)
    assert 'mmcv has no compiled ops' in no_ops[0] and no_ops[1].endswith(COMPILE)
    assert 'no C++ compiler' in no_compiler[0] and no_compiler[1] == 'apt install g++'


def test_ops_for_another_torch(copy_of_mmcv, sound, monkeypatch):
    """The real library, which asks torch for a function of a name that this torch has not."""
    (library,) = Path(mmcv.__file__).parent.glob('_ext.*')
    content = library.read_bytes()
    symbol = re.search(rb'_ZN2at4_ops\w+', content)[0]
    other = content.replace(symbol, symbol[:-1] + b'0')
    (copy_of_mmcv / 'mmcv' / library.name).write_bytes(other)
    monkeypatch.syspath_prepend(copy_of_mmcv)
    failed = probing.first_failure(sound.owners, gpu=False)
    (finding,) = diagnose(sound._replace(failed=failed))
    assert 'compiled for another torch' in finding.wrong and symbol.decode()[:-1] in finding.wrong
    assert finding.mend.endswith(COMPILE)


def test_two_distributions_own_one_name(tmp_path, sound, monkeypatch):
    other = FAMILIES[OTHER]['mmengine'].partition('==')
    folder = tmp_path / f'{other[0].replace("-", "_")}-{other[2]}.dist-info'
    folder.mkdir()
    folder.joinpath('METADATA').write_text(f'Name: {other[0]}\nVersion: {other[2]}\n')
    folder.joinpath('top_level.txt').write_text('mmengine\n')
    monkeypatch.syspath_prepend(tmp_path)
    owners, installed = probing.package_owners(), probing.installed()
    (finding,) = diagnose(sound._replace(owners=owners, distributions=installed))
    assert 'mmengine is installed by mmengine and onedl-mmengine' in finding.wrong
    uninstall, install = finding.mend.split(' && ')
    assert uninstall.endswith('uninstall -y mmengine onedl-mmengine')
    assert install.endswith(f'install "{PINS["numpy"]}" {PINS["mmengine"]}')


def test_no_family_or_a_mixed_one(sound):
    mixed = sound._replace(owners=sound.owners | dict(mmdet=['somebodys-mmdet']))
    (finding,) = diagnose(mixed)
    assert finding.mend.startswith(f'{sound.pip} uninstall -y somebodys-mmdet && ')
    assert PINS['mmdet'] in finding.mend
    none = sound._replace(owners={})
    wrong = [finding.wrong for finding in diagnose(none)]
    assert wrong == [
        'mmengine is not installed',
        'mmcv is not installed',
        'neither mmdet nor mmseg is installed',
    ]


@mark.parametrize(
    ('name', 'version', 'wrong', 'mend'),
    [
        ('torch', '2.0.0', 'torchvision needs torch', 'install torch==2.0.0 torchvision'),
        ('torch', '2.0.0+cpu', 'torchvision needs torch', 'https://download.pytorch.org/whl/cpu'),
        ('pillow', '5.0', 'torchvision needs pillow', 'install "pillow'),
        ('matplotlib', '', 'mmengine needs matplotlib', 'install "matplotlib"'),
    ],
)
def test_versions_that_the_packages_refuse(sound, name, version, wrong, mend):
    others = sound.distributions | {name: Distribution(version, [])}
    assert wrong in lines_of(sound._replace(distributions=others))
    assert mend in lines_of(sound._replace(distributions=others))


def test_numpy_that_a_package_refuses(sound):
    mmseg = Distribution('1', ['numpy>2'] if FAMILY == 'onedl' else ['numpy<2'])
    numpy = Distribution('1.26.4' if FAMILY == 'onedl' else '2.2.6', [])
    name = checks.name_in(PINS['mmseg'])
    distributions = sound.distributions | {name: mmseg, 'numpy': numpy}
    assert f'install "{PINS["numpy"]}"' in lines_of(sound._replace(distributions=distributions))


# What the libraries said when they were installed in that state.
@mark.parametrize(
    ('trial', 'error', 'wrong', 'mend'),
    [
        (
            'torch_with_numpy',
            'RuntimeError: Numpy is not available',
            'torch was compiled for NumPy 1',
            'install "numpy<2"',
        ),
        (
            'torchvision',
            'RuntimeError: operator torchvision::nms does not exist',
            'torchvision does not fit torch',
            'install --force-reinstall --no-deps torchvision==',
        ),
        (
            'mmengine',
            "ModuleNotFoundError: No module named 'pkg_resources'",
            'setuptools is too new',
            f'install "{PINS["setuptools"]}"',
        ),
        (
            'mmcv_ops',
            'RuntimeError: nms_impl: implementation for device cuda:0 not found.',
            'compiled for another torch',
            COMPILE,
        ),
        (
            'mmdet',
            'AssertionError: MMCV==2.2.0 is used but incompatible. '
            'Please install mmcv>=2.0.0rc4, <2.2.0.',
            'mmdet refuses this version of mmcv',
            COMPILE,
        ),
        (
            'mmseg',
            "ModuleNotFoundError: No module named 'ftfy'",
            'mmseg needs ftfy',
            'install "ftfy"',
        ),
    ],
)
def test_what_the_libraries_say(sound, trial, error, wrong, mend):
    (finding,) = diagnose(sound._replace(failed=(trial, error)))
    assert wrong in finding.wrong and error in finding.wrong
    assert mend in finding.mend


def test_a_library_that_ends_python(tmp_path, sound, monkeypatch):
    (tmp_path / 'torch.py').write_text('import os; os.abort()')
    monkeypatch.syspath_prepend(tmp_path)
    (finding,) = diagnose(sound._replace(failed=probing.first_failure(sound.owners, gpu=False)))
    assert 'torch does not import' in finding.wrong and 'status -6' in finding.wrong
    assert 'install --force-reinstall --no-deps torch==' in finding.mend


# ---- the machine ----


def test_a_gpu_that_torch_cannot_use(sound, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    failed = probing.first_failure(sound.owners, gpu=True)
    (finding,) = diagnose(sound._replace(gpus=['GPU 0'], failed=failed))
    assert 'GPU' in finding.wrong or 'CUDA' in finding.wrong
    assert 'driver' in finding.mend or 'uninstall -y torch torchvision' in finding.mend


def test_what_compiles_ops_for_the_gpu(sound):
    failed = (
        'mmcv_ops_on_gpu',
        'RuntimeError: nms_impl: implementation for device cuda:0 not found.',
    )
    tools = dict(compiler='', headers='', nvcc='')
    lines = lines_of(sound._replace(gpus=['GPU 0'], failed=failed, tools=tools))
    for part in ('apt install g++', 'apt install python3.', 'CUDA_HOME', COMPILE):
        assert part in lines
    assert diagnose(sound._replace(tools=tools)) == []  # nothing has to be compiled


def test_little_room(sound):
    free = dict(checkpoints=(Path('runs'), 0.5), weights=(Path('cache'), 0.25))
    lines = lines_of(sound._replace(free=free))
    assert '0.5 GB are free in runs' in lines and 'max_keep_ckpts=1' in lines
    assert '0.2 GB are free in cache' in lines and 'export TORCH_HOME=' in lines


def test_hosts_that_cannot_be_reached(sound, monkeypatch):
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')  # nothing listens there
    monkeypatch.setenv('no_proxy', '')
    unreachable = probing.unreachable_hosts()
    assert {'dl.fbaipublicfiles.com', 'huggingface.co', 'github.com'} < set(unreachable)
    lines = lines_of(sound._replace(unreachable=unreachable))
    assert 'huggingface.co' in lines and 'export https_proxy=' in lines and '--offline' in lines


def test_a_host_that_answers():
    with HTTPServer(('127.0.0.1', 0), SimpleHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        assert probing.error_of(f'http://127.0.0.1:{server.server_port}/') == ''
        assert '404' in probing.error_of(f'http://127.0.0.1:{server.server_port}/nothing')
        server.shutdown()


# ---- data ----


def test_data_in_another_layout(tmp_path, sound, monkeypatch):
    """The commands that mend it are run."""
    for part in (
        'coco/images/train2017',
        'coco/images/val2017',
        'coco/labels/train2017',
        'coco/annotations',
        'ade/images/training',
        'ade/images/validation',
        'ade/annotations/training',
        'ade/annotations/validation',
    ):
        (tmp_path / 'data' / part).mkdir(parents=True)
    for split in ('train', 'val'):
        (tmp_path / f'data/coco/annotations/instances_{split}2017.json').touch()
    monkeypatch.chdir(tmp_path)
    findings = diagnose(sound._replace(data=probing.misplaced(Path())))
    assert len(findings) == 6 and findings[0].wrong == 'data/coco/train2017 is missing'
    for finding in findings:
        subprocess.run(finding.mend, shell=True, check=True)
    assert probing.misplaced(Path()) == {}
    assert Path('data/coco/train2017').resolve() == tmp_path / 'data/coco/images/train2017'


def test_data_that_are_not_there(tmp_path, sound):
    (tmp_path / 'data/coco/val2017').mkdir(parents=True)
    lines = lines_of(sound._replace(data=probing.misplaced(tmp_path)))
    assert 'data/coco/annotations/instances_val2017.json is missing' in lines
    assert '--data-root FOLDER' in lines
    (tmp_path / 'data/coco/annotations').mkdir()
    (tmp_path / 'data/coco/annotations/instances_val2017.json').touch()
    assert probing.misplaced(tmp_path) == {}  # enough to test on
