"""The backbone of a config, replaced by ConvNeXt: find it, measure it, plan the changes, prove them, write them."""
from .finding import find_config
from .plan import Change, Swap, allow_unused, dotted, plan, swap_backbone
from .proof import Proof, prove
from .writing import write_config

__all__ = ['Change', 'Proof', 'Swap', 'allow_unused', 'dotted', 'find_config', 'plan', 'prove', 'swap_backbone',
           'write_config']
