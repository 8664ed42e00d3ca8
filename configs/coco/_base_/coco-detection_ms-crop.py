# The boxes alone, with DETR's own bound on the long side before the crop. 2 images a GPU on 8 GPUs:
# 16 a step.
_base_ = 'coco-instance_ms-crop.py'
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
for pipeline in (train_pipeline, test_pipeline):
    for step in pipeline:
        if step.type == 'LoadAnnotations':
            step.with_mask = False
del pipeline, step
train_pipeline[3].transforms[1][0].scales = [(400, 4200), (500, 4200), (600, 4200)]

train_dataloader = dict(
    dataset=dict(filter_cfg=dict(filter_empty_gt=False), pipeline=train_pipeline)
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
