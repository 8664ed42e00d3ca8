"""Our pipelines and tools on real COCO and ADE20K images."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, init_default_scope
from PIL import Image

from conftest import ADE_T, ROOT
from convnext_dense.commands import train

COCO_TINY = 'tests/configs/mask-rcnn_coco-tiny.py'


def train_here(config, work_dir, *arguments):
    """The command tools/train.py, in this process."""
    # MMEngine keeps a visualizer for each name, with the folder of its first run.
    options = [*arguments, f'visualizer.name={work_dir}']
    train.main([str(ROOT / config), '--work-dir', str(work_dir), *map(str, options)])


def metrics(folder):
    """Logged metrics of the last validation."""
    rows = [
        json.loads(line)
        for path in sorted(folder.glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
    ]
    return [row for row in rows if any(key.endswith(('mAP_50', 'mIoU')) for key in row)][-1]


def first_images(root, path, count=8):
    """Write the training annotations of COCO's first images, by name, to ``path``."""
    content = json.loads((root / 'annotations/instances_train2017.json').read_text())
    images = sorted(content['images'], key=lambda image: image['file_name'])[:count]
    names = {image['id'] for image in images}
    annotations = [item for item in content['annotations'] if item['image_id'] in names]
    path.write_text(json.dumps(content | dict(images=images, annotations=annotations)))


def coco_options(root, train_file, **more):
    """Options that point the config at ``root``, with small images."""
    sides = str([(side, 533) for side in range(192, 321, 16)])
    pipeline = 'train_dataloader.dataset.pipeline.3.transforms'
    options = {
        f'{pipeline}.0.0.scales': sides,
        f'{pipeline}.1.2.scales': sides,
        f'{pipeline}.1.0.scales': '[(160,533),(200,533),(240,533)]',
        f'{pipeline}.1.1.crop_size': '(154,240)',
        'val_dataloader.dataset.pipeline.1.scale': '(533,320)',
        'train_dataloader.dataset.ann_file': train_file,
        **more,
    }
    pairs = [f'{key}={value}'.replace(' ', '') for key, value in options.items()]
    return ['--data-root', root, '--cfg-options', *pairs]


@pytest.mark.slow
def test_coco_trains_and_evaluates_with_all_classes(real_data, tmp_path):
    root = real_data('coco_tiny')
    first_images(root, tmp_path / 'short.json')
    short = {
        'train_cfg.max_epochs': 1,
        # so little trained, nothing passes the threshold of 0.05
        'model.test_cfg.rcnn.score_thr': 0.0,
        'model.test_cfg.rcnn.max_per_img': 10,
        'val_dataloader.dataset.pipeline.1.scale': '(400,240)',
    }
    train_here(COCO_TINY, tmp_path / 'w', *coco_options(root, tmp_path / 'short.json', **short))
    log = next((tmp_path / 'w').glob('*/*.log')).read_text()
    assert '[80/80]' in log  # each of the 80 images
    assert -1 < metrics(tmp_path / 'w')['coco/segm_mAP_50'] <= 1
    heads = Config.fromfile(ROOT / COCO_TINY).model.roi_head
    assert heads.bbox_head.num_classes == heads.mask_head.num_classes == 80


@pytest.mark.slow
def test_coco_overfits_eight_images(real_data, tmp_path):
    root = real_data('coco_tiny')
    few = tmp_path / 'few.json'
    first_images(root, few)
    # Trained and scored on the same eight images, so without augmentation: learning them by
    # heart is the point.
    by_heart = {
        'train_cfg.max_epochs': 150,
        'train_cfg.val_interval': 50,
        'default_hooks.checkpoint.interval': 150,
        'train_dataloader.dataset.pipeline.2.prob': 0.0,
        'train_dataloader.dataset.pipeline.3.prob': '[1.0,0.0]',
        'train_dataloader.dataset.pipeline.3.transforms.0.0.scales': '[(320,533)]',
        'param_scheduler.1.milestones': '[120,140]',
        'param_scheduler.1.end': 150,
        'param_scheduler.0.end': 51,
        'train_dataloader.dataset.filter_cfg.min_size': 0,
        'val_dataloader.dataset.ann_file': few,
        'val_dataloader.dataset.data_prefix.img': 'train2017/',
        'val_evaluator.ann_file': few,
    }
    train_here(COCO_TINY, tmp_path / 'w', *coco_options(root, few, **by_heart))
    assert metrics(tmp_path / 'w')['coco/segm_mAP_50'] >= 0.5


