"""The checkpoint hook of our configs: loses no checkpoint, refuses weights that do not fit, and
resumes exactly."""

import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, barrier, get_rank, get_world_size, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.hooks import EMAHook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import BaseLoop
from torch import nn

from ..errors import ConfigError
from ..layer_decay import FSDP, WRAPPER, unsharded_shapes
from ..registry import HOOKS
from ..weights.comparing import check_finite, check_names
from .work_dir import UNFINISHED, RemovesLater, lock, put_in_place, remove, unfinished

STATES = 'random_states'  # key of a checkpoint


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """MMEngine's checkpoint hook with all its arguments, and:

    - A checkpoint is written under another name and put into its place when it is whole; older ones
      are removed after that. Where a process is killed meanwhile, a checkpoint to go on from is
      left. (On the local disk; in other storage MMEngine's way is unchanged.) Folders likewise, as
      DeepSpeed and FSDP write them.
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
    - With MMEngine's EMAHook a checkpoint's weights are the averaged ones, as MMEngine has it. A
      training that averaged is resumed by one that averages: without the hook it would go on from
      the average, beside an optimiser that knows other weights.

    Args:
        may_differ: parts of the model outside its backbone, as their parameters' names begin:
            ``'roi_head.mask_head'``. When fine-tuning, tensors that fit are loaded there too; those
            that the checkpoint lacks stay as initialised, and those that the model lacks are
            dropped. Ignored when resuming or testing.

    Raises:
        WeightsError: names or shapes do not fit, or a value is not finite.
        ConfigError: a part in ``may_differ`` reaches into the backbone, or is in neither the model
            nor the checkpoint; another training runs in the work directory; the checkpoint of a
            training with EMAHook is resumed without it.
    """

    _states: list[dict] | None = None  # a rank each, as last saved or loaded
    _restore = False  # before the next batch
    _lock: IO | None = None  # of the work directory
    _is_local = False  # where checkpoints go
    # Of MMEngine, which declares no types.
    file_backend: Any
    out_dir: str

    def __init__(self, *args, may_differ: str | Sequence[str] = (), **kwargs):
        super().__init__(*args, **kwargs)
        self.may_differ = (may_differ,) if isinstance(may_differ, str) else tuple(may_differ)

    def before_train(self, runner) -> None:
        if is_main_process():
            self._lock = lock(runner.work_dir)
        super().before_train(runner)
        loop, loader = runner.train_loop, runner.train_dataloader
        if loader.generator is None:
            # A new iterator draws a seed for its workers: not from the states that are restored.
            loader.generator = torch.Generator().manual_seed(torch.initial_seed())
        if hasattr(loop, 'dataloader_iterator'):
            loop.dataloader_iterator = _Batches(loop.dataloader_iterator, self._restore_states)
        self._is_local = isinstance(self.file_backend, LocalBackend)
        if self._is_local and is_main_process():
            for path in Path(self.out_dir).glob(f'*{UNFINISHED}'):  # of a process that was killed
                remove(path)

    def after_run(self, runner) -> None:
        if self._lock:
            self._lock.close()

    def _save_checkpoint(self, runner) -> None:
        # Overridden because, unlike before_save_checkpoint, it runs on every rank.
        self._states = all_gather_object(get_random_states())
        self._restore = True
        super()._save_checkpoint(runner)

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        with self._removing_later(), self._saving_whole(runner):
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner, metrics) -> None:
        with self._removing_later(), self._saving_whole(runner):
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

    @contextlib.contextmanager
    def _saving_whole(self, runner):
        """What the runner saves is written under another name, and gets its own when it is whole.

        Around the runner's method because its strategies write files in ways of their own, some of
        them from all processes.
        """
        if not self._is_local or 'save_checkpoint' in vars(runner):
            yield
            return
        save = runner.save_checkpoint

        def save_whole(out_dir, filename, *args, **kwargs):
            path = Path(out_dir, filename)
            if is_main_process():
                remove(unfinished(path))
            barrier()
            try:
                save(out_dir, unfinished(filename).name, *args, **kwargs)
                barrier()
                if is_main_process():
                    put_in_place(path)
            except OSError:
                if is_main_process():
                    remove(unfinished(path))
                raise
            barrier()

        runner.save_checkpoint = save_whole
        try:
            yield
        finally:
            del runner.save_checkpoint

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        tensors = checkpoint['state_dict']
        check_finite(tensors, 'the model, which is not saved')
        for name, tensor in tensors.items():
            if type(tensor) is torch.Tensor and vars(tensor):  # notes of FSDP
                tensors[name] = tensor.detach()
        if self._states is not None:
            seed = getattr(_sampler(runner), 'seed', None)
            checkpoint[STATES] = dict(ranks=self._states, sampler_seed=seed)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        fine_tuning = isinstance(runner._train_loop, BaseLoop) and not runner._resume
        may_differ = self.may_differ if fine_tuning else ()
        tensors = checkpoint.get('state_dict', checkpoint)
        check_finite(tensors, 'the checkpoint')
        expected = sharded_tensors(runner.model, tensors)
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        for warning in check_names(model, tensors, fine_tuning, may_differ, expected):
            runner.logger.warning(warning)
        averages = any(isinstance(hook, EMAHook) for hook in runner.hooks)
        if runner._resume and 'ema_state_dict' in checkpoint and not averages:
            raise ConfigError(
                'the checkpoint is of a training with EMAHook: its weights are averaged, and a '
                'training without the hook would go on from them as if they had been trained. '
                'Resume with --cfg-options default_hooks.ema.type=EMAHook, and the momentum that '
                'it had'
            )
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


def sharded_tensors(model: Any, checkpoint: Mapping) -> dict[str, torch.Tensor] | None:
    """The tensors of a model under FSDP, whole as they were before, without values.

    None where there is no FSDP. Of a checkpoint that holds shards, those are taken as they are: it
    is of each process, and has only its names in common with the model.
    """
    root: nn.Module = model  # which mypy would take for an object from here on
    if not isinstance(model, FSDP):
        return None
    shapes = unsharded_shapes(root)
    expected = {
        WRAPPER.sub('', name): torch.empty(shapes[parameter], device='meta')
        for name, parameter in root.named_parameters()
    }
    for prefix, module in root.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                expected[WRAPPER.sub('', f'{prefix}.{name}')] = buffer
    if any(name.endswith('_flat_param') for name in checkpoint):
        expected = {name: checkpoint.get(name, tensor) for name, tensor in expected.items()}
        expected |= {name: value for name, value in checkpoint.items() if '_flat_param' in name}
    return expected


def get_random_states() -> dict:
    """The states of this process's random generators.

    In lists of numbers: torch reads these without running code, and MMEngine would move tensors of
    a resumed checkpoint to the GPU.
    """
    generator = np.random.get_state(legacy=False)
    generator['state']['key'] = generator['state']['key'].tolist()
    states = dict(python=random.getstate(), numpy=generator, torch=torch.get_rng_state().tolist())
    if torch.cuda.is_available():
        states['cuda'] = torch.cuda.get_rng_state().tolist()
    return states


def set_random_states(states: dict) -> None:
    """Put this process's random generators into ``states``, as ``get_random_states`` gives them."""
    random.setstate(states['python'])
    np.random.set_state(states['numpy'])
    torch.set_rng_state(torch.tensor(states['torch'], dtype=torch.uint8))
    if 'cuda' in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(states['cuda'], dtype=torch.uint8))


def _sampler(runner):
    return getattr(runner.train_dataloader.batch_sampler, 'sampler', None)
