"""Child registries with the scope ``convnext_dense``.

MMEngine imports ``SCOPE.registry`` by itself when a ``type`` begins with ``SCOPE.``; the locations
below are imported on the first look-up. So ``type='convnext_dense.ConvNeXt'`` resolves from any
registry with no ``custom_imports``.
"""

from importlib import import_module

from mmengine import registry as root

# What needs mmseg, which is not always there -> its module.
_OF_MMSEG = dict(UPerHead='heads', FCNHead='heads', LinearHead='heads', EncoderDecoder='segmentor')


class _Models(root.Registry):
    def get(self, key: str) -> type | None:
        scope, _, name = key.rpartition('.')
        if name in _OF_MMSEG and scope in ('', 'convnext_dense'):
            import_module(f'convnext_dense.{_OF_MMSEG[name]}')
        return super().get(key)


def _child(
    name: str, parent: root.Registry, module: str, kind: type[root.Registry] = root.Registry
) -> root.Registry:
    scope = 'convnext_dense'
    return kind(name, parent=parent, scope=scope, locations=[f'{scope}.{module}'])


MODELS = _child('model', root.MODELS, 'backbone', _Models)
OPTIM_WRAPPER_CONSTRUCTORS = _child(
    'optimizer wrapper constructor', root.OPTIM_WRAPPER_CONSTRUCTORS, 'layer_decay'
)
FUNCTIONS = _child('function', root.FUNCTIONS, 'sharding')
HOOKS = _child('hook', root.HOOKS, 'hooks')
STRATEGIES = _child('strategy', root.STRATEGIES, 'sharding')
TRANSFORMS = _child('transform', root.TRANSFORMS, 'transforms')
