"""Ten swapped configs of ten kinds learn one batch of real images by heart.

They are trained by the libraries' own train scripts.
"""

import json
from statistics import median

import pytest
from PIL import Image, ImageDraw

from conftest import run
from convnext_dense.config_names import config_folder, find_config
from convnext_dense.swap import plan, write_config

ITERATIONS = 20
COMMON = f"""
_base_ = 'swapped.py'
val_dataloader = val_cfg = val_evaluator = test_dataloader = test_cfg = test_evaluator = None
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters={ITERATIONS}, val_interval=1000)
param_scheduler = []
custom_hooks = []
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1000))
log_processor = dict(by_epoch=False, window_size=1)
randomness = dict(seed=0)
auto_scale_lr = None
"""
COCO = """
optim_wrapper = dict(optimizer=dict(lr=3e-4))
train_dataloader = dict(
    _delete_=True, batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        ann_file={root!r} + '/few.json',
        data_prefix=dict(img={root!r}, seg={root!r}),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask={mask}, with_seg={seg}),
            dict(type='Resize', scale=(256, 256), keep_ratio=True),
            dict(type='PackDetInputs')]))
"""
CAMVID = """
optim_wrapper = dict(optimizer=dict(lr=1e-3))
model = dict(data_preprocessor=dict(size=(192, 256)))
train_dataloader = dict(
    _delete_=True, batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BaseSegDataset',
        data_root={root!r},
        metainfo=dict(classes=[str(i) for i in range(12)]),
        img_suffix='.png',
        seg_map_suffix='.png',
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='Resize', scale=(256, 192), keep_ratio=False),
            dict(type='PackSegInputs')]))
"""
# Mask2Former pads its batch to large images.
SMALL_BATCH = """
augments = _base_.model.data_preprocessor.batch_augments
for augment in augments:
    augment.size = (256, 256)
model = dict(data_preprocessor=dict(batch_augments=augments))
"""
DETECTORS = {
    'two-stage': 'faster-rcnn_r50_fpn_1x_coco',
    'one-stage': 'fcos_r50-caffe_fpn_gn-head_1x_coco',
    'DETR-like': 'dino-4scale_r50_8xb2-12e_coco',
    'Mask2Former': 'mask2former_r50_8xb2-lsj-50e_coco',
    'panoptic': 'panoptic-fpn_r50_fpn_1x_coco',
    # Not tiny or s: their boxes start empty (exp_on_reg=False) and overlap nothing, and a loss that
    # is weighed by overlap starts near 0.
    'RTMDet': 'rtmdet_m_8xb32-300e_coco',
}
SEGMENTORS = {
    'DeepLabV3+': 'deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512',
    'PSPNet': 'pspnet_r50-d8_4xb4-80k_ade20k-512x512',
    'SegFormer': 'segformer_mit-b0_8xb2-160k_ade20k-512x512',
    'K-Net': 'knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512',
}


@pytest.fixture(scope='module')
def few_coco(real_data, tmp_path_factory):
    """Two images with their instances, and label maps drawn from them for the panoptic model."""
    source, folder = real_data('coco_tiny'), tmp_path_factory.mktemp('coco')
    few = json.loads((source / 'annotations/instances_train2017.json').read_text())
    instances = {}  # id of an image -> its annotations
    for annotation in few['annotations']:
        if not annotation['iscrowd']:
            instances.setdefault(annotation['image_id'], []).append(annotation)
    few['images'] = sorted(
        (image for image in few['images'] if image['id'] in instances),
        key=lambda image: (-len(instances[image['id']]), image['id']),
    )[10:12]
    kept = {image['id'] for image in few['images']}
    few['annotations'] = [annotation for image in kept for annotation in instances[image]]
    for image in few['images']:
        name, labels = image['file_name'], Image.new('L', (image['width'], image['height']))
        for annotation in instances[image['id']]:
            for polygon in annotation['segmentation']:
                ImageDraw.Draw(labels).polygon(polygon, fill=annotation['category_id'] % 53 + 1)
        labels.save(folder / name.replace('.jpg', '.png'))
        (folder / name).write_bytes((source / 'train2017' / name).read_bytes())
    (folder / 'few.json').write_text(json.dumps(few))
    return folder


@pytest.fixture(scope='module')
def few_scenes(real_data, tmp_path_factory):
    """Two images and their label maps."""
    source, folder = real_data('camvid'), tmp_path_factory.mktemp('camvid')
    for path in sorted((source / 'images/train').iterdir())[:2]:
        label = source / 'annotations/train' / f'{path.stem}.png'
        for kind, file in (('images', path), ('labels', label)):
            (folder / kind).mkdir(exist_ok=True)
            Image.open(file).save(folder / kind / f'{path.stem}.png')
    return folder


def overfit(library, name, settings, folder):
    """Swap the backbone of a config, train it on the batch that ``settings`` name; losses fall."""
    source, scoped = find_config(name)
    swap = plan(source, 'atto', layer_decay=True)
    swap.cfg.model.backbone.drop_path_rate = 0.0
    write_config(swap, source, scoped, folder / 'swapped.py', '')
    (folder / 'overfit.py').write_text(COMMON + settings)
    script, work = config_folder(library).parent / 'tools/train.py', folder / 'work'
    run(script, folder / 'overfit.py', '--work-dir', work, cwd=folder)
    lines = next(work.glob('*/vis_data/scalars.json')).read_text().splitlines()
    losses = [json.loads(line)['loss'] for line in lines]
    first, last = losses[0], median(losses[-3:])
    print(f'{name}: {first:.3f} -> {last:.3f}, ratio {last / first:.2f}')
    assert len(losses) == ITERATIONS
    assert last <= 0.8 * first


@pytest.mark.slow
@pytest.mark.parametrize('kind', DETECTORS)
def test_swapped_detectors_overfit_a_batch(kind, few_coco, tmp_path):
    mask, seg = kind in ('Mask2Former', 'panoptic'), kind == 'panoptic'
    settings = COCO.format(root=str(few_coco), mask=mask, seg=seg)
    settings += SMALL_BATCH if kind == 'Mask2Former' else ''
    overfit('mmdet', DETECTORS[kind], settings, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('kind', SEGMENTORS)
def test_swapped_segmentors_overfit_a_batch(kind, few_scenes, tmp_path):
    overfit('mmseg', SEGMENTORS[kind], CAMVID.format(root=str(few_scenes)), tmp_path)
