# A linear classifier of each pixel on the same frozen maps.
_base_ = 'upernet_convnext_frozen.py'
model = dict(
    decode_head=dict(
        _delete_=True,
        type='convnext_dense.LinearHead',
        in_index=[0, 1, 2, 3],
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=_base_.norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    )
)
