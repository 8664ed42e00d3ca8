"""tools/train.py and tools/test.py as a user runs them, on generated scenes.

What is missing or wrong ends in a message.
"""

import json
import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.model import PretrainedInit
from PIL import Image
from storm.kills import differing

import convnext_dense
from conftest import ADE_T, COCO_T, DEMO, ROOT, demo_options, run, start
from convnext_dense.hooks import CurvesHook
from convnext_dense.training.checkpoint_hook import get_random_states, set_random_states
from convnext_dense.weights.comparing import check_names
from convnext_dense.weights.pretrained import without_pretrained

SHORT = {
    'train_cfg.max_iters': 2,
    'train_cfg.val_interval': 2,
    'default_hooks.checkpoint.interval': 2,
}
METRIC = dict(coco='coco/segm_mAP', ade='mIoU')
OTHER = dict(coco='ade', ade='coco')


class Trained(NamedTuple):
    task: str
    folder: Path  # its work directory
    output: str


@pytest.fixture(scope='module', params=['coco', 'ade'])
def trained(request, scenes, tmp_path_factory):
    """Two iterations, in an interpreter of their own, asked for mixed precision without a GPU."""
    task, folder = request.param, tmp_path_factory.mktemp(request.param)
    options = demo_options(task, scenes, custom_hooks=None, **SHORT)
    command = ['tools/train.py', DEMO[task], '--work-dir', folder, '--amp', *options]
    env = {**os.environ, 'CUDA_VISIBLE_DEVICES': ''}
    return Trained(task, folder, run(*command, env=env))


def load(path):
    return torch.load(path, map_location='cpu', weights_only=False)


def metrics_in(folder):
    return json.loads(next(folder.glob('*/*.json')).read_text())


def test_mixed_precision_without_accelerator_is_fp32(trained):
    assert 'No GPU here: automatic mixed precision is off' in trained.output
    tensors = load(trained.folder / 'iter_2.pth')['state_dict'].values()
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float32}


def test_curves_and_examples_are_drawn(trained):
    assert Image.open(trained.folder / 'curves.png').size == (1500, 560)
    examples = np.array(Image.open(trained.folder / 'examples' / 'iter_2.png'))
    # four scenes of 192 x 192 and a margin below each, the truth beside the prediction
    assert examples.shape[1] == 2 * 192 and examples.shape[0] >= 4 * 200
    images = list(trained.folder.glob('*/vis_data/vis_image/examples_2.png'))
    assert len(images) == 1 and (np.array(Image.open(images[0])) == examples).all()


def test_pictures_that_fail_do_not_end_the_training(tmp_path):
    (tmp_path / 'curves.png').mkdir()
    hub, warnings = MessageHub('curves'), []
    hub.update_scalar('train/loss', 1.0)
    runner = SimpleNamespace(
        iter=1,
        work_dir=tmp_path,
        message_hub=hub,
        optim_wrapper=SimpleNamespace(param_groups=[{}]),
        logger=SimpleNamespace(warning=warnings.append),
    )
    CurvesHook().after_val_epoch(runner, dict(mIoU=1.0))
    assert 'no picture of the training: IsADirectoryError' in warnings[0]


def test_test_reports_and_draws(trained, scenes):
    task, folder, _ = trained
    command = ['tools/test.py', DEMO[task], folder / 'iter_2.pth', '--work-dir', folder / 'test']
    options = demo_options(task, scenes)
    run(*command, '--show-dir', folder / 'pictures', *options, cold=task == 'coco')
    assert METRIC[task] in metrics_in(folder / 'test')
    assert len(list((folder / 'pictures').rglob('*.png'))) == 4


def test_tta_is_for_segmentation_and_refused_for_masks(trained, scenes):
    task, folder, _ = trained
    command = ['tools/test.py', DEMO[task], folder / 'iter_2.pth', '--work-dir', folder / 'tta']
    output = run(*command, '--tta', *demo_options(task, scenes), ok=task == 'ade')
    if task == 'coco':
        assert 'cannot merge masks' in output
    else:
        assert 'mIoU' in metrics_in(folder / 'tta')


