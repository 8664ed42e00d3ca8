"""The checkpoint hook of our configs: loses no checkpoint, refuses weights that do not fit, and
resumes exactly."""

import contextlib
import random
from collections.abc import Callable, Sequence
from typing import IO, Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import BaseLoop

from ..registry import HOOKS
from ..weights.comparing import check_finite, check_names
from .work_dir import BACKEND, RemovesLater, lock

STATES = 'random_states'  # key of a checkpoint


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """MMEngine's checkpoint hook, and:

    - A checkpoint is written under another name and put into its place when it is whole; older ones
      are removed after that. Where a process is killed meanwhile, a checkpoint to go on from is
      left. (On the local disk; in other storage MMEngine's way is unchanged.)
    - A model with NaN or infinity in it is not saved.
    - A second training in the same work directory is refused.
    - A checkpoint that is loaded must have every name of the model and no other, and every tensor
      its shape; MMEngine loads the tensors that happen to fit and only logs the rest. To fine-tune
      (``load_from``), layers outside the backbone may have another number of outputs (other
      classes), and the parts in ``may_differ`` may be of other layers; a warning names both.
    - Checkpoints carry the states of Python's, NumPy's and torch's random generators of each rank,
      and the seed of the sampler. The run goes on from these states at the next iteration, whether
      it was interrupted or not, so validation in between changes nothing. Exact but for random
      augmentation: dataloader workers start from their seed again after a resume.

    Args:
        may_differ: parts of the model outside its backbone, as their parameters' names begin:
            ``'roi_head.mask_head'``. When fine-tuning, tensors that fit are loaded there too; those
            that the checkpoint lacks stay as initialised, and those that the model lacks are
            dropped. Ignored when resuming or testing.
        the rest: as MMEngine's.

    Raises:
        WeightsError: names or shapes do not fit, or a value is not finite.
        ConfigError: a part in ``may_differ`` reaches into the backbone, or is in neither the model
            nor the checkpoint; another training runs in the work directory.
    """

    _states: list[dict] | None = None  # a rank each, as last saved or loaded
    _restore = False  # before the next batch
    _lock: IO | None = None  # of the work directory
    # Of MMEngine, which declares no types.
    backend_args: dict | None
    file_backend: Any

    def __init__(self, *args, may_differ: str | Sequence[str] = (), **kwargs):
        super().__init__(*args, **kwargs)
        self.may_differ = (may_differ,) if isinstance(may_differ, str) else tuple(may_differ)

    def before_train(self, runner) -> None:
        if is_main_process():
            self._lock = lock(runner.work_dir)
        is_local = '://' not in str(self.out_dir or runner.work_dir)
        if is_local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend=BACKEND)
        super().before_train(runner)
        loop, loader = runner.train_loop, runner.train_dataloader
        if loader.generator is None:
            # A new iterator draws a seed for its workers: not from the states that are restored.
            loader.generator = torch.Generator().manual_seed(torch.initial_seed())
        if hasattr(loop, 'dataloader_iterator'):
            loop.dataloader_iterator = _Batches(loop.dataloader_iterator, self._restore_states)

    def after_run(self, runner) -> None:
        if self._lock:
            self._lock.close()

    def _save_checkpoint(self, runner) -> None:
        # Overridden because, unlike before_save_checkpoint, it runs on every rank.
        self._states = all_gather_object(get_random_states())
        self._restore = True
        super()._save_checkpoint(runner)

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        with self._removing_later():
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner, metrics) -> None:
        with self._removing_later():
            super()._save_best_checkpoint(runner, metrics)

    @contextlib.contextmanager
    def _removing_later(self):
        """MMEngine removes the checkpoint that is one too many before it saves the next."""
        if isinstance(self.file_backend, RemovesLater):  # the best one is saved within the other
            yield
            return
        backend = self.file_backend
        self.file_backend = RemovesLater(backend)
        try:
            yield
            self.file_backend.flush(kept=self.last_ckpt)
        finally:
            self.file_backend = backend

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        check_finite(checkpoint['state_dict'], 'the model, which is not saved')
        if self._states is not None:
            seed = getattr(_sampler(runner), 'seed', None)
            checkpoint[STATES] = dict(ranks=self._states, sampler_seed=seed)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        fine_tuning = isinstance(runner._train_loop, BaseLoop) and not runner._resume
        may_differ = self.may_differ if fine_tuning else ()
        tensors = checkpoint.get('state_dict', checkpoint)
        check_finite(tensors, 'the checkpoint')
        for warning in check_names(model, tensors, fine_tuning, may_differ):
            runner.logger.warning(warning)
        if not runner._resume or STATES not in checkpoint:
            return
        saved = checkpoint[STATES]
        if len(saved['ranks']) != get_world_size():
            runner.logger.warning(
                f'the checkpoint is of {len(saved["ranks"])} processes, this run has '
                f'{get_world_size()}: it goes on with fresh random states'
            )
            return
        sampler = _sampler(runner)
        if hasattr(sampler, 'seed'):  # before the data order is drawn from it
            sampler.seed = saved['sampler_seed']
        self._states, self._restore = saved['ranks'], True

    def before_train_epoch(self, runner) -> None:
        self._restore_states()  # a loop by epochs draws its first batch after this

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        self._restore = False

    def _restore_states(self) -> None:
        if self._restore and self._states is not None:
            set_random_states(self._states[get_rank()])


class _Batches:
    """The batches of a training loop; ``restore`` is called before each is drawn, since images are
    augmented while it is.

    That is also when MMEngine draws those of before a resume once more.
    """

    def __init__(self, batches, restore: Callable[[], None]):
        self.batches, self.restore = batches, restore

    def __getattr__(self, name):
        return getattr(self.batches, name)

    def __next__(self):
        self.restore()
        return next(self.batches)


def get_random_states() -> dict:
    """The states of this process's random generators.

    As arrays: MMEngine moves tensors of a resumed checkpoint to the GPU.
    """
    states = dict(
        python=random.getstate(),
        numpy=np.random.get_state(legacy=False),
        torch=torch.get_rng_state().numpy(),
    )
    if torch.cuda.is_available():
        states['cuda'] = torch.cuda.get_rng_state().numpy()
    return states


def set_random_states(states: dict) -> None:
    """Put this process's random generators into ``states``, as ``get_random_states`` gives them."""
    random.setstate(states['python'])
    np.random.set_state(states['numpy'])
    torch.set_rng_state(torch.from_numpy(states['torch']))
    if 'cuda' in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(states['cuda']))


def _sampler(runner):
    return getattr(runner.train_dataloader.batch_sampler, 'sampler', None)
