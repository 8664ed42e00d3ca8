"""Shared fixtures: generated data, real data where it is there, and runs of our tools as a user starts them."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def scenes(tmp_path_factory):
    """Folder with a few generated scenes in COCO (``coco``) and ADE20K (``ade``) layout."""
    import demo_data
    folder = tmp_path_factory.mktemp('scenes') / 'data'
    demo_data.write(folder, dict(train=16, val=4, test=4))
    return folder


@pytest.fixture(scope='session')
def real_data():
    """``real_data(name)`` is a folder of real images, from DENSE_DATA or ../shared/data; skips where it is absent."""
    root = Path(os.environ.get('DENSE_DATA', ROOT.parent / 'shared' / 'data'))

    def find(name):
        if not (root / name).is_dir():
            pytest.skip(f'no real data at {root / name}')
        return root / name
    return find


def start(*command, cwd=ROOT, **kwargs):
    """Start a Python script of the clone; its output comes as text."""
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=cwd, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, start_new_session=True, **kwargs)


def run(*command, ok=True, cwd=ROOT, **kwargs):
    """Run a Python script of the clone to its end. Returns its output."""
    process = start(*command, cwd=cwd, **kwargs)
    output = process.communicate()[0]
    assert (process.returncode == 0) == ok, output[-4000:]
    return output


def demo_options(task, scenes, **more):
    """--cfg-options that point a demo config at generated scenes and keep it short."""
    root = scenes / task
    options = {f'{split}_dataloader.dataset.data_root': f'{root}/' for split in ('train', 'val', 'test')}
    options |= {f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')}
    options['train_dataloader.persistent_workers'] = False
    if task == 'coco':
        options |= {f'{split}_evaluator.ann_file': root / 'annotations' / f'instances_{split}2017.json'
                    for split in ('val', 'test')}
    options |= {'default_hooks.logger.interval': 1} | more
    return ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]


DEMO = dict(coco='configs/demo/mask-rcnn_convnext-atto_shapes.py', ade='configs/demo/upernet_convnext-atto_shapes.py')
COCO_T = 'configs/coco/mask-rcnn_convnext-t-in1k_fpn_amp-ms-crop-3x_coco.py'
ADE_T = 'configs/ade20k/upernet_convnext-t-in1k_8xb2-amp-160k_ade20k-512x512.py'
ALL_CONFIGS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob('configs/*/*.py'))
