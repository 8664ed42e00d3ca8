"""ConvNeXt under dense-prediction models of the MMEngine family."""

try:
    import mmengine  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != 'mmengine':  # one of MMEngine's own requirements, whose name the error tells
        raise
    raise ModuleNotFoundError(
        'convnext_dense runs on MMEngine and does not install it, because two families own that '
        'name: install onedl-mmengine (maintained) or mmengine (frozen), whichever your mmdet or '
        'mmseg belongs to'
    ) from error

from .architectures import ARCHITECTURES
from .backbone import ConvNeXt
from .errors import ConfigError, WeightsError
from .fast_path import plain_operators
from .folding import fuse
from .layer_decay import LayerDecayOptimWrapperConstructor, layer_id, lr_scale
from .swap import swap_backbone
from .weights import PRESETS, LoadReport, load_weights

__all__ = [
    'ARCHITECTURES',
    'ConfigError',
    'ConvNeXt',
    'LayerDecayOptimWrapperConstructor',
    'LoadReport',
    'PRESETS',
    'WeightsError',
    'fuse',
    'layer_id',
    'load_weights',
    'lr_scale',
    'plain_operators',
    'swap_backbone',
]
