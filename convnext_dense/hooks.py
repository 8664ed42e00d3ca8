"""The checkpoint hook that our configs use: refuses weights that do not fit, and makes a resumed run exact."""
import random
from typing import List, Mapping

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import BaseLoop

from .backbone import ConvNeXt
from .errors import WeightsError
from .registry import HOOKS
from .weights.loading import compare, listing

STATES = 'random_states'


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """MMEngine's checkpoint hook, and:

    - A checkpoint that is loaded must have every name of the model and no other, and every tensor its shape; MMEngine
      loads what happens to fit and only logs the rest. To fine-tune (``load_from``), layers outside the backbone may
      have another number of outputs (other classes); they are named in a warning.
    - Checkpoints carry the states of Python's, NumPy's and torch's random generators of each rank, and the seed of
      the sampler. The run goes on from these states at the next iteration, whether it was interrupted or not, so
      validation in between changes nothing. Exact but for random augmentation: dataloader workers start from their
      seed again after a resume.

    Raises:
        WeightsError: names or shapes do not fit.
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
            checkpoint[STATES] = dict(ranks=self._states, sampler_seed=getattr(_sampler(runner), 'seed', None))

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        fine_tuning = isinstance(runner._train_loop, BaseLoop) and not runner._resume
        for shape in check_names(model, checkpoint.get('state_dict', checkpoint), heads_may_differ=fine_tuning):
            runner.logger.warning(f'not loaded, other shape: {shape}')
        if not runner._resume or STATES not in checkpoint:
            return
        saved = checkpoint[STATES]
        if len(saved['ranks']) != get_world_size():
            runner.logger.warning(f'the checkpoint is of {len(saved["ranks"])} processes, this run has '
                                  f'{get_world_size()}: it goes on with fresh random states')
            return
        if hasattr(_sampler(runner), 'seed'):  # before the data order is drawn from it
            _sampler(runner).seed = saved['sampler_seed']
        self._states, self._restore = saved['ranks'], True

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if self._restore:
            _set_states(self._states[get_rank()])
            self._restore = False


def check_names(model: torch.nn.Module, state_dict: Mapping[str, torch.Tensor], heads_may_differ: bool) -> List[str]:
    """Returns the class layers whose number of classes differs, if it may. Raises WeightsError for the rest."""
    given = {name[len('module.'):] if name.startswith('module.') else name: value
             for name, value in state_dict.items()}
    own = model.state_dict()
    problems = compare(own, given)
    backbones = tuple(f'{name}.' for name, module in model.named_modules() if isinstance(module, ConvNeXt))
    # A layer that predicts classes differs in its number of outputs alone.
    heads = [text for text in problems['of another shape'] if heads_may_differ and not text.startswith(backbones)
             and own[text.split()[0]].shape[1:] == given[text.split()[0]].shape[1:]]
    problems['of another shape'] = [text for text in problems['of another shape'] if text not in heads]
    if any(problems.values()):
        raise WeightsError(
            f'the checkpoint is not of this model:\n{listing(problems)}\n'
            'Load the weights of a backbone alone through model.backbone.init_cfg; a whole model needs the same '
            'architecture and heads; only to fine-tune may the number of classes differ. Models of the zoos, whose '
            'backbone is mmpretrain\'s, are renamed by tools/convert_weights.py.')
    return heads


def _sampler(runner):
    return getattr(runner.train_dataloader.batch_sampler, 'sampler', None)


def _get_states() -> dict:
    """Of this process. As arrays, because MMEngine moves every tensor of a resumed checkpoint to the GPU."""
    states = dict(python=random.getstate(), numpy=np.random.get_state(legacy=False),
                  torch=torch.get_rng_state().numpy())
    if torch.cuda.is_available():
        states['cuda'] = torch.cuda.get_rng_state().numpy()
    return states


def _set_states(states: dict) -> None:
    random.setstate(states['python'])
    np.random.set_state(states['numpy'])
    torch.set_rng_state(torch.from_numpy(states['torch']))
    if 'cuda' in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(states['cuda']))
