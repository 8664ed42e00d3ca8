"""The backbone of a config, replaced by ConvNeXt.

``plan`` goes through these files in this order; docs/swap.md tells the same in words:

    config_files    text configs are read
    old_backbone    where in it the backbone is, and which methods cannot be given another one
    measuring       the maps that backbone and neck emit
    stages          the maps that are read, and the stage of ConvNeXt that replaces each
    cases           the changes, by the kind of the model: ordinary, plain ViT, decoder, C4, levels
                    beyond stride 32
    new_backbone    the dict of ConvNeXt
    widths          the keys of neck and heads that hold the widths of maps
    rewiring        these keys are set to the new widths
    surroundings    normalisation, weights and names of the old backbone
    optimiser       layer-wise learning-rate decay

``prove`` (proof, with the images of noise) then trains the model for a step, ``write_config``
(writing) writes the config. All changes are made through ``editing``, which remembers them.
"""

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
    'plan',
    'prove',
    'swap_backbone',
    'write_config',
]
