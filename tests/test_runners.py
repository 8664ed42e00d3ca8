"""MMEngine's FlexibleRunner and its strategies, by our train and test commands."""

import os
import pickletools
import re
import socket
import zipfile

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from conftest import DEMO, ROOT, demo_options, run, start
from convnext_dense.inference.building import build

FLEXIBLE = {'runner_type': 'FlexibleRunner'}
SHORT = {
    'train_cfg.max_iters': 2,
    'train_cfg.val_interval': 2,
    'default_hooks.checkpoint.interval': 2,
    'val_dataloader.dataset.indices': 1,
    'train_dataloader.batch_size': 2,
}
PAGE = (ROOT / 'docs/many-machines.md').read_text()
ENV = {**os.environ, 'OMP_NUM_THREADS': '1'}
LAUNCH = '-m', 'torch.distributed.run'


NUMPY = '_reconstruct', 'scalar'
# Classes and functions that torch 2.1, NumPy 1.26 and MMEngine 0.10.7 have under these names, as
# the newer ones do. A checkpoint that names others cannot be read in the other family.
OF_BOTH_FAMILIES = {
    'collections OrderedDict',
    'torch._utils _rebuild_tensor_v2',
    *(f'torch {kind}Storage' for kind in ('Float', 'Double', 'Long', 'Byte', 'Bool', 'Half')),
    *(f'numpy.{core}.multiarray {name}' for core in ('core', '_core') for name in NUMPY),
    'numpy dtype',
    'numpy ndarray',
    '_codecs encode',
    '__builtin__ getattr',
    'mmengine.logging.history_buffer HistoryBuffer',
}


