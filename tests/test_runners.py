"""MMEngine's FlexibleRunner and its strategies, by our train and test commands."""

import torch

from conftest import DEMO, demo_options, run

FLEXIBLE = {'runner_type': 'FlexibleRunner'}
SHORT = {
    'train_cfg.max_iters': 2,
    'train_cfg.val_interval': 2,
    'default_hooks.checkpoint.interval': 2,
    'val_dataloader.dataset.indices': 1,
    'train_dataloader.batch_size': 2,
}
TWO = '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2'


def load(path):
    return torch.load(path, map_location='cpu', weights_only=False)


def test_a_strategy_trains_saves_and_resumes_as_the_plain_runner_does(scenes, tmp_path):
    """With the hooks and the layer-wise decay of our recipes; then its checkpoint is tested."""
    strategy = FLEXIBLE | {'strategy.type': 'SingleDeviceStrategy', 'custom_hooks': None}
    folders = {}
    for name, more in (('plain', {}), ('flexible', strategy)):
        folders[name] = tmp_path / name
        options = demo_options('ade', scenes, **SHORT | more | {'randomness.seed': 1})
        run('tools/train.py', DEMO['ade'], '--work-dir', folders[name], *options)
    plain, flexible = (load(folder / 'iter_2.pth') for folder in folders.values())
    assert plain['state_dict'].keys() == flexible['state_dict'].keys()
    for name, tensor in plain['state_dict'].items():
        assert torch.equal(tensor, flexible['state_dict'][name]), name
    assert plain['optimizer']['param_groups'] == flexible['optimizer']['param_groups']
    work = folders['flexible']
    assert (work / 'curves.png').is_file() and (work / 'examples/iter_2.png').is_file()
    options = demo_options('ade', scenes, **SHORT | strategy | {'train_cfg.max_iters': 4})
    output = run('tools/train.py', DEMO['ade'], '--work-dir', work, '--resume', *options)
    assert 'resumed epoch: 0, iter: 2' in output and load(work / 'iter_4.pth')['meta']['iter'] == 4
    options = demo_options('ade', scenes, **strategy, **{'test_dataloader.dataset.indices': 1})
    run('tools/test.py', DEMO['ade'], work / 'iter_4.pth', '--work-dir', tmp_path, *options)
