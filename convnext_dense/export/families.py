"""Which graph a model becomes."""

from torch import nn

from ..errors import ConfigError
from .common import Graph, method_of

KERNELS = tuple(  # modules of mmcv that compute in C++ what torch cannot trace
    f'mmcv.ops.{name}'
    for name in ('carafe', 'corner_pool', 'deform_conv', 'masked_conv', 'modulated_deform_conv')
    + ('psa_mask', 'saconv')
)


def graph_of(model: nn.Module, output: str) -> Graph:
    """The model from pictures to results.

    Args:
        output: of a segmentor, ``'labels'`` or ``'logits'``.

    Raises:
        ConfigError: it predicts in a way that is not known; the message names the class and the
            method. Or a layer of it cannot be traced.
    """
    graph = _family(model, output)
    for layer in model.modules():
        kernel = next((kind for kind in type(layer).__mro__ if kind.__module__ in KERNELS), None)
        if kernel:
            raise ConfigError(
                f'{type(model).__name__} cannot be exported: torch cannot trace its '
                f'{type(layer).__name__} ({kernel.__module__})'
            )
    return graph


def _family(model, output):
    # a family's module imports mmdet or mmseg
    if hasattr(model, 'encode_decode'):
        from .segmentor import Segmentor

        return Segmentor(model, output)
    if output != 'labels':
        raise ConfigError(f'--output {output} is of a segmentor; this is a {type(model).__name__}')
    if hasattr(model, 'roi_head') and hasattr(model, 'rpn_head'):
        from .two_stage import TwoStage

        return TwoStage(model)
    if hasattr(model, 'bbox_head') and not hasattr(model, 'encoder'):
        from .one_stage import OneStage

        return OneStage(model)
    if hasattr(model, 'level_embed') and hasattr(model, 'num_queries'):
        from .deformable import Deformable

        return Deformable(model)
    if hasattr(model, 'panoptic_head'):
        from .mask_queries import MaskQueries

        return MaskQueries(model)
    raise ConfigError(
        f'{type(model).__name__} cannot be exported: it predicts in a way that is not known, by '
        f'{method_of(type(model), "predict")}; known are segmentors of mmseg, detectors with one '
        'stage and dense heads, two-stage detectors, DINO, Deformable DETR and Mask2Former'
    )
