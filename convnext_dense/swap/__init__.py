"""The backbone of a config, replaced by ConvNeXt: find it, measure it, plan the changes, prove them, write them."""

from .editing import Absent, Change, dotted
from .finding import find_config
from .planning import Swap, allow_unused, plan, swap_backbone
from .proof import Proof, prove
from .writing import write_config

__all__ = [
    'Absent',
    'Change',
    'Proof',
    'Swap',
    'allow_unused',
    'dotted',
    'find_config',
    'plan',
    'prove',
    'swap_backbone',
    'write_config',
]
