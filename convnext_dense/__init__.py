"""ConvNeXt under dense-prediction models of the MMEngine family."""

__version__ = '0.1.0'

try:
    from .architectures import ARCHITECTURES
    from .backbone import ConvNeXt
    from .config_names import config
    from .errors import ConfigError, DataError, WeightsError
    from .fast_path import plain_operators
    from .folding import fuse
    from .inference import inferencer
    from .layer_decay import LayerDecayOptimWrapperConstructor, layer_id, lr_scale
    from .rearranging import rearrange
    from .roadmap import ROADMAP, Roadmap
    from .swap import swap_backbone
    from .weights import PRESETS, LoadReport, load_weights
except Exception as error:  # torch or MMEngine is missing or broken: `convnext-dense doctor` runs
    _reason = error

    def __getattr__(name: str):
        if name.startswith('__'):
            raise AttributeError(name)
        if isinstance(_reason, ModuleNotFoundError) and _reason.name == 'mmengine':
            raise ModuleNotFoundError(
                'convnext_dense runs on MMEngine and does not install it, because two families own '
                'that name: install onedl-mmengine (maintained) or mmengine (frozen), whichever '
                'your mmdet or mmseg belongs to',
                name='mmengine',
            ) from _reason
        raise ImportError(
            f'convnext_dense cannot be used here: {type(_reason).__name__}: {_reason}. '
            '"convnext-dense doctor" tells how to mend it'
        ) from _reason


__all__ = [
    'ARCHITECTURES',
    'ConfigError',
    'ConvNeXt',
    'DataError',
    'LayerDecayOptimWrapperConstructor',
    'LoadReport',
    'PRESETS',
    'ROADMAP',
    'Roadmap',
    'WeightsError',
    'config',
    'fuse',
    'inferencer',
    'layer_id',
    'load_weights',
    'lr_scale',
    'plain_operators',
    'rearrange',
    'swap_backbone',
]
