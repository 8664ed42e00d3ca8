# 368750 iterations of 16 images, 50 epochs of COCO, as Mask2Former is trained.
_base_ = 'optimiser_mask2former.py'
train_cfg = dict(
    type='IterBasedTrainLoop',
    max_iters=368750,
    val_interval=5000,
    # From here on at the end alone.
    dynamic_intervals=[(365001, 368750)],
)
param_scheduler = dict(
    type='MultiStepLR', begin=0, end=368750, by_epoch=False, milestones=[327778, 355092], gamma=0.1
)
