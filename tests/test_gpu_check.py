"""The GPU check on the CPU: every part, what it writes, and that it notices what is wrong."""

import json

import pytest
import torch
from torch import nn

from conftest import CAPABILITIES, run
from convnext_dense.evaluation import gpu_check, gpu_parts
from convnext_dense.evaluation.peers import BOUND, MODES, PEERS, Scenario, candidate, common
from convnext_dense.evaluation.timing import tf32

MODULE = 'convnext_dense.evaluation.gpu_check'
SETTINGS = gpu_parts.SETTINGS['cpu']
# One network that is timed, in one round; its graph is compiled, but no C++ code of it.
QUICK = SETTINGS._replace(timed=('v2_atto',), rounds=1, compiler='aot_eager')


@pytest.fixture
def check(monkeypatch, tmp_path):
    """``check(*parts)`` runs parts on the CPU. Returns the exit code and the report."""
    monkeypatch.setitem(gpu_parts.SETTINGS, 'cpu', QUICK)

    def run_here(*parts):
        with pytest.raises(SystemExit) as stopped:
            gpu_check.main(['--device', 'cpu', '--out', str(tmp_path), '--parts', *parts])
        return stopped.value.code, json.loads((tmp_path / 'gpu.json').read_text())

    return run_here


def test_every_part_passes_and_is_reported(check, tmp_path, capsys):
    code, report = check(*gpu_parts.PARTS)
    output, page = capsys.readouterr().out, (tmp_path / 'gpu.md').read_text()
    verdicts = {name: part['verdict'] for name, part in report['parts'].items()}
    assert verdicts == dict.fromkeys(gpu_parts.PARTS, 'pass')
    assert (code, report['verdict']) == (0, 'pass')
    assert page.startswith(f'# ConvNeXt on {report["machine"]["hardware"]}: pass')
    assert all(f'## {name}: pass' in page and f'{name}: pass' in output for name in verdicts)
    assert {'mmengine', 'timm', 'torchvision', 'transformers'} <= set(report['versions'])

    rows = {name: part['rows'] for name, part in report['parts'].items()}
    columns = 'network', 'stages', 'precision', 'checkpointing'
    passed = [row for row in rows['features'] if row['verdict'] == 'pass']
    cases = {tuple(row[column] for column in columns) for row in passed}
    has_half = CAPABILITIES['half convolution on the CPU']
    assert len(cases) == len(passed) == 2 * 2 * (3 if has_half else 2) * len(MODES)
    assert {row['precision'] for row in rows['fused']} == set(BOUND)
    assert len(rows['ddp']) == 2 * len(MODES) and len(rows['compile']) == 2
    for part in ('inference', 'training'):
        assert {row['model'] for row in rows[part]} > {'official form', 'timm', 'transformers'}
        for row in rows[part]:
            assert row['median, ms'] > 0 and row['memory, MB'] > 0.1 and row['error'] < 1e-5
            assert f'| {row["model"]} |' in page


@pytest.mark.slow
def test_code_of_the_default_compiler_computes_the_same(check, monkeypatch):
    monkeypatch.setitem(gpu_parts.SETTINGS, 'cpu', SETTINGS)
    code, report = check('compile')
    assert code == 0 and len(report['parts']['compile']['rows']) == 2


def test_without_mmcv_and_peers(tmp_path):
    absent = ['mmcv', 'mmdet', 'mmseg', *PEERS]
    code = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({absent}))  # None: they cannot be imported
