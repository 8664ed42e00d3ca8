"""Child registries with the scope ``convnext_dense``.

MMEngine imports ``SCOPE.registry`` by itself when a ``type`` begins with ``SCOPE.``; the locations below are imported
on the first look-up. So ``type='convnext_dense.ConvNeXt'`` resolves from any registry with no ``custom_imports``.
"""

from mmengine import registry as root

MODELS = root.Registry(
    'model', parent=root.MODELS, scope='convnext_dense', locations=['convnext_dense.backbone']
)
OPTIM_WRAPPER_CONSTRUCTORS = root.Registry(
    'optimizer wrapper constructor',
    parent=root.OPTIM_WRAPPER_CONSTRUCTORS,
    scope='convnext_dense',
    locations=['convnext_dense.layer_decay'],
)
HOOKS = root.Registry(
    'hook', parent=root.HOOKS, scope='convnext_dense', locations=['convnext_dense.hooks']
)
TRANSFORMS = root.Registry(
    'transform',
    parent=root.TRANSFORMS,
    scope='convnext_dense',
    locations=['convnext_dense.transforms'],
)
