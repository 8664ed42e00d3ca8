"""The backbone of a config, replaced by ConvNeXt.

It is measured, replaced with all that depends on it, trained for a step as a proof, and written.
"""

from .config_files import find_config
from .editing import Absent, Change, dotted
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
