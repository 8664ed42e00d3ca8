# The same with automatic mixed precision; the official runs of L and XL are in fp32.
_base_ = 'schedule_160k.py'
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')
