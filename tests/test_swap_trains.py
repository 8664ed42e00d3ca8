"""Ten swapped configs of ten kinds learn one batch of real images by heart, through the libraries' own train scripts."""

import json
from statistics import median

import pytest
from PIL import Image, ImageDraw

from conftest import run
from convnext_dense.swap import find_config, plan, write_config
from convnext_dense.swap.config_files import config_folder

ITERATIONS = 20
COMMON = f"""
val_dataloader = val_cfg = val_evaluator = test_dataloader = test_cfg = test_evaluator = None
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters={ITERATIONS}, val_interval=1000)
param_scheduler = []
custom_hooks = []
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1000))
log_processor = dict(by_epoch=False, window_size=1)
randomness = dict(seed=0)
auto_scale_lr = None
"""
LOADER = """
train_dataloader = dict(_delete_=True, batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                        dataset={dataset})
"""
COCO = """dict(type='CocoDataset', ann_file={root!r} + '/few.json', data_prefix=dict(img={root!r}, seg={root!r}), pipeline=[
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask={mask}, with_seg={seg}),
    dict(type='Resize', scale=(256, 256), keep_ratio=True), dict(type='PackDetInputs')])"""
CAMVID = """dict(type='BaseSegDataset', data_root={root!r}, metainfo=dict(classes=[str(i) for i in range(12)]),
    img_suffix='.png', seg_map_suffix='.png', data_prefix=dict(img_path='images', seg_map_path='labels'), pipeline=[
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='Resize', scale=(256, 192), keep_ratio=False),
    dict(type='PackSegInputs')])
model = dict(data_preprocessor=dict(size=(192, 256)))"""
# What of a recipe has to be smaller for one batch of small images.
DETECTORS = {
    'two-stage': ('faster-rcnn_r50_fpn_1x_coco', ''),
    'one-stage': ('fcos_r50-caffe_fpn_gn-head_1x_coco', ''),
    'DETR-like': ('dino-4scale_r50_8xb2-12e_coco', ''),
    'Mask2Former': (
        'mask2former_r50_8xb2-lsj-50e_coco',
        'for augment in _base_.model.data_preprocessor.batch_augments: augment.size = (256, 256)\n'
        'model = dict(data_preprocessor=dict(batch_augments=_base_.model.data_preprocessor.batch_augments))\n',
    ),
    'panoptic': ('panoptic-fpn_r50_fpn_1x_coco', ''),
    # Not tiny or s: their boxes start empty (exp_on_reg=False), overlap nothing, and a loss weighed by overlap starts near 0.
    'RTMDet': ('rtmdet_m_8xb32-300e_coco', ''),
}
SEGMENTORS = {
    'DeepLabV3+': ('deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512', ''),
    'PSPNet': ('pspnet_r50-d8_4xb4-80k_ade20k-512x512', ''),
    'SegFormer': ('segformer_mit-b0_8xb2-160k_ade20k-512x512', ''),
    'K-Net': ('knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512', ''),
}


@pytest.fixture(scope='module')
def few_coco(real_data, tmp_path_factory):
    """Two images with their instances, and label maps drawn from them for the panoptic model."""
    source, folder = real_data('coco_tiny'), tmp_path_factory.mktemp('coco')
    few = json.loads((source / 'annotations/instances_train2017.json').read_text())
    polygons = {}
    for annotation in few['annotations']:
        if not annotation['iscrowd']:
            polygons.setdefault(annotation['image_id'], []).append(annotation)
    few['images'] = sorted(
        (image for image in few['images'] if image['id'] in polygons),
        key=lambda image: (-len(polygons[image['id']]), image['id']),
    )[10:12]
    kept = {image['id'] for image in few['images']}
    few['annotations'] = [annotation for image in kept for annotation in polygons[image]]
    for image in few['images']:
        labels = Image.new('L', (image['width'], image['height']))
        for annotation in polygons[image['id']]:
            for polygon in annotation['segmentation']:
                ImageDraw.Draw(labels).polygon(polygon, fill=annotation['category_id'] % 53 + 1)
        labels.save(folder / image['file_name'].replace('.jpg', '.png'))
        (folder / image['file_name']).write_bytes(
            (source / 'train2017' / image['file_name']).read_bytes()
        )
    (folder / 'few.json').write_text(json.dumps(few))
    return folder


@pytest.fixture(scope='module')
def few_scenes(real_data, tmp_path_factory):
    source, folder = real_data('camvid'), tmp_path_factory.mktemp('camvid')
    for path in sorted((source / 'images/train').iterdir())[:2]:
        label = source / 'annotations/train' / f'{path.stem}.png'
        for kind, file in (('images', path), ('labels', label)):
            (folder / kind).mkdir(exist_ok=True)
            Image.open(file).save(folder / kind / f'{path.stem}.png')
    return folder


def losses(name, library, data, extra, folder):
    source, scoped = find_config(name)
    swap = plan(source, 'atto', layer_decay=True)
    swap.cfg.model.backbone.drop_path_rate = 0.0
    write_config(swap, source, scoped, folder / 'swapped.py', '')
    (folder / 'overfit.py').write_text(
        "_base_ = 'swapped.py'\n"
        + COMMON
        + data
        + extra
        + f'optim_wrapper = dict(optimizer=dict(lr={1e-3 if library == "mmseg" else 3e-4}))\n'
    )
    run(
        config_folder(library).parent / 'tools/train.py',
        folder / 'overfit.py',
        '--work-dir',
        folder / 'work',
        cwd=folder,
    )
    log = next((folder / 'work').glob('*/vis_data/scalars.json'))
    return [json.loads(line)['loss'] for line in log.read_text().splitlines()]


def check(found, kind):
    print(
        f'{kind}: {found[0]:.3f} -> {median(found[-3:]):.3f}, ratio {median(found[-3:]) / found[0]:.2f}'
    )
    assert len(found) == ITERATIONS
    assert median(found[-3:]) <= 0.8 * found[0]


@pytest.mark.slow
@pytest.mark.parametrize('kind', DETECTORS)
def test_swapped_detectors_overfit_a_batch(kind, few_coco, tmp_path):
    name, extra = DETECTORS[kind]
    data = LOADER.format(
        dataset=COCO.format(
            root=str(few_coco), mask=kind in ('Mask2Former', 'panoptic'), seg=kind == 'panoptic'
        )
    )
    check(losses(name, 'mmdet', data, extra, tmp_path), kind)


@pytest.mark.slow
@pytest.mark.parametrize('kind', SEGMENTORS)
def test_swapped_segmentors_overfit_a_batch(kind, few_scenes, tmp_path):
    name, extra = SEGMENTORS[kind]
    dataset, model = CAMVID.format(root=str(few_scenes)).split('\nmodel')
    check(
        losses(name, 'mmseg', LOADER.format(dataset=dataset) + f'model{model}\n', extra, tmp_path),
        kind,
    )
