"""The set-up script: what it refuses, and that a wheel is compiled once."""

import subprocess
import sys

import pytest

from conftest import ROOT
from tools.env import build_mmcv, make_env, steps, unity_files

FOLDER = ROOT / 'tools' / 'env'


@pytest.mark.parametrize('family', ['onedl', 'upstream'])
def test_pins_of_all_packages_hold_those_of_the_family(family):
    """`make pins` writes the .txt from the .in; this fails where it was not run."""
    lines = (FOLDER / f'{family}.in').read_text().splitlines()
    chosen = [line.split('#')[0].split(';')[0].strip() for line in lines]
    pins = [line.split(' ;')[0] for line in (FOLDER / f'{family}.txt').read_text().splitlines()[2:]]
    assert all(pin.count('==') == 1 for pin in pins)
    assert {pin.lower().replace('_', '-') for pin in chosen if pin} <= set(pins)


def test_a_wheel_that_was_compiled_before_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv('CPU', '1')
    log = steps.Log(tmp_path / 'log')
    torch, tag = log.run('look', [sys.executable, '-c', build_mmcv.DESCRIBE]).split(';')[:2]
    folder = tmp_path / 'mmcv' / f'mmcv-9.9-torch{torch}-{tag}-cpu'
    folder.mkdir(parents=True)
    (folder / 'mmcv.whl').touch()
    wheel = build_mmcv.build_mmcv('mmcv==9.9', sys.executable, tmp_path, log)
    assert wheel == folder / 'mmcv.whl'


@pytest.mark.parametrize(
    ('visible', 'way_out'), [('9.0', 'CPU=1'), ('', 'TORCH_CUDA_ARCH_LIST=9.0')]
)
def test_a_build_for_gpus_that_cannot_be_is_refused(visible, way_out, tmp_path, monkeypatch):
    """No nvcc for the GPU that is visible; no GPU and none named."""
    stand_in = tmp_path / 'python'  # for the interpreter of a machine with that GPU
    stand_in.write_text(f'#!/bin/sh\necho "2.12.1;cp311;13.0;{visible}"\n')
    stand_in.chmod(0o755)
    monkeypatch.setattr(build_mmcv, 'has_nvcc', lambda: False)
    monkeypatch.setenv('FORCE_CUDA', '1')
    with pytest.raises(SystemExit, match=way_out):
        build_mmcv.build_mmcv('mmcv==9.9', stand_in, tmp_path, steps.Log(tmp_path / 'log'))


def test_a_step_that_fails_shows_its_end(tmp_path):
    log, code = tmp_path / 'log', 'print("the reason"); raise SystemExit(3)'
    with pytest.raises(SystemExit, match='the reason\nfailed: break'):
        steps.Log(log).run('break', [sys.executable, '-c', code])
    assert 'the reason' in log.read_text()


def test_a_python_that_the_family_cannot_use_is_refused(tmp_path):
    module = [sys.executable, '-m', 'tools.env.make_env']
    command = [*module, tmp_path / 'venv', FOLDER / 'onedl.txt', '--max-python', '3.9']
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode and 'PYTHON=' in result.stderr
    assert not (tmp_path / 'venv').exists()


def test_compiled_ops_are_proven_by_running_them():
    subprocess.run([sys.executable, '-c', make_env.PROVE_OPS], check=True)


def test_unity_files_include_each_file_of_mmcv_once(tmp_path):
    """And setup.py compiles them in place of the files, which stay as they are."""
    ops = tmp_path / 'mmcv' / 'ops' / 'csrc' / 'pytorch'
    (ops / 'cpu').mkdir(parents=True)
    names = [f'op{i:02}.cpp' for i in range(30)] + ['psamask.cpp']
    names += [f'cpu/{name}' for name in names] + ['pybind.cpp', 'cpu/bezier_align.cpp']
    for name in names:
        (ops / name).write_text('// an op')
    patterns = "glob('csrc/pytorch/*.cpp') + glob('csrc/pytorch/cpu/*.cpp')"
    (tmp_path / 'setup.py').write_text(patterns)
    unity_files.unite(tmp_path)
    assert (tmp_path / 'setup.py').read_text() == patterns.replace('/pytorch/', '/unity/')
    included = []
    for unity in ops.with_name('unity').rglob('*.cpp'):
        group = [line.split('"')[1] for line in unity.read_text().splitlines()]
        included += [(unity.parent / path).resolve().relative_to(ops).as_posix() for path in group]
        alone = any(path.endswith(('bezier_align.cpp', 'pybind.cpp')) for path in group)
        assert len(group) == 1 or not alone
        assert 'cpu/psamask' not in ''.join(group[:-1])  # its macros would reach what follows
    assert sorted(included) == sorted(names)
    assert all((ops / name).read_text() == '// an op' for name in names)
