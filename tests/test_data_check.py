"""Data that do not fit their config: refused with the file's name, or counted, and how long it
takes to see that they fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image

from conftest import DEMO, ROOT, demo_options
from convnext_dense import DataError
from convnext_dense.data import checking, coco
from convnext_dense.data.checked_pipeline import CheckedPipeline
from convnext_dense.data.checking import evaluator_problems
from convnext_dense.data.images import label_problems
from convnext_dense.data.problems import COUNTED, REFUSED
from convnext_dense.training.running import build_runner, load_config

ANNOTATIONS = 'coco/annotations/instances_train2017.json'
IMAGE, ADE_IMAGE = 'coco/train2017/000000000003.jpg', 'ade/images/training/000000000003.jpg'
LABELS = 'ade/annotations/training/000000000003.png'


@pytest.fixture
def data(scenes, tmp_path):
    return shutil.copytree(scenes, tmp_path / 'data')


def annotations(change):
    def apply(data):
        content = json.loads((data / ANNOTATIONS).read_text())
        change(content)
        (data / ANNOTATIONS).write_text(json.dumps(content))

    return apply


def annotation(**changes):
    """Changes the first annotation; a value of None takes the key out."""

    def change(content):
        first = content['annotations'][0]
        for key, value in changes.items():
            first[key] = value
            if value is None:
                del first[key]

    return annotations(change)


def listed(entries, i=0, **changes):
    return annotations(lambda content: content[entries][i].update(changes))


def repeated(name):
    return annotations(lambda content: content[name].append(dict(content[name][0])))


def turn(data):
    """As a phone does: the pixels lie on their side, and EXIF data say so."""
    image = Image.open(data / IMAGE).crop((0, 0, 192, 100))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(data / IMAGE, exif=exif)


def strip(data):
    Image.new('RGB', (192, 4)).save(data / 'coco/train2017/strip.jpg')
    entry = dict(id=999, file_name='strip.jpg', width=192, height=4)
    annotations(lambda content: content['images'].append(entry))(data)


def labels(change):
    def apply(data):
        picture = np.array(Image.open(data / LABELS))
        Image.fromarray(change(picture)).save(data / LABELS)

    return apply


def write(name, content):
    return lambda data: (data / name).write_bytes(content)


def cut(name, end):
    return lambda data: (data / name).write_bytes((data / name).read_bytes()[:end])


def remove(name):
    return lambda data: (data / name).unlink()


def reverse_categories(data):
    for path in (data / 'coco/annotations').glob('*.json'):
        content = json.loads(path.read_text())
        content['categories'].reverse()
        path.write_text(json.dumps(content))


nan = float('nan')
# What is broken -> task, the function that breaks it, kind of the problem, text in the message.
BROKEN = {
    'names in another order': (
        'coco', reverse_categories, 'class names',
        "a 'ring' would be called 'disc'. The order of the file is classes = ('ring', 'star',",
    ),
    'names in two orders': (
        'coco', annotations(lambda content: content['categories'].reverse()), 'order of categories',
        "its order is ('disc', 'square', 'triangle', 'star', 'ring'), and that of",
    ),
    'a name that is not there': (
        'coco', listed('categories', 2, name='triangel'), 'class names',
        "no category has the name 'triangle', a class of the config; there is 'triangel'",
    ),
    'a name twice': (
        'coco', listed('categories', 2, name='disc'), 'duplicate',
        "2 categories have the name 'disc'",
    ),
    'annotation id twice': (
        'coco', repeated('annotations'), 'duplicate', "2 entries of 'annotations' have the id 1"
    ),
    'image id twice': (
        'coco', repeated('images'), 'duplicate image id', "2 entries of 'images' have the id 0"
    ),
    'JSON cut off': ('coco', cut(ANNOTATIONS, 2000), 'unreadable file', f'{ANNOTATIONS}: not JSON'),
    'a list for an object': (
        'coco', lambda data: (data / ANNOTATIONS).write_text('[]'), 'missing key',
        "it has no list 'images'",
    ),
    'no list of images': (
        'coco', annotations(lambda content: content.pop('images')), 'missing key',
        "it has no list 'images'",
    ),
    'no images': (
        'coco', annotations(lambda content: content.update(images=[], annotations=[])),
        'no images', ANNOTATIONS,
    ),
    'no box': (
        'coco', annotation(bbox=None), 'missing key',
        "entry with id 1 of 'annotations' has no 'bbox'",
    ),
    'three numbers': (
        'coco', annotation(bbox=[1, 2, 3]), 'wrong value',
        'annotation 1 of image 0: its box is [1, 2, 3], expected four numbers',
    ),
    'NaN in a box': (
        'coco', annotation(bbox=[1, 2, nan, 4]), 'not a number',
        'annotation 1 of image 0: its box is [1, 2, nan, 4]',
    ),
    'no area': (
        'coco', annotation(bbox=[5, 5, 0, 9]), 'too small',
        'annotation 1 of image 0: its box is 0 x 9',
    ),
    'outside': (
        'coco', annotation(bbox=[500, 5, 9, 9]), 'outside',
        'annotation 1 of image 0: its box [500, 5, 9, 9] lies outside of the image of 192 x 192',
    ),
    'unknown category': (
        'coco', annotation(category_id=99), 'unknown category', 'its category_id is 99'
    ),
    'no image': ('coco', annotation(image_id=999), 'no such image', 'annotation 1 of image 999'),
    'no segmentation': (
        'coco', annotation(segmentation=None), 'no segmentation',
        'annotation 1 of image 0: it has no segmentation',
    ),
    'a polygon of NaN': (
        'coco', annotation(segmentation=[[1, 1, nan, 1, 5, 5]]), 'wrong value',
        'its segmentation holds something else than finite numbers',
    ),
    'a polygon of two points': (
        'coco', annotation(segmentation=[[1, 1, 5, 5]]), 'ignored mask', 'annotation 1 of image 0'
    ),
    'run lengths of another size': (
        'coco', annotation(segmentation=dict(size=[9, 9], counts='0')), 'sizes differ',
        'its mask is of size [9, 9], the image of [192, 192]',
    ),
    'another size in the list': (
        'coco', listed('images', 3, width=640, height=427), 'sizes differ',
        f'{IMAGE}: it is 192 x 192, and 640 x 427 (width x height) in',
    ),
    'turned by EXIF': (
        'coco', turn, 'sizes differ', f'{IMAGE}: it is 100 x 192, and 192 x 192 (width x height) in'
    ),
    'empty image': ('coco', write(IMAGE, b''), 'unreadable file', f'{IMAGE}: it is empty'),
    'text as image': (
        'coco', write(IMAGE, b'hello'), 'unreadable file', f'{IMAGE}: it is no image'
    ),
    'image cut off': (
        'coco', cut(IMAGE, 3000), 'unreadable file', f'{IMAGE}: image file is truncated'
    ),
    'image is not there': ('coco', remove(IMAGE), 'missing file', IMAGE),
    'grey image': (
        'coco', lambda data: Image.open(data / IMAGE).convert('L').save(data / IMAGE), 'not RGB',
        f"{IMAGE}: Pillow's name for its pixels is L",
    ),
    'label map of another size': (
        'ade', labels(lambda picture: picture[:90]), 'sizes differ',
        f'{LABELS}: it is 192 x 90, and 192 x 192 (width x height) in',
    ),
    'label map in colours': (
        'ade', labels(lambda picture: np.stack([picture] * 3, 2)), 'label map',
        f'{LABELS}: it has 3 channels (RGB), expected one',
    ),
    'label map of 16 bits': (
        'ade', labels(lambda picture: picture.astype(np.uint16) + 300), 'label map',
        f'{LABELS}: it has 16 bits, and numbers above 255',
    ),
    'label out of range': (
        'ade', labels(lambda picture: picture + 9), 'label out of range',
        '; the 7 classes are 0 to 6',
    ),
    'a strip': (
        'coco', strip, 'narrow',
        'coco/train2017/strip.jpg: it is 192 x 4',
    ),
    'all unknown': ('ade', labels(np.zeros_like), 'no labels', LABELS),
    'no label map': ('ade', remove(LABELS), 'missing file', LABELS),
    'empty label map': ('ade', write(LABELS, b''), 'unreadable file', f'{LABELS}: it is empty'),
    'capital suffix': (
        'ade', lambda data: (data / ADE_IMAGE).rename((data / ADE_IMAGE).with_suffix('.JPG')),
        'other suffix', 'the config reads files that end with .jpg',
    ),
    'no image of a label map': ('ade', remove(ADE_IMAGE), 'label map without image', LABELS),
}  # fmt: skip


@pytest.mark.parametrize('name', BROKEN)
def test_check_names_what_is_wrong(name, data, tmp_path, capsys):
    from convnext_dense.commands import check

    task, break_it, kind, text = BROKEN[name]
    break_it(data)
    out = tmp_path / 'report'
    arguments = [DEMO[task], '--data-root', str(data / task), '--out', str(out), '--jobs', '0']
    if kind in REFUSED:
        with pytest.raises(SystemExit) as stopped:
            check.main(arguments)
        assert stopped.value.code == 1
    else:
        check.main(arguments)
    printed = capsys.readouterr().out
    assert f'{kind}: ' in printed and text in printed, printed
    assert (REFUSED | COUNTED)[kind] in printed
    assert f'{kind},{"yes" if kind in REFUSED else "no"},' in (out / 'problems.csv').read_text()
    assert kind in (out / 'index.html').read_text()


def test_splits_of_the_same_files_are_checked_with_their_own_steps(data, tmp_path, capsys):
    """Of the test split alone, the step that ignores a label is missing."""
    from convnext_dense.commands import check

    (path,) = data.glob('ade/annotations/validation/*0.png')
    label_map = np.array(Image.open(path))
    label_map[0, 0] = 99  # which is 98 when it has been read: 0 means unknown in ADE20K
    Image.fromarray(label_map).save(path)
    config = tmp_path / 'ignoring.py'
    config.write_text(
        f'_base_ = {str(ROOT / DEMO["ade"])!r}\n'
        'same = dict(dataset=dict(data_prefix=dict(\n'
        "    img_path='images/validation', seg_map_path='annotations/validation')))\n"
        'val_dataloader, test_dataloader = dict(same), dict(same)\n'
        'steps = [dict(step) for step in _base_.val_dataloader.dataset.pipeline]\n'
        "behind = [step['type'] for step in steps].index('LoadAnnotations') + 1\n"
        "steps.insert(behind, dict(type='convnext_dense.IgnoreLabels', labels=[98]))\n"
        "val_dataloader = dict(dataset=dict(same['dataset'], pipeline=steps))\n"
    )
    with pytest.raises(SystemExit) as stopped:
        check.main([str(config), '--data-root', str(data / 'ade'), '--out', str(tmp_path / 'out')])
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert 'label out of range: 1' in printed and 'val, test' not in printed


# What train says before its first iteration, or when it comes to the file.
TRAINED = [
    'names in another order', 'no images', 'no box', 'JSON cut off', 'no segmentation',
    'another size in the list', 'turned by EXIF', 'empty image',
    'label map of another size', 'label map in colours',
    'label out of range', 'empty label map',
]  # fmt: skip


@pytest.mark.parametrize('name', TRAINED)
def test_training_refuses_it(name, data, tmp_path, exits):
    task, break_it, kind, text = BROKEN[name]
    break_it(data)
    printed = exits('train', DEMO[task], '--work-dir', tmp_path / 'work', *demo_options(task, data))
    message = printed.rpartition('\nDataError: ')[2]
    assert kind in message and text in message, printed[-3000:]
    assert len(message.splitlines()) < 15


def test_a_file_without_objects_is_named(data, tmp_path, exits):
    """Of which mmdet leaves no image for training."""
    annotations(lambda content: content.update(annotations=[]))(data)
    printed = exits('train', DEMO['coco'], '--work-dir', tmp_path, *demo_options('coco', data))
    assert f'{ANNOTATIONS}: none of its images has an object of the classes' in printed


def test_what_is_left_out_is_counted_once(data, tmp_path):
    from convnext_dense.commands import train

    for name in ('NaN in a box', 'image id twice'):
        BROKEN[name][1](data)
    options = {'train_cfg.max_iters': 1, 'train_cfg.val_interval': 1, 'visualizer.name': 'counted'}
    train.main(list(map(str, train_arguments('coco', data, tmp_path, options))))
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert log.count('data: duplicate image id: 1 (left out') == 1
    assert log.count('data: not a number: 1 (left out') == 1


def test_heads_for_another_number_of_classes_are_refused(data, tmp_path, exits):
    options = {'model.roi_head.bbox_head.num_classes': 4}
    printed = exits('train', *train_arguments('coco', data, tmp_path, options))
    detail = 'it predicts 4 classes, the data have 5: disc, square, triangle, star, ring'
    assert f'roi_head.bbox_head (Shared2FCBBoxHead): {detail}' in printed
    options = {'model.decode_head.num_classes': 19}
    printed = exits('train', *train_arguments('ade', data, tmp_path, options))
    assert 'decode_head (UPerHead): it predicts 19 classes, the data have 7' in printed


WIDTHS = {
    'a neck': ('coco', 'model.neck.in_channels', [96, 192, 384, 768], 'neck (FPN): in_channels is'),
    'a head': (
        'ade',
        'model.decode_head.in_channels',
        [96, 192, 384, 768],
        'decode_head (UPerHead',
    ),
    'a map': ('ade', 'model.auxiliary_head.in_channels', 80, 'is 80, its maps have 160'),
    'no such map': ('ade', 'model.auxiliary_head.in_index', 4, 'is 160, its maps have None'),
}


@pytest.mark.parametrize('name', WIDTHS)
def test_parts_for_maps_of_other_widths_are_refused(name, data, tmp_path, exits):
    """By training and by check, before the model runs."""
    task, key, widths, message = WIDTHS[name]
    output = exits('train', *train_arguments(task, data, tmp_path, {key: widths}))
    assert 'other widths: 1' in output and message in output and 'not foreseen' not in output
    output = exits(
        'check',
        DEMO[task],
        '--data-root',
        data / task,
        '--out',
        tmp_path / 'report',
        '--cfg-options',
        f'{key}={widths}'.replace(' ', ''),
    )
    assert message in output


def train_arguments(task, data, work_dir, options):
    return [DEMO[task], '--work-dir', work_dir, *demo_options(task, data, **options)]


@pytest.mark.parametrize(
    'option, message',
    [
        ('val_evaluator.ann_file=absent.json', 'missing file: 1\n  absent.json\n'),
        ('train_dataloader=coco', "train_dataloader is 'coco', expected a dict"),
        ('model.backbone.type=convnext_dense.ConvNeXT', 'convnext_dense.ConvNeXT is not in'),
    ],
)
def test_check_names_what_is_wrong_with_the_config(option, message, scenes, tmp_path, exits):
    place = ['--data-root', scenes / 'coco', '--out', tmp_path, '--jobs', 0]
    printed = exits('check', DEMO['coco'], *place, '--cfg-options', option)
    assert message in printed


class Reads(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, i):
        raise DataError('a.jpg: it is empty\n  -> replace it')


def test_the_message_of_a_worker_is_not_its_traceback():
    with pytest.raises(DataError) as error:
        next(iter(torch.utils.data.DataLoader(Reads(), num_workers=1)))
    assert str(error.value) == 'a.jpg: it is empty\n  -> replace it'


def test_categories_are_read_without_the_rest(tmp_path, monkeypatch):
    names = [dict(id=i, name=f'{i} "categories": [é') for i in range(3)]
    images = [dict(id=0, note='"categories": [', categories=[1, 2])] * 50
    files = [dict(categories=names, images=images), dict(images=images, categories=names)]
    files.append(dict(categories=names))
    for block in (7, 100, 2**24):  # smaller than what is looked for, too
        monkeypatch.setattr(coco, 'BLOCK', max(block, 64))
        for content in files:
            path = tmp_path / 'annotations.json'
            path.write_text(json.dumps(content, ensure_ascii=False), encoding='utf-8')
            assert coco.categories(path) == names
    path.write_text('{"categories": [{"id": 1')
    with pytest.raises(ValueError):
        coco.categories(path)
    for content in ('[]', '{"categories": null}'):
        path.write_text(content)
        with pytest.raises(KeyError, match='categories'):
            coco.categories(path)


def test_sound_data_are_silent(scenes, tmp_path, capsys):
    from convnext_dense.commands import check

    for task in ('coco', 'ade'):
        check.main([DEMO[task], '--data-root', str(scenes / task), '--out', str(tmp_path / task)])
        printed = capsys.readouterr().out
        assert '->' not in printed and 'train' in printed
        lines = Path(tmp_path, task, 'problems.csv').read_text().splitlines()
        assert len(lines) == 1


def test_every_pixel_is_counted_once(scenes, tmp_path):
    """In this process and in workers, whose answers torch's own collate function would change."""
    cfg = load_config(DEMO['ade'], (), str(tmp_path), str(scenes / 'ade'), {})
    paths = list((scenes / 'ade/annotations/training').iterdir())
    labels = np.stack([np.asarray(Image.open(path)) for path in paths])
    for jobs in (0, 2):
        report = next(r for r in checking.check_all(cfg, jobs, {255}) if r.split == 'train')
        assert sum(report.classes.values()) == (labels > 0).sum()  # 0 means unknown in ADE20K


