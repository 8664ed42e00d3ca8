# 160k iterations of 16 images, as Mask2Former is trained.
_base_ = '../../coco/_base_/optimiser_mask2former.py'
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=5000)
param_scheduler = [dict(type='PolyLR', eta_min=0, power=0.9, begin=0, end=160000, by_epoch=False)]