def ade_options(root):
    """Options that point the config at images without splits, with a narrow network."""
    narrow = {
        'model.backbone.arch': 'atto',
        'model.backbone.init_cfg': 'None',
        'optim_wrapper.paramwise_cfg.num_layers': 5,
        'model.decode_head.in_channels': '[40,80,160,320]',
        'model.decode_head.channels': 32,
        'model.auxiliary_head.in_channels': 160,
        'model.auxiliary_head.channels': 32,
    }
    data = {
        f'{split}_dataloader.{key}': value
        for split in ('train', 'val', 'test')
        for key, value in {
            'dataset.data_root': root,
            'dataset.data_prefix.img_path': 'images',
            'dataset.data_prefix.seg_map_path': 'annotations',
            'num_workers': 0,
            'persistent_workers': False,
        }.items()
    }
    return narrow | data


@pytest.mark.slow
def test_ade20k_recipe_runs_on_real_images(real_data, tmp_path):
    options = ade_options(real_data('ade_sample')) | {
        'train_cfg.max_iters': 2,
        'train_cfg.val_interval': 2,
    }
    pairs = [f'{key}={value}' for key, value in options.items()]
    train_here(ADE_T, tmp_path, '--cfg-options', *pairs)
    assert 0 <= metrics(tmp_path)['mIoU'] < 20  # percent: two iterations from noise


def corrupt(label, kind):
    """A prediction that is wrong in a known way. Labels 1 ... 150, 0 unlabelled, as in the file."""
    if kind == 'shifted':
        return np.roll(label, 7, (0, 1))
    common = np.argsort(np.bincount(label[label > 0].ravel()))[-2:]
    if kind == 'swapped':
        swapped = label.copy()
        swapped[label == common[0]], swapped[label == common[1]] = common[1], common[0]
        return swapped
    rng = np.random.default_rng(0)
    # among the classes of the image: each of the 150 would count as a class with IoU 0
    return np.where(
        rng.random(label.shape) < 0.2, rng.choice(np.unique(label[label > 0]), label.shape), label
    )


def mean_iou(labels, predictions):
    """Mean IoU in percent over the classes that occur, unlabelled pixels left out."""
    scores = []
    for label in range(1, 151):
        pairs = [(truth == label, map_ == label) for truth, map_ in zip(labels, predictions)]
        both = sum((true & predicted).sum() for true, predicted in pairs)
        either = sum(
            ((true | predicted) & (truth > 0)).sum()
            for (true, predicted), truth in zip(pairs, labels)
        )
        if either:
            scores.append(both / either)
    return 100 * np.mean(scores)


@pytest.mark.parametrize('kind', ['shifted', 'swapped', 'random'])
def test_metric_equals_a_direct_computation(kind, real_data):
    root = real_data('ade_sample')
    cfg = Config.fromfile(ROOT / ADE_T)
    cfg.merge_from_dict(ade_options(str(root)))
    init_default_scope('mmseg')
    dataset, metric = DATASETS.build(cfg.test_dataloader.dataset), METRICS.build(cfg.test_evaluator)
    metric.dataset_meta = dataset.metainfo
    labels, predictions = [], []
    for item in dataset:  # through our test pipeline
        sample = item['data_samples']
        labels.append(np.array(Image.open(sample.seg_map_path)).astype(int))
        # The network predicts 0 ... 149, no unlabelled pixels. Those that a shift brings in are
        # some wrong class.
        wrong = corrupt(labels[-1], kind)
        predictions.append(np.where(wrong == 0, 150, wrong))
        predicted = dict(data=torch.from_numpy(predictions[-1] - 1)[None])
        truth = dict(data=sample.gt_sem_seg.data)
        metric.process({}, [dict(pred_sem_seg=predicted, gt_sem_seg=truth)])
    assert len(labels) == 3
    expected = mean_iou(labels, predictions)
    # the metric rounds to two digits
    assert metric.evaluate(3)['mIoU'] == pytest.approx(expected, abs=0.006)
    assert 10 < expected < 90
