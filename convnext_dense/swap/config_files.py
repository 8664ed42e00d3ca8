"""Text configs are read, and the modules imported that they ask for."""

import importlib
from pathlib import Path

from mmengine.config import Config

from ..config_names import read_file
from ..errors import ConfigError

# What the libraries' ConvNeXt configs import for their backbone. It often cannot be imported.
OLD_CONVNEXT = ('mmpretrain', 'mmcls')


def read_config(path: Path) -> Config:
    """Parse a text config and import the modules that it asks for. Mmpretrain may be absent.

    Raises:
        ConfigError: not a config, a new-style one, or an import of it fails.
    """
    try:
        new_style = Config._is_lazy_import(str(path))
        cfg = Config() if new_style else read_file(path, import_custom_modules=False)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f'{path} is not a config that MMEngine can read: {type(error).__name__}: {error}'
        ) from error
    if new_style:
        raise ConfigError(
            f'{path} is a new-style config (read_base, imported types), which a text config cannot '
            'inherit from. Export it, then swap the export: python -c "from mmengine.config import '
            f"Config; Config.fromfile('{path}').dump('exported.py')\""
        )
    imports = cfg.get('custom_imports') or {}
    names = imports.get('imports') or []
    for name in [names] if isinstance(names, str) else names:
        try:
            importlib.import_module(name)
        except Exception as error:
            if name.split('.')[0] in OLD_CONVNEXT or imports.get('allow_failed_imports'):
                continue
            raise ConfigError(
                f'{path}: custom_imports names {name}, which cannot be imported '
                f'({type(error).__name__}: {error}). If it is a module of yours, put its folder on '
                'PYTHONPATH.'
            ) from error
    return cfg
