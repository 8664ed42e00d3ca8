# A short schedule for one GPU with four images a step; half the rate of the recipes for 16 images.
_base_ = 'schedule_3x_amp.py'
train_cfg = dict(max_epochs=24)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=201),
    dict(type='MultiStepLR', begin=0, end=24, by_epoch=True, milestones=[16, 22], gamma=0.1),
]
optim_wrapper = dict(optimizer=dict(lr=5e-5), paramwise_cfg=dict(decay_rate=0.95))
auto_scale_lr = dict(base_batch_size=4)