def test_load_from_another_model_raises(trained, scenes):
    task, folder, _ = trained
    other = OTHER[task]
    options = demo_options(other, scenes, load_from=folder / 'iter_2.pth', **SHORT)
    command = ['tools/train.py', DEMO[other], '--work-dir', folder / 'other', *options]
    output = run(*command, ok=False)
    assert 'the checkpoint is not of this model' in output and 'missing' in output


def test_frameworks_own_train_script_runs_our_config(trained, scenes):
    task, folder, _ = trained
    module = dict(coco='mmdet', ade='mmseg')[task]
    script = os.path.join(os.path.dirname(__import__(module).__file__), '.mim', 'tools', 'train.py')
    _, root, *options = demo_options(task, scenes, **SHORT)  # these scripts have no --data-root
    options += [
        f'{split}_dataloader.dataset.data_root={root}/' for split in ('train', 'val', 'test')
    ]
    if task == 'coco':
        options += [
            f'{split}_evaluator.ann_file={root}/annotations/instances_{split}2017.json'
            for split in ('val', 'test')
        ]
    run(script, DEMO[task], '--work-dir', folder / module, *options)
    assert (folder / module / 'iter_2.pth').is_file()


def test_resume_goes_on_and_needs_no_pretrained_weights(trained, scenes):
    task, folder, _ = trained
    changes = {
        'train_cfg.max_iters': 4,
        'randomness.seed': 5,
        'model.backbone.init_cfg.type': 'Pretrained',
        'model.backbone.init_cfg.checkpoint': 'http://127.0.0.1:9/absent.pth',
    }
    command = ['tools/train.py', DEMO[task], *demo_options(task, scenes, **SHORT | changes)]
    assert 'could not fetch' in run(*command, '--work-dir', folder / 'fresh', ok=False)
    run(*command, '--work-dir', folder, '--resume')
    states = [load(folder / f'iter_{n}.pth') for n in (2, 4)]
    assert [state['meta']['iter'] for state in states] == [2, 4]
    steps = [next(iter(state['optimizer']['state'].values()))['step'].item() for state in states]
    assert steps == [2, 4]
    assert states[1]['param_schedulers'][0]['last_step'] == 4
    # although this run's seed is another
    assert [state['random_states']['sampler_seed'] for state in states] == [0, 0]


def test_pretrained_weights_are_left_out_at_every_depth_and_a_teacher_may_be_kept():
    fetched, normal = dict(type='Pretrained', checkpoint='x'), dict(type='Normal', std=0.01)
    model = dict(
        backbone=dict(depth=50, init_cfg=fetched, pretrained='y'),
        heads=[dict(init_cfg=[normal, dict(type=PretrainedInit, checkpoint='z')]), 3],
        init_cfg=normal,
        teacher_ckpt='t.pth',
    )
    rest = dict(backbone=dict(depth=50), heads=[dict(init_cfg=[normal]), 3], init_cfg=normal)
    assert without_pretrained(model) == rest
    assert without_pretrained(model, keep_teacher=True) == dict(rest, teacher_ckpt='t.pth')
    assert model['backbone']['init_cfg'] is fetched  # it was a copy that changed


@pytest.mark.parametrize(
    'option, message',
    [
        ('model.backbone.arch=giant', "unknown arch 'giant': expected one of atto"),
        ('model.backbone.in_channels=1', 'images with other channels need in_channels to say so'),
    ],
)
def test_wrong_recipes_end_in_a_message_not_a_traceback(option, message, scenes, tmp_path):
    command = ['tools/train.py', DEMO['ade'], '--work-dir', tmp_path]
    output = run(*command, *demo_options('ade', scenes, **SHORT), option, ok=False)
    assert message in output and 'Traceback' not in output


