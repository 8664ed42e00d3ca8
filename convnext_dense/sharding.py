"""What FSDP shards of a model on ConvNeXt, for configs that name it."""

from torch import nn

from .layers import Block
from .registry import FUNCTIONS


@FUNCTIONS.register_module()
def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """An ``auto_wrap_policy`` of FSDP: each block of a ConvNeXt is a unit, all else is in the root.

    Most of the parameters are in blocks. Necks and heads may be no units: mmdet and mmseg call
    other methods of them than ``forward``, which is where a unit gathers its parameters.
    """
    return recurse or isinstance(module, Block)
