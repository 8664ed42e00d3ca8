"""The comparison of segmentors: its figures against direct computations, bad cases, and files."""

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
from convnext_dense.commands import compare, export
from convnext_dense.commands import test as test_command
from convnext_dense.data import label_folder
from convnext_dense.data.pictures import distinct_colours, overlay, save_labels, with_legend
from convnext_dense.demo.scenes import SHAPES, STUFF
from convnext_dense.evaluation import segmentors_page as page
from convnext_dense.evaluation.kept_rows import Row, data_stamp, keep, load_kept, row_key
from convnext_dense.evaluation.model_under_test import ModelUnderTest
from convnext_dense.evaluation.segmentors import drift, find
from convnext_dense.evaluation.test_time_augmentation import with_test_time_augmentation

NAMES = (*STUFF, *SHAPES)
STREET = 'configs/demo/upernet_convnext-atto_street.py'
TEN, ELEVEN = list('abcdefghij'), list('abcdefghijk')
ABOUT = dict(
    batch=1, data='d', hardware='h', threads=1, torch='t', command='c', commit='', python='3'
)


def street_config(root=None, **arguments):
    """The config for street scenes, pointed at other data."""
    init_default_scope('mmseg')
    cfg = Config.fromfile(ROOT / STREET)
    if root:
        label_folder.put(cfg, root, **arguments)
    return cfg


def save_checkpoint(cfg, path):
    """Of the model of a config, at random. Returns its number of parameters."""
    model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict()), path)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope='module')
def street(scenes, tmp_path_factory):
    """A folder with ``config.py``, of generated scenes by their classes, and ``model.pth``."""
    folder = tmp_path_factory.mktemp('street')
    cfg = street_config(scenes / 'ade', classes=NAMES, training=True)
    cfg.dump(folder / 'config.py')
    (folder / 'parameters').write_text(str(save_checkpoint(cfg, folder / 'model.pth')))
    return folder


def confusion(predicted, truth, classes):
    """Matrix (true class, predicted class) of numbers of pixels."""
    known = truth != 255
    pairs = truth[known].astype(int) * classes + predicted[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def label_map(path):
    return np.array(Image.open(path))


def test_scores_are_those_of_the_saved_label_maps(street, scenes, tmp_path):
    """mIoU, mAcc and aAcc, and each class's IoU, recomputed from the PNGs and the files' truth."""
    config, checkpoint = str(street / 'config.py'), str(street / 'model.pth')
    subject = ModelUnderTest(config, checkpoint, folder=str(tmp_path), batch=2, examples=4)
    scores, facts = subject.score(), subject.facts()
    assert facts['parameters'] == int((street / 'parameters').read_text())
    assert facts['images'] == 4 and facts['classes'] == list(NAMES)
    matrix = 0
    for _, name in subject.example_names():
        truth = label_map(scenes / 'ade' / 'annotations' / 'test' / name).astype(int) - 1
        truth[truth == -1] = 255  # ADE20K's layout: 0 is unknown
        assert (label_map(tmp_path / 'truth' / name) == truth).all()
        predicted = label_map(tmp_path / 'predictions' / name)
        matrix = matrix + confusion(predicted, truth, len(NAMES))
    inside, rows, columns = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid='ignore'):
        iou, acc = 100 * inside / (rows + columns - inside), 100 * inside / rows
    right = inside.sum() / matrix.sum()
    expected = dict(mIoU=np.nanmean(iou), mAcc=np.nanmean(acc), aAcc=100 * right)
    assert scores['metrics'] == pytest.approx(expected, abs=0.006)  # IoUMetric rounds
    by_class = [scores['per_class'][name]['IoU'] for name in NAMES]
    assert by_class == pytest.approx(list(iou), abs=1e-3)

    begin = time.perf_counter()
    seconds, batch_seconds = subject.seconds()
    assert min(seconds + batch_seconds) > 0
    assert sum(seconds) + sum(batch_seconds) <= time.perf_counter() - begin
    assert subject.memory() > 1e6
    before = subject.model.test_cfg
    assert 0 <= subject.tta_score()['metrics']['mIoU'] <= 100
    assert subject.model.test_cfg is before


