"""ConvNeXt under dense-prediction models of the MMEngine family."""
try:
    import mmengine  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'convnext_dense runs on MMEngine and does not install it, because two families own that name: install '
        'onedl-mmengine (maintained) or mmengine (frozen), whichever your mmdet or mmseg belongs to') from error

from .architectures import ARCHITECTURES
from .backbone import ConvNeXt
from .errors import ConfigError, WeightsError
from .fuse import fuse
from .layer_decay import LayerDecayOptimWrapperConstructor, layer_id, lr_scale
from .swap import swap_backbone
from .weights import PRESETS, LoadReport, load_weights

__all__ = ['ARCHITECTURES', 'ConfigError', 'ConvNeXt', 'LayerDecayOptimWrapperConstructor', 'LoadReport', 'PRESETS',
           'WeightsError', 'fuse', 'layer_id', 'load_weights', 'lr_scale', 'swap_backbone']
