_base_ = [
    '_base_/rtmdet-ins_l_convnext.py',
    '_base_/coco-instance_mosaic.py',
    '_base_/schedule_100e.py',
    '_base_/runtime.py',
]
checkpoint = 'tiny_in22k_in1k_384'
model = dict(
    backbone=dict(
        arch='tiny', drop_path_rate=0.4, init_cfg=dict(type='Pretrained', checkpoint=checkpoint)
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
stage2 = dict(switch_epoch=90, switch_pipeline=_base_.train_pipeline_stage2)
default_hooks = dict(
    checkpoint=dict(interval=10, max_keep_ckpts=3),
    ema=dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002, update_buffers=True),
    switch=dict(type='PipelineSwitchHook', **stage2),
)
