"""Recipes in a project that is no clone: a user's configs, mmdet's and mmseg's own programs."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from conftest import ADE_T, ALL_CONFIGS, COCO_T, DEMO, ROOT, run
from convnext_dense import ConvNeXt, WeightsError, config, inferencer
from convnext_dense.commands import swap
from convnext_dense.config_names import read_config

PAGE = (ROOT / 'docs/installed.md').read_text(encoding='utf-8')
UPERNET, MASK_RCNN = (Path(DEMO[task]).stem for task in ('ade', 'coco'))
EXAMPLES = {  # on models that train in seconds
    file: text.replace(Path(COCO_T).stem, MASK_RCNN).replace(Path(ADE_T).stem, UPERNET)
    for file, text in re.findall(r'```python (\w+\.py)\n(.*?)```', PAGE, re.DOTALL)
}
WITHOUT_GPU = re.search(r'--cfg-options (optim_wrapper\S+)', PAGE)[1]


HOSTS = [('my_detector.py', 'mmdet', 'coco'), ('my_segmentor.py', 'mmseg', 'ade')]


@pytest.mark.parametrize('example, library, task', HOSTS)
def test_examples_train_through_the_hosts_own_scripts(example, library, task, scenes, tmp_path):
    (tmp_path / example).write_text(EXAMPLES[example])
    script = Path(find_spec(library).origin).parent / '.mim/tools/train.py'
    options = {
        'train_dataloader.dataset.data_root': scenes / task,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'train_dataloader.batch_size': 2,
        'train_cfg.max_iters': 1,
        'val_dataloader': None,
        'val_cfg': None,
        'val_evaluator': None,
        'default_hooks.logger.interval': 1,
        'custom_hooks': '[]',
    }
    pairs = [f'{key}={value}' for key, value in options.items()]
    output = run(script, example, '--cfg-options', *pairs, cwd=tmp_path)
    assert re.search(r'Iter\(train\) +\[1/1\].* loss: \d', output)


def test_new_style_configs_inherit_each_other(tmp_path):
    (tmp_path / 'my_segmentor.py').write_text(EXAMPLES['my_segmentor.py'])
    (tmp_path / 'second.py').write_text(
        'from mmengine.config import read_base\n'
        'with read_base():\n    from .my_segmentor import *\n'
        "model.update(backbone=dict(arch='femto'))\n"
    )
    cfg = Config.fromfile(tmp_path / 'second.py')
    recipe = read_config(f'demo/{UPERNET}')
    recipe.model.backbone.update(arch='femto', drop_path_rate=0.1)
    assert cfg.model == recipe.model
    assert cfg.optim_wrapper.optimizer.type is torch.optim.AdamW
    cfg.dump(tmp_path / 'dumped.py')  # as MMEngine's runner does
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()


def test_one_option_switches_mixed_precision_off():
    recipes = [Config.fromfile(ROOT / path) for path in ALL_CONFIGS]
    mixed = [cfg for cfg in recipes if cfg.optim_wrapper.type == 'AmpOptimWrapper']
    assert len(mixed) > 10
    for cfg in mixed:
        cfg.merge_from_dict(dict([WITHOUT_GPU.split('=')]))
        # It wants the depths of the recipe's backbone; those on a frozen one have none.
        for key in ('constructor', 'paramwise_cfg'):
            cfg.optim_wrapper.pop(key, None)
        wrapper = build_optim_wrapper(ConvNeXt('atto'), cfg.optim_wrapper)
        assert type(wrapper) is OptimWrapper


def test_all_names_of_a_recipe_are_the_same_config(tmp_path):
    names = UPERNET, f'demo/{UPERNET}', f'convnext_dense::demo/{UPERNET}.py', ROOT / DEMO['ade']
    assert {config(str(name)) for name in names} == {str((ROOT / DEMO['ade']).resolve())}
    inherited = tmp_path / 'inherits.py'
    inherited.write_text(f"_base_ = 'convnext_dense::demo/{UPERNET}.py'\n")
    assert read_config(str(inherited)).to_dict() == read_config(UPERNET).to_dict()


def test_a_swap_of_mmsegs_configs_names_no_path(tmp_path):
    name, out = 'mmseg::hrnet/fcn_hr18s_4xb2-40k_cityscapes-512x1024.py', tmp_path / 'swapped.py'
    swap.main([name, '--arch', 'atto', '--no-proof', '-o', out])
    assert f"config('{name}')" in out.read_text()
    (tmp_path / 'scoped.py').write_text(f'_base_ = {name!r}\n')
    scoped, plain = (Config.fromfile(path) for path in (tmp_path / 'scoped.py', config(name)))
    assert scoped.model.decode_head == plain.model.decode_head


def test_inferencer_takes_names_and_refuses_other_models_weights(photo, tmp_path):
    cfg = read_config(UPERNET)
    init_default_scope('mmseg')
    weights = MODELS.build(cfg.model).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'model.pth')
    results = [
        inferencer(model, str(tmp_path / 'model.pth'), 'cpu')(str(photo))['predictions']
        for model in (UPERNET, cfg)
    ]
    assert (results[0] == results[1]).all()
    with pytest.raises(WeightsError, match='not of this model'):
        inferencer(MASK_RCNN, str(tmp_path / 'model.pth'), 'cpu')
