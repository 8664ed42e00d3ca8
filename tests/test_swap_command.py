"""The command that swaps a backbone, and the config that it writes, beside a user's config."""

import ast
import contextlib
import io
import sys

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from conftest import ROOT
from convnext_dense import ConfigError, swap_backbone
from convnext_dense.commands.swap import main
from convnext_dense.config_names import find_config
from convnext_dense.swap import plan, write_config
from convnext_dense.swap.config_files import read_config
from convnext_dense.swap.editing import plain

TOOL = ROOT / 'tools/swap_backbone.py'
RETINA = 'retinanet_r50_fpn_1x_coco'
PSP = 'pspnet_r50-d8_4xb2-40k_cityscapes-512x1024'

# ---- a config and modules of a user ----

USERS = """
# The config of our bridge inspection project. Do not touch the sampler!
_base_ = {!r}
custom_imports = dict(imports=['bridge_modules'])
widths = [256, 512, 1024, 2048]  # used twice below
model = dict(
    type='BridgeDetector',  # ours
    backbone=dict(
        depth=101,
        dcn=dict(type='DCN', deform_groups=1),
        stage_with_dcn=(False, True, True, True)),
    neck=dict(type='BridgeFPN', in_channels=widths, groups=2),
    roi_head=dict(bbox_head=dict(num_classes=7)))
custom_hooks = [dict(type='BridgeHook', every=3)]
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='Adagrad', lr=0.01),
    clip_grad=dict(max_norm=3.))
train_dataloader = dict(batch_size=3, sampler=dict(type='DefaultSampler', shuffle=False))
load_from = 'bridge_r101.pth'
experiment = dict(name='bridge', tags=('a', 'b'), table={{'not an identifier': 1}})
"""
MODULES = """
from mmdet.models import FPN, FasterRCNN
from mmdet.registry import HOOKS, MODELS
from mmengine.hooks import Hook

@MODELS.register_module()
class BridgeDetector(FasterRCNN): pass

@MODELS.register_module()
class BridgeFPN(FPN):
    def __init__(self, groups, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups

@HOOKS.register_module()
class BridgeHook(Hook):
    def __init__(self, every): self.every = every
"""
PRINTED = [
    'model.neck.in_channels',
    '[256, 512, 1024, 2048]',
    '[40, 80, 160, 320]',
    'widths of the maps',
    'bridge_r101.pth',
    '- depth=101',
    'dcn, stage_with_dcn were layers within ResNet',
    'random weights',
    'Adagrad is kept',
    'widths still holds the old widths',
    'Proof: one training step',
    'wrote new/bridge_atto.py',
]


@pytest.fixture(scope='module')
def users(tmp_path_factory):
    """Folder of a user, who swapped the backbone of the config in it, and what was printed."""
    folder, printed = tmp_path_factory.mktemp('users'), io.StringIO()
    base = find_config('faster-rcnn_r50_fpn_1x_coco')[0]
    (folder / 'bridge.py').write_text(USERS.format(str(base)))
    (folder / 'bridge_modules.py').write_text(MODULES)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.syspath_prepend(folder)
        patch.chdir(folder)
        main(['bridge.py', '--arch', 'atto', '-o', 'new/bridge_atto.py'])
    return folder, printed.getvalue()


def test_users_config_survives(users):
    """But for the backbone, the widths and the weights, all comes out as it was."""
    folder, _ = users
    files = folder / 'bridge.py', folder / 'new/bridge_atto.py'
    old, new = (Config.fromfile(file).to_dict() for file in files)
    backbone = dict(type='convnext_dense.ConvNeXt', arch='atto', drop_path_rate=0.0)
    assert new['model'].pop('backbone') == backbone and old['model'].pop('backbone')
    assert new['model']['neck'].pop('in_channels') == [40, 80, 160, 320]
    assert old['model']['neck'].pop('in_channels') == [256, 512, 1024, 2048]
    assert new.pop('load_from') is None and old.pop('load_from')
    assert new == old


def test_the_new_config_inherits_the_old_one(users):
    """So the comments stay where they are."""
    text = (users[0] / 'new/bridge_atto.py').read_text()
    command = '# convnext-dense swap bridge.py --arch atto -o new/bridge_atto.py'
    assert text.startswith(f"{command}\n_base_ = ['../bridge.py']\n")
    assert [node.targets[0].id for node in ast.parse(text).body] == ['_base_', 'model', 'load_from']
    assert len(text.splitlines()) < 15


