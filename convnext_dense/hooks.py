"""The checkpoint hook that our configs use: refuses weights that do not fit, and makes a resumed run exact."""
import random

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.model import BaseTTAModel, is_model_wrapper

from .backbone import ConvNeXt
from .errors import WeightsError
from .registry import HOOKS

STATES = 'random_states'


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """MMEngine's checkpoint hook, and:

    - A checkpoint that is loaded (to fine-tune, test or resume) must have every name of the model and no other, and
      every backbone tensor its shape; MMEngine loads what happens to fit and only logs the rest. A head of another
      shape (other classes) is named in a warning.
    - Checkpoints carry the states of Python's, NumPy's and torch's random generators of each rank, and the seed of
      the sampler. The run goes on from these states at the next iteration, whether it was interrupted or not, so
      validation in between changes nothing. Exact but for random augmentation: dataloader workers start from their
      seed again after a resume.

    Raises:
        WeightsError: names, or shapes in the backbone, do not fit.
    """

    _states = None  # of all ranks, as last saved or loaded
    _restore = False  # at the next training iteration

    def _save_checkpoint(self, runner) -> None:
        # Overridden because, unlike before_save_checkpoint, it runs on every rank.
        self._states = all_gather_object(_get_states())
        self._restore = True
        super()._save_checkpoint(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self._states is not None:
            checkpoint[STATES] = dict(ranks=self._states, sampler_seed=_sampler(runner).seed)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        for shape in check_names(model, checkpoint.get('state_dict', checkpoint)):
            runner.logger.warning(f'not loaded, other shape: {shape}')
        if not runner._resume or STATES not in checkpoint:
            return
        saved = checkpoint[STATES]
        if len(saved['ranks']) != get_world_size():
            runner.logger.warning(f'the checkpoint is of {len(saved["ranks"])} processes, this run has '
                                  f'{get_world_size()}: it goes on with fresh random states')
            return
        _sampler(runner).seed = saved['sampler_seed']
        self._states, self._restore = saved['ranks'], True

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if self._restore:
            _set_states(self._states[get_rank()])
            self._restore = False


def check_names(model: torch.nn.Module, state_dict: dict):
    """Returns the tensors of the heads whose shapes differ. Raises WeightsError for anything else that differs."""
    own = model.state_dict()
    given = {name[len('module.'):] if name.startswith('module.') else name: value
             for name, value in state_dict.items()}
    missing, unknown = [n for n in own if n not in given], [n for n in given if n not in own]
    shapes = {name: f'{name} {tuple(given[name].shape)} where {tuple(own[name].shape)} is expected'
              for name in own if name in given and given[name].shape != own[name].shape}
    prefixes = tuple(f'{name}.' for name, module in model.named_modules() if isinstance(module, ConvNeXt))
    in_backbone = [text for name, text in shapes.items() if name.startswith(prefixes)]
    if missing or unknown or in_backbone:
        parts = (('missing', missing), ('unknown', unknown), ('of another shape', in_backbone))
        raise WeightsError('the checkpoint is not of this model:\n' + '\n'.join(
            f'  {len(names)} {kind}: {", ".join(names[:3])}{", ..." if len(names) > 3 else ""}'
            for kind, names in parts if names) +
            '\nLoad the weights of a backbone alone through model.backbone.init_cfg; a whole model needs the same '
            'architecture and heads (another number of classes is fine).')
    return list(shapes.values())


def _sampler(runner):
    return runner.train_dataloader.batch_sampler.sampler


def _get_states() -> dict:
    return dict(python=random.getstate(), numpy=np.random.get_state(legacy=False), torch=torch.get_rng_state(),
                cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])


def _set_states(states: dict) -> None:
    random.setstate(states['python'])
    np.random.set_state(states['numpy'])
    torch.set_rng_state(states['torch'])
    if states['cuda']:
        torch.cuda.set_rng_state_all(states['cuda'])
