# The semantic recipe on sixteen street scenes of 256 pixels, which are learned by heart.
_base_ = [
    '../../configs/ade20k/mask2former_convnext-t-in1k_8xb2-160k_ade20k-512x512.py',
    'mask2former_narrow.py',
]
classes = [
    *('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car'),
    *('pedestrian', 'bicyclist'),
]
model = dict(
    data_preprocessor=dict(size=(192, 256)),
    backbone=_base_.narrow_backbone,
    decode_head=dict(
        num_classes=len(classes),
        loss_cls=dict(class_weight=[1.0] * len(classes) + [0.1]),
        train_cfg=_base_.narrow_training,
        **_base_.narrow,
    ),
)
load = dict(type='LoadImageFromFile')
annotations = [dict(type='LoadAnnotations'), dict(type='convnext_dense.IgnoreLabels', labels=[11])]
resize = dict(type='Resize', scale=(256, 192), keep_ratio=False)
pack = dict(type='PackSegInputs')
dataset = dict(
    _delete_=True,
    type='BaseSegDataset',
    data_root='data/camvid',
    metainfo=dict(classes=classes),
    img_suffix='.jpg',
    seg_map_suffix='.png',
    data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
    indices=list(range(0, 367, 23)),
)
here = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=4, dataset=dict(pipeline=[load, *annotations, resize, pack], **dataset), **here
)
# scored at the size of the annotations
val_dataloader = dict(dataset=dict(pipeline=[load, resize, *annotations, pack], **dataset), **here)
test_dataloader = val_dataloader
iterations = 1800
train_cfg = dict(max_iters=iterations, val_interval=300)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=0.9, by_epoch=False, begin=50, end=iterations),
]
optim_wrapper = _base_.narrow_optimiser
default_hooks = dict(checkpoint=dict(interval=300, save_best=None, max_keep_ckpts=1))
randomness = dict(seed=0)
