default_scope = 'mmdet'
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='convnext_dense.CheckpointHook', interval=1),
    finite=dict(type='convnext_dense.FiniteHook'),
    data_check=dict(type='convnext_dense.DataCheckHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'),
)
# curves.png and examples/ in the work dir, at every evaluation
custom_hooks = [dict(type='convnext_dense.CurvesHook'), dict(type='convnext_dense.ExamplesHook')]
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
vis_backends = [dict(type='LocalVisBackend')]
# No import statement: upstream MMEngine would take this for a new-style config and refuse it.
if __import__('importlib.util').util.find_spec('tensorboard'):
    vis_backends.append(dict(type='TensorboardVisBackend'))
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
