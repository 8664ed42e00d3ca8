# The same images with panoptic segments. Their evaluation needs panopticapi:
# pip install git+https://github.com/cocodataset/panopticapi.git
_base_ = 'coco-instance_lsj_mask2former.py'
annotations = 'data/coco/annotations/'
train_pipeline = [step for step in _base_.train_pipeline if step.type != 'FilterAnnotations']
train_pipeline[1] = dict(
    type='LoadPanopticAnnotations', with_bbox=True, with_mask=True, with_seg=True
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    _base_.test_pipeline[1],
    dict(type='LoadPanopticAnnotations'),
    _base_.test_pipeline[3],
]

train_dataloader = dict(
    dataset=dict(
        type='CocoPanopticDataset',
        ann_file='annotations/panoptic_train2017.json',
        data_prefix=dict(seg='annotations/panoptic_train2017/'),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        type='CocoPanopticDataset',
        ann_file='annotations/panoptic_val2017.json',
        data_prefix=dict(seg='annotations/panoptic_val2017/'),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(
        type='CocoPanopticMetric',
        ann_file=f'{annotations}panoptic_val2017.json',
        seg_prefix=f'{annotations}panoptic_val2017/',
    ),
    dict(
        type='CocoMetric', ann_file=f'{annotations}instances_val2017.json', metric=['bbox', 'segm']
    ),
]
test_evaluator = val_evaluator
