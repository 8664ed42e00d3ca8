"""The benchmark measures what it says, and compares only what is the same network."""

import json
import sys
from functools import partial

import pytest
import torch
from mmengine.registry import init_default_scope
from PIL import Image

from conftest import DEMO
from convnext_dense import ConfigError
from convnext_dense.commands.benchmark import main
from convnext_dense.config_names import read_config
from convnext_dense.evaluation import backbones, peers, whole_models
from convnext_dense.evaluation.processes import Process
from convnext_dense.evaluation.timing import (
    Measurement,
    figures,
    interleaved,
    interval,
    peak_memory,
)
from convnext_dense.inference.building import build


@pytest.fixture
def measure(tmp_path, capsys):
    """``measure(*arguments)`` runs the command with one thread. Returns what it wrote and printed:
    benchmark.json, benchmark.md, the output.
    """

    def run_here(*arguments):
        main([*arguments, '--threads', '1', '--out', str(tmp_path)])
        assert Image.open(tmp_path / 'benchmark.png').width > 800
        report = json.loads((tmp_path / 'benchmark.json').read_text())
        return report, (tmp_path / 'benchmark.md').read_text(), capsys.readouterr().out

    return run_here


@pytest.fixture
def quick_processes(monkeypatch):
    """Processes that have what is imported here already."""
    monkeypatch.setattr(backbones, 'Process', partial(Process, method='fork'))


def check_rows(report, page, output, names):
    (result,) = report['results']
    assert set(result['rows']) >= names and report['machine']['threads'] == 1
    for name, row in result['rows'].items():
        assert len(row['seconds']) == 2 and row['memory'] > 1e5 and row['error'] < 1e-5
        assert min(row['seconds']) <= row['median'] <= max(row['seconds'])
        assert f'| {name} |' in page and name in output


def test_inference_of_backbones_side_by_side(measure, quick_processes):
    report, page, output = measure('--arch', 'atto', '--size', '1x96x128', '--runs', '2')
    check_rows(report, page, output, {*peers.OURS, 'timm', 'transformers'})
    result = report['results'][0]
    assert 'torchvision' not in result['rows']  # it has no atto
    assert result['parameters'] == 3373880 and 'matrix products' in output
    assert sum(result['shares'].values()) == pytest.approx(1) and result['efficiency'] > 0


@pytest.mark.slow
def test_training_of_backbones_side_by_side(measure, monkeypatch):
    """In processes that import everything anew, as users have them; so with few peers."""
    monkeypatch.setattr(backbones, 'PEERS', ['timm'])
    command = '--arch', 'atto', '--size', '1x96x128', '--runs', '2', '--train'
    report, page, output = measure(*command)
    check_rows(report, page, output, {*peers.OURS_IN_TRAINING, 'timm'})


def test_whole_models(measure, quick_processes):
    report, page, output = measure(*DEMO.values(), '--size', '1x128x128', '--runs', '2')
    names = {*whole_models.IN_TRAINING, whole_models.FUSED}
    for result in report['results']:
        assert set(result['rows']) == names
        assert all(row['error'] < 1e-5 for row in result['rows'].values())
        assert set(result['parts']) == names
        for parts in result['parts'].values():
            assert min(parts.values()) > 0
    assert 'mask-rcnn' in output and 'pasting' in page and '| head |' in page


@pytest.mark.slow
def test_training_of_whole_models(measure, quick_processes):
    command = '--size', '2x128x128', '--runs', '2', '--train'
    report, page, output = measure(*DEMO.values(), *command)
    names = set(whole_models.IN_TRAINING)
    assert [set(result['rows']) for result in report['results']] == [names] * 2


def test_whole_models_are_what_their_rows_say():
    """The zoo's has nothing of ours in it; the heads of the second row are the host's."""
    cfg = read_config(DEMO['ade'])
    init_default_scope('mmseg')
    for name, parts in (
        (whole_models.ZOO, set()),
        (whole_models.HOST_HEADS, {'backbone'}),
        (whole_models.OURS, {'backbone', 'heads'}),
    ):
        model = whole_models._named(name, build(cfg.model, 'cpu'))
        modules = {type(module).__module__ for module in model.modules()}
        ours = {module.split('.')[1] for module in modules if module.startswith('convnext_dense')}
        assert ours & {'backbone', 'heads'} == parts


def test_the_zoo_has_no_backbone_of_other_strides():
    cfg = read_config(DEMO['ade'])
    cfg.model.backbone.output_stride = 8
    init_default_scope('mmseg')
    model = build(cfg.model, 'cpu')
    with pytest.raises(NotImplementedError, match='8, 8, 8'):
        whole_models._named(whole_models.ZOO, model)


def test_what_cannot_be_measured_is_told(capsys, tmp_path):
    with pytest.raises(SystemExit, match='nothing was measured'):
        main(['--size', '96x128', '--out', str(tmp_path)])
    assert '--size 96x128: expected IMAGESxHEIGHTxWIDTH' in capsys.readouterr().out


def test_other_networks_are_not_timed(monkeypatch):
    scenario = peers.Scenario('atto', '1x64x64')
    images, net = peers.common(scenario)
    expected = peers.infer(peers.official(net).double(), images.double())

    def wrong(arch):
        model, maps = peers.timm_peer(arch)
        model.stages[1].blocks[0].norm.eps = 0.1
        return model, maps

    peers.candidate('timm', scenario, 'cpu', expected)
    monkeypatch.setitem(peers.PEERS, 'timm', wrong)
    with pytest.raises(ConfigError, match='timm is another network'):
        peers.candidate('timm', scenario, 'cpu', expected)


def test_figures_are_relative_to_the_best_peer():
    rows = {
        'convnext_dense': Measurement([1.0] * 3, 30),
        'timm': Measurement([2.0] * 3, 60),
        'torchvision': Measurement([4.0] * 3, 20),
    }
    assert figures(rows)['convnext_dense'] == (1.0, 0.0, 2.0, 2.0, 2.0, 30e-6, 1.5)
    del rows['timm'], rows['torchvision']
    alone = dict(rows, **{'convnext_dense, fused': Measurement([0.5] * 3, 15)})
    assert figures(alone)['convnext_dense, fused'][2:] == (2.0, 2.0, 2.0, 15e-6, 0.5)
    low, high = interval([2.0, 2.2, 1.8], [1.0, 1.0, 1.0])
    assert 1.7 < low < 2 < high < 2.3


def test_errors_in_a_process_are_told():
    process = Process(int, 'no number', method='fork')
    with pytest.raises(RuntimeError, match='ValueError.*no number'):
        process.ask('facts')
    process.end()
    dies = Process(sys.exit, method='fork')
    with pytest.raises(RuntimeError, match='has died'):
        dies.ask('facts')


def test_peak_memory_counts_live_tensors():
    def work():
        a = torch.ones(1000, 1000)
        b = a + 1  # 8 MB live
        del a
        return b * 2  # 8 MB again

    assert abs(peak_memory(work, 'cpu') - 8e6) < 1e4


def test_runs_take_turns():
    calls = []
    functions = {name: lambda name=name: calls.append(name) or len(calls) for name in 'ab'}
    assert interleaved(functions, 3, 'turns') == dict(a=[3, 5, 7], b=[4, 6, 8])
    assert calls == ['a', 'b'] * 4
