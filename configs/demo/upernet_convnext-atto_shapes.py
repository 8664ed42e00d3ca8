# UperNet with ConvNeXt-atto and small heads: learns the generated shapes from random weights on two
# CPU cores. The recipe for ADE20K with fewer channels; everything that is not below is inherited.
_base_ = [
    '../ade20k/_base_/upernet_convnext.py',
    '../ade20k/_base_/runtime.py',
    '_base_/schedule.py',
]

data_root = 'work_dirs/demo/data/ade'
classes = ('wall', 'floor', 'disc', 'square', 'triangle', 'star', 'ring')
model = dict(
    data_preprocessor=dict(size=(192, 192)),
    backbone=dict(arch='atto'),
    decode_head=dict(in_channels=[40, 80, 160, 320], channels=64, num_classes=len(classes)),
    auxiliary_head=dict(in_channels=160, channels=64, num_classes=len(classes)),
    test_cfg=dict(mode='whole'),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=[0.4, 0.3], direction=['horizontal', 'vertical']),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(side, side), keep_ratio=True) for side in (160, 192, 224)],
            [
                dict(type='RandomFlip', prob=0.0),
                dict(type='RandomFlip', prob=1.0, direction='horizontal'),
            ],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=dict(classes=classes),
    reduce_zero_label=True,
)
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline,
        **dataset,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
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

optim_wrapper = dict(
    optimizer=dict(lr=3e-3), paramwise_cfg=dict(decay_rate=0.95, decay_type='layer_wise')
)
train_cfg = dict(max_iters=600, val_interval=150)
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(by_epoch=False, interval=150))