class Correct(BaseMetric):
    """A metric of a user's: the share of pixels that are right."""

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            right = sample['pred_sem_seg']['data'] == sample['gt_sem_seg']['data']
            self.results.append(right.float().mean())

    def compute_metrics(self, results):
        return dict(correct=float(sum(results) / len(results)), about='a text')


def test_scores_are_those_of_the_test_tool(scenes, tmp_path):
    """To the last digit; and all metrics that the config names are in the table."""
    init_default_scope('mmseg')
    cfg = Config.fromfile(ROOT / DEMO['ade'])
    cfg.test_dataloader.num_workers = 0
    cfg.test_dataloader.dataset.update(data_root=str(scenes / 'ade'), indices=[2, 3])  # 2 has 255
    metrics = ['mIoU', 'mFscore']
    cfg.test_evaluator = [dict(type='IoUMetric', ignore_index=1, iou_metrics=metrics, nan_to_num=0)]
    config, checkpoint = str(tmp_path / 'config.py'), str(tmp_path / 'model.pth')
    cfg.dump(config)
    save_checkpoint(cfg, checkpoint)
    subject = ModelUnderTest(config, checkpoint, folder=str(tmp_path))
    scores = [subject.score()]
    test_command.main([config, checkpoint, '--work-dir', str(tmp_path / 'test')])
    expected = json.loads(next((tmp_path / 'test').glob('*/*.json')).read_text())
    names = ['mIoU', 'mAcc', 'mFscore', 'mPrecision', 'mRecall', 'aAcc']
    assert list(scores[0]['metrics'].items()) == [(name, expected[name]) for name in names]
    classes = [values['IoU'] for values in scores[0]['per_class'].values()]
    assert np.mean(classes) == pytest.approx(expected['mIoU'], abs=0.006)  # which is rounded

    for evaluator in (dict(type='IoUMetric'), dict(type=Correct)):
        subject.cfg.test_evaluator = evaluator
        scores.append(subject.score())
    assert abs(scores[1]['metrics']['aAcc'] - expected['aAcc']) > 1
    assert list(scores[2]['metrics']) == ['correct'] and not scores[2]['per_class']
    measured = dict(subject.facts(), meaning='m', memory=1e6, seconds=[0.1], batch_seconds=[0.1])
    rows = [
        Row(f'model{i}', config, checkpoint, **measured, **score) for i, score in enumerate(scores)
    ]
    page.write(rows, ABOUT, tmp_path)
    assert '<th>mRecall</th><th>aAcc</th><th>correct</th>' in (tmp_path / 'index.html').read_text()
    for evaluator in (None, dict(type='DumpResults', out_file_path=f'{tmp_path}/results.pkl')):
        subject.cfg.test_evaluator = evaluator
        with pytest.raises(ConfigError, match='its config has no test_evaluator|no figures'):
            subject.score()


def test_detectors_take_part_by_their_precision(scenes, tmp_path):
    init_default_scope('mmdet')
    cfg = Config.fromfile(ROOT / DEMO['coco'])
    cfg.test_dataloader.dataset.data_root = f'{scenes}/coco/'
    cfg.test_evaluator.ann_file = f'{scenes}/coco/annotations/instances_test2017.json'
    config, checkpoint = str(tmp_path / 'config.py'), str(tmp_path / 'model.pth')
    cfg.dump(config)
    save_checkpoint(cfg, checkpoint)
    subject = ModelUnderTest(config, checkpoint, form='fused')
    assert set(subject.score()['metrics']) == {'bbox_mAP', 'segm_mAP'}
    assert min(subject.seconds()[0]) > 0
    with pytest.raises(ConfigError, match='cannot merge masks'):
        subject.tta_score()