from convnext_dense.evaluation.gpu_parts import SETTINGS
SETTINGS['cpu'] = SETTINGS['cpu']._replace(timed=['atto'], rounds=1)
sys.argv = ['', '--device', 'cpu', '--parts', 'ddp', 'training', '--out', {str(tmp_path)!r}]
runpy.run_module({MODULE!r}, run_name='__main__')
"""
    output = run('-c', code)
    report = json.loads((tmp_path / 'gpu.json').read_text())
    assert set(report['missing']) == set(PEERS) and report['verdict'] == 'pass'
    assert all(f'without {name}:' in output for name in PEERS)
    models = {row['model'] for row in report['parts']['training']['rows']}
    assert models == {'official form', *(f'convnext_dense, {mode}' for mode in MODES)}


def test_another_activation_fails(check, monkeypatch):
    exact = nn.GELU
    monkeypatch.setattr(gpu_parts, 'BOUND', dict(float32=BOUND['float32']))
    monkeypatch.setattr(nn, 'GELU', lambda: exact(approximate='tanh'))
    code, report = check('features', 'ddp')
    assert code == 1 and report['verdict'] == 'FAIL'
    assert report['parts']['ddp']['verdict'] == 'pass'
    rows = report['parts']['features']['rows']
    assert {row['verdict'] for row in rows if row['stages'] == 'all'} == {'FAIL'}


def test_a_part_that_raises_says_why_and_stops_no_other(check, monkeypatch, capsys):
    def fuse(net):
        raise RuntimeError('out of [/memory] | more\non other lines')

    monkeypatch.setattr(gpu_parts, 'fuse', fuse)
    code, report = check('fused', 'ddp')
    assert code == 1 and report['parts']['ddp']['verdict'] == 'pass'
    assert report['parts']['fused']['rows'][0]['why'] == 'RuntimeError: out of [/memory] | more'
    assert 'out of [/memory]' in capsys.readouterr().out


def test_a_device_that_does_not_compute_fails(check, monkeypatch):
    def conv2d(*args, **kwargs):
        raise RuntimeError('no kernel image is available')

    monkeypatch.setattr(nn.functional, 'conv2d', conv2d)
    code, report = check('fused')
    rows = report['parts']['fused']['rows']
    assert code == 1
    assert {row['verdict'] for row in rows if row['precision'] == 'float32'} == {'FAIL'}


def test_a_peer_that_breaks_is_told_and_missed(check, monkeypatch):
    def timm(arch):
        raise AttributeError('another version')

    monkeypatch.setitem(PEERS, 'timm', timm)
    code, report = check('inference')
    rows = {row['model']: row for row in report['parts']['inference']['rows']}
    assert code == 0 and rows['timm']['why'] == 'AttributeError: another version'
    assert set(rows) > {'convnext_dense, fused', 'official form', 'transformers'}


def test_it_stops_with_a_line(monkeypatch, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_check, 'attempt', stop)
    with pytest.raises(SystemExit, match='\nstopped; '):
        gpu_check.main(['--device', 'cpu', '--out', str(tmp_path)])
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit, match='no GPU here.*--device cpu'):
        gpu_check.main([])
    with pytest.raises(SystemExit, match='cannot be written'):
        gpu_check.main(['--device', 'cpu', '--out', __file__])


def test_training_steps_are_timed_under_autocast():
    """In the check they are on a GPU only."""
    scenario = Scenario('atto', '1x32x32', 'bfloat16', train=True)
    images, net = common(scenario)
    expected = net.double()(images.double())
    net.float()
    model = candidate('convnext_dense, mlp', scenario, 'cpu', expected)
    assert 1e-4 < model.error < BOUND['bfloat16'] and model.seconds() > 0
    assert {value.dtype for value in net.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    'error, limit, expected',
    [
        (2e-6, 0.0, True),  # sums in another order
        (3e-6, 1e-6, False),
        (2e-3, 1e-3, True),
        (3e-3, 1e-3, False),
        (0.1, float('nan'), True),  # the official form overflows, ours does not
        (0.1, float('inf'), True),
        (float('nan'), float('nan'), False),
    ],
)
def test_errors_are_judged_by_the_official_forms(error, limit, expected):
    assert gpu_parts.is_within(error, limit) == expected


def test_tf32_is_as_it_was():
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    with tf32(True):
        assert all(switch.allow_tf32 for switch in switches)
        with tf32(False):
            assert not any(switch.allow_tf32 for switch in switches)
        assert all(switch.allow_tf32 for switch in switches)
    assert [switch.allow_tf32 for switch in switches] == before
