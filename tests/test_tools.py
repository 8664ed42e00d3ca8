"""tools/train.py and tools/test.py as a user runs them, on generated scenes; what is missing or wrong is said."""

import json
import os
import random
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from PIL import Image

import convnext_dense
from conftest import ADE_T, COCO_T, DEMO, ROOT, demo_options, run, start
from convnext_dense.training.checkpoint_hook import get_random_states, set_random_states
from convnext_dense.training.watching import CurvesHook
from convnext_dense.weights.comparing import check_names

SHORT = {
    'train_cfg.max_iters': 2,
    'train_cfg.val_interval': 2,
    'default_hooks.checkpoint.interval': 2,
}
METRIC = dict(coco='coco/segm_mAP', ade='mIoU')


@pytest.fixture(scope='module', params=['coco', 'ade'])
def trained(request, scenes, tmp_path_factory):
    """(task, work directory) after two iterations."""
    folder = tmp_path_factory.mktemp(request.param)
    run(
        'tools/train.py',
        DEMO[request.param],
        '--work-dir',
        folder,
        *demo_options(request.param, scenes, custom_hooks=None, **SHORT),
    )
    return request.param, folder


def test_curves_and_examples_are_drawn(trained):
    task, folder = trained
    assert Image.open(folder / 'curves.png').size == (1500, 560)
    examples = np.array(Image.open(folder / 'examples' / 'iter_2.png'))
    assert (
        examples.shape[1] == 384 and examples.shape[0] >= 4 * 200
    )  # four scenes of 192 x 192, the truth beside the prediction
    images = list(folder.glob('*/vis_data/vis_image/examples_2.png'))
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
    task, folder = trained
    run(
        'tools/test.py',
        DEMO[task],
        folder / 'iter_2.pth',
        '--work-dir',
        folder / 'test',
        '--show-dir',
        folder / 'pictures',
        *demo_options(task, scenes),
    )
    metrics = json.loads(next((folder / 'test').glob('*/*.json')).read_text())
    assert METRIC[task] in metrics
    assert len(list((folder / 'pictures').rglob('*.png'))) == 4


def test_tta_for_segmentation_and_a_clear_word_for_masks(trained, scenes):
    task, folder = trained
    command = [
        'tools/test.py',
        DEMO[task],
        folder / 'iter_2.pth',
        '--work-dir',
        folder / 'tta',
        '--tta',
        *demo_options(task, scenes),
    ]
    if task == 'coco':
        assert 'cannot merge masks' in run(*command, ok=False)
    else:
        run(*command)
        assert 'mIoU' in json.loads(next((folder / 'tta').glob('*/*.json')).read_text())


def test_load_from_another_model_raises(trained, scenes):
    task, folder = trained
    other = dict(coco='ade', ade='coco')[task]
    output = run(
        'tools/train.py',
        DEMO[other],
        '--work-dir',
        folder / 'other',
        *demo_options(other, scenes, load_from=folder / 'iter_2.pth', **SHORT),
        ok=False,
    )
    assert 'the checkpoint is not of this model' in output and 'missing' in output


def test_frameworks_own_train_script_runs_our_config(trained, scenes):
    task, folder = trained
    module = dict(coco='mmdet', ade='mmseg')[task]
    script = os.path.join(os.path.dirname(__import__(module).__file__), '.mim', 'tools', 'train.py')
    _, root, *options = demo_options(
        task, scenes, **SHORT
    )  # the frameworks' scripts have no --data-root
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
    task, folder = trained
    options = demo_options(
        task,
        scenes,
        **{
            **SHORT,
            'train_cfg.max_iters': 4,
            'randomness.seed': 5,
            'model.backbone.init_cfg.type': 'Pretrained',
            'model.backbone.init_cfg.checkpoint': 'http://127.0.0.1:9/absent.pth',
        },
    )
    assert 'could not fetch' in run(
        'tools/train.py', DEMO[task], '--work-dir', folder / 'fresh', *options, ok=False
    )
    run('tools/train.py', DEMO[task], '--work-dir', folder, '--resume', *options)
    states = [
        torch.load(folder / f'iter_{n}.pth', map_location='cpu', weights_only=False) for n in (2, 4)
    ]
    assert [s['meta']['iter'] for s in states] == [2, 4]
    steps = [next(iter(s['optimizer']['state'].values()))['step'].item() for s in states]
    assert steps == [2, 4]
    assert states[1]['param_schedulers'][0]['last_step'] == 4
    assert [s['random_states']['sampler_seed'] for s in states] == [
        0,
        0,
    ]  # although this run's seed is another