def classes_in(path):
    """What the pickle in a checkpoint names, as torch writes it: MODULE NAME."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith('data.pkl'))
        codes = pickletools.genops(archive.read(name))
    return {argument for code, argument, _ in codes if code.name == 'GLOBAL'}


def load(path):
    return torch.load(path, map_location='cpu', weights_only=False)


def test_a_strategy_trains_saves_and_resumes_as_the_plain_runner_does(scenes, tmp_path):
    """With the hooks and the layer-wise decay of our recipes; then its checkpoint is tested.

    Both start from the same weights and drop nothing: in upstream MMEngine the plain runner's
    dataloader draws a random number before the model does.
    """
    weights = tmp_path / 'weights.pth'
    init_default_scope('mmseg')
    model = build(Config.fromfile(DEMO['ade']).model, 'cpu')
    torch.save(dict(state_dict=model.state_dict()), weights)
    same = {'load_from': weights, 'model.backbone.drop_path_rate': 0}
    same |= {f'model.{head}.dropout_ratio': 0 for head in ('decode_head', 'auxiliary_head')}
    strategy = FLEXIBLE | {'strategy.type': 'SingleDeviceStrategy', 'custom_hooks': None}
    folders = {}
    for name, more in (('plain', {}), ('flexible', strategy)):
        folders[name] = tmp_path / name
        options = demo_options('ade', scenes, **SHORT | more | same | {'randomness.seed': 1})
        run('tools/train.py', DEMO['ade'], '--work-dir', folders[name], *options)
    plain, flexible = (load(folder / 'iter_2.pth') for folder in folders.values())
    assert plain['state_dict'].keys() == flexible['state_dict'].keys()
    for name, tensor in plain['state_dict'].items():
        assert torch.equal(tensor, flexible['state_dict'][name]), name
    assert plain['optimizer']['param_groups'] == flexible['optimizer']['param_groups']
    for folder in folders.values():
        assert classes_in(folder / 'iter_2.pth') <= OF_BOTH_FAMILIES
    work = folders['flexible']
    assert (work / 'curves.png').is_file() and (work / 'examples/iter_2.png').is_file()
    options = demo_options('ade', scenes, **SHORT | strategy | {'train_cfg.max_iters': 4})
    output = run('tools/train.py', DEMO['ade'], '--work-dir', work, '--resume', *options)
    assert 'resumed epoch: 0, iter: 2' in output and load(work / 'iter_4.pth')['meta']['iter'] == 4
    options = demo_options('ade', scenes, **strategy, **{'test_dataloader.dataset.indices': 1})
    run('tools/test.py', DEMO['ade'], work / 'iter_4.pth', '--work-dir', tmp_path, *options)


def train(*launch, config=DEMO['coco'], work_dir, scenes, resume=(), **options):
    """The command that a user would type, for two gloo processes."""
    options = {'randomness.seed': 1, 'optim_wrapper.clip_grad': 'None'} | SHORT | options
    command = ['tools/train.py', config, '--launcher', 'pytorch', '--work-dir', work_dir, *resume]
    return start(*LAUNCH, *launch, *command, *demo_options('coco', scenes, **options), env=ENV)


def finish(*processes):
    outputs = [process.communicate(600)[0] for process in processes]
    assert not any(process.returncode for process in processes), outputs[0][-4000:]
    return outputs


@pytest.mark.slow
def test_fsdp_trains_resumes_and_equals_ddp(scenes, tmp_path):
    """As the page has it, on the demo's model; both kinds of checkpoints."""
    leaf = re.search(r'```python my_fsdp.py\n.*?\)\n(.*?)```', PAGE, re.DOTALL)[1]
    config, local = tmp_path / 'my_fsdp.py', tmp_path / 'local.py'
    config.write_text(f"_base_ = '{ROOT / DEMO['coco']}'\n{leaf}")
    local.write_text("_base_ = 'my_fsdp.py'\nstrategy = dict(state_dict_cfg='local')\n")
    two = '--standalone', '--nproc_per_node', '2'
    states = {}
    for name, options in (
        ('ddp', dict(runner_type='FlexibleRunner')),
        ('fsdp', dict(config=config)),
    ):
        work = tmp_path / name
        finish(train(*two, work_dir=work, scenes=scenes, **options))
        tensors = load(work / 'iter_2.pth')['state_dict']
        states[name] = {key.removeprefix('module.'): value for key, value in tensors.items()}
    assert states['ddp'].keys() == states['fsdp'].keys()
    for key, tensor in states['ddp'].items():
        assert torch.allclose(tensor, states['fsdp'][key], atol=1e-6), key
    finish(train(*two, work_dir=tmp_path / 'local', scenes=scenes, config=local))
    assert (tmp_path / 'local/iter_2.pth/rank1.pth').is_file()
    for name, path in (('fsdp', config), ('local', local)):
        more = {'train_cfg.max_iters': 4, 'resume': ['--resume']}
        finish(train(*two, work_dir=tmp_path / name, scenes=scenes, config=path, **more))
    last = load(tmp_path / 'fsdp/iter_4.pth')
    assert {int(state['step']) for state in last['optimizer']['state'].values()} == {4}
    assert any((last['state_dict'][key] != value).any() for key, value in states['fsdp'].items())


@pytest.mark.slow
def test_two_torchruns_find_each_other_as_on_two_machines(scenes, tmp_path):
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    launch = ['--nnodes', '2', '--nproc_per_node', '1', '--rdzv_backend', 'c10d']
    launch += ['--rdzv_endpoint', f'localhost:{port}']
    outputs = finish(*(train(*launch, work_dir=tmp_path, scenes=scenes) for _ in range(2)))
    assert sum('processes communicate by gloo' in output for output in outputs) == 1
    assert len(load(tmp_path / 'iter_2.pth')['random_states']['ranks']) == 2


def test_gradients_that_each_process_would_clip_by_itself_are_refused(exits, scenes):
    options = {'strategy.type': 'convnext_dense.FSDPStrategy'} | FLEXIBLE
    output = exits('train', ROOT / DEMO['coco'], *demo_options('coco', scenes, **options))
    assert 'optim_wrapper.clip_grad: MMEngine clips the shards' in output
