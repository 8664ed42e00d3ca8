"""What importing costs, and that types resolve in a fresh process."""

import importlib.util
import subprocess
import sys
from pathlib import Path

from pytest import mark

import convnext_dense


def python(code):
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_importing_the_package_imports_no_framework():
    heavy = {'mmcv', 'mmdet', 'mmseg', 'timm', 'torchvision'}
    assert all(importlib.util.find_spec(name) for name in heavy)  # else this could not fail
    loaded = python(
        'import sys, convnext_dense; print(*sorted(m.partition(".")[0] for m in sys.modules))'
    ).split()
    assert not heavy & set(loaded)


@mark.parametrize('registry', ['mmengine', 'mmdet', 'mmseg'])
def test_types_resolve_with_no_custom_imports(registry):
    python(f"""
from {registry}.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS
net = MODELS.build(dict(type='convnext_dense.ConvNeXt', arch='atto'))
assert net.out_channels == (40, 80, 160, 320)
assert OPTIM_WRAPPER_CONSTRUCTORS.get('convnext_dense.LayerDecayOptimWrapperConstructor')
assert HOOKS.get('convnext_dense.CheckpointHook')
import sys
assert 'convnext_dense.heads' not in sys.modules  # what needs no head needs no mmseg
assert MODELS.get('convnext_dense.UPerHead').__module__ == 'convnext_dense.heads'
""")


def test_public_names_exist():
    assert all(hasattr(convnext_dense, name) for name in convnext_dense.__all__)


def test_a_missing_requirement_of_mmengine_is_not_taken_for_mmengine():
    code = (
        'import sys; sys.modules["addict"] = None; import convnext_dense; convnext_dense.ConvNeXt'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (
        result.returncode
        and 'addict' in result.stderr
        and 'install onedl-mmengine' not in result.stderr
    )


def _modules():
    """Every module of the package: name -> path."""
    root = Path(convnext_dense.__file__).parent
    paths = {path.relative_to(root.parent).with_suffix(''): path for path in root.rglob('*.py')}
    return {'.'.join(name.parts).removesuffix('.__init__'): path for name, path in paths.items()}


def test_no_function_hides_a_module():
    for name in _modules():
        parent, _, child = name.rpartition('.')
        if parent:
            importlib.import_module(name)
            assert getattr(sys.modules[parent], child) is sys.modules[name], name
