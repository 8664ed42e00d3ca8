# The same with automatic mixed precision; the official runs of L and XL are in fp32. The loss is
# scaled dynamically: the wrapper's default, so that optim_wrapper.type=OptimWrapper turns AMP off.
_base_ = 'schedule_3x.py'
optim_wrapper = dict(type='AmpOptimWrapper')