def test_the_command_prints_changes_and_reasons(users):
    missing = [text for text in PRINTED if text not in users[1]]
    assert not missing, users[1]


def test_the_command_does_not_overwrite_its_config(users, exits, monkeypatch):
    folder, _ = users
    monkeypatch.chdir(folder)
    before = (folder / 'bridge.py').read_text()
    assert 'is CONFIG itself' in exits(TOOL, 'bridge.py', '--arch', 'atto', '-o', 'bridge.py')
    assert (folder / 'bridge.py').read_text() == before
    (folder / 'there.py').write_text('')
    assert '--force' in exits(TOOL, 'bridge.py', '--arch', 'atto', '-o', 'there.py')


@pytest.mark.parametrize(
    'config, options, message',
    [
        (RETINA, '--arch nope -o x.py', 'ConfigError: unknown arch'),
        (RETINA, '--arch tiny -o x', 'a config is a .py file'),
        ('tridentnet_r50-caffe_1x_coco', '--arch tiny -o x.py', 'cannot be given another backbone'),
        (RETINA, '--arch atto -o x.py --checkpoint broken.pth', 'WeightsError'),
        (RETINA, '--arch atto --no-proof -o broken.pth/x.py', 'cannot be written'),
    ],
)
def test_the_command_prints_no_traceback(config, options, message, exits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'broken.pth').write_bytes(b'not weights')
    printed = exits(TOOL, config, *options.split())
    assert message in printed and 'Traceback' not in printed
    assert not (tmp_path / 'x.py').exists()


# ---- the file that is written ----


@pytest.mark.parametrize(
    'name',
    [
        'mask-rcnn_r50_fpn_1x_coco',
        'rtmdet_x_p6_4xb8-300e_coco',
        'detr_r50_8xb2-150e_coco',
        PSP,
        'ocrnet_hr18_4xb2-40k_cityscapes-512x1024',
        'unet-s5-d16_fcn_4xb4-40k_drive-64x64',
        'mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco',
    ],
)
@pytest.mark.parametrize('arch', ['atto', 'v2_base'])
def test_written_configs_are_short_and_come_out_the_same(name, arch, tmp_path):
    source, scoped = find_config(name)
    swap, out = plan(source, arch, layer_decay=True), tmp_path / 'new.py'
    write_config(swap, source, scoped, out, 'made by hand')
    written = read_config(out)
    assert plain(written.model.get('neck')) == plain(swap.cfg.model.get('neck'))
    if arch == 'atto':
        init_default_scope(swap.cfg.default_scope)
        assert MODELS.build(Config.fromfile(out).model)
    lines = out.read_text().splitlines()
    assert max(map(len, lines[2:])) <= 120 and len(lines) < 50


def test_text_of_a_written_config(tmp_path):
    swap, out = plan(RETINA, 'tiny', 'tiny_in1k'), tmp_path / 'new.py'
    write_config(swap, find_config(RETINA)[0], 'base.py', out, 'COMMAND')
    assert (
        out.read_text().partition(']\n\n')[2]
        == """model = dict(
    backbone=dict(
        _delete_=True,
        type='convnext_dense.ConvNeXt',
        arch='tiny',
        drop_path_rate=0.1,
        out_indices=(1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint='tiny_in1k')),
    neck=dict(in_channels=[192, 384, 768], start_level=0))
"""
    )


UNUSUAL = """
_base_ = {!r}
nothing = float('nan')
optim_wrapper = dict(paramwise_cfg=None)
model = dict(auxiliary_head=[dict(
    type='FCNHead', _scope_='mmseg', in_channels=1024, in_index=2, channels=256, num_classes=19,
    init_cfg={{'lambda': float('inf'), 'class': 2}})])
"""


