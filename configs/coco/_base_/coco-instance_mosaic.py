# COCO instance segmentation with the augmentation of RTMDet-Ins: four images in one, mixed with
# four others. 32 images a GPU on 4 GPUs: 128 a step. The last epochs have the plain pipeline of
# stage 2.
_base_ = 'coco-instance_ms-crop.py'
size = (640, 640)
grey = (114, 114, 114)
load = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=False),
]
crop = dict(type='RandomCrop', crop_size=size, recompute_bbox=True, allow_negative_crop=True)
colour_and_flip = [dict(type='YOLOXHSVRandomAug'), dict(type='RandomFlip', prob=0.5)]
pad = dict(type='Pad', size=size, pad_val=dict(img=grey))
drop_small = dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1))
train_pipeline = [
    *load,
    dict(type='CachedMosaic', img_scale=size, pad_val=114.0),
    dict(type='RandomResize', scale=(1280, 1280), ratio_range=(0.1, 2.0), keep_ratio=True),
    crop,
    *colour_and_flip,
    pad,
    dict(
        type='CachedMixUp',
        img_scale=size,
        ratio_range=(1.0, 1.0),
        max_cached_images=20,
        pad_val=grey,
    ),
    drop_small,
    dict(type='PackDetInputs'),
]
train_pipeline_stage2 = [
    *load,
    dict(type='RandomResize', scale=size, ratio_range=(0.1, 2.0), keep_ratio=True),
    crop,
    drop_small,
    *colour_and_flip,
    pad,
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=True),
    pad,
    dict(type='LoadAnnotations', with_bbox=True),
    _base_.test_pipeline[3],
]

train_dataloader = dict(
    batch_size=32,
    num_workers=10,
    batch_sampler=None,
    pin_memory=True,
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(batch_size=5, num_workers=10, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(proposal_nums=(100, 1, 10))
test_evaluator = val_evaluator