def test_augmentation_is_put_into_a_copy_of_the_config():
    cfg = Config.fromfile(ROOT / STREET)
    augmented = with_test_time_augmentation(cfg)
    assert augmented.model.type == 'SegTTAModel'
    assert augmented.model.module.backbone == cfg.model.backbone
    assert augmented.model.module.test_cfg == cfg.tta_test_cfg
    assert augmented.test_dataloader.dataset.pipeline == cfg.tta_pipeline
    assert cfg.model.type == 'convnext_dense.EncoderDecoder'
    cfg.pop('tta_pipeline')
    with pytest.raises(ConfigError, match='no tta_pipeline and tta_model'):
        with_test_time_augmentation(cfg)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(classes=TEN), 'the model predicts 11 classes, the data have 10'),
        (dict(classes=ELEVEN), 'labels hold 0, 1, .*11 .* is not one of the 11 .*--ignore 11'),
        (dict(classes=['a', 'a', 'b']), 'names one twice'),
        (dict(classes=ELEVEN, ignored=[10]), '--ignore 10: that is the class k of --classes'),
        (dict(ignored=[10]), 'the class bicyclist of the config'),
    ],
)
def test_classes_that_do_not_fit_the_labels_are_refused(arguments, message, real_data):
    cfg = street_config()
    with pytest.raises(ConfigError, match=message):
        label_folder.put(cfg, real_data('camvid'), **arguments)
        label_folder.check(cfg, 'test')


def test_label_folders_are_read_as_they_lie(tmp_path, real_data):
    """In the config's own layout, or in another; with splits, or without."""
    cfg = street_config(real_data('camvid'))
    label_folder.check(cfg, 'test')
    assert label_folder.meaning(cfg).endswith('10 bicyclist; unknown: 11, 255')
    with pytest.raises(ConfigError, match='no folder at'):
        street_config(tmp_path / 'absent')
    with pytest.raises(ConfigError, match='no test data in .*: expected ROOT/IMAGES/SPLIT'):
        street_config(tmp_path)
    name = 'upernet_convnext-t-in1k_8xb2-amp-160k_ade20k-512x512.py'
    ade = Config.fromfile(ROOT / 'configs/ade20k' / name)
    label_folder.put(ade, real_data('ade_sample'))  # without splits
    label_folder.check(ade, 'test')
    dataset = ade.test_dataloader.dataset
    assert dataset.type == 'ADE20KDataset' and dataset.data_prefix.img_path == 'images'


def test_lists_of_files_of_another_layout_are_left_out(scenes):
    cfg = street_config()
    cfg.test_dataloader.dataset.ann_file = 'lists/test.txt'
    label_folder.put(cfg, scenes / 'ade')
    assert 'ann_file' not in cfg.test_dataloader.dataset


@pytest.mark.parametrize('ignored', [(), (7, 9)])
def test_with_new_classes_only_the_labels_of_the_command_line_are_ignored(ignored, scenes):
    cfg = street_config(scenes / 'ade', classes=NAMES, ignored=ignored, training=True)
    steps = [*cfg.test_dataloader.dataset.pipeline]
    steps += [group[0] for group in cfg.tta_pipeline[1].transforms]
    labels = [step['labels'] for step in steps if 'IgnoreLabels' in step['type']]
    assert labels == ([[7, 9], [7, 9]] if ignored else [])


def test_the_configs_own_classes_keep_what_it_ignores(scenes, exits):
    cfg = street_config(scenes / 'ade')
    assert cfg.test_dataloader.dataset.pipeline[3].labels == [11]
    assert cfg.model.decode_head.num_classes == 11
    output = exits(ROOT / 'tools/benchmark_segmentation.py', 'm.py', '--ignore', 3)
    assert '--classes and --ignore are of the labels in --data-root' in output


