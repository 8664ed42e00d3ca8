# One GPU, four images a step, data of your own in COCO format: own-data.md of the docs says more.
_base_ = [
    '_base_/mask-rcnn_convnext_fpn.py',
    '_base_/coco-instance_ms-crop.py',
    '_base_/schedule_24e_amp.py',
    '_base_/runtime.py',
]
model = dict(
    backbone=dict(
        arch='tiny', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint='tiny_in1k')
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
train_dataloader = dict(batch_size=4)
