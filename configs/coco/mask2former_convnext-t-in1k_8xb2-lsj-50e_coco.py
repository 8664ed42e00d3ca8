_base_ = [
    '_base_/mask2former_convnext_instance.py',
    '_base_/coco-instance_lsj_mask2former.py',
    '_base_/schedule_50e_lsj.py',
    '_base_/runtime_iterations.py',
]
model = dict(
    backbone=dict(
        arch='tiny', drop_path_rate=0.3, init_cfg=dict(type='Pretrained', checkpoint='tiny_in1k')
    ),
    panoptic_head=dict(in_channels=[96, 192, 384, 768]),
)