def test_labels_that_evaluator_and_heads_ignore_are_unknown(scenes):
    cfg = street_config(scenes / 'ade', classes=NAMES[:6], training=True)
    for split in ('test', 'train'):
        with pytest.raises(ConfigError, match=' 6 .* is not one of the 6 classes'):
            label_folder.check(cfg, split)
    assert label_folder.meaning(cfg).endswith('unknown: 255')
    cfg.test_evaluator.ignore_index = cfg.model.decode_head.ignore_index = 6
    label_folder.check(cfg, 'test')
    assert 'unknown: 6; 255 is not ignored by the test_evaluator' in label_folder.meaning(cfg)
    with pytest.raises(ConfigError, match=' 255 .* is not one of the 6 classes'):
        label_folder.check(cfg, 'train')
    for training, part in ((False, 'test_evaluator'), (True, 'model')):
        cfg = street_config()
        holder = cfg.model.decode_head if training else cfg.test_evaluator
        holder.ignore_index = 3
        message = f'--ignore turns labels into 255, and the {part} of the config ignores 3'
        with pytest.raises(ConfigError, match=message):
            label_folder.put(cfg, scenes / 'ade', NAMES, [9], training)


def test_checkpoints_of_other_models_are_refused(street, tmp_path):
    cfg = Config.fromfile(street / 'config.py')
    cfg.model.decode_head.num_classes = 19
    cfg.dump(tmp_path / 'config.py')
    with pytest.raises(WeightsError, match='decode_head.conv_seg.weight'):
        ModelUnderTest(str(tmp_path / 'config.py'), str(street / 'model.pth'))


def test_models_get_names_that_differ(tmp_path):
    for name in ('a_x', 'b_x'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'config.py').touch()
        (tmp_path / name / 'last_checkpoint').write_text(f'/moved/{name}/iter_9.pth')
    (tmp_path / 'b_x' / 'best_mIoU.pth').touch()
    assert [(entry.name, entry.checkpoint) for entry in find([str(tmp_path)])] == [
        ('a_x', str(tmp_path / 'a_x' / 'iter_9.pth')),
        ('b_x', str(tmp_path / 'b_x' / 'best_mIoU.pth')),
    ]
    names = ('a_x', 'a_x, fused', 'b_x')
    rows = [Row(name, 'config.py', form='fused' * ('fused' in name)) for name in names]
    page.set_labels(rows)
    assert [row.label for row in rows] == ['a', 'a, fused', 'b']
    assert [entry.name for entry in find(['m.py=1.pth', 'm.py=2.pth'])] == ['m 1', 'm 2']
    with pytest.raises(ConfigError, match='named twice'):
        find(['m.py', 'm.py'])
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ConfigError, match='holds no work dirs'):
        find([str(tmp_path / 'empty')])


def test_a_row_is_kept_until_something_changes_that_it_depends_on(scenes, tmp_path):
    shutil.copytree(scenes / 'ade', tmp_path / 'data')
    cfg = street_config(tmp_path / 'data')
    checkpoint = tmp_path / 'model.pth'
    checkpoint.write_bytes(b'1')

    def key(form='', tta=False, examples=4, device='cpu'):
        return row_key(cfg, str(checkpoint), form, tta, examples, device)

    first = key()
    assert key() == first
    keep(tmp_path / 'row.json', Row('a', 'a.py', key=first, metrics=dict(mIoU=1.0)).known())
    assert Row(**load_kept(tmp_path / 'row.json', first)).metrics == dict(mIoU=1.0)
    keys = [first, key(form='fused'), key(tta=True), key(examples=2), key(device='cuda')]
    checkpoint.write_bytes(b'22')
    keys.append(key())
    image = min((tmp_path / 'data' / 'images' / 'test').iterdir())
    os.utime(image, (0, 0))
    keys.append(key())
    cfg.model.decode_head.dropout_ratio = 0.5
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert load_kept(tmp_path / 'row.json', keys[-1]) is None
    assert load_kept(tmp_path / 'absent.json', first) is None
    before = data_stamp(cfg, 'train')
    image.unlink()  # of the test split
    assert data_stamp(cfg, 'train') == before


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