def test_amp_recipe_without_accelerator_trains_in_fp32(scenes, tmp_path):
    options = demo_options('ade', scenes, **SHORT)
    output = run(
        'tools/train.py',
        DEMO['ade'],
        '--work-dir',
        tmp_path,
        '--amp',
        *options,
        env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''},
    )
    assert 'No GPU here: automatic mixed precision is off' in output


@pytest.mark.parametrize(
    'option, message',
    [
        ('model.backbone.arch=giant', "unknown arch 'giant': expected one of atto"),
        ('model.backbone.in_channels=1', 'images with other channels need in_channels to say so'),
    ],
)
def test_wrong_recipes_end_in_a_message_not_a_traceback(option, message, scenes, tmp_path):
    output = run(
        'tools/train.py',
        DEMO['ade'],
        '--work-dir',
        tmp_path,
        *demo_options('ade', scenes, **SHORT),
        option,
        ok=False,
    )
    assert message in output and 'Traceback' not in output


@pytest.mark.parametrize(
    'command, message',
    [
        (('tools/train.py', COCO_T), 'data/coco/annotations/instances_train2017.json'),
        (('tools/train.py', ADE_T), 'data/ade/ADEChallengeData2016/images/training'),
        (('tools/test.py', ADE_T, 'README.md'), 'data/ade/ADEChallengeData2016/images/validation'),
        (('tools/train.py', 'configs/absent.py'), 'no config at configs/absent.py'),
        (('tools/test.py', ADE_T, 'absent.pth'), 'no checkpoint at absent.pth'),
        (('tools/train.py', DEMO['ade'], '--resume', 'absent.pth'), 'no checkpoint at absent.pth'),
    ],
)
def test_what_is_missing_is_said_on_one_screen(
    command, message, scenes, tmp_path, exits, monkeypatch
):
    monkeypatch.chdir(ROOT)
    if 'demo' in command[1]:
        command = [*command, *demo_options('ade', scenes)]
    output = exits(*command, '--work-dir', tmp_path)
    assert message in output and len(output.splitlines()) < 20


def test_missing_annotation_file_is_named(scenes, exits):
    options = demo_options(
        'coco', scenes, **{'train_dataloader.dataset.ann_file': 'annotations/absent.json'}
    )
    assert 'annotations/absent.json' in exits(
        ROOT / 'tools/train.py', ROOT / DEMO['coco'], *options
    )


def test_data_root_that_cannot_be_moved_is_refused(scenes, exits):
    options = demo_options('coco', scenes)
    config = scenes.parent / 'elsewhere.py'
    config.write_text(
        f"_base_ = '{ROOT / DEMO['coco']}'\nval_evaluator = dict(ann_file='/elsewhere/val.json')\n"
    )
    assert 'does not read from one data_root' in exits(ROOT / 'tools/train.py', config, *options)


# No random augmentation, drop path or dropout; batches of two; Mask R-CNN by epochs, checkpoints at their ends.
EXACT = dict(
    coco={
        'train_dataloader.batch_size': 2,
        'train_dataloader.dataset.indices': 8,
        'train_dataloader.dataset.pipeline.2.prob': '[0.0,0.0]',
        'train_dataloader.sampler.type': 'DefaultSampler',
        'train_cfg.type': 'EpochBasedTrainLoop',
        'train_cfg._delete_': True,
        'train_cfg.max_epochs': 3,
        'train_cfg.val_interval': 1,
        'default_hooks.checkpoint.by_epoch': True,
        'default_hooks.checkpoint.interval': 1,
    },
    ade={
        'train_dataloader.batch_size': 2,
        'train_dataloader.dataset.pipeline.2.prob': '[0.0,0.0]',
        'model.decode_head.dropout_ratio': 0.0,
        'model.auxiliary_head.dropout_ratio': 0.0,
        'train_cfg.max_iters': 18,
        'train_cfg.val_interval': 6,
        'default_hooks.checkpoint.interval': 6,
    },
)
FIRST = dict(coco='epoch_1.pth', ade='iter_6.pth')
LAST = dict(coco='epoch_3.pth', ade='iter_18.pth')


def losses(folder):
    """Iteration -> loss, the last run's values counting."""
    found = {}
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found |= {row['step']: row['loss'] for row in rows if 'loss' in row}
    return found


