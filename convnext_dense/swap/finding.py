"""A config as a user names it, and where in it the backbone is."""

import difflib
import glob
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from ..errors import ConfigError

LIBRARIES = ('mmdet', 'mmseg')
OLD_CONVNEXT = (
    'mmpretrain',
    'mmcls',
)  # what the libraries' own ConvNeXt configs import, and often cannot

TOKENS = 'it decodes the tokens of a plain ViT, of one width and stride, which is what its paper proposes'
BRANCHES = (
    'the method is the backbone: branches of its own, which its heads and losses are made for'
)
RECURSIVE = 'the method is in the backbone: recursive features and switchable atrous convolutions'
REFUSED = {
    **dict.fromkeys(
        (
            'BiSeNetV1',
            'BiSeNetV2',
            'CGNet',
            'DDRNet',
            'ERFNet',
            'FastSCNN',
            'ICNet',
            'PIDNet',
            'STDCContextPathNet',
        ),
        BRANCHES,
    ),
    **dict.fromkeys(
        ('DPTHead', 'SegmenterMaskTransformerHead', 'SETRMLAHead', 'SETRUPHead'), TOKENS
    ),
    **dict.fromkeys(('DetectoRS_ResNet', 'DetectoRS_ResNeXt'), RECURSIVE),
    'Detectron2Wrapper': 'the model is a config of Detectron2, which is no backbone of MMEngine',
    'HourglassNet': 'CornerNet and its kin supervise every hourglass of the stack, which are their backbone',
    'SideAdapterCLIPHead': 'it adapts the frozen image encoder of CLIP, to whose text encoder it belongs',
    'TridentResNet': 'the method is in the backbone: three branches of one last stage, which its heads merge',
    'VPD': 'the backbone is a diffusion model, and the text that it is given is part of the method',
}


def find_config(name: str) -> tuple[Path, str]:
    """Path of a config, and how another config names it as its base.

    ``name`` is a path, ``mmdet::...`` or ``mmseg::...``, or the file name of a config of theirs without ``.py``.
    """
    path = Path(name)
    if path.is_file():
        inside = [
            known
            for known in LIBRARIES
            if zoo(known) and zoo(known).resolve() in path.resolve().parents
        ]
        return (
            path,
            f'{inside[0]}::{path.resolve().relative_to(zoo(inside[0]).resolve()).as_posix()}'
            if inside
            else str(path),
        )
    library, _, rest = name.rpartition('::')
    found = []
    for known in LIBRARIES:
        folder = zoo(known)
        if folder and library == known and (folder / rest).is_file():
            found.append((folder / rest, name))
        elif folder and not library and path.parent == Path():
            files = sorted(folder.rglob(glob.escape(name.removesuffix('.py')) + '.py'))
            found += [(file, f'{known}::{file.relative_to(folder).as_posix()}') for file in files]
    if len(found) > 1:
        raise ConfigError(
            f'{name} may be any of {", ".join(scoped for _, scoped in found)}: name one'
        )
    if found:
        return found[0]
    names = {
        file.name.removesuffix('.py')
        for known in LIBRARIES
        if zoo(known)
        for file in zoo(known).rglob('*.py')
    }
    near = difflib.get_close_matches(Path(rest).name.removesuffix('.py'), names)
    raise ConfigError(
        f'no config {name}: expected a path, mmdet::FOLDER/NAME.py, mmseg::FOLDER/NAME.py, or the name of '
        'a config of mmdet or mmseg' + (f'. Near to it are {", ".join(near)}' if near else '')
    )


def zoo(library):
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.origin:
        return None
    package = Path(spec.origin).parent
    return next(
        (
            folder
            for folder in (package / '.mim' / 'configs', package.parent / 'configs')
            if folder.is_dir()
        ),
        None,
    )


def read_config(path: Path) -> Config:
    """Parse a text config and import what it asks for, but for mmpretrain's absence.

    Raises:
        ConfigError: not a config, a new-style one, or an import of it fails.
    """
    try:
        if Config._is_lazy_import(str(path)):
            raise ConfigError(
                f'{path} is a new-style config (read_base, imported types), which a text config cannot inherit from. Export '
                f'it, then swap the export: python -c "from mmengine.config import Config; '
                f"Config.fromfile('{path}').dump('exported.py')\""
            )
        cfg = Config.fromfile(str(path), import_custom_modules=False)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f'{path} is not a config that MMEngine can read: {type(error).__name__}: {error}'
        ) from error
    imports = cfg.get('custom_imports') or {}
    names = imports.get('imports') or []
    for name in [names] if isinstance(names, str) else names:
        try:
            importlib.import_module(name)
        except Exception as error:
            if name.split('.')[0] not in OLD_CONVNEXT and not imports.get('allow_failed_imports'):
                raise ConfigError(
                    f'{path}: custom_imports names {name}, which cannot be imported ({type(error).__name__}: '
                    f'{error}). If it is a module of yours, put its folder on PYTHONPATH.'
                ) from error
    return cfg


def find_owners(cfg: Config) -> list[tuple]:
    """Paths of the dicts that have the backbone to swap: the one nearest to the top, and its equals beside it.

    Raises:
        ConfigError: there is none, or the method cannot take another.
    """
    model = cfg.get('model')
    if not isinstance(model, dict) or not isinstance(model.get('type'), str):
        raise ConfigError('the config has no model with a type: nothing to swap')
    for _, node in walk(model):
        kind = str(node.get('type', '')).rpartition('.')[2] if isinstance(node, dict) else None
        if kind in REFUSED:
            raise ConfigError(f'{kind} cannot be given another backbone: {REFUSED[kind]}')
    found = [
        (path[:-1], node)
        for path, node in walk(model, ('model',))
        if path[-1] == 'backbone' and _is_network(node)
    ]
    if not found:
        raise ConfigError(f'{model.type} has no backbone: nothing to swap')
    first_path, first = min(found, key=lambda item: len(item[0]))
    return [path for path, backbone in found if len(path) == len(first_path) and backbone == first]


def other_backbones(cfg: Config, owners: list[tuple]) -> list[tuple]:
    """Paths of the networks that are backbones by name, but for those of ``owners``."""
    return [
        path
        for path, node in walk(cfg.model, ('model',))
        if 'backbone' in str(path[-1])
        and _is_network(node)
        and (path[:-1] not in owners or path[-1] != 'backbone')
    ]


def at(node, path):
    for key in path:
        node = node[key]
    return node


def walk(node, path=()) -> Iterator[tuple]:
    """(path, value) of ``node`` and of everything in it."""
    yield path, node
    for key, value in (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, (list, tuple))
        else ()
    ):
        yield from walk(value, path + (key,))


def _is_network(node):
    return isinstance(node, dict) and 'type' in node