@pytest.mark.parametrize(
    'command, message',
    [
        (('tools/train.py', COCO_T), 'data/coco/annotations/instances_train2017.json'),
        (('tools/train.py', ADE_T), 'data/ade/ADEChallengeData2016/images/training'),
        (('tools/test.py', ADE_T, 'README.md'), 'data/ade/ADEChallengeData2016/images/validation'),
        (('tools/train.py', 'configs/absent.py'), 'no config configs/absent.py'),
        (('tools/test.py', ADE_T, 'absent.pth'), 'no checkpoint at absent.pth'),
        (('tools/train.py', DEMO['ade'], '--resume', 'absent.pth'), 'no checkpoint at absent.pth'),
    ],
)
def test_missing_files_are_named_on_one_screen(
    command, message, scenes, tmp_path, exits, monkeypatch
):
    monkeypatch.chdir(ROOT)
    if 'demo' in command[1]:
        command = [*command, *demo_options('ade', scenes)]
    output = exits(*command, '--work-dir', tmp_path)
    assert message in output and len(output.splitlines()) < 20


def test_missing_annotation_file_is_named(scenes, exits):
    option = {'train_dataloader.dataset.ann_file': 'annotations/absent.json'}
    options = demo_options('coco', scenes, **option)
    output = exits(ROOT / 'tools/train.py', ROOT / DEMO['coco'], *options)
    assert 'annotations/absent.json' in output


def test_data_root_that_cannot_be_moved_is_refused(scenes, exits):
    options = demo_options('coco', scenes)
    config = scenes.parent / 'elsewhere.py'
    config.write_text(
        f"_base_ = '{ROOT / DEMO['coco']}'\nval_evaluator = dict(ann_file='/elsewhere/val.json')\n"
    )
    assert 'does not read from one data_root' in exits(ROOT / 'tools/train.py', config, *options)


# Mask R-CNN by epochs, with checkpoints at their ends; one image is evaluated.
EXACT = dict(
    coco={
        'train_dataloader.dataset.indices': 8,
        'train_dataloader.sampler.type': 'DefaultSampler',
        'train_cfg.type': 'EpochBasedTrainLoop',
        'train_cfg._delete_': True,
        'train_cfg.max_epochs': 3,
        'train_cfg.val_interval': 1,
        'default_hooks.checkpoint.by_epoch': True,
        'default_hooks.checkpoint.interval': 1,
    },
    ade={
        'train_cfg.max_iters': 12,
        'train_cfg.val_interval': 4,
        'default_hooks.checkpoint.interval': 4,
    },
)
FIRST = dict(coco='epoch_1.pth', ade='iter_4.pth')
LAST = dict(coco='epoch_3.pth', ade='iter_12.pth')


def losses(folder):
    """Iteration -> loss, the last run's values counting."""
    values = {}
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        values |= {row['step']: row['loss'] for row in rows if 'loss' in row}
    return values


def stop(process, checkpoint, how):
    """Send a signal to a training in the midst of the iterations after its first checkpoint."""
    while not checkpoint.exists():
        assert process.poll() is None, process.stdout.read()[-3000:]
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(process.pid, how)
    process.communicate(timeout=60)
    assert process.returncode


@pytest.mark.parametrize('task', ['coco', 'ade'])
def test_killed_and_resumed_equals_uninterrupted(task, scenes, tmp_path):
    """With random augmentation and dropout; images are loaded in the main process."""
    same = {'train_dataloader.batch_size': 2, 'val_dataloader.dataset.indices': 1}
    command = ['tools/train.py', DEMO[task], *demo_options(task, scenes, **same | EXACT[task])]
    folders = tmp_path / 'whole', tmp_path / 'killed'
    run(*command, '--work-dir', folders[0])
    process = start(*command, '--work-dir', folders[1])
    stop(process, folders[1] / FIRST[task], signal.SIGKILL)
    assert not (folders[1] / LAST[task]).exists()
    printed = run(*command, '--work-dir', folders[1], '--resume')
    assert 'Could not safely load' not in printed  # MMEngine then reads by running code

    whole, killed = map(losses, folders)
    assert whole.keys() == killed.keys() and len(whole) == 12
    assert whole[12] == killed[12]
    a, b = (load(folder / LAST[task]) for folder in folders)
    for key in ('state_dict', 'optimizer', 'param_schedulers', 'random_states'):
        assert differing(a[key], b[key], key) == []


