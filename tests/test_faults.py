"""What a training leaves where it is killed, diverges, or meets another in its folder."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import torch
from mmengine._strategy import SingleDeviceStrategy
from mmengine.dist import get_world_size
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS, RUNNERS, STRATEGIES
from torch import nn

from conftest import needs, two_processes
from convnext_dense import ConfigError, WeightsError
from convnext_dense.training.work_dir import latest_checkpoint, put_in_place
from convnext_dense.weights import convert

PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from test_faults import make_runner
{before}
make_runner({work_dir!r}, {options}).train()
"""
COUNT = itertools.count()


@MODELS.register_module(force=True)
class TinyModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1)
        self.register_buffer('spare', torch.zeros(1))  # which the loss does not depend on

    def forward(self, inputs, mode):
        return dict(loss=self.second(self.first(inputs)).square().mean())


@OPTIM_WRAPPERS.register_module(force=True)
class ScalingOptimWrapper(OptimWrapper):
    """As with mixed precision, which MMEngine refuses where there is no GPU."""

    loss_scaler = None

    def update_params(self, loss):
        if loss.isfinite():
            super().update_params(loss)


@STRATEGIES.register_module(force=True)
class FolderStrategy(SingleDeviceStrategy):
    """Checkpoints are folders, with the names of DeepSpeed's files."""

    MODEL, REST = 'mp_rank_00_model_states.pt', 'zero_pp_rank_0_mp_rank_00_optim_states.pt'

    def save_checkpoint(self, filename, **kwargs):
        os.makedirs(filename)
        super().save_checkpoint(os.path.join(filename, self.MODEL), **kwargs)
        torch.save({}, os.path.join(filename, self.REST))

    def load_checkpoint(self, filename, **kwargs):
        return super().load_checkpoint(os.path.join(filename, self.MODEL), **kwargs)