def test_unusual_values_come_back(tmp_path):
    """NaN, infinity, keys that are no identifiers, scopes; and the new file in a linked folder."""
    source = tmp_path / 'config.py'
    source.write_text(UNUSUAL.format(str(find_config(PSP)[0])))
    (tmp_path / 'out').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'out', target_is_directory=True)
    swap = plan(source, 'tiny', layer_decay=True)
    write_config(swap, source, str(source), tmp_path / 'link/new.py', '')
    written = Config.fromfile(tmp_path / 'out/new.py')
    head = written.model.auxiliary_head[0]
    assert head.init_cfg == {'lambda': float('inf'), 'class': 2} and head._scope_ == 'mmseg'
    assert written.nothing != written.nothing


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path):
    swap, source, out = plan(RETINA, 'tiny'), tmp_path / 'gone.py', tmp_path / 'new.py'
    out.write_text('mine = 1\n')
    with pytest.raises(ConfigError, match='could not be written'):
        write_config(swap, source, str(source), out, '')
    assert out.read_text() == 'mine = 1\n'


def test_mmpretrain_need_not_be_there(tmp_path, monkeypatch):
    """mmseg's ConvNeXt configs import it, and often it cannot be imported."""
    for name in [name for name in sys.modules if name.split('.')[0] == 'mmpretrain']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'mmpretrain', None)
    name, out = 'convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512', tmp_path / 'new.py'
    swap = plan(name, 'atto')
    assert swap.cfg.model.decode_head.in_channels == [40, 80, 160, 320]
    write_config(swap, find_config(name)[0], name, out, '')
    cfg = Config.fromfile(out)
    init_default_scope('mmseg')
    assert MODELS.build(cfg.model)


NEW_STYLE = """
from mmdet.models import FPN, ResNet, RetinaNet
from mmengine.config import read_base
with read_base():
    from .runtime import *
model = dict(type=RetinaNet, backbone=dict(type=ResNet, depth=50), neck=dict(
    type=FPN, in_channels=[256, 512, 1024, 2048], out_channels=256, start_level=1, num_outs=5))
"""


def test_new_style_configs_are_exported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'runtime.py').write_text("default_scope = 'mmdet'\n")
    (tmp_path / 'config.py').write_text(NEW_STYLE)
    main(['config.py', '--arch', 'tiny', '-o', 'new.py', '--no-proof'])
    assert 'wrote new.py, and new_base.py: CONFIG as a text config' in capsys.readouterr().out
    new = Config.fromfile('new.py')
    assert new.model.type == 'RetinaNet' and new.model.neck.in_channels == [192, 384, 768]
    assert "_base_ = ['new_base.py']" in (tmp_path / 'new.py').read_text()


def test_what_cannot_be_exported_leaves_no_file(tmp_path, exits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'runtime.py').write_text("default_scope = 'mmdet'\nfrom pathlib import Path\n")
    (tmp_path / 'config.py').write_text(NEW_STYLE + 'odd = dict(place=object())\n')
    printed = exits(TOOL, 'config.py', '--arch', 'tiny', '-o', 'new.py', '--no-proof')
    assert 'ConfigError' in printed and 'swap_backbone' in printed
    assert not list(tmp_path.glob('new*'))


# ---- modules and names ----

OWN_MODULE = """
from mmdet.models import ResNet
from mmengine.registry import MODELS
MODELS.register_module('BridgeNet', module=ResNet)
"""
OWN_BACKBONE = """
_base_ = {!r}
model = dict(backbone=dict(type='BridgeNet'))
"""


