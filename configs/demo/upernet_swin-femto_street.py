# Swin with the depths of Swin-T at half its width: as large as ConvNeXt-femto's.
_base_ = '_base_/upernet_street.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        embed_dims=40,
        depths=(2, 2, 6, 2),
        num_heads=(2, 4, 8, 16),
        drop_path_rate=0.0,
    ),
    decode_head=dict(in_channels=[40, 80, 160, 320]),
    auxiliary_head=dict(in_channels=160),
)
