"""docs/own-data.md, followed on real data: its configs, its script and its commands."""

import json
import re
import shlex
import shutil

import pytest
import torch
from mmengine.registry import init_default_scope

from conftest import ROOT, run
from convnext_dense.inference.building import build
from convnext_dense.training.running import load_config

PAGE = (ROOT / 'docs/own-data.md').read_text()
FILES = dict(re.findall(r'```python (\S+)\n(.*?)```', PAGE, re.DOTALL))
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r'```bash\n(.*?)```', PAGE, re.DOTALL)
    for line in block.replace('\\\n', '').splitlines()
]
# Makes a run short: one block a stage, two steps, few boxes, small images, weights at random.
SHORT = """
_base_ = '{name}'
arch = dict(_delete_=True, depths=(1, 1, 1, 1), dims=(96, 192, 384, 768))
model = dict(backbone=dict(arch=arch, init_cfg=None))
workers = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(batch_size=2, dataset=dict(indices=4), **workers)
val_dataloader = dict(dataset=dict(indices=2), **workers)
test_dataloader = val_dataloader
"""
DETECTOR = """
train_cfg = dict(max_epochs=1)
load = dict(type='LoadImageFromFile')
annotations = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
resize = dict(type='Resize', scale=(160, 160), keep_ratio=True)
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
train_pipeline = [load, annotations, resize, dict(type='PackDetInputs')]
test_pipeline = [load, resize, annotations, dict(type='PackDetInputs', meta_keys=keys)]
train_dataloader['dataset']['pipeline'] = train_pipeline
val_dataloader['dataset']['pipeline'] = test_pipeline
model['train_cfg'] = dict(rpn_proposal=dict(max_per_img=50), rcnn=dict(sampler=dict(num=16)))
model['test_cfg'] = dict(rpn=dict(max_per_img=50), rcnn=dict(score_thr=0., max_per_img=5))
"""
SEGMENTOR = """
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2))
model['decode_head'] = dict(channels=32)
model['data_preprocessor'] = dict(size=(128, 128))
for step in _base_.train_pipeline:
    if step['type'] == 'RandomCrop':
        step['crop_size'] = (128, 128)
train_dataloader['dataset']['pipeline'] = _base_.train_pipeline
"""


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / 'data').mkdir()
    return tmp_path


@pytest.mark.parametrize('name', [name for name, text in FILES.items() if '_base_' in text])
def test_every_config_of_the_page_takes_an_image(folder, name):
    cfg = load_config(str(folder / name), [], str(folder / 'work'))
    init_default_scope(cfg.default_scope)
    model = build(cfg.model, 'cpu')
    run_part = model.extract_feat if 'detector' in name else model
    with torch.no_grad():
        run_part(torch.zeros(1, 3, 64, 64))  # widths that do not fit raise


OTHER_HEADS = re.findall(r'```python\n((?:for|model) .*?)```', PAGE, re.DOTALL)
OTHER_RECIPES = [
    'cascade-mask-rcnn_convnext-t-in1k_fpn_4conv1fc-giou_amp-ms-crop-3x_coco',
    'dino-4scale_convnext-t-in22k_8xb2-12e_coco',
]


@pytest.mark.parametrize('recipe, line', zip(OTHER_RECIPES, OTHER_HEADS, strict=True))
def test_lines_for_other_heads(folder, recipe, line):
    text = FILES['my_detector.py']
    text = text.replace('mask-rcnn_convnext-t-in1k_fpn_1xb4-amp-24e_own', recipe)
    (folder / 'other.py').write_text(re.sub(r'^model = .*\n', line, text, flags=re.MULTILINE))
    cfg = load_config(str(folder / 'other.py'), [], str(folder / 'work'))
    counts = re.findall(r"'num_classes': (\d+)", str(cfg.model))
    assert counts and set(counts) == {'3'}


def follow(folder, name, more, last):
    """Run the page's commands on a short config that inherits ``name``."""
    (folder / 'short.py').write_text(SHORT.format(name=name) + more)
    commands = [words for words in COMMANDS if name in words and words[1] != 'configs']
    assert {command[1] for command in commands} >= {'train', 'test'}
    output = ''
    for command in commands:
        checkpoint = f'work_dirs/short/{last}.pth'
        arguments = [checkpoint if text.endswith('.pth') else text for text in command[1:]]
        arguments[arguments.index(name)] = 'short.py'
        output += run('-m', 'convnext_dense', *arguments, cwd=folder)
    assert list((folder / 'shown').rglob('*.png')) or list((folder / 'shown').rglob('*.jpg'))
    return output


@pytest.mark.slow
def test_own_coco_data(real_data, folder):
    (folder / 'data/mine').symlink_to(real_data('coco_tiny'))
    truth = json.loads((folder / 'data/mine/annotations/instances_train2017.json').read_text())
    assert {'person', 'car', 'dog'} <= {category['name'] for category in truth['categories']}
    assert 'segm_mAP' in follow(folder, 'my_detector.py', DETECTOR, 'epoch_1')


@pytest.mark.slow
def test_own_label_maps(real_data, folder):
    source = real_data('camvid')
    for split in ('train', 'val'):
        for kind, name in (('images', 'images'), ('annotations', 'labels')):
            target = folder / 'data/street' / name / split
            target.mkdir(parents=True)
            for path in sorted((source / kind / split).iterdir())[:4]:
                shutil.copy(path, target)
    run('rewrite.py', cwd=folder)
    output = follow(folder, 'my_segmentor.py', SEGMENTOR, 'iter_2')
    assert 'bicyclist' in output and 'mIoU' in output, output[-3000:]
