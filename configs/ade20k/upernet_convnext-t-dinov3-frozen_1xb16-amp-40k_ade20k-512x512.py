_base_ = [
    '_base_/upernet_convnext_frozen.py',
    '_base_/ade20k_512x512.py',
    '_base_/schedule_40k_amp_frozen.py',
    '_base_/runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(arch='tiny', init_cfg=dict(type='Pretrained', checkpoint='tiny_dinov3')),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    test_cfg=dict(crop_size=(512, 512), stride=(341, 341)),
)
train_dataloader = dict(batch_size=16, num_workers=8)
default_hooks = dict(checkpoint=dict(interval=4000, max_keep_ckpts=2))
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=0.05))
