"""The generated data are true COCO and ADE20K data, the same every time."""

import hashlib

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from pycocotools.coco import COCO

from conftest import DEMO, ROOT
from convnext_dense.demo import scenes as demo_data


def digest(folder):
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    return len(files), hashlib.sha256(b''.join(path.read_bytes() for path in files)).hexdigest()


def test_same_arguments_give_the_same_files(tmp_path):
    for name, seed in (('a', 3), ('b', 3), ('c', 4)):
        demo_data.write(tmp_path / name, dict(train=2, val=1), seed)
    assert digest(tmp_path / 'a') == digest(tmp_path / 'b') != digest(tmp_path / 'c')
    written = (tmp_path / 'a' / 'made_by').stat().st_mtime_ns
    demo_data.write(tmp_path / 'a', dict(train=2, val=1), 3)  # there already
    assert (tmp_path / 'a' / 'made_by').stat().st_mtime_ns == written
    demo_data.write(tmp_path / 'a', dict(train=2, val=1), 4)  # of other arguments: made anew
    assert digest(tmp_path / 'a') == digest(tmp_path / 'c')


def test_a_folder_of_the_users_is_not_touched(tmp_path):
    (tmp_path / 'mine.txt').touch()
    with pytest.raises(SystemExit, match='was not made by this script'):
        demo_data.write(tmp_path, dict(train=1))
    assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']


def test_an_interrupted_write_leaves_nothing_half_done(tmp_path, monkeypatch):
    def interrupted(rng):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo_data, 'scene', interrupted)
        try:
            demo_data.write(tmp_path / 'a', dict(train=2))
        except KeyboardInterrupt:
            pass
    assert not (tmp_path / 'a').exists()
    demo_data.write(tmp_path / 'a', dict(train=2))
    demo_data.write(tmp_path / 'b', dict(train=2))
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
            assert annotation['bbox'] == [
                x.min(),
                y.min(),
                x.max() - x.min() + 1,
                y.max() - y.min() + 1,
            ]
            assert (label[mask] == annotation['category_id'] + len(demo_data.STUFF)).all()
            covered += mask
        assert covered.max() == 1  # instances do not overlap
        assert ((label > len(demo_data.STUFF)) == (covered == 1)).all()
        ignored += (label == 0).sum()
    assert ignored  # some instance was too hidden to be named


def test_the_frameworks_own_datasets_read_them(scenes):
    for task, split in (('coco', 'train'), ('ade', 'train')):
        cfg = Config.fromfile(ROOT / DEMO[task])
        init_default_scope(cfg.default_scope)
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.data_root = f'{scenes / task}/'
        dataset = DATASETS.build(dataset)
        assert len(dataset) == 16
        sample = dataset[0]['data_samples']
        if task == 'coco':
            assert sample.gt_instances.masks.masks.any(axis=(1, 2)).all()
        else:
            values = np.unique(sample.gt_sem_seg.data)
            assert set(values) <= {*range(7), 255} and len(dataset.metainfo['classes']) == 7
