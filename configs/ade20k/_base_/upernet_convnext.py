# UperNet on ConvNeXt with an auxiliary FCN head on stage 2. A leaf sets arch, drop_path_rate, the
# heads' in_channels and the crop.
norm_cfg = dict(type='SyncBN', requires_grad=True)

model = dict(
    type='convnext_dense.EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type='convnext_dense.ConvNeXt', out_indices=(0, 1, 2, 3), layer_scale_init_value=1.0
    ),
    decode_head=dict(
        type='convnext_dense.UPerHead',
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type='convnext_dense.FCNHead',
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='slide'),
)

# Multi-scale + flip testing is published on whole images; tools/test.py --tta replaces
# model.test_cfg.
tta_model = dict(type='SegTTAModel')
tta_test_cfg = dict(mode='whole')
