# The same for instances alone.
_base_ = 'mask2former_convnext_panoptic.py'
pad = _base_.model.data_preprocessor.batch_augments[0]
pad.pad_seg = False
pad.pop('seg_pad_value')

model = dict(
    data_preprocessor=dict(pad_seg=False, batch_augments=[pad]),
    panoptic_head=dict(num_stuff_classes=0, loss_cls=dict(class_weight=[1.0] * 80 + [0.1])),
    panoptic_fusion_head=dict(num_stuff_classes=0),
    test_cfg=dict(panoptic_on=False),
)
