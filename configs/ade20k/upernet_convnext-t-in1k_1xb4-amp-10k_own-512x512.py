# One GPU, four images a step, images and label maps of your own: own-data.md of the docs says more.
_base_ = [
    '_base_/upernet_convnext.py',
    '_base_/own_512x512.py',
    '_base_/schedule_10k_amp.py',
    '_base_/runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        arch='tiny', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint='tiny_in1k')
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
    test_cfg=dict(crop_size=(512, 512), stride=(341, 341)),
)
default_hooks = dict(checkpoint=dict(interval=1000, max_keep_ckpts=2))
