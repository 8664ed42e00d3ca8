# Mask2Former for semantic segmentation, with mmdet's parts in mmseg's head. A leaf sets arch,
# drop_path_rate, the head's in_channels and the crop.
_base_ = '../../coco/_base_/mask2former_head.py'
custom_imports = dict(imports=['mmdet.models'])

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(
        type='convnext_dense.ConvNeXt', out_indices=(0, 1, 2, 3), layer_scale_init_value=1.0
    ),
    decode_head=dict(
        num_classes=150,
        align_corners=False,
        loss_cls=dict(class_weight=[1.0] * 150 + [0.1], **_base_.mask2former_loss_cls),
        train_cfg=_base_.mask2former_training,
        **_base_.mask2former_head,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
