# ADE20K for the models from ImageNet-22k: images resized to (2560, 640) x 0.5 ... 2.0 and cropped
# to 640 x 640.
_base_ = 'ade20k_512x512.py'
crop_size, scale = (640, 640), (2560, 640)
train_pipeline, test_pipeline, tta_pipeline = (
    _base_.train_pipeline,
    _base_.test_pipeline,
    _base_.tta_pipeline,
)
train_pipeline[2].scale = test_pipeline[1].scale = scale
train_pipeline[3].crop_size = crop_size
for resize in tta_pipeline[1].transforms[0]:
    resize.scale = tuple(side * 640 // 512 for side in resize.scale)
del resize

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
