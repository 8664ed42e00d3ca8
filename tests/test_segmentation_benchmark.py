"""The comparison of segmentors: its figures against direct computations, its bad cases, and what it leaves."""

import csv
import json
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from conftest import DEMO, ROOT, run, start
from convnext_dense import ConfigError, WeightsError
from convnext_dense.data import label_folder
from convnext_dense.data.pictures import distinct_colours, overlay, save_labels, with_legend
from convnext_dense.demo.scenes import SHAPES, STUFF
from convnext_dense.evaluation import segmentors_page as page
from convnext_dense.evaluation.contestant import Contestant
from convnext_dense.evaluation.segmentors import find

NAMES = (*STUFF, *SHAPES)
STREET = 'configs/demo/upernet_convnext-atto_street.py'
ABOUT = dict(
    batch=1, data='d', hardware='h', threads=1, torch='t', command='c', commit='', python='3'
)


def config(tmp_path, path, root, **arguments):
    init_default_scope('mmseg')
    cfg = Config.fromfile(ROOT / path)
    label_folder.put(cfg, root, **arguments)
    cfg.dump(tmp_path / 'config.py')
    return cfg


def checkpoint(tmp_path, cfg):
    model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    return sum(p.numel() for p in model.parameters()), str(tmp_path / 'model.pth')


def confusion(predicted, truth, classes):
    known = truth != 255
    return np.bincount(
        truth[known].astype(int) * classes + predicted[known], minlength=classes**2
    ).reshape(classes, classes)


def test_scores_are_those_of_the_saved_label_maps(scenes, tmp_path):
    cfg = config(tmp_path, STREET, scenes / 'ade', classes=NAMES, training=True)
    parameters, path = checkpoint(tmp_path, cfg)
    one = Contestant(str(tmp_path / 'config.py'), path, False, str(tmp_path), 'cpu', 2, 4)
    found = one.score()
    assert (
        one.facts['parameters'] == parameters
        and one.facts['images'] == 4
        and one.facts['classes'] == list(NAMES)
    )
    matrix = 0
    for image, name in one.example_names():
        truth = np.array(Image.open(scenes / 'ade' / 'annotations' / 'test' / name)).astype(int) - 1
        truth[truth == -1] = 255  # ADE20K's layout: 0 is unknown
        assert (np.array(Image.open(tmp_path / 'truth' / name)) == truth).all()
        matrix = matrix + confusion(
            np.array(Image.open(tmp_path / 'predictions' / name)), truth, len(NAMES)
        )
    inside, rows, columns = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid='ignore'):
        iou, acc = 100 * inside / (rows + columns - inside), 100 * inside / rows
    right = inside.sum() / matrix.sum()
    expected = dict(mIoU=np.nanmean(iou), mAcc=np.nanmean(acc), aAcc=100 * right)
    assert found['metrics'] == pytest.approx(expected, abs=0.006)  # IoUMetric rounds
    assert [found['per_class'][name]['IoU'] for name in NAMES] == pytest.approx(list(iou), abs=1e-3)
    start = time.perf_counter()
    assert (
        0 < sum(one.seconds()) <= time.perf_counter() - start
        and min(one.batch_seconds()) > 0
        and one.memory() > 1e6
    )
    before = one.model.test_cfg
    assert 0 <= one.tta_score()['metrics']['mIoU'] <= 100 and one.model.test_cfg is before


class Correct(BaseMetric):
    """A metric of a user's: the share of pixels that are right."""

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            right = sample['pred_sem_seg']['data'] == sample['gt_sem_seg']['data']
            self.results.append(right.float().mean())

    def compute_metrics(self, results):
        return dict(correct=float(sum(results) / len(results)), about='a text')


