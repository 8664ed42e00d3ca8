"""Where in a config the backbone is, and which methods cannot be given another one."""

from mmengine.config import Config

from ..errors import ConfigError
from .editing import KeyPath, walk

BRANCHES = (
    'the method is the backbone: branches of its own, which its heads and losses are made for'
)
RECURSIVE = 'the method is in the backbone: recursive features and switchable atrous convolutions'
TOKENS = (
    'it decodes the tokens of a plain ViT, of one width and stride, which is what its paper '
    'proposes'
)
# Type of a backbone or head -> why the method cannot be given another backbone.
REFUSED = {
    'BiSeNetV1': BRANCHES,
    'BiSeNetV2': BRANCHES,
    'CGNet': BRANCHES,
    'DDRNet': BRANCHES,
    'ERFNet': BRANCHES,
    'FastSCNN': BRANCHES,
    'ICNet': BRANCHES,
    'PIDNet': BRANCHES,
    'STDCContextPathNet': BRANCHES,
    'DPTHead': TOKENS,
    'SegmenterMaskTransformerHead': TOKENS,
    'SETRMLAHead': TOKENS,
    'SETRUPHead': TOKENS,
    'DetectoRS_ResNet': RECURSIVE,
    'DetectoRS_ResNeXt': RECURSIVE,
    'Detectron2Wrapper': 'the model is a config of Detectron2, which is no backbone of MMEngine',
    'HourglassNet': 'CornerNet and its kin supervise every hourglass of the stack, which are their '
    'backbone',
    'SideAdapterCLIPHead': 'it adapts the frozen image encoder of CLIP, to whose text encoder it '
    'belongs',
    'TridentResNet': 'the method is in the backbone: three branches of one last stage, which its '
    'heads merge',
    'VPD': 'the backbone is a diffusion model, and the text that it is given is part of the method',
}


def find_owners(cfg: Config) -> list[KeyPath]:
    """Paths of the dicts whose ``backbone`` is to be swapped.

    That is the backbone nearest to the top, and with it equal ones at the same depth: a student's
    and a teacher's. For most models the result is ``[('model',)]``.

    Raises:
        ConfigError: there is none, or the method cannot be given another one.
    """
    model = cfg.get('model')
    if not isinstance(model, dict) or not isinstance(model.get('type'), str):
        raise ConfigError('the config has no model with a type: nothing to swap')
    for _, node in walk(model):
        kind = str(node.get('type', '')).rpartition('.')[2] if isinstance(node, dict) else ''
        if kind in REFUSED:
            raise ConfigError(f'{kind} cannot be given another backbone: {REFUSED[kind]}')
    backbones = [
        (path[:-1], node)
        for path, node in walk(model, ('model',))
        if path[-1] == 'backbone' and _is_network(node)
    ]
    if not backbones:
        raise ConfigError(f'{model["type"]} has no backbone: nothing to swap')
    top, first = min(backbones, key=lambda item: len(item[0]))
    return [path for path, node in backbones if len(path) == len(top) and node == first]


def other_backbones(cfg: Config, owners: list[KeyPath]) -> list[KeyPath]:
    """Paths of the networks that are named backbones, but for those of ``owners``."""
    swapped = [(*owner, 'backbone') for owner in owners]
    return [
        path
        for path, node in walk(cfg.model, ('model',))
        if 'backbone' in str(path[-1]) and _is_network(node) and path not in swapped
    ]


def _is_network(node) -> bool:
    return isinstance(node, dict) and 'type' in node
