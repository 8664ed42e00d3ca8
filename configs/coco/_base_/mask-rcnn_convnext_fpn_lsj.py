# For large-scale jittering: images are padded to 1024 x 1024 in training, and soft-NMS as in the
# ConvNeXt V2 paper.
_base_ = 'mask-rcnn_convnext_fpn.py'
model = dict(
    data_preprocessor=dict(
        batch_augments=[dict(type='BatchFixedSizePad', size=(1024, 1024), pad_mask=True)]
    ),
    test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms'))),
)
