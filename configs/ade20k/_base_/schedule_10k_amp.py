# A short schedule for one GPU with four images a step; half the rate of the recipes for 16 images.
_base_ = 'schedule_160k_amp.py'
train_cfg = dict(max_iters=10000, val_interval=1000)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=501),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=10001),
]
optim_wrapper = dict(optimizer=dict(lr=5e-5))
