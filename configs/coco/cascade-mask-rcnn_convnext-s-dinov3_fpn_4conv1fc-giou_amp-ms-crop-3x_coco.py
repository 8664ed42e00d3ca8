_base_ = [
    '_base_/cascade-mask-rcnn_convnext_fpn.py',
    '_base_/coco-instance_ms-crop.py',
    '_base_/schedule_3x_amp.py',
    '_base_/runtime.py',
]
model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.6,
        init_cfg=dict(type='Pretrained', checkpoint='small_dinov3'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(decay_rate=0.7))