def test_workers_that_were_started_again_read_on(scenes, tmp_path):
    """Upstream MMEngine's stream of indices ends with the iterator that began to read it."""
    from convnext_dense.commands import train

    workers = {'train_dataloader.num_workers': 1, 'train_dataloader.persistent_workers': True}
    steps = {'train_cfg.max_iters': 5, 'train_cfg.val_interval': 100}
    options = demo_options('ade', scenes, **workers, **steps)
    train.main([DEMO['ade'], '--work-dir', str(tmp_path), *map(str, options)])
    log = next(tmp_path.glob('2*/*.log')).read_text(encoding='utf-8')
    assert 'Reach the end of the dataloader' not in log
    assert 'Iter(train) [5/5]' in log


def test_a_label_out_of_range_is_refused_by_workers_and_in_testing(data, tmp_path, exits):
    _, break_it, _, text = BROKEN['label out of range']
    break_it(data)
    options = demo_options('ade', data, **{'train_dataloader.num_workers': 1})
    printed = exits('train', DEMO['ade'], '--work-dir', tmp_path, *options)
    assert text in printed.rpartition('\nDataError: ')[2]
    cfg = load_config(DEMO['ade'], ['test'], str(tmp_path / 'test'), str(data / 'ade'))
    pipeline = cfg.test_dataloader.dataset.pipeline
    dataset = dict(cfg.train_dataloader.dataset, pipeline=pipeline)
    cfg.test_dataloader.update(dataset=dataset, num_workers=0, persistent_workers=False)
    cfg.visualizer.name = 'labels-in-testing'
    with pytest.raises(DataError, match=text):
        Runner.from_cfg(cfg).test()


