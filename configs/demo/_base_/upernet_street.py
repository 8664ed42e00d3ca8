# Street scenes in the layout of CamVid (480 x 360, 11 classes, 11 is unknown), from random weights,
# in minutes on two CPU cores: at two thirds of the size, 300 steps of 8 crops for every model, the
# same images in the same order.
_base_ = [
    '../../ade20k/_base_/upernet_convnext.py',
    '../../ade20k/_base_/runtime.py',
    'schedule.py',
]
data_root = 'data/street'
scale, crop_size = (320, 240), (160, 208)
dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    img_suffix='.jpg',
    seg_map_suffix='.png',
    reduce_zero_label=False,
    metainfo=dict(
        classes=(
            'sky',
            'building',
            'pole',
            'road',
            'pavement',
            'tree',
            'sign',
            'fence',
            'car',
            'pedestrian',
            'bicyclist',
        ),
        palette=[
            [70, 130, 180],
            [70, 70, 70],
            [153, 153, 153],
            [128, 64, 128],
            [244, 35, 232],
            [107, 142, 35],
            [220, 220, 0],
            [190, 153, 153],
            [0, 0, 142],
            [220, 20, 60],
            [255, 128, 0],
        ],
    ),
)
load = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='convnext_dense.IgnoreLabels', labels=[11]),
]
train_pipeline = [
    *load,
    dict(type='RandomResize', scale=scale, ratio_range=(0.6, 1.4), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    load[0],
    dict(type='Resize', scale=scale, keep_ratio=True),
    *load[1:],
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(side, side * 3 // 4), keep_ratio=True)
                for side in (256, 320, 384)
            ],
            [
                dict(type='RandomFlip', prob=0.0),
                dict(type='RandomFlip', prob=1.0, direction='horizontal'),
            ],
            [load[1]],
            [load[2]],
            [dict(type='PackSegInputs')],
        ],
    ),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
        pipeline=train_pipeline,
        **dataset,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path='images/val', seg_map_path='annotations/val'),
        pipeline=test_pipeline,
        **dataset,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path='images/test', seg_map_path='annotations/test'),
        pipeline=test_pipeline,
        **dataset,
    ),
)
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

optim_wrapper = dict(constructor='DefaultOptimWrapperConstructor', optimizer=dict(lr=3e-3))
train_cfg = dict(max_iters=300, val_interval=150)
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=150, max_keep_ckpts=1))
model = dict(
    data_preprocessor=dict(size=crop_size),
    decode_head=dict(channels=64, num_classes=11),
    auxiliary_head=dict(channels=64, num_classes=11),
    test_cfg=dict(mode='whole'),
)
