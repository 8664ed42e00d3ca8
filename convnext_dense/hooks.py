"""The hooks that configs name: ``type='convnext_dense.CheckpointHook'`` and the others."""

from .training.checkpoint_hook import CheckpointHook
from .training.watching import CurvesHook, ExamplesHook

__all__ = ['CheckpointHook', 'CurvesHook', 'ExamplesHook']
