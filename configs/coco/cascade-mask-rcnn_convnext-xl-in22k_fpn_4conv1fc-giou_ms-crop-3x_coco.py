_base_ = [
    '_base_/cascade-mask-rcnn_convnext_fpn.py',
    '_base_/coco-instance_ms-crop.py',
    '_base_/schedule_3x.py',
    '_base_/runtime.py',
]
model = dict(
    backbone=dict(
        arch='xlarge',
        drop_path_rate=0.8,
        init_cfg=dict(type='Pretrained', checkpoint='xlarge_in22k'),
    ),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.7))