def make_runner(work_dir, lr=0.1, iterations=6, inputs=1.0, **options):
    checkpoint = dict(type='convnext_dense.CheckpointHook', by_epoch=False, interval=1)
    hooks = dict(checkpoint=checkpoint | dict(max_keep_ckpts=1))
    hooks.update(finite=dict(type='convnext_dense.FiniteHook', **options.pop('finite', {})))
    samples = [dict(inputs=torch.full((4,), inputs))] * (2 * iterations * get_world_size())
    for index in options.pop('spoilt', ()):
        samples[index] = dict(inputs=torch.full((4,), float('nan')))
    return RUNNERS.get(options.pop('runner', 'Runner'))(
        TinyModel(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=samples,
            batch_size=2,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        optim_wrapper=dict(
            type=options.pop('wrapper', 'OptimWrapper'), optimizer=dict(type='SGD', lr=lr)
        ),
        default_hooks=hooks,
        log_level='ERROR',
        experiment_name=str(next(COUNT)),  # MMEngine's logs of runs within a second are the same
        **options,
    )


def program(tmp_path, before='', **options):
    arguments = ', '.join(f'{key}={value!r}' for key, value in options.items())
    tests = os.path.dirname(__file__)
    code = PROGRAM.format(
        tests=tests, before=before, work_dir=str(tmp_path / 'work'), options=arguments
    )
    return [sys.executable, '-c', code]


def test_killed_while_saving_the_older_checkpoint_is_left(tmp_path):
    """With one checkpoint kept; at the last moment before the third is in its place."""
    before = """
import os, signal
replace = os.replace
def killed(source, target):
    if str(target).endswith('iter_3.pth'):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = killed
"""
    result = subprocess.run(program(tmp_path, before), capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr[-2000:]
    work = tmp_path / 'work'
    assert [path.name for path in work.glob('*.pth')] == ['iter_2.pth']
    assert latest_checkpoint(work) == work / 'iter_2.pth'
    runner = make_runner(work, resume=True, load_from=str(work / 'iter_2.pth'))
    runner.train()
    assert runner.iter == 6 and [path.name for path in work.glob('*.pth')] == ['iter_6.pth']


FOLDERS = dict(runner='FlexibleRunner', strategy=dict(type='FolderStrategy'))


def test_a_folder_is_a_checkpoint_when_all_of_it_is_written(tmp_path, monkeypatch):
    """The training ends while the third is written, and later while one is written anew."""
    replace = os.replace

    def stop_at(name):
        def stopping(source, target):
            if str(target).endswith(name):
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(os, 'replace', stopping)

    stop_at('iter_3.pth')
    with pytest.raises(KeyboardInterrupt):
        make_runner(tmp_path, **FOLDERS).train()
    names = {path.name for path in tmp_path.glob('iter*')}
    assert names == {'iter_2.pth', 'iter_3.pth.unfinished'}
    assert latest_checkpoint(tmp_path) == tmp_path / 'iter_2.pth'

    monkeypatch.setattr(os, 'replace', replace)
    runner = make_runner(tmp_path, **FOLDERS, resume=True, load_from=str(tmp_path / 'iter_2.pth'))
    runner.train()
    assert runner.iter == 6 and [path.name for path in tmp_path.glob('iter*')] == ['iter_6.pth']

    again = shutil.copytree(tmp_path / 'iter_6.pth', tmp_path / 'iter_6.pth.unfinished')
    stop_at('iter_6.pth')
    with pytest.raises(KeyboardInterrupt):
        put_in_place(tmp_path / 'iter_6.pth')
    assert latest_checkpoint(tmp_path) == tmp_path / 'iter_6.pth.replaced'
    monkeypatch.setattr(os, 'replace', replace)
    put_in_place(tmp_path / 'iter_6.pth')
    assert not again.exists() and not (tmp_path / 'iter_6.pth.replaced').exists()

    rest = tmp_path / 'iter_6.pth' / FolderStrategy.REST
    rest.write_bytes(rest.read_bytes()[:-10])
    with pytest.raises(WeightsError, match='no checkpoint in .* can be read'):
        latest_checkpoint(tmp_path)


def test_a_disk_that_is_full_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, 'No space left on device')

    runner = make_runner(tmp_path, iterations=2)
    runner.train()
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        make_runner(tmp_path, iterations=3, resume=True).train()
    assert [path.name for path in tmp_path.glob('*.pth*')] == ['iter_2.pth']


def test_a_second_training_in_the_folder_is_refused(tmp_path):
    slow = 'import time, torch; torch.nn.Linear.forward = lambda *_: time.sleep(60)'
    first = subprocess.Popen(program(tmp_path, slow))
    try:
        taken = tmp_path / 'work/.training'
        while not (taken.exists() and taken.read_text()):
            time.sleep(0.1)
        with pytest.raises(ConfigError, match=f'another training runs .*process {first.pid}'):
            make_runner(tmp_path / 'work').train()
    finally:
        first.kill()
        first.wait()
    make_runner(tmp_path / 'work').train()  # the kernel has released the lock


def test_a_rate_that_diverges_stops_before_the_weights_are_spoilt(tmp_path):
    runner = make_runner(tmp_path, lr=1e30)
    with pytest.raises(FloatingPointError, match='iteration 2: the loss is nan') as error:
        runner.train()
    assert 'the first output that is not finite: second (Linear)' in str(error.value)
    assert all(value.isfinite().all() for value in runner.model.parameters())
    latest = latest_checkpoint(tmp_path)
    assert latest.name == 'iter_1.pth'


def test_with_loss_scaling_it_stops_after_several_in_a_row(tmp_path):
    wrapper = 'ScalingOptimWrapper'
    for patience, message in ((1, 'iteration 1'), (4, 'iteration 4')):
        runner = make_runner(
            tmp_path, inputs=float('nan'), wrapper=wrapper, finite=dict(patience=patience)
        )
        with pytest.raises(FloatingPointError, match=message) as error:
            runner.train()
        assert 'the images are not finite' in str(error.value)


def diverge_on_one_rank(rank):
    """Samples 8 ... 11 are of the third iteration, the odd ones of process 1."""
    os.environ['LOCAL_RANK'] = str(rank)
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None)
    runner = make_runner(
        tempfile.mkdtemp(),
        spoilt=[9],
        launcher='pytorch',
        cfg=dict(model_wrapper_cfg=wrapper),
        default_scope='mmengine',
    )
    message = ('another process is not finite', 'the images are not finite')[rank]
    with pytest.raises(FloatingPointError, match=f'iteration 3: (.|\\n)*{message}'):
        runner.train()
    assert all(value.isfinite().all() for value in runner.model.parameters())