def test_random_states_survive_a_checkpoint_that_is_moved_to_another_device(tmp_path):
    """Where tensors go to, numbers do not. They are read without running code."""

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    path = tmp_path / 'states.pth'
    torch.save(get_random_states(), path)
    drawn = draw()
    assert draw() != drawn
    set_random_states(torch.load(path, map_location='meta', weights_only=True))
    assert draw() == drawn


def test_checkpoint_names_are_checked_but_fine_tuning_may_change_classes():
    """A backbone has to fit, and all of a head but for its number of outputs."""

    def model(arch='atto', features=4, classes=5):
        head = torch.nn.Linear(features, classes)
        return torch.nn.ModuleDict(dict(backbone=convnext_dense.ConvNeXt(arch), head=head))

    state = model().state_dict()
    distributed = {f'module.{name}': tensor for name, tensor in state.items()}
    assert check_names(model(), distributed, heads_may_differ=False) == []
    warnings = check_names(model(classes=7), state, heads_may_differ=True)
    assert warnings == [
        'not loaded, other shape: head.weight (5, 4) where (7, 4) is expected',
        'not loaded, other shape: head.bias (5,) where (7,) is expected',
    ]
    for wrong, heads_may_differ, name in (
        (model(classes=7), False, 'head.weight(.|\n)*as of another number of classes'),
        (model(features=8), True, 'head.weight'),
        (model('femto'), True, 'backbone'),
        (model('nano'), True, 'backbone'),
    ):
        with pytest.raises(convnext_dense.WeightsError, match=name):
            check_names(wrong, state, heads_may_differ)


@pytest.mark.slow
def test_two_processes_train_and_resume(scenes, tmp_path):
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    launch += ['tools/train.py', DEMO['coco'], '--launcher', 'pytorch']
    launch += ['--work-dir', tmp_path]
    options = dict(SHORT)
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    printed = run(*launch, *demo_options('coco', scenes, **options), env=env)
    assert printed.count('processes communicate by gloo') == 1
    options['train_cfg.max_iters'] = 4
    run(*launch, '--resume', *demo_options('coco', scenes, **options), env=env)
    first, last = (load(tmp_path / f'iter_{n}.pth') for n in (2, 4))
    states = first['random_states']['ranks']
    assert len(states) == 2 and states[0]['torch'] != states[1]['torch']
    assert last['meta']['iter'] == 4
    assert next(iter(last['optimizer']['state'].values()))['step'] == 4


def test_ctrl_c_stops_training_and_leaves_the_checkpoint(scenes, tmp_path):
    changes = {'default_hooks.checkpoint.interval': 2, 'train_cfg.val_interval': 500}
    options = demo_options('ade', scenes, **changes)
    process = start('tools/train.py', DEMO['ade'], '--work-dir', tmp_path, *options)
    stop(process, tmp_path / 'iter_2.pth', signal.SIGINT)
    assert load(tmp_path / 'iter_2.pth')['meta']['iter'] == 2


def test_help_names_every_option(exits):
    for tool, options in (
        ('train', ('--work-dir', '--cfg-options', '--resume', '--amp', '--launcher')),
        ('test', ('--work-dir', '--cfg-options', '--show-dir', '--tta', '--launcher')),
    ):
        text = exits(ROOT / 'tools' / f'{tool}.py', '--help')
        assert all(option in text for option in options)
