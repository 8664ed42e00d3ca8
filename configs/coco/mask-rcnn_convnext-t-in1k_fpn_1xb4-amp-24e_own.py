# One GPU, four images a step, data of your own in COCO format: docs/own-data.md says what to add.
_base_ = [
    '_base_/mask-rcnn_convnext_fpn.py',
    '_base_/coco-instance_ms-crop.py',
    '_base_/schedule_3x_amp.py',
    '_base_/runtime.py',
]
model = dict(
    backbone=dict(
        arch='tiny', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint='tiny_in1k')
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
train_dataloader = dict(batch_size=4)
train_cfg = dict(max_epochs=24)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=201),
    dict(type='MultiStepLR', begin=0, end=24, by_epoch=True, milestones=[16, 22], gamma=0.1),
]
optim_wrapper = dict(optimizer=dict(lr=5e-5), paramwise_cfg=dict(decay_rate=0.95))
auto_scale_lr = dict(base_batch_size=4)
