"""Configs are read, and the modules imported that they ask for."""

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine import registry as registries
from mmengine.config import Config
from mmengine.registry import Registry

from ..config_names import read_file
from ..errors import ConfigError

# What the libraries' ConvNeXt configs import for their backbone. It often cannot be imported.
OLD_CONVNEXT = ('mmpretrain', 'mmcls')


def read_config(path: Path) -> Config:
    """Parse a config and import the modules that it asks for. Mmpretrain may be absent.

    In a new-style one (``read_base``, imported types) the types have names in place of classes.

    Raises:
        ConfigError: not a config, or an import of it fails.
    """
    try:
        with _on_path(path):
            if is_new_style(path):
                return name_types(Config.fromfile(str(path)))
            cfg = read_file(path, import_custom_modules=False)
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
            import_modules([name], path)
        except ConfigError as error:
            if name.split('.')[0] in OLD_CONVNEXT or imports.get('allow_failed_imports'):
                continue
            raise ConfigError(f'{path}: custom_imports names {name}, but {error}') from error
    return cfg


def import_modules(names: Sequence[str], path: Path) -> None:
    """Import modules, which may lie in the folder of the config at ``path`` or in the current one.

    Raises:
        ConfigError: one cannot be imported.
    """
    with _on_path(path):
        for name in names:
            try:
                importlib.import_module(name)
            except Exception as error:
                raise ConfigError(
                    f'{name} cannot be imported ({type(error).__name__}: {error}). If it is a '
                    f'module of yours, run this where it lies, or put its folder on PYTHONPATH; '
                    f'{path.parent.resolve()} and {Path.cwd()} were looked in'
                ) from error


@contextlib.contextmanager
def _on_path(path: Path) -> Iterator[None]:
    """Let modules be imported from the folder of the file at ``path`` and from the current one.

    They come last: a clone's own mmdet does not take the place of the one that is installed.
    """
    folders = [str(path.parent.resolve()), str(Path.cwd())]
    sys.path.extend(folders)
    try:
        yield
    finally:
        for folder in folders:
            # the last one: the user may have put the same folder there
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(folder)]


def is_new_style(path: Path) -> bool:
    """Whether it is a config with ``read_base`` or imported types. False if it cannot be read."""
    try:
        return Config._is_lazy_import(str(path))
    except Exception:
        return False


def name_types(cfg: Config) -> Config:
    """The config with the names of classes and functions in place of themselves, or itself.

    Names are those of the registries, as a text config has them, else import paths.

    Raises:
        ConfigError: what a new-style config imports cannot be imported.
    """
    names: dict[Any, str] = {}
    default = cfg.get('default_scope')
    roots = [item for item in vars(registries).values() if isinstance(item, Registry)]
    for root in roots:
        for scope, registry in [('', root), *root.children.items()]:
            prefix = '' if scope in ('', default) else f'{scope}.'
            for name, registered in registry.module_dict.items():
                names.setdefault(registered, prefix + name)
    are_there = False

    def named(value):
        nonlocal are_there
        if isinstance(value, dict):
            return {key: named(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(named(inner) for inner in value)
        if callable(value) and hasattr(value, '__qualname__'):
            are_there = True
            return names.get(value) or f'{value.__module__}.{value.__qualname__}'
        return value

    imported = getattr(cfg, '_imported_names', ())
    try:
        parts = {key: cfg._cfg_dict[key] for key in cfg._cfg_dict if key not in imported}
        tree = named(parts)
    except ImportError as error:
        raise ConfigError(f'what the config imports cannot be imported: {error}') from error
    return Config(tree, filename=cfg.filename) if are_there else cfg
