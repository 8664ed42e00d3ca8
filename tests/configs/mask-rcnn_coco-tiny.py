# The COCO recipe on a CPU: ConvNeXt-atto and narrow heads, 80 classes. The tests scale the
# pipeline's sizes by 0.4.
_base_ = '../../configs/coco/mask-rcnn_convnext-t-in1k_fpn_amp-ms-crop-3x_coco.py'
norm = dict(type='GN', num_groups=8)
model = dict(
    backbone=dict(arch='atto', drop_path_rate=0.0, init_cfg=None),
    neck=dict(in_channels=[40, 80, 160, 320], out_channels=64, norm_cfg=norm),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=200), rcnn=dict(sampler=dict(num=128))
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=200)),
)
train_dataloader = dict(num_workers=1)
val_dataloader = dict(num_workers=1)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3), paramwise_cfg=dict(num_layers=5), clip_grad=dict(max_norm=5.0)
)
