"""The benchmark measures what it says, and compares only what is the same network."""

import json
import sys

import pytest
import torch
from PIL import Image

from conftest import DEMO, run
from convnext_dense import ConfigError
from convnext_dense.evaluation import peers
from convnext_dense.evaluation.processes import Process
from convnext_dense.evaluation.timing import figures, interleaved, peak_memory

OURS = dict(inference=peers.OURS, training=peers.OURS_IN_TRAINING)


@pytest.mark.parametrize('kind', OURS)
def test_backbones_side_by_side(kind, tmp_path):
    output = run(
        'tools/benchmark.py',
        '--arch',
        'atto',
        '--size',
        '1x96x128',
        '--runs',
        2,
        '--threads',
        1,
        '--out',
        tmp_path,
        *['--train'] * (kind == 'training'),
    )
    report = json.loads((tmp_path / 'benchmark.json').read_text())
    page, result = (tmp_path / 'benchmark.md').read_text(), report['results'][0]
    assert set(result['rows']) > {*OURS[kind], 'timm', 'transformers'}
    assert report['machine']['threads'] == 1
    for name, row in result['rows'].items():
        assert len(row['seconds']) == 2 and row['memory'] > 1e5 and row['error'] < 1e-5
        assert f'| {name} |' in page and name in output
    assert Image.open(tmp_path / 'benchmark.png').width > 800
    if kind == 'inference':
        assert result['parameters'] == 3373880 and 'matrix products' in output


def test_whole_models(tmp_path):
    output = run(
        'tools/benchmark.py',
        *DEMO.values(),
        '--size',
        '1x128x128',
        '--runs',
        1,
        '--threads',
        1,
        '--out',
        tmp_path,
    )
    results = json.loads((tmp_path / 'benchmark.json').read_text())['results']
    assert [set(result['rows']) for result in results] == [
        {'plain operators', 'convnext_dense', 'convnext_dense, fused'}
    ] * 2
    assert 'mask-rcnn' in output


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


def test_plain_operators_are_plain(monkeypatch):
    """The row of that name in the comparison of whole models."""
    from convnext_dense import fast_path
    from convnext_dense.evaluation import backbones as benchmark

    scenario, calls = peers.Scenario(DEMO['ade'], '1x128x128'), []
    block = fast_path._block
    monkeypatch.setattr(fast_path, 'FEW_VALUES', 0)
    monkeypatch.setattr(fast_path, '_block', lambda *args: calls.append(1) or block(*args))
    for name, is_plain in (('plain operators', True), ('convnext_dense', False)):
        calls.clear()
        benchmark.whole_model(name, scenario, 'cpu').function()
        assert bool(calls) != is_plain


def test_figures_are_relative_to_the_best_peer():
    rows = {
        name: dict(seconds=[seconds] * 3, memory=memory)
        for name, seconds, memory in (
            ('convnext_dense', 1.0, 30),
            ('timm', 2.0, 60),
            ('torchvision', 4.0, 20),
        )
    }
    assert figures(rows)['convnext_dense'] == (1.0, 0.0, 2.0, 30, 1.5)


def test_what_fails_in_a_process_is_told():
    process = Process(int, 'no number')
    with pytest.raises(RuntimeError, match='ValueError.*no number'):
        process.ask('facts')
    process.end()
    dies = Process(sys.exit)
    with pytest.raises(RuntimeError, match='has died'):
        dies.ask('facts')


def test_peak_memory_counts_what_lives_at_once():
    def work():
        a = torch.ones(1000, 1000)
        b = a + 1  # 8 MB live
        del a
        return b * 2  # 8 MB again

    assert abs(peak_memory(work, 'cpu') - 8e6) < 1e4


def test_runs_take_turns():
    calls = []
    seconds = interleaved(
        {name: lambda name=name: calls.append(name) or len(calls) for name in 'ab'}, 3, 'turns'
    )
    assert calls == ['a', 'b'] * 4 and seconds == dict(a=[3, 5, 7], b=[4, 6, 8])
