"""docs/tutorial.md, followed from its first block to its last, in less time."""

import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT
from tools.site import tutorial

PAGE = tutorial.PAGE.read_text()
PARTS = [part.groupdict() for part in tutorial.PARTS.finditer(PAGE)]
PICTURES = [part['picture'] for part in PARTS if part['picture']]
EXPORT = (ROOT / 'docs/export.md').read_text()
# The environment without torch: what is here, where importing what is not there fails as it would.
WITHOUT_TORCH = f"""#!/bin/sh
exec {sys.executable} -c '
import runpy, sys
sys.modules.update(torch=None, mmengine=None, convnext_dense=None)
del sys.argv[:2]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
' "$@"
"""


def test_pictures_are_small_and_all_are_made_by_the_page():
    folder = ROOT / 'docs/tutorial'
    assert {f'tutorial/{path.name}' for path in folder.iterdir()} == set(PICTURES)
    for path in folder.iterdir():
        assert path.stat().st_size < 150_000 and Image.open(path).width <= tutorial.WIDTH, path


def test_by_hand_is_only_what_fetches_packages_or_data():
    blocks = [part['code'] for part in PARTS if part['note'] == 'by-hand']
    assert all(re.search(r'pip install|git clone', code) for code in blocks)
    assert PAGE.count('```') == 2 * sum(part['code'] is not None for part in PARTS)


@pytest.mark.slow
def test_the_tutorial(real_data, tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(ROOT))  # in place of the installed package
    for split in ('train', 'val', 'test'):
        for kind, name in (('images', split), ('annotations', f'{split}annot')):
            files = sorted((real_data('camvid') / kind / split).iterdir())
            (tmp_path / 'CamVid' / name).mkdir(parents=True)
            for path in files[:: len(files) // 3]:
                shutil.copy(path, tmp_path / 'CamVid' / name)
    small = tmp_path / 'small/bin/python'
    small.parent.mkdir(parents=True)
    small.write_text(WITHOUT_TORCH)
    small.chmod(0o755)

    short = PAGE.replace('500', '4').replace('val_interval=100', 'val_interval=2')
    page = tutorial.follow(short, tmp_path, tmp_path / 'docs')
    assert '\n'.join(re.findall('^```text.*', page)) == '\n'.join(re.findall('^```text.*', short))
    printed = [part['code'] for part in tutorial.PARTS.finditer(page) if part['language'] == 'text']
    refused, sound, *trained, compared, _, exported, seen = printed
    assert 'label out of range' in refused and 'label out of range' not in sound
    assert all('mIoU' in text for text in trained)
    assert 'resnet' in compared and 'convnext, fused' in compared
    assert 'wrote street.onnx' in exported
    assert all((tmp_path / 'docs' / name).stat().st_size > 5000 for name in PICTURES)
    assert (tmp_path / 'seen/overlays/Seq05VD_f02760.png').exists() and seen

    (in_python,) = re.findall(r'```python\n(from convnext_dense.*?)```', EXPORT, re.DOTALL)
    image = np.asarray(Image.open(tmp_path / 'street/images/test/Seq05VD_f02760.jpg'))
    namespace = dict(image=image)
    monkeypatch.chdir(tmp_path)
    exec(in_python.replace('model.onnx', 'street.onnx'), namespace)
    assert namespace['labels'].shape == image.shape[:2]
