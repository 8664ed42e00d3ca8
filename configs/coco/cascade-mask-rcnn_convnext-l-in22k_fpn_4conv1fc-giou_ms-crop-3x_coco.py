_base_ = [
    '_base_/cascade-mask-rcnn_convnext_fpn.py',
    '_base_/coco-instance_ms-crop.py',
    '_base_/schedule_3x.py',
    '_base_/runtime.py',
]
model = dict(
    backbone=dict(
        arch='large', drop_path_rate=0.7, init_cfg=dict(type='Pretrained', checkpoint='large_in22k')
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.7))
