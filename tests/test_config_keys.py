"""Keys that nothing reads are refused, and no other: over all configs of mmdet and mmseg."""

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from conftest import ALL_CONFIGS, DEMO, ROOT
from convnext_dense import ConfigError
from convnext_dense.config_names import config_folder, read_file
from convnext_dense.training.config_keys import check_keys, check_options

# Configs of the libraries with a key that is in fact ignored (models, by_epoch beside a type), or
# that their own class does not take, so that they cannot be built.
FAULTY = {
    'mmdet/cascade_rpn/cascade-rpn_r50-caffe_fpn_1x_coco.py': 'stages.0.sampling',
    'mmdet/pascal_voc/faster-rcnn_r50_fpn_1x_voc0712-cocofmt.py': 'test_evaluator.eval_mode',
    'mmdet/solov2/solov2-light_r18_fpn_ms-3x_coco.py': 'train_cfg.by_epoch',
    'mmdet/solov2/solov2-light_r34_fpn_ms-3x_coco.py': 'train_cfg.by_epoch',
    'mmdet/solov2/solov2-light_r50-dcn_fpn_ms-3x_coco.py': 'train_cfg.by_epoch',
    'mmdet/solov2/solov2-light_r50_fpn_ms-3x_coco.py': 'train_cfg.by_epoch',
    'mmdet/v3det/fcos_swinb_fpn_8x4_sample1e-3_mstrain_v3det_2x.py': 'neck.force_grad_on_level',
    'mmseg/bisenetv2/bisenetv2_fcn_4xb4-ohem-160k_cityscapes-1024x1024.py': 'models: write model',
}
UNREADABLE = 10  # at most: they name bases or files that the libraries do not install


def check(options, task='coco', text=''):
    """As ``load_config`` does with options of a command line, and ``text`` in the config."""
    cfg = read_file(ROOT / DEMO[task])
    cfg.merge_from_dict(Config.fromstring(text, '.py').to_dict())
    check_options(cfg, options)
    cfg.merge_from_dict(options)
    check_keys(cfg)


@pytest.mark.parametrize(
    'key, near',
    [
        ('default_hooks.checkpoint.max_keep_ckpt', 'max_keep_ckpts'),
        ('train_datalaoder.batch_size', 'train_dataloader'),
        ('train_dataloader.bacth_size', 'batch_size'),
        ('train_dataloader.dataset.indice', 'indices'),
        ('model.backbone.drop_path_rat', 'drop_path_rate'),
        ('model.neck.depth', 'it takes act_cfg, add_extra_convs'),
        ('model.test_cfg.rcnn.score_th', 'score_thr'),
        ('train_cfg.max_iter', 'max_iters'),
        ('auto_scale_lr.enabel', 'write enable'),
        ('auto_scale_lr.on', 'it takes base_batch_size, enable'),
        ('optim_wrapper.optimizer.weight_decy', 'weight_decay'),
        ('test_evaluator.metrics', 'metric '),
        ('nonsense', 'the config has no such key'),
        ('strategy.type', "runner_type = 'FlexibleRunner'"),
    ],
)
def test_options_that_would_change_nothing_are_refused(key, near):
    with pytest.raises(ConfigError) as error:
        check({key: 1})
    named = key.split('.')[0] if key.startswith(('train_datala', 'strategy')) else key
    assert f'  {named}: ' in str(error.value) and near in str(error.value)


@pytest.mark.parametrize(
    'options',
    [
        {'randomness.seed': 1, 'randomness.deterministic': True},
        {'train_dataloader.dataset.indices': 4, 'train_dataloader.prefetch_factor': 2},
        {'default_hooks.checkpoint.save_best': 'auto', 'default_hooks.timer': None},
        {'custom_hooks': [dict(type='EMAHook', momentum=0.1, priority='LOW')]},
        {'runner_type': 'FlexibleRunner', 'strategy.type': 'SingleDeviceStrategy'},
        {'find_unused_parameters': True, 'resume': True, 'work_dir': 'here'},
        {'optim_wrapper.clip_grad.norm_type': 2, 'optim_wrapper.accumulative_counts': 2},
        {'model.neck.type': 'of_no_registry', 'model.neck.whatever': 1},
    ],
)
def test_new_keys_that_something_takes_pass(options):
    check(options)


def test_in_a_file_variables_pass_and_misspellings_do_not():
    check({}, text='crop_size = (4, 4)\nmodel_2 = dict(type=1)\nclasses = ()\n')
    with pytest.raises(ConfigError, match='optim_wraper: write optim_wrapper'):
        check({}, text='optim_wraper = dict(clip_grad=None)')


@MODELS.register_module(force=True)
class TakesAndReadsOthers(nn.Module):
    def __init__(self, width=1, **kwargs):
        super().__init__()
        self.deep = kwargs.pop('deep', False)
        self.part = MODELS.build(dict(kwargs.pop('part'), height=None))


@MODELS.register_module(force=True)
class HandsOn(TakesAndReadsOthers):
    def __init__(self, levels=1, **kwargs):
        super().__init__(**kwargs)


@MODELS.register_module(force=True)
class TakesNoOthers(nn.Module):
    def __init__(self, size=1, height=1):
        super().__init__()


@MODELS.register_module(force=True)
class HandsOnToStrict(TakesNoOthers):
    def __init__(self, levels=1, **kwargs):
        super().__init__(**kwargs)


def test_what_a_constructor_takes_is_followed_as_far_as_it_is_known():
    def model(kind, **keys):
        check_keys(Config(dict(model=dict(type=kind, **keys))))

    model('HandsOn', deep=True, anything=1, width=2)
    model(HandsOn, deep=True, anything=1, width=2)
    # a class that is not of the libraries may read keys of its parts
    model('HandsOn', part=dict(type='TakesNoOthers', unknown=1))
    model('HandsOnToStrict', levels=2, size=3, height=1)
    for kind, keys, message in (
        ('HandsOn', dict(level=2), 'write levels'),
        (
            'HandsOn',
            dict(part=dict(type='TakesNoOthers', heigth=1)),
            r'model.part.heigth: .*height',
        ),
        ('HandsOnToStrict', dict(anything=1), 'model.anything: .* it takes height, levels, size'),
    ):
        with pytest.raises(ConfigError, match=message):
            model(kind, **keys)


@pytest.mark.parametrize('path', ALL_CONFIGS)
def test_recipes_pass(path):
    check_keys(read_file(ROOT / path))


def refusals(step):
    """Name -> what is refused, of every ``step``-th config; and how many could not be read."""
    refused, unreadable = {}, 0
    for library in ('mmdet', 'mmseg'):
        folder = config_folder(library)
        paths = [path for path in sorted(folder.rglob('*.py')) if '_base_' not in path.parts]
        for path in paths[::step]:
            try:
                cfg = read_file(path, import_custom_modules=False)
            except ConfigError:
                unreadable += 1
                continue
            try:
                check_keys(cfg)
            except ConfigError as error:
                refused[f'{library}/{path.relative_to(folder).as_posix()}'] = str(error)
    return refused, unreadable


@pytest.mark.parametrize('step', [60, pytest.param(1, marks=pytest.mark.slow)])
def test_of_the_libraries_configs_only_faulty_ones_are_refused(step):
    refused, unreadable = refusals(step)
    assert unreadable <= UNREADABLE
    assert refused.keys() <= FAULTY.keys(), refused
    assert all(FAULTY[name] in text for name, text in refused.items())
    assert step > 1 or len(refused) > 3
