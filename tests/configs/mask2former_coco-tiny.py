# The panoptic recipe on eight images of 256 pixels, which are learned by heart.
_base_ = [
    '../../configs/coco/mask2former_convnext-t-in1k_8xb2-lsj-50e_coco-panoptic.py',
    'mask2former_narrow.py',
]
pad = dict(_base_.model.data_preprocessor.batch_augments[0], size=(256, 256))
model = dict(
    data_preprocessor=dict(batch_augments=[pad]),
    backbone=_base_.narrow_backbone,
    panoptic_head=_base_.narrow,
    train_cfg=_base_.narrow_training,
)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadDrawnPanoptic'),
    # Not padded: where an image is 0, the first norms of a network with random weights and no bias
    # yet divide by the root of their eps, and its gradients with them.
    dict(type='Resize', scale=(256, 256), keep_ratio=False),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    # Without an end: at each, that is every second iteration, MMEngine waits for two seconds.
    sampler=dict(type='InfiniteSampler'),
    batch_sampler=None,
    dataset=dict(
        ann_file='panoptic.json', data_prefix=dict(img='', seg='panoptic/'), pipeline=pipeline
    ),
)
val_dataloader = val_cfg = val_evaluator = test_dataloader = test_cfg = test_evaluator = None
iterations = 400
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=iterations)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=0.9, by_epoch=False, begin=50, end=iterations),
]
optim_wrapper = _base_.narrow_optimiser
default_hooks = dict(checkpoint=dict(interval=iterations // 4, max_keep_ckpts=-1))
randomness = dict(seed=0)