def test_scores_are_those_of_the_test_tool(scenes, tmp_path):
    init_default_scope('mmseg')
    cfg = Config.fromfile(ROOT / DEMO['ade'])
    cfg.test_dataloader.num_workers = 0
    cfg.test_dataloader.dataset.update(data_root=str(scenes / 'ade'), indices=[2, 3])  # 2 has 255
    cfg.test_evaluator = [
        dict(type='IoUMetric', ignore_index=1, iou_metrics=['mIoU', 'mFscore'], nan_to_num=0)
    ]
    cfg.dump(tmp_path / 'config.py')
    path = checkpoint(tmp_path, cfg)[1]
    contestant = Contestant(str(tmp_path / 'config.py'), path, False, str(tmp_path), 'cpu', 1, 1)
    scores = [contestant.score()]
    run('tools/test.py', tmp_path / 'config.py', path, '--work-dir', tmp_path / 'test')
    expected = json.loads(next((tmp_path / 'test').glob('*/*.json')).read_text())
    names = ['mIoU', 'mAcc', 'mFscore', 'mPrecision', 'mRecall', 'aAcc']
    assert list(scores[0]['metrics'].items()) == [(name, expected[name]) for name in names]
    classes = [values['IoU'] for values in scores[0]['per_class'].values()]
    assert np.mean(classes) == pytest.approx(expected['mIoU'], abs=0.006)  # which is rounded

    for evaluator in (dict(type='IoUMetric'), dict(type=Correct)):
        contestant.cfg.test_evaluator = evaluator
        scores.append(contestant.score())
    assert abs(scores[1]['metrics']['aAcc'] - expected['aAcc']) > 1
    assert list(scores[2]['metrics']) == ['correct'] and not scores[2]['per_class']
    rows = [
        dict(
            contestant.facts,
            **score,
            name=f'model{i}',
            is_fused=False,
            folder='',
            examples=[],
            meaning='m',
            memory=1e6,
            seconds=[0.1],
            batch_seconds=[0.1],
        )
        for i, score in enumerate(scores)
    ]
    page.write(rows, ABOUT, tmp_path)
    assert '<th>mRecall</th><th>aAcc</th><th>correct</th>' in (tmp_path / 'index.html').read_text()
    for evaluator in (None, dict(type='DumpResults', out_file_path=f'{tmp_path}/results.pkl')):
        contestant.cfg.test_evaluator = evaluator
        with pytest.raises(ConfigError, match='its config has no test_evaluator|no figures'):
            contestant.score()


def test_detectors_take_part_by_their_precision(scenes, tmp_path):
    init_default_scope('mmdet')
    cfg = Config.fromfile(ROOT / DEMO['coco'])
    cfg.test_dataloader.dataset.data_root = f'{scenes}/coco/'
    cfg.test_evaluator.ann_file = f'{scenes}/coco/annotations/instances_test2017.json'
    cfg.dump(tmp_path / 'config.py')
    one = Contestant(
        str(tmp_path / 'config.py'), checkpoint(tmp_path, cfg)[1], True, str(tmp_path), 'cpu', 1, 2
    )
    assert set(one.score()['metrics']) == {'bbox_mAP', 'segm_mAP'} and min(one.seconds()) > 0


def test_labels_that_are_no_classes_and_other_numbers_of_classes(scenes, tmp_path, real_data):
    init_default_scope('mmseg')
    street = real_data('camvid')
    cases = [
        (dict(classes=list('abcdefghij')), 'the model predicts 11 classes, the data have 10'),
        (
            dict(classes=list('abcdefghijk')),
            'labels hold 0, 1, .*11 .* is not one of the 11 classes.*--ignore 11',
        ),
        (dict(classes=list('aab')), 'names one twice'),
        (
            dict(classes=list('abcdefghijk'), ignored=[10]),
            '--ignore 10: that is the class k of --classes',
        ),
        (dict(ignored=[10]), 'the class bicyclist of the config'),
    ]
    for arguments, message in cases:
        cfg = Config.fromfile(ROOT / STREET)
        with pytest.raises(ConfigError, match=message):
            label_folder.put(cfg, street, **arguments)
            label_folder.check(cfg, 'test')
    cfg = Config.fromfile(ROOT / STREET)
    label_folder.put(cfg, street)
    label_folder.check(cfg, 'test')
    assert label_folder.meaning(cfg).endswith('10 bicyclist; unknown: 11, 255')
    with pytest.raises(ConfigError, match='no folder at'):
        label_folder.put(Config.fromfile(ROOT / STREET), tmp_path / 'absent')
    with pytest.raises(ConfigError, match='no test data in .*: expected ROOT/IMAGES/SPLIT'):
        label_folder.put(Config.fromfile(ROOT / STREET), tmp_path)
    ade = Config.fromfile(
        ROOT / 'configs/ade20k/upernet_convnext-t-in1k_8xb2-amp-160k_ade20k-512x512.py'
    )
    label_folder.put(ade, real_data('ade_sample'))  # without splits
    label_folder.check(ade, 'test')
    assert (
        ade.test_dataloader.dataset.type == 'ADE20KDataset'
        and ade.test_dataloader.dataset.data_prefix.img_path == 'images'
    )


