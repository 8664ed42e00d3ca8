# For schedules that count iterations.
_base_ = 'runtime.py'
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=5000, save_last=True, max_keep_ckpts=3),
)
log_processor = dict(by_epoch=False)
