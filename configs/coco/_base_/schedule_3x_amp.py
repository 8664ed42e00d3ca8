# The same with automatic mixed precision; the official runs of L and XL are in fp32.
_base_ = 'schedule_3x.py'
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')
