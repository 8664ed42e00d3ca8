# The short side is one of 16, from half the crop's to twice that, as Mask2Former is trained.
_base_ = 'ade20k_640x640.py'
train_pipeline = _base_.train_pipeline
train_pipeline[2] = dict(
    type='RandomChoiceResize',
    scales=[640 * tenths // 10 for tenths in range(5, 21)],
    resize_type='ResizeShortestEdge',
    max_size=2560,
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