def models_in(folder):
    return json.loads((folder / 'results.json').read_text())['models']


def test_the_command_compares_and_shows(street, tmp_path, capsys):
    """One good model, one without its checkpoint and one without any; then the same again."""
    good, out = f'{street}/config.py={street}/model.pth', tmp_path / 'out'
    models = [good, f'{ROOT}/{STREET}=absent.pth', f'{ROOT}/{DEMO["ade"]}']
    command = [*models, '--out', str(out), '--runs', '2', '--threads', '1']
    with pytest.raises(SystemExit) as stopped:
        compare.main(command)
    output = capsys.readouterr().out
    assert stopped.value.code == 1, output  # two of four failed
    rows = {row['name']: row for row in models_in(out)}
    plain, fused = rows['config'], rows['config, fused']
    assert plain['parameters'] == fused['parameters']
    assert plain['flops'] == fused['flops'] > 1e8
    assert len(fused['seconds']) == 2
    assert plain['metrics'] == pytest.approx(fused['metrics'], abs=0.5)
    score = plain['metrics']['mIoU']
    with open(out / 'results.csv', encoding='utf-8') as file:
        sheet = list(csv.DictReader(file))
    assert float(sheet[0]['mIoU']) == score and f'{score:.2f}' in output
    assert 'no checkpoint at absent.pth' == sheet[2]['error'] in output
    assert 'name it, CONFIG=CHECKPOINT, or train with --train' in sheet[3]['error']
    shown = (out / 'index.html').read_text()
    assert shown.count('<svg') == 2
    assert shown.count('data:image/jpeg') == 4 * 3  # image, truth, prediction
    assert not re.search(r'(src|href)="(?!data:|#)', shown)
    assert f'{score:.2f}' in shown and 'no checkpoint at absent.pth' in shown

    with pytest.raises(SystemExit):
        compare.main(command)
    output = capsys.readouterr().out
    assert 'config: kept' in output and 'config, fused: kept' in output
    assert {row['name']: row for row in models_in(out)} == rows


@pytest.mark.slow
def test_interrupted_it_goes_on(scenes, tmp_path):
    names = ('upernet_r18_street', 'segformer_mit-b0_street', 'upernet_swin-femto_street')
    configs = [f'configs/demo/{name}.py' for name in names]
    arguments = ['--train', '--data-root', scenes / 'ade', '--out', tmp_path, '--runs', 1]
    command = ['tools/benchmark_segmentation.py', *configs, *arguments, *OPTIONS]
    process = start(*command)
    while not (tmp_path / names[2]).exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    time.sleep(3)
    os.killpg(process.pid, signal.SIGINT)
    assert 'the same command goes on' in process.communicate()[0] and process.returncode
    output = run(*command)
    assert f'{names[0]}: kept' in output and f'{names[1]}: kept' in output
    assert f'{names[2]}: mIoU' in output
    seconds = [row['seconds'] for row in models_in(tmp_path)]
    run(*command)
    assert [row['seconds'] for row in models_in(tmp_path)] == seconds


def test_rows_of_other_data_are_not_compared(street, scenes, tmp_path):
    shutil.copytree(scenes / 'ade', tmp_path / 'other')
    for folder in ('images', 'annotations'):
        min((tmp_path / 'other' / folder / 'test').iterdir()).unlink()
    other = street_config(tmp_path / 'other', classes=NAMES, training=True)
    other.dump(tmp_path / 'config.py')
    first, second = (
        ModelUnderTest(str(folder / 'config.py'), str(street / 'model.pth')).facts()
        for folder in (street, tmp_path)
    )
    assert first['classes'] == second['classes'] and first['data'] != second['data']


