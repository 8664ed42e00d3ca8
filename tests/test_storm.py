"""What make storm does to trainings and data is what it says; its page is kept."""

import random
import re
from collections import Counter

import pytest
import torch
from storm import inputs, kills

from conftest import ROOT


@pytest.mark.parametrize('processes', kills.PLANS)
def test_a_plan_can_be_carried_out(processes):
    """Each kill comes after the one before, so after the checkpoint that is gone on from."""
    for seed in range(50):
        plan = kills.draw(processes, random.Random(seed))
        assert plan == kills.draw(processes, random.Random(seed))
        hows = [kill.how for kill in plan]
        assert Counter(hows) == Counter(kill.how for kill in kills.PLANS[processes])
        iterations = [kill.at for kill in plan if kill.moment != 'starting']
        assert iterations == sorted({*iterations}) and iterations[-1] <= kills.ITERATIONS
        saved = [kill.at for kill in plan if kill.moment == 'saving']
        assert all(at % kills.INTERVAL == 0 and 0 < at <= kills.ITERATIONS for at in saved)


def test_a_bit_that_differs_is_noticed():
    a = dict(state=[torch.ones(3), dict(step=4)], name='x')
    b = dict(state=[torch.ones(3), dict(step=4)], name='x')
    assert kills.differing(a, b, 'it') == []
    b['state'][0][1] += 1e-7
    b['state'][1]['step'] = 5
    assert kills.differing(a, b, 'it') == ['it.state.0', 'it.state.1.step']


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('kind', inputs.KINDS)
def test_each_kind_breaks_what_it_names_and_the_same_seed_the_same(kind, tmp_path):
    tasks, break_it = inputs.KINDS[kind]
    for task in tasks:
        broken = []
        for folder in (tmp_path / f'{task}_1', tmp_path / f'{task}_2'):
            folder.mkdir()
            case = inputs.Case(folder, task, random.Random(3))
            sound = files(folder)
            expected = break_it(case)
            changed = {path for path in sound if files(folder).get(path) != sound[path]}
            assert len(changed) == 1
            path = changed.pop()
            assert path == case.config or path.stem == expected.name.partition('.')[0]
            broken.append((path.name, files(folder).get(path), expected))
        assert path == case.config or broken[0] == broken[1]


def test_page_that_is_kept_says_that_nothing_was_lost():
    page = (ROOT / 'docs/reliability.md').read_text()
    assert f'{sum(map(len, kills.PLANS.values()))} kills, 0 with something wrong' in page
    assert re.search(r'(\d+) data sets and configs of (\d+) kinds', page).groups() == ('500', '32')
    assert re.search(r' (\d+)\s+neither', page)[1] == '0'