def test_what_is_ignored_is_what_the_command_line_says(scenes, tmp_path, exits):
    for ignored, expected in (((), None), ((7, 9), [7, 9])):
        cfg = config(
            tmp_path, STREET, scenes / 'ade', classes=NAMES, ignored=ignored, training=True
        )
        steps = [
            step for step in cfg.test_dataloader.dataset.pipeline if 'IgnoreLabels' in step['type']
        ]
        groups = [
            group for group in cfg.tta_pipeline[1].transforms if 'IgnoreLabels' in group[0]['type']
        ]
        assert (
            [step['labels'] for step in steps]
            == [group[0]['labels'] for group in groups]
            == ([expected] if expected else [])
        )
    cfg = config(tmp_path, STREET, scenes / 'ade')
    assert (
        cfg.test_dataloader.dataset.pipeline[3].labels == [11]
        and cfg.model.decode_head.num_classes == 11
    )
    output = exits(ROOT / 'tools/benchmark_segmentation.py', 'm.py', '--ignore', 3)
    assert '--classes and --ignore are of the labels in --data-root' in output


def test_what_evaluator_and_heads_ignore_is_unknown(scenes, tmp_path):
    cfg = config(tmp_path, STREET, scenes / 'ade', classes=NAMES[:6], training=True)
    for split in ('test', 'train'):
        with pytest.raises(ConfigError, match=' 6 .* is not one of the 6 classes'):
            label_folder.check(cfg, split)
    assert label_folder.meaning(cfg).endswith('unknown: 255')
    cfg.test_evaluator.ignore_index = cfg.model.decode_head.ignore_index = 6
    label_folder.check(cfg, 'test')
    assert 'unknown: 6; 255 is not ignored by the test_evaluator' in label_folder.meaning(cfg)
    with pytest.raises(ConfigError, match=' 255 .* is not one of the 6 classes'):
        label_folder.check(cfg, 'train')
    for training, message in (
        (False, 'the test_evaluator of the config ignores 3'),
        (True, 'the model of the config ignores 3'),
    ):
        cfg = Config.fromfile(ROOT / STREET)
        part = cfg.model.decode_head if training else cfg.test_evaluator
        part.ignore_index = 3
        with pytest.raises(ConfigError, match=f'--ignore turns labels into 255, and {message}'):
            label_folder.put(cfg, scenes / 'ade', NAMES, [9], training)


def test_checkpoints_of_other_models_are_refused(scenes, tmp_path):
    cfg = config(tmp_path, STREET, scenes / 'ade', classes=NAMES, training=True)
    path = checkpoint(tmp_path, cfg)[1]
    cfg.model.decode_head.num_classes = 19
    cfg.dump(tmp_path / 'config.py')
    with pytest.raises(WeightsError, match='decode_head.conv_seg.weight'):
        Contestant(str(tmp_path / 'config.py'), path, False, '', 'cpu', 1, 1)


def test_models_are_found_and_named(tmp_path):
    for name in ('a_x', 'b_x'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'config.py').touch()
        (tmp_path / name / 'last_checkpoint').write_text(f'/moved/{name}/iter_9.pth')
    (tmp_path / 'b_x' / 'best_mIoU.pth').touch()
    assert [(one.name, one.checkpoint) for one in find([str(tmp_path)])] == [
        ('a_x', str(tmp_path / 'a_x' / 'iter_9.pth')),
        ('b_x', str(tmp_path / 'b_x' / 'best_mIoU.pth')),
    ]
    rows = [dict(name=name, is_fused='fused' in name) for name in ('a_x', 'a_x, fused', 'b_x')]
    page.label(rows)
    assert [row['label'] for row in rows] == ['a', 'a, fused', 'b']
    assert [one.name for one in find(['m.py=1.pth', 'm.py=2.pth'])] == ['m 1', 'm 2']
    with pytest.raises(ConfigError, match='named twice'):
        find(['m.py', 'm.py'])
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ConfigError, match='holds no work dirs'):
        find([str(tmp_path / 'empty')])


OPTIONS = [
    '--classes',
    *NAMES,
    '--cfg-options',
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=2',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'default_hooks.checkpoint.interval=2',
]


