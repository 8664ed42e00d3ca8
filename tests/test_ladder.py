"""The ladder's page: its networks, what it calls a difference, and its table."""

import re

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from convnext_dense import Roadmap
from convnext_dense.architectures import get_architecture
from convnext_dense.evaluation import ladder
from convnext_dense.evaluation.kept_rows import Row
from convnext_dense.inference.building import build

ENDS = 'ResNet', 'ConvNeXt'


def test_every_rung_builds_and_the_last_is_convnext_atto():
    init_default_scope('mmseg')
    for group, rung in ladder.RUNGS.items():
        cfg = Config.fromstring(ladder.config_of(rung, seed=2, iterations=400), '.py')
        model = build(cfg.model, 'meta')
        assert type(model.backbone) is Roadmap and model.backbone.step == rung.step, group
        assert cfg.randomness.seed == 2 and cfg.train_cfg.max_iters == 400
        assert cfg.optim_wrapper.constructor == 'DefaultOptimWrapperConstructor'
    assert (rung.depths, rung.width) == (get_architecture('atto').depths, 40)


def test_a_difference_below_two_deviations_is_none():
    assert ladder.judged([50.0, 51.0], [60.0, 61.0]) == '+10.0'
    assert ladder.judged([60.0, 61.0], [50.0, 51.0]) == '-10.0'
    assert ladder.judged([50.0, 54.0], [53.0, 57.0]) == 'none'


def test_page_of_known_scores(tmp_path):
    rows = {
        group: [
            Row(
                group, '', parameters=4_000_000, flops=3_000_000_000, metrics={'mIoU': 10.0 * i + d}
            )
            for d in (0.0, 0.1, 0.2)
        ]
        for i, group in enumerate(ladder.RUNGS)
    }
    ladder.write(rows, 400, tmp_path / 'ladder.md')
    page = (tmp_path / 'ladder.md').read_text()
    cells = [line.split(' | ') for line in re.findall(r'^\| (.*) \|$', page, re.M)][2:]
    assert cells[0] == ['ResNet', '`resnet50`', '4.0', '3.0', '0.1 ± 0.1', '', '', '78.8', '']
    assert cells[-1][4:] == ['50.1 ± 0.1', '+10.0', '+50.0', '82.0', '+1.4']
    assert (tmp_path / 'ladder.png').stat().st_size > 10_000


@pytest.mark.slow
def test_two_seeds_are_trained_scored_and_kept(real_data, tmp_path, monkeypatch, capsys):
    source, data = real_data('camvid'), tmp_path / 'data'
    for split in ('train', 'val', 'test'):
        for kind in ('images', 'annotations'):
            (data / kind / split).mkdir(parents=True)
            for path in sorted((source / kind / split).iterdir())[:8]:
                (data / kind / split / path.name).symlink_to(path)
    monkeypatch.setattr(ladder, 'RUNGS', {name: ladder.RUNGS[name] for name in ENDS})
    arguments = ['--data-root', data, '--iterations', '2', '--seeds', '0', '1']
    arguments += ['--work-dir', tmp_path / 'work', '--out', tmp_path / 'ladder.md']
    for said in ('training', 'kept'):
        ladder.main([str(argument) for argument in arguments])
        assert capsys.readouterr().out.count(f': {said}') == 4
    page = (tmp_path / 'ladder.md').read_text()
    assert 'on 8 test images' in page and '| ConvNeXt | `separate_downsampling` |' in page