def test_modules_that_a_train_script_registers(tmp_path, exits, monkeypatch, capsys):
    """It lies beside the config, and neither names the other."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'sub/bridge_net.py').write_text(OWN_MODULE)
    config, options = tmp_path / 'sub/config.py', ['--arch', 'atto', '-o', 'new.py', '--no-proof']
    config.write_text(OWN_BACKBONE.format(str(find_config(RETINA)[0])))
    printed = exits(TOOL, config, *options)
    assert 'BridgeNet is not in the' in printed
    assert '--import MODULE, or in the config custom_imports = dict(imports=["MODULE"])' in printed
    before = sys.path[:]
    main([str(config), *options, '--import', 'bridge_net'])
    assert 'What trains new.py has to import bridge_net as well.' in capsys.readouterr().out
    assert sys.path == before
    message = exits(TOOL, config, *options, '--force', '--import', 'no_such_module')
    assert 'no_such_module cannot be imported' in message and str(tmp_path / 'sub') in message


def test_what_is_not_foreseen_is_one_screen(tmp_path, exits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'odd.py').write_text(
        "model = dict(type='FCOS', backbone=dict(type='ResNet', depth=18))\noptim_wrapper = [1]\n"
    )
    printed = exits('swap', 'odd.py', '--arch', 'atto', '-o', 'new.py')
    assert 'This was not foreseen: AttributeError' in printed and 'Traceback' not in printed
    assert 'convnext-dense swap odd.py --arch atto' in printed.replace("'", '')
    assert 'swap/optimiser.py:' in printed and 'please report these lines' in printed
    assert len(printed.splitlines()) < 25


def test_a_sibling_in_a_clone_is_inherited_by_a_relative_path(tmp_path, monkeypatch):
    clone = tmp_path / 'mmdet'
    (clone / 'configs/mine').mkdir(parents=True)
    monkeypatch.setattr(
        'convnext_dense.config_names.config_folder',
        lambda library: clone / 'configs' if library == 'mmdet' else None,
    )
    mine = clone / 'configs/mine/a.py'
    mine.write_text('')
    assert find_config(str(mine)) == (mine, str(mine))
    assert find_config('mmdet::mine/a.py')[1] == 'mmdet::mine/a.py'
    with pytest.raises(ConfigError, match='mmseg is not installed here'):
        find_config('mmseg::psp.py')


def test_a_library_that_is_not_there_is_named(tmp_path):
    (tmp_path / 'config.py').write_text("default_scope = 'mmhats'\nmodel = dict(type='Hat')\n")
    with pytest.raises(ConfigError, match='one of mmhats .*which is not installed here'):
        swap_backbone(tmp_path / 'config.py', 'tiny')


# ---- a step of the roadmap ----

OURS = 'configs/demo/upernet_convnext-atto_shapes.py'


def test_a_step_of_the_roadmap_takes_the_place_of_convnext(tmp_path, capsys):
    """The layer-wise decay of the recipe goes, which would not know its layers."""
    out = tmp_path / 'new.py'
    main([str(ROOT / OURS), '--roadmap', 'kernel_size_7', '-o', str(out)])
    printed = capsys.readouterr().out
    assert "layer-wise decay knows ConvNeXt's layers alone" in printed
    assert 'Proof: one training step on noise' in printed
    cfg = Config.fromfile(out)
    backbone = dict(type='convnext_dense.Roadmap', step='kernel_size_7', drop_path_rate=0.1)
    assert cfg.model.backbone == backbone
    assert cfg.model.decode_head.in_channels == [96, 192, 384, 768]
    assert cfg.optim_wrapper.constructor == 'DefaultOptimWrapperConstructor'
    assert cfg.optim_wrapper.optimizer.type == 'AdamW' and not cfg.optim_wrapper.paramwise_cfg
    assert plan(out, roadmap='kernel_size_7').changes == []


def test_the_roadmap_has_stride_32_alone():
    swap = plan(PSP, roadmap='increase_width')
    assert swap.cfg.model.decode_head.in_channels == 3072
    assert 'output_stride' not in swap.cfg.model.backbone
    assert any('at stride 8 and reads one at stride 32' in text for text in swap.warnings)
    assert any('SGD is kept' in text for text in swap.warnings)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(roadmap='kernel_size_8'), "unknown step 'kernel_size_8'"),
        (dict(roadmap='gelu', arch='tiny'), 'stands alone'),
        (dict(roadmap='gelu', checkpoint='tiny_in1k'), 'stands alone'),
        (dict(roadmap='gelu', output_stride=16), 'stands alone'),
        (dict(roadmap='gelu', layer_decay=True), 'stands alone'),
        (dict(), 'unknown arch None'),
    ],
)
def test_the_roadmap_takes_no_other_options(options, message):
    with pytest.raises(ConfigError, match=message):
        swap_backbone(RETINA, **options)


def test_a_frozen_backbone_cannot_be_one_with_random_weights():
    cfg = Config.fromfile(ROOT / OURS)
    cfg.model.backbone.update(frozen_stages=4, out_norm=False)
    with pytest.raises(ConfigError, match='Take the freezing out'):
        plan(cfg, roadmap='gelu')