def test_one_command_compares_and_shows(scenes, tmp_path):
    cfg = config(tmp_path, STREET, scenes / 'ade', classes=NAMES, training=True)
    path = checkpoint(tmp_path, cfg)[1]
    output = run(
        'tools/benchmark_segmentation.py',
        f'{tmp_path}/config.py={path}',
        f'{ROOT}/{STREET}=absent.pth',
        f'{ROOT}/{DEMO["ade"]}',
        '--out',
        tmp_path / 'out',
        '--runs',
        2,
        '--threads',
        1,
    )
    rows = {
        row['name']: row
        for row in json.loads((tmp_path / 'out' / 'results.json').read_text())['models']
    }
    plain, fused = rows['config'], rows['config, fused']
    assert (
        plain['parameters'] == fused['parameters']
        and plain['flops'] == fused['flops'] > 1e8
        and len(fused['seconds']) == 2
    )
    assert plain['metrics'] == pytest.approx(fused['metrics'], abs=0.5)
    sheet = list(csv.DictReader(open(tmp_path / 'out' / 'results.csv', encoding='utf-8')))
    assert (
        float(sheet[0]['mIoU']) == plain['metrics']['mIoU']
        and 'no checkpoint at absent.pth' == sheet[2]['error'] in output
    )
    assert (
        'name it, CONFIG=CHECKPOINT, or train with --train' in sheet[3]['error']
        and f'{plain["metrics"]["mIoU"]:.2f}' in output
    )
    shown = (tmp_path / 'out' / 'index.html').read_text()
    assert (
        shown.count('<svg') == 2 and shown.count('data:image/jpeg') == 4 * 3
    )  # image, truth, prediction
    assert not re.search(r'(src|href)="(?!data:|#)', shown)
    assert f'{plain["metrics"]["mIoU"]:.2f}' in shown and 'no checkpoint at absent.pth' in shown


@pytest.mark.slow
def test_interrupted_it_goes_on(scenes, tmp_path):
    command = [
        'tools/benchmark_segmentation.py',
        'configs/demo/upernet_r18_street.py',
        'configs/demo/segformer_mit-b0_street.py',
        'configs/demo/upernet_swin-femto_street.py',
        '--train',
        '--data-root',
        scenes / 'ade',
        '--out',
        tmp_path,
        '--runs',
        1,
        *OPTIONS,
    ]
    process = start(*command)
    while not (tmp_path / 'upernet_swin-femto_street').exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    time.sleep(3)
    os.killpg(process.pid, signal.SIGINT)
    assert 'the same command goes on' in process.communicate()[0] and process.returncode
    output = run(*command)
    assert (
        'upernet_r18_street: kept' in output
        and 'segformer_mit-b0_street: kept' in output
        and 'upernet_swin-femto_street: mIoU' in output
    )
    seconds = [
        row['seconds'] for row in json.loads((tmp_path / 'results.json').read_text())['models']
    ]
    run(*command)
    assert [
        row['seconds'] for row in json.loads((tmp_path / 'results.json').read_text())['models']
    ] == seconds


def test_rows_of_other_data_are_not_compared(scenes, tmp_path):
    shutil.copytree(scenes / 'ade', tmp_path / 'other')
    for folder in ('images', 'annotations'):
        min((tmp_path / 'other' / folder / 'test').iterdir()).unlink()
    first, second = ({} for _ in range(2))
    for root, row in ((scenes / 'ade', first), (tmp_path / 'other', second)):
        cfg = config(tmp_path, STREET, root, classes=NAMES, training=True)
        row.update(
            Contestant(
                str(tmp_path / 'config.py'), checkpoint(tmp_path, cfg)[1], False, '', 'cpu', 1, 1
            ).facts
        )
    assert first['classes'] == second['classes'] and first['data'] != second['data']


def test_colours_and_legends(tmp_path):
    colours = distinct_colours(150)
    assert len(set(colours)) == 150
    image, labels = (
        np.full((40, 60, 3), 100, np.uint8),
        np.tile(np.repeat([0, 1, 255], 20), (40, 1)),
    )
    drawn = overlay(image, labels, colours)
    assert (drawn[:, 45:] == 100).all() and not (drawn[:, 5] == drawn[:, 25]).all()
    assert (
        with_legend(drawn, ['sky', 'a long name, longer than the picture'], colours).shape[1] == 60
    )
    assert with_legend(drawn, [], []).shape == drawn.shape
    save_labels(labels, colours[:2], tmp_path / 'labels.png')
    assert (np.array(Image.open(tmp_path / 'labels.png')) == labels).all()
    assert tuple(np.array(Image.open(tmp_path / 'labels.png').convert('RGB'))[0, 25]) == colours[1]


def test_names_are_escaped_and_failures_shown(tmp_path):
    rows = [dict(name='<b>', error='it <failed>', is_fused=False)]
    page.write(rows, ABOUT, tmp_path)
    shown = (tmp_path / 'index.html').read_text()
    assert '&lt;b&gt;' in shown and 'it &lt;failed&gt;' in shown and '<b>' not in shown