def test_a_loss_that_diverges_on_one_rank_stops_all_at_the_same_iteration(tmp_path):
    two_processes(diverge_on_one_rank, tmp_path)


class ScalerOnTheCPU(OptimWrapper):
    """``AmpOptimWrapper`` but for its device: torch's scaler, which MMEngine refuses on CPUs."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=2.0**16, growth_interval=2)

    def update_params(self, loss):
        self.loss_scaler.scale(loss).backward()
        self.loss_scaler.step(self.optimizer)
        self.loss_scaler.update()
        self.zero_grad()


@needs('loss scaling on the CPU')
def test_steps_that_a_real_loss_scaler_skips_are_let_pass(tmp_path):
    """Two batches in a row, and a later one; each halves the scale and changes no weight."""
    OPTIM_WRAPPERS.register_module(module=ScalerOnTheCPU, force=True)
    options = dict(wrapper='ScalerOnTheCPU', spoilt=[2, 5, 8])
    runner = make_runner(tmp_path, **options, finite=dict(patience=3))
    runner.train()
    assert runner.iter == 6 and runner.optim_wrapper.loss_scaler.get_scale() < 2.0**16
    assert all(value.isfinite().all() for value in runner.model.parameters())
    runner = make_runner(tmp_path / 'impatient', **options, finite=dict(patience=2))
    with pytest.raises(FloatingPointError, match='iteration 3'):
        runner.train()


def test_values_that_are_not_finite_are_neither_saved_nor_read(tmp_path):
    runner = make_runner(tmp_path, iterations=1)
    runner.model.spare.fill_(float('nan'))
    message = '1 of 5 tensors hold NaN or infinity .spare'
    with pytest.raises(WeightsError, match=message):
        runner.train()
    assert not list(tmp_path.glob('*.pth'))
    torch.save(dict(state_dict=runner.model.state_dict()), tmp_path / 'spoilt.pth')
    with pytest.raises(WeightsError, match=message):
        convert(tmp_path / 'spoilt.pth')
    with pytest.raises(WeightsError, match=message):
        make_runner(tmp_path / 'work', load_from=str(tmp_path / 'spoilt.pth')).train()


def test_a_folder_that_was_moved_goes_on_from_its_own_checkpoint(tmp_path):
    make_runner(tmp_path / 'old').train()
    shutil.move(tmp_path / 'old', tmp_path / 'new')
    assert latest_checkpoint(tmp_path / 'new') == tmp_path / 'new/iter_6.pth'
    (tmp_path / 'new/last_checkpoint').write_text('')
    assert latest_checkpoint(tmp_path / 'new') == tmp_path / 'new/iter_6.pth'


def test_a_checkpoint_that_cannot_be_read_is_passed_over(tmp_path):
    make_runner(tmp_path).train()
    whole = (tmp_path / 'iter_6.pth').read_bytes()
    (tmp_path / 'iter_7.pth').write_bytes(whole[:-100])
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_7.pth'))
    said = []
    assert latest_checkpoint(tmp_path, said.append) == tmp_path / 'iter_6.pth'
    assert 'iter_7.pth cannot be read' in said[0]
    (tmp_path / 'iter_6.pth').unlink()
    with pytest.raises(WeightsError, match='no checkpoint in .* can be read'):
        latest_checkpoint(tmp_path)
    assert latest_checkpoint(tmp_path / 'empty') is None