def test_a_label_out_of_range_is_refused_where_the_crop_leaves_it_out(data):
    """Unless a step before the crop gives it another number."""

    def mark_a_corner(label_map):
        label_map[0, 0] = 9
        return label_map

    labels(mark_a_corner)(data)
    init_default_scope('mmseg')
    read, crop = dict(type='LoadAnnotations'), dict(type='RandomCrop', crop_size=(8, 8))
    ignore = dict(type='convnext_dense.IgnoreLabels', labels=[9])

    def load(*steps):
        np.random.seed(0)  # the crop leaves the corner out
        pipeline = CheckedPipeline(Compose(steps), ('class',) * 8, {255}, '')
        image = np.zeros((*Image.open(data / LABELS).size[::-1], 3), np.uint8)
        sample = dict(img=image, seg_map_path=str(data / LABELS), seg_fields=[])
        return pipeline(dict(sample, img_shape=image.shape[:2], reduce_zero_label=False))

    with pytest.raises(DataError, match='9 .1 pixels.; the 8 classes are 0 to 7'):
        load(read, crop)
    assert load(read, ignore, crop)['gt_seg_map'].max() < 8


@pytest.mark.parametrize('lacking', [None, 'person'])
def test_instances_beside_panoptic_data_have_the_things_alone(lacking, tmp_path):
    """As COCO's two annotation files of one split."""
    from mmdet.datasets import CocoPanopticDataset

    meta = CocoPanopticDataset.METAINFO
    things = [name for name in meta['thing_classes'] if name != lacking]
    for name, classes in (('panoptic', meta['classes']), ('instances', things)):
        categories = [
            dict(id=i, name=text, isthing=int(text in things)) for i, text in enumerate(classes)
        ]
        content = dict(images=[], annotations=[], categories=categories)
        (tmp_path / f'{name}.json').write_text(json.dumps(content))
    dataset = CocoPanopticDataset(
        ann_file=str(tmp_path / 'panoptic.json'),
        data_prefix=dict(img='', ann='', seg=''),
        lazy_init=True,
    )
    evaluator = dict(type='CocoMetric', ann_file=str(tmp_path / 'instances.json'))
    problems = list(evaluator_problems(Config(dict(val_evaluator=evaluator)), 'val', dataset))
    assert [problem.kind for problem in problems] == (['class names'] if lacking else [])


def test_a_label_out_of_range_is_framed():
    labels = np.uint8([[0, 0, 9, 0], [0, 9, 1, 0]])
    (problem,) = label_problems(labels, 'labels.png', ('sky', 'road'), {255})[1]
    assert problem.box == (1, 0, 2, 2)  # x, y, width, height


def test_none_in_the_config_turns_the_hook_off(data, tmp_path):
    cfg = load_config(DEMO['ade'], [], str(tmp_path), str(data / 'ade'))
    cfg.default_hooks.data_check = None
    hooks = {type(hook).__name__ for hook in build_runner(cfg).hooks}
    assert 'CheckpointHook' in hooks and 'DataCheckHook' not in hooks
