"""FSDP for models on ConvNeXt, by MMEngine's strategy. Configs name what is here."""

import torch
from mmengine._strategy import FSDPStrategy as MMEngineFSDPStrategy
from mmengine.device import get_device
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from .layers import Block
from .registry import FUNCTIONS, STRATEGIES

# torch's FSDP moves the whole state to the CPU, and frees it where it was. If that is the CPU,
# nothing is moved, and reading it ends the process.
FULL_STATE_ON_CPU = dict(
    state_dict_type='FULL_STATE_DICT',
    state_dict_config=dict(type='FullStateDictConfig'),
    optim_state_dict_config=dict(type='FullOptimStateDictConfig', rank0_only=True),
)


@FUNCTIONS.register_module()
def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """An ``auto_wrap_policy`` of FSDP: each block of a ConvNeXt is a unit, all else is in the root.

    Most of the parameters are in blocks. Necks and heads may be no units: mmdet and mmseg call
    other methods of them than ``forward``, which is where a unit gathers its parameters.
    """
    return recurse or isinstance(module, Block)


@STRATEGIES.register_module()
class FSDPStrategy(MMEngineFSDPStrategy):
    """MMEngine's FSDP with ``wrap_blocks``, which resumes, and runs on CPUs as well.

    Args:
        model_wrapper: for torch's FSDP; ``auto_wrap_policy`` and ``device_id`` have defaults here.
        state_dict_cfg: ``'full'``: a checkpoint is one file, as without FSDP. ``'local'``: a folder
            of a file for each process, which the same number of processes can read.
    """

    def __init__(self, *, model_wrapper: dict | None = None, state_dict_cfg='full', **kwargs):
        model_wrapper = dict(auto_wrap_policy='convnext_dense.wrap_blocks') | (model_wrapper or {})
        if get_device() == 'cpu':
            model_wrapper['device_id'] = torch.device('cpu')
            if state_dict_cfg == 'full':
                state_dict_cfg = FULL_STATE_ON_CPU
        super().__init__(model_wrapper=model_wrapper, state_dict_cfg=state_dict_cfg, **kwargs)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        # MMEngine gives torch these in an order that torch had before 2.1.
        state_dict = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict(state_dict)
