_base_ = [
    '_base_/mask-rcnn_convnext_fpn.py',
    '_base_/coco-instance.py',
    '_base_/schedule_1x_amp.py',
    '_base_/runtime.py',
]
model = dict(
    backbone=dict(
        arch='tiny', drop_path_rate=0.2, init_cfg=dict(type='Pretrained', checkpoint='tiny_in1k')
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.95))
