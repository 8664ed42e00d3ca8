"""The benchmark measures what it says, and compares only what is the same network."""
import json
import sys

import pytest
import torch
from conftest import DEMO, run
from PIL import Image
from timing import Process, interleaved, peak_memory

OURS = {'inference': {'convnext_dense', 'convnext_dense, fused'}, 'training': {f'convnext_dense, {mode}' for mode in ('none', 'mlp', 'block')}}


@pytest.mark.parametrize('kind', OURS)
def test_backbones_side_by_side(kind, tmp_path):
    output = run('tools/benchmark.py', '--arch', 'atto', '--size', '1x96x128', '--runs', 2, '--threads', 1, '--out', tmp_path,
                 *(['--train'] if kind == 'training' else []))
    found = json.loads((tmp_path / 'benchmark.json').read_text())
    rows = found['results'][0]['rows']
    assert OURS[kind] < set(rows) and {'timm', 'transformers'} < set(rows) and found['machine']['threads'] == 1
    assert all(len(row['seconds']) == 2 and row['memory'] > 1e5 and row['error'] < 1e-5 for row in rows.values())
    assert all(f'| {name} |' in (tmp_path / 'benchmark.md').read_text() and name in output for name in rows)
    assert Image.open(tmp_path / 'benchmark.png').width > 800
    if kind == 'inference':
        assert found['results'][0]['parameters'] == 3373880 and 'matrix products' in output


def test_whole_models(tmp_path):
    output = run('tools/benchmark.py', *DEMO.values(), '--size', '1x128x128', '--runs', 1, '--threads', 1, '--out', tmp_path)
    assert [set(result['rows']) for result in json.loads((tmp_path / 'benchmark.json').read_text())['results']] == [
        {'plain operators', 'convnext_dense', 'convnext_dense, fused'}] * 2
    assert 'mask-rcnn' in output


def test_other_networks_are_not_timed(monkeypatch, tmp_path):
    import benchmark
    scenario = benchmark.Scenario('atto', '1x64x64')
    images, net = benchmark.common(scenario)
    torch.save(net.double()(images.double()), tmp_path / 'expected.pt')

    def wrong(arch):
        model, maps = benchmark.timm_peer(arch)
        model.stages[1].blocks[0].norm.eps = .1
        return model, maps
    benchmark.backbone('timm', scenario, 'cpu', tmp_path / 'expected.pt')
    monkeypatch.setitem(benchmark.PEERS, 'timm', wrong)
    with pytest.raises(benchmark.ConfigError, match='timm is another network'):
        benchmark.backbone('timm', scenario, 'cpu', tmp_path / 'expected.pt')


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
    seconds = interleaved({name: lambda name=name: calls.append(name) or len(calls) for name in 'ab'}, 3, 'turns')
    assert calls == ['a', 'b'] * 4 and seconds == dict(a=[3, 5, 7], b=[4, 6, 8])
