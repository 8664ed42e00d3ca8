"""Configs as users name them: recipes of this package, configs of mmdet and mmseg, files."""

import difflib
import importlib.util
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from .errors import ConfigError

LIBRARIES = ('convnext_dense', 'mmdet', 'mmseg')


def teach_mmengine() -> None:
    """Let MMEngine follow ``convnext_dense::...``, and ``mmseg::...`` in the maintained family.

    It looks a library up under the name of its distribution, which it reads from a table. The table
    lacks this package, and has mmseg under the name of the frozen distribution.
    """
    # Not the distribution, which upstream does not find in a clone, but a module in the folder.
    MODULE2PACKAGE['convnext_dense'] = __name__
    try:
        distribution(MODULE2PACKAGE['mmseg'])
    except PackageNotFoundError:
        MODULE2PACKAGE['mmseg'] = 'onedl-mmsegmentation'


def config(name: str) -> str:
    """Path of a config, to inherit from it whichever program reads the file::

        _base_ = __import__('convnext_dense').config('coco/NAME')

    MMEngine does not allow an import statement above ``_base_``.

    Args:
        name: a path; or ``LIBRARY::FOLDER/NAME.py``, ``FOLDER/NAME`` or ``NAME`` of a recipe of
            this package or of a config of mmdet or mmseg, with or without ``.py``.

    Raises:
        ConfigError: there is none of that name, or more than one.
    """
    return str(find_config(name)[0].resolve())


def inheriting(name: str) -> str:
    """The call of ``config``, as the text of a config file has it behind ``_base_ =``."""
    return f"__import__('convnext_dense').config({name!r})"


def read_config(name: str) -> Config:
    """A config with everything that it inherits.

    Args:
        name: as of ``find_config``.

    Raises:
        ConfigError: there is none of that name, or more than one.
    """
    return read_file(find_config(name)[0])


def read_file(path: str | Path, **options) -> Config:
    """``Config.fromfile``; and what a base ``convnext_dense::...`` holds can be built.

    MMEngine notes the library of such a base as the scope of everything in it, and would look for
    ``MaskRCNN`` here. The types of recipes are those of their ``default_scope``, mmdet or mmseg.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        cfg = Config.fromfile(str(path), **options)
    except ConfigError:  # of a call in it
        raise
    except Exception as error:  # whatever the code in it raises
        raise ConfigError(
            f'{path} is not a config that MMEngine can read: {type(error).__name__}: {error}'
        ) from error
    nodes = [cfg._cfg_dict]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            if node.get('_scope_') == 'convnext_dense':
                del node['_scope_']
            nodes.extend(dict.values(node))  # without importing the types of new-style configs
        elif isinstance(node, (list, tuple)):
            nodes.extend(node)
    return cfg


def find_config(name: str) -> tuple[Path, str]:
    """Path of a config, and how another config names it as its base.

    Args:
        name: a path; or ``LIBRARY::FOLDER/NAME.py``, ``FOLDER/NAME`` or ``NAME`` of a recipe of
            this package or of a config of mmdet or mmseg, with or without ``.py``.

    Raises:
        ConfigError: there is none of that name, or more than one.
    """
    folders = {library: folder for library in LIBRARIES if (folder := config_folder(library))}
    path = Path(name)
    if path.is_file():
        for library, folder in folders.items():
            # In a clone of mmdet users write configs of their own: these are files as any other.
            by_name = folder.parent.name == '.mim' or library == __package__
            if by_name and folder.resolve() in path.resolve().parents:
                within = path.resolve().relative_to(folder.resolve())
                return path, f'{library}::{within.as_posix()}'
        return path, str(path)
    scope, _, rest = name.rpartition('::')
    if scope in LIBRARIES and scope not in folders:
        raise ConfigError(
            f'no config {name}: {scope} is not installed here. "convnext-dense doctor" says what is'
        )
    wanted = rest.removesuffix('.py') + '.py'
    configs = [
        (file, f'{library}::{file.relative_to(folder).as_posix()}')
        for library, folder in folders.items()
        if scope in ('', library)
        for file in sorted(folder.rglob('*.py'))
        if scope or '_base_' not in file.relative_to(folder).parts  # which are no whole configs
    ]
    matches = [
        (file, scoped)
        for file, scoped in configs
        if wanted in (scoped.partition('::')[2], '' if scope else file.name)
    ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ', '.join(scoped for _, scoped in matches)
        raise ConfigError(f'{name} may be any of {names}: use the name of the one that you mean')
    stem, known = Path(wanted).stem, sorted({file.stem for file, _ in configs})
    near = [name for name in known if name.startswith(stem)] or difflib.get_close_matches(
        stem, known
    )
    raise ConfigError(
        f'no config {name}: expected a path, the name of a recipe ("convnext-dense configs" lists '
        'them), or of a config of mmdet or mmseg, as mmdet::FOLDER/NAME.py'
        + (f'. Near to it are {", ".join(near[:5])}' if near else '')
    )


def match_recipes(pattern: str) -> list[str]:
    """Names of this package's recipes, as ``demo/*_street`` or ``coco/*-in22k*``.

    Raises:
        ConfigError: there are none.
    """
    folder = config_folder('convnext_dense') or Path()
    paths = sorted(folder.glob(pattern.removesuffix('.py') + '.py'))
    if not paths:
        raise ConfigError(f'no recipe {pattern}: "convnext-dense configs" lists them')
    return [path.relative_to(folder).with_suffix('').as_posix() for path in paths]


def config_folder(library: str) -> Path | None:
    """Where an installed library keeps its configs."""
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.origin:
        return None
    package = Path(spec.origin).parent
    folders = package / '.mim' / 'configs', package.parent / 'configs'
    return next((folder for folder in folders if folder.is_dir()), None)


teach_mmengine()
