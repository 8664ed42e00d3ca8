"""The hooks that configs name: ``type='convnext_dense.CheckpointHook'`` and the others."""

from .training.checkpoint_hook import CheckpointHook
from .training.curves_hook import CurvesHook
from .training.data_check_hook import DataCheckHook
from .training.examples_hook import ExamplesHook
from .training.finite_hook import FiniteHook

__all__ = ['CheckpointHook', 'CurvesHook', 'DataCheckHook', 'ExamplesHook', 'FiniteHook']
