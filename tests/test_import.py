"""What importing costs, and that types resolve in a fresh process."""
import importlib.util
import subprocess
import sys

from pytest import mark

import convnext_dense


def python(code):
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_importing_the_package_imports_no_framework():
    heavy = {'mmcv', 'mmdet', 'mmseg', 'timm', 'torchvision'}
    assert all(importlib.util.find_spec(name) for name in heavy)  # else this could not fail
    loaded = python('import sys, convnext_dense; print(*sorted(m.partition(".")[0] for m in sys.modules))').split()
    assert not heavy & set(loaded)


@mark.parametrize('registry', ['mmengine', 'mmdet', 'mmseg'])
def test_types_resolve_with_no_custom_imports(registry):
    python(f'''
from {registry}.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS
net = MODELS.build(dict(type='convnext_dense.ConvNeXt', arch='atto'))
assert net.out_channels == (40, 80, 160, 320)
assert OPTIM_WRAPPER_CONSTRUCTORS.get('convnext_dense.LayerDecayOptimWrapperConstructor')
assert HOOKS.get('convnext_dense.CheckpointHook')
''')


def test_public_names_exist():
    assert all(hasattr(convnext_dense, name) for name in convnext_dense.__all__)
