_base_ = [
    '_base_/mask-rcnn_convnext_fpn_lsj.py',
    '_base_/coco-instance_lsj.py',
    '_base_/schedule_3x_amp.py',
    '_base_/runtime.py',
]
model = dict(
    backbone=dict(
        arch='v2_large',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint='v2_large_fcmae'),
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.95))
auto_scale_lr = dict(base_batch_size=32)
