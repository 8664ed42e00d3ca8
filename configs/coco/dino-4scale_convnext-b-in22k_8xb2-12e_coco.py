_base_ = [
    '_base_/dino-4scale_convnext.py',
    '_base_/coco-detection_ms-crop.py',
    '_base_/schedule_12e.py',
    '_base_/runtime.py',
]
model = dict(
    backbone=dict(arch='base', init_cfg=dict(type='Pretrained', checkpoint='base_in22k_in1k_384')),
    neck=dict(in_channels=[256, 512, 1024]),
)