@pytest.mark.parametrize('task', ['coco', 'ade'])
def test_killed_and_resumed_equals_uninterrupted(task, scenes, tmp_path):
    command = ['tools/train.py', DEMO[task], *demo_options(task, scenes, **EXACT[task])]
    run(*command, '--work-dir', tmp_path / 'whole')

    process = start(*command, '--work-dir', tmp_path / 'killed')
    while not (tmp_path / 'killed' / FIRST[task]).exists():
        assert process.poll() is None, process.stdout.read()[-3000:]
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / 'killed' / LAST[task]).exists()
    run(*command, '--work-dir', tmp_path / 'killed', '--resume')

    whole, killed = losses(tmp_path / 'whole'), losses(tmp_path / 'killed')
    assert whole.keys() == killed.keys() and len(whole) == (12 if task == 'coco' else 18)
    assert abs(whole[max(whole)] - killed[max(killed)]) < 1e-5
    a, b = (
        torch.load(tmp_path / run_ / LAST[task], map_location='cpu', weights_only=False)
        for run_ in ('whole', 'killed')
    )
    assert all(
        torch.allclose(a['state_dict'][name].double(), b['state_dict'][name].double(), atol=1e-5)
        for name in a['state_dict']
    )
    assert a['param_schedulers'] == b['param_schedulers']


def test_random_states_survive_a_checkpoint_that_is_moved_to_another_device(tmp_path):
    """Where tensors go to, arrays do not."""

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    path = tmp_path / 'states.pth'
    torch.save(get_random_states(), path)
    drawn = draw()
    assert draw() != drawn
    set_random_states(torch.load(path, map_location='meta', weights_only=False))
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
        (model(classes=7), False, 'head.weight'),
        (model(features=8), True, 'head.weight'),
        (model('femto'), True, 'backbone'),
        (model('nano'), True, 'backbone'),
    ):
        with pytest.raises(convnext_dense.WeightsError, match=name):
            check_names(wrong, state, heads_may_differ)


# MMEngine's launcher selects a GPU even for gloo; it leaves a process group alone that is there already.
GLOO = """
import runpy, sys, torch.distributed
torch.distributed.init_process_group('gloo')
sys.argv = sys.argv[1:]
sys.path.insert(0, 'tools')
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.mark.slow
def test_two_processes_train_and_resume(scenes, tmp_path):
    (tmp_path / 'gloo.py').write_text(GLOO)
    launch = [
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc_per_node',
        '2',
        tmp_path / 'gloo.py',
        'tools/train.py',
        DEMO['coco'],
        '--launcher',
        'pytorch',
        '--work-dir',
        tmp_path,
    ]
    options = {
        **SHORT,
        'model_wrapper_cfg.type': 'MMDistributedDataParallel',
        'model_wrapper_cfg.device_ids': 'None',
    }
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    run(*launch, *demo_options('coco', scenes, **options), env=env)
    run(
        *launch,
        '--resume',
        *demo_options('coco', scenes, **{**options, 'train_cfg.max_iters': 4}),
        env=env,
    )
    first, last = (
        torch.load(tmp_path / f'iter_{n}.pth', map_location='cpu', weights_only=False)
        for n in (2, 4)
    )
    states = first['random_states']['ranks']
    assert len(states) == 2 and (states[0]['torch'] != states[1]['torch']).any()
    assert (
        last['meta']['iter'] == 4 and next(iter(last['optimizer']['state'].values()))['step'] == 4
    )


def test_ctrl_c_stops_training_and_leaves_the_checkpoint(scenes, tmp_path):
    options = demo_options(
        'ade', scenes, **{'default_hooks.checkpoint.interval': 2, 'train_cfg.val_interval': 500}
    )
    process = start('tools/train.py', DEMO['ade'], '--work-dir', tmp_path, *options)
    while not (tmp_path / 'iter_2.pth').exists():
        assert process.poll() is None, process.stdout.read()[-3000:]
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert (
        torch.load(tmp_path / 'iter_2.pth', map_location='cpu', weights_only=False)['meta']['iter']
        == 2
    )


def test_help_names_every_option(exits):
    for tool, options in (
        ('train', ('--work-dir', '--cfg-options', '--resume', '--amp', '--launcher')),
        ('test', ('--work-dir', '--cfg-options', '--show-dir', '--tta', '--launcher')),
    ):
        text = exits(ROOT / 'tools' / f'{tool}.py', '--help')
        assert all(option in text for option in options)
