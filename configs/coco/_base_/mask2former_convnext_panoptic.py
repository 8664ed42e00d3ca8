# Mask2Former for COCO panoptic: 80 kinds of things, 53 of stuff. A leaf sets arch, drop_path_rate
# and the head's in_channels.
_base_ = 'mask2former_head.py'
classes = dict(num_things_classes=80, num_stuff_classes=53)
padding = dict(pad_mask=True, mask_pad_value=0, pad_seg=True, seg_pad_value=255)

model = dict(
    type='Mask2Former',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        batch_augments=[
            dict(type='BatchFixedSizePad', size=(1024, 1024), img_pad_value=0, **padding)
        ],
        **padding,
    ),
    backbone=dict(
        type='convnext_dense.ConvNeXt', out_indices=(0, 1, 2, 3), layer_scale_init_value=1.0
    ),
    panoptic_head=dict(
        loss_cls=dict(class_weight=[1.0] * 133 + [0.1], **_base_.mask2former_loss_cls),
        **classes,
        **_base_.mask2former_head,
    ),
    panoptic_fusion_head=dict(type='MaskFormerFusionHead', loss_panoptic=None, **classes),
    train_cfg=_base_.mask2former_training,
    test_cfg=dict(
        panoptic_on=True,
        semantic_on=False,
        instance_on=True,
        max_per_image=100,
        iou_thr=0.8,
        filter_low_score=True,
    ),
)