def test_colours_and_legends(tmp_path):
    colours = distinct_colours(150)
    assert len(set(colours)) == 150
    image = np.full((40, 60, 3), 100, np.uint8)
    labels = np.tile(np.repeat([0, 1, 255], 20), (40, 1))
    drawn = overlay(image, labels, colours)
    assert (drawn[:, 45:] == 100).all() and not (drawn[:, 5] == drawn[:, 25]).all()
    names = ['sky', 'a long name, longer than the picture']
    assert with_legend(drawn, names, colours).shape[1] == 60
    assert with_legend(drawn, [], []).shape == drawn.shape
    save_labels(labels, colours[:2], tmp_path / 'labels.png')
    assert (label_map(tmp_path / 'labels.png') == labels).all()
    save_labels(labels, distinct_colours(300), tmp_path / 'many.png')  # as of the other pictures
    assert Image.open(tmp_path / 'many.png').mode == 'I;16'
    assert (np.asarray(Image.open(tmp_path / 'many.png')) == labels).all()
    assert Image.open(tmp_path / 'labels.png').convert('RGB').getpixel((25, 0)) == colours[1]


def test_names_are_escaped_and_failures_shown(tmp_path):
    page.write([Row('<b>', 'config.py', error='it <failed>')], ABOUT, tmp_path)
    shown = (tmp_path / 'index.html').read_text()
    assert '&lt;b&gt;' in shown and 'it &lt;failed&gt;' in shown and '<b>' not in shown


def test_memory_is_drawn_where_it_is_known():
    """Not of exported files, whose engines have allocators of their own."""
    known = dict(metrics=dict(mIoU=50.0), seconds=[0.1, 0.2])
    rows = [Row('a', 'a.py', memory=10**6, **known), Row('b', 'a.py', form='onnxruntime', **known)]
    assert [title for title, _ in page.plots(rows, 'mIoU')] == ['mIoU over latency', 'Memory']
    assert [title for title, _ in page.plots(rows[1:], 'mIoU')] == ['mIoU over latency']


def test_a_drift_of_the_machine_is_told():
    steady, slower = [1.0, 1.1, 0.9] * 4, [1.0] * 4 + [1.2] * 4 + [1.5] * 4
    assert drift([Row('a', 'a.py', seconds=steady)]) == pytest.approx(1, abs=0.06)
    assert drift([Row(name, 'a.py', seconds=slower) for name in 'ab']) == pytest.approx(1.5)
    assert drift([Row('a', 'a.py', seconds=[1.0, 2.0]), Row('b', 'b.py')]) == 1


@pytest.mark.slow
def test_rows_in_bf16_and_of_a_file(street, tmp_path):
    """The same weights in all forms: scores are the same, or nearly."""
    pytest.importorskip('onnxscript', reason='needs ONNX export')
    config, checkpoint, file = (
        str(path) for path in (street / 'config.py', street / 'model.pth', tmp_path / 'model.onnx')
    )
    export.main([config, checkpoint, '-o', file])
    out, models = tmp_path / 'out', (f'{config}={checkpoint}', f'{config}={file}')
    with pytest.raises(SystemExit):
        compare.main([*models, '--dtype', 'bf16', '--runs', '2', '--out', str(out)])
    rows = {row['form']: row for row in json.loads((out / 'results.json').read_text())['models']}
    assert set(rows) >= {'', 'fused', 'fused, bf16', 'onnxruntime'}
    expected = rows['']['metrics']['mIoU']
    for form in ('fused', 'onnxruntime'):
        assert rows[form]['metrics']['mIoU'] == pytest.approx(expected, abs=0.02)
    half = rows['fused, bf16']  # is refused where it is slower
    if 'bf16 would be slower' not in half.get('error', ''):
        assert half['metrics']['mIoU'] == pytest.approx(expected, abs=0.5)
    assert 'memory' not in rows['onnxruntime'] and len(rows['onnxruntime']['seconds']) == 2
