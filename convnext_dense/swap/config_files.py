"""Configs as users name them: found, read, and with the modules imported that they ask for."""

import difflib
import glob
import importlib
import importlib.util
from pathlib import Path

from mmengine.config import Config

from ..errors import ConfigError

LIBRARIES = ('mmdet', 'mmseg')
# What the libraries' ConvNeXt configs import for their backbone. It often cannot be imported.
OLD_CONVNEXT = ('mmpretrain', 'mmcls')


def find_config(name: str) -> tuple[Path, str]:
    """Path of a config, and how another config names it as its base.

    Args:
        name: a path, ``mmdet::FOLDER/NAME.py``, ``mmseg::FOLDER/NAME.py``, or the file name of a
            config of theirs, with or without ``.py``.

    Raises:
        ConfigError: there is none of that name, or more than one.
    """
    folders = {library: folder for library in LIBRARIES if (folder := config_folder(library))}
    path = Path(name)
    if path.is_file():
        for library, folder in folders.items():
            if folder.resolve() in path.resolve().parents:
                within = path.resolve().relative_to(folder.resolve())
                return path, f'{library}::{within.as_posix()}'
        return path, str(path)
    library, _, rest = name.rpartition('::')
    if library in folders and (folders[library] / rest).is_file():
        return folders[library] / rest, name
    matches = []
    if not library and path.parent == Path():
        pattern = glob.escape(name.removesuffix('.py')) + '.py'
        for library, folder in folders.items():
            files = sorted(folder.rglob(pattern))
            matches += [(f, f'{library}::{f.relative_to(folder).as_posix()}') for f in files]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ', '.join(scoped for _, scoped in matches)
        raise ConfigError(f'{name} may be any of {names}: use the name of the one that you mean')
    known = {file.stem for folder in folders.values() for file in folder.rglob('*.py')}
    near = difflib.get_close_matches(Path(rest).name.removesuffix('.py'), known)
    raise ConfigError(
        f'no config {name}: expected a path, mmdet::FOLDER/NAME.py, mmseg::FOLDER/NAME.py, or the '
        'name of a config of mmdet or mmseg'
        + (f'. Near to it are {", ".join(near)}' if near else '')
    )


def config_folder(library: str) -> Path | None:
    """Where an installed library keeps its configs."""
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.origin:
        return None
    package = Path(spec.origin).parent
    folders = package / '.mim' / 'configs', package.parent / 'configs'
    return next((folder for folder in folders if folder.is_dir()), None)


def read_config(path: Path) -> Config:
    """Parse a text config and import the modules that it asks for. Mmpretrain may be absent.

    Raises:
        ConfigError: not a config, a new-style one, or an import of it fails.
    """
    try:
        new_style = Config._is_lazy_import(str(path))
        cfg = Config() if new_style else Config.fromfile(str(path), import_custom_modules=False)
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
