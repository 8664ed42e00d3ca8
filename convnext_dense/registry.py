"""Child registries with the scope ``convnext_dense``.

MMEngine imports ``SCOPE.registry`` by itself when a ``type`` begins with ``SCOPE.``; the locations
below are imported on the first look-up. So ``type='convnext_dense.ConvNeXt'`` resolves from any
registry with no ``custom_imports``.
"""

from mmengine import registry as root


def _child(name: str, parent: root.Registry, module: str) -> root.Registry:
    scope = 'convnext_dense'
    return root.Registry(name, parent=parent, scope=scope, locations=[f'{scope}.{module}'])


MODELS = _child('model', root.MODELS, 'backbone')
OPTIM_WRAPPER_CONSTRUCTORS = _child(
    'optimizer wrapper constructor', root.OPTIM_WRAPPER_CONSTRUCTORS, 'layer_decay'
)
FUNCTIONS = _child('function', root.FUNCTIONS, 'sharding')
HOOKS = _child('hook', root.HOOKS, 'hooks')
STRATEGIES = _child('strategy', root.STRATEGIES, 'sharding')
TRANSFORMS = _child('transform', root.TRANSFORMS, 'transforms')
