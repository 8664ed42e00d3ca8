_base_ = [
    '_base_/mask2former_convnext.py',
    '_base_/ade20k_512x512_mask2former.py',
    '_base_/schedule_160k_mask2former.py',
    '_base_/runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        arch='tiny', drop_path_rate=0.3, init_cfg=dict(type='Pretrained', checkpoint='tiny_in1k')
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
)
default_hooks = dict(checkpoint=dict(interval=5000, save_best='mIoU', max_keep_ckpts=3))
