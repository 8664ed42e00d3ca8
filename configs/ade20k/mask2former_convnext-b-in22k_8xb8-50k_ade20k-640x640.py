_base_ = [
    '_base_/mask2former_convnext.py',
    '_base_/ade20k_640x640_mask2former.py',
    '_base_/schedule_160k_mask2former.py',
    '_base_/runtime.py',
]
checkpoint = 'base_in22k_in1k_384'
model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(
        arch='base', drop_path_rate=0.3, init_cfg=dict(type='Pretrained', checkpoint=checkpoint)
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
)
train_dataloader = dict(batch_size=8)
train_cfg = dict(max_iters=50000)
param_scheduler = [dict(_base_.param_scheduler[0], end=50000)]
optim_wrapper = dict(optimizer=dict(lr=4e-4))
auto_scale_lr = dict(base_batch_size=64)
default_hooks = dict(checkpoint=dict(interval=5000, save_best='mIoU', max_keep_ckpts=3))
