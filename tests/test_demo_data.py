"""The demo: its generated data are COCO and ADE20K data, the same every time; it ends in a page."""

import contextlib
import hashlib
import json
import re

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from pycocotools.coco import COCO

from conftest import DEMO, ROOT
from convnext_dense import ConfigError
from convnext_dense.commands import demo
from convnext_dense.demo import running
from convnext_dense.demo import scenes as generator


def digest(folder):
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    return len(files), hashlib.sha256(b''.join(path.read_bytes() for path in files)).hexdigest()


def test_same_arguments_give_the_same_files(tmp_path):
    a, b, c = (tmp_path / name for name in 'abc')
    for folder, seed in ((a, 3), (b, 3), (c, 4)):
        generator.write(folder, dict(train=2, val=1), seed)
    assert digest(a) == digest(b) != digest(c)
    written = (a / 'made_by').stat().st_mtime_ns
    generator.write(a, dict(train=2, val=1), 3)  # there already
    assert (a / 'made_by').stat().st_mtime_ns == written
    generator.write(a, dict(train=2, val=1), 4)  # there with other arguments: made anew
    assert digest(a) == digest(c)


def test_a_folder_of_the_users_is_not_touched(tmp_path):
    (tmp_path / 'mine.txt').touch()
    with pytest.raises(ConfigError, match='was not made by this script'):
        generator.write(tmp_path, dict(train=1))
    assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']


def test_an_interrupted_write_leaves_nothing_half_done(tmp_path, monkeypatch):
    def interrupted(rng):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generator, 'scene', interrupted)
        with contextlib.suppress(KeyboardInterrupt):
            generator.write(tmp_path / 'a', dict(train=2))
    assert not (tmp_path / 'a').exists()
    generator.write(tmp_path / 'a', dict(train=2))
    generator.write(tmp_path / 'b', dict(train=2))
    assert digest(tmp_path / 'a') == digest(tmp_path / 'b')


def test_splits_share_no_scene(scenes):
    pictures = [path.read_bytes() for path in scenes.glob('coco/*2017/*.jpg')]
    assert len(pictures) == len(set(pictures)) == 24


def test_masks_hold_what_is_visible_and_agree_with_the_semantic_map(scenes):
    coco = COCO(str(scenes / 'coco/annotations/instances_train2017.json'))
    ignored = 0
    for image in coco.imgs.values():
        name = image['file_name']
        label = Image.open(scenes / 'ade/annotations/training' / name.replace('.jpg', '.png'))
        assert label.mode == 'P' and label.size == (image['width'], image['height'])
        label = np.array(label)
        covered = np.zeros(label.shape, int)
        for annotation in coco.loadAnns(coco.getAnnIds(image['id'])):
            mask = coco.annToMask(annotation).astype(bool)
            assert mask.sum() == annotation['area'] > 0
            y, x = mask.nonzero()
            left, top, width, height = annotation['bbox']
            assert (left, top) == (x.min(), y.min())
            assert (left + width, top + height) == (x.max() + 1, y.max() + 1)
            assert (label[mask] == annotation['category_id'] + len(generator.STUFF)).all()
            covered += mask
        assert covered.max() == 1  # instances do not overlap
        assert ((label > len(generator.STUFF)) == (covered == 1)).all()
        ignored += (label == 0).sum()
    assert ignored  # some instance was too hidden to be annotated


@pytest.mark.parametrize('task', ['coco', 'ade'])
def test_the_frameworks_own_datasets_read_them(task, scenes):
    cfg = Config.fromfile(ROOT / DEMO[task])
    init_default_scope(cfg.default_scope)
    cfg.train_dataloader.dataset.data_root = f'{scenes / task}/'
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(dataset) == 16
    sample = dataset[0]['data_samples']
    if task == 'coco':
        assert sample.gt_instances.masks.masks.any(axis=(1, 2)).all()
    else:
        values = np.unique(sample.gt_sem_seg.data)
        assert set(values) <= {*range(7), 255} and len(dataset.metainfo['classes']) == 7


@pytest.mark.slow
def test_the_demo_ends_in_a_page_with_its_scores_and_pictures(tmp_path, monkeypatch, capsys):
    """With two iterations for each model."""
    run_command = running.run_command
    short = 'train_cfg.max_iters=2', 'train_cfg.val_interval=2'
    short += 'default_hooks.checkpoint.interval=2', 'default_hooks.logger.interval=1'
    monkeypatch.setattr(running, 'run_command', lambda *args: run_command(*args, *short))
    monkeypatch.setattr(generator, 'SPLITS', dict(train=8, val=4, test=8))
    report = tmp_path / 'demo.md'
    demo.main(['--out', str(tmp_path / 'out'), '--report', str(report)])
    scores = json.loads((tmp_path / 'out' / 'results.json').read_text())['0']
    assert set(scores) == {'box AP', 'box AP50', 'mask AP', 'mask AP50', 'mIoU'}
    page = (tmp_path / 'out' / 'index.html').read_text()
    assert f'<td>{scores["mIoU"]:.3f}</td>' in page
    pictures = re.findall('<img src="(.*?)"', page)
    assert len(pictures) == 3 and all((tmp_path / 'out' / name).is_file() for name in pictures)
    shown, copied = tmp_path / 'out' / 'predictions.png', report.with_suffix('.png')
    assert Image.open(copied).size == Image.open(shown).size
    table = report.read_text().splitlines()[4:7]
    assert table[2].split('|')[-2].strip() == f'{scores["mIoU"]:.3f}'
    printed = capsys.readouterr().out
    assert '\n'.join(table) in printed and 'train: train    2/2  loss' in printed
