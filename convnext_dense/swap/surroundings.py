"""What else of a config was for the old backbone: normalisation, weights, names of layers."""

from collections.abc import Iterator

from ..errors import ConfigError
from ..inference.building import build
from ..weights.presets import IMAGENET, Preset
from .config_files import OLD_CONVNEXT
from .editing import Edits, KeyPath, at, dotted, walk

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
READ = (*LOADERS, 'custom_hooks', 'tta_pipeline')  # all else is read by way of these, or not at all


def set_normalisation(edits: Edits, owner: KeyPath, preset: Preset | None) -> None:
    """The preset's mean and std, or ImageNet's, on RGB, where images were normalised before.

    That is in each data preprocessor (a detector within a tracker may have one of its own, and so
    may the tracker), or in each Normalize of the pipelines. Images that were normalised in both are
    normalised in the pipelines alone. What is for other images than RGB of 8 bits is left as it is.

    Raises:
        ConfigError: preprocessor and Normalize both normalise, but not the images of all loaders.
    """
    cfg = edits.cfg
    mean, std = (preset.mean, preset.std) if preset else IMAGENET
    above = [owner[:k] for k in range(len(owner), 0, -1)]
    paths = [path for path in above if _preprocessor(cfg, path)] or [()]
    paths = [(*path, 'data_preprocessor') for path in paths if _preprocessor(cfg, path)]
    # one preprocessor for several branches has another within
    paths = [(*path, 'data_preprocessor') if _preprocessor(cfg, path) else path for path in paths]
    steps = list(_normalising_steps(cfg))
    has_loaders = any(cfg.get(key) for key in LOADERS)
    if steps and has_loaders and not any(step[0] in READ for step in steps):
        edits.warn(f'{_where(steps)} is left as it is: no dataloader reads it')
        steps = []
    if not paths and not steps:
        edits.warn(
            'the model has no data_preprocessor, and the pipelines have no Normalize: images come '
            f'as the pipelines leave them; ConvNeXt expects RGB less {list(mean)} over {list(std)}'
        )
    imagenet = "ImageNet's, in RGB, as ConvNeXt's weights expect"
    why = 'what the weights were trained with' if preset else imagenet
    bands, places = at(cfg, owner)['backbone'].get('in_channels', 3), steps or paths
    for path in places:
        old = at(cfg, path).get('mean')
        if bands != 3 or (old and not _is_8_bit_rgb(old)) or _is_of_albumentations(cfg, path):
            edits.warn(
                f'{dotted(path)} is for other images than RGB of 8 bits, or in other units '
                f'({bands} bands, mean {old}): left as it is'
            )
            places = []
    if places and steps:
        _normalise_in_pipelines(edits, paths, steps)
    for path in places:
        node = at(cfg, path)
        images = len(node.get('mean') or mean) // 3  # that are stacked
        edits.update(path, why, mean=list(mean) * images, std=list(std) * images)
        if images > 1:
            edits.warn(
                f'{dotted(path)}: the colours of {images} stacked images are not reordered, so the '
                'pipeline has to load them as RGB'
            )
            continue
        edits.set((*path, 'to_rgb' if steps or 'to_rgb' in node else 'bgr_to_rgb'), True, why)
        if node.get('rgb_to_bgr'):
            edits.set((*path, 'rgb_to_bgr'), False, why)


def _normalise_in_pipelines(edits: Edits, paths: list[KeyPath], steps: list[KeyPath]) -> None:
    """Leave normalising and the order of colours to the pipelines' steps.

    Args:
        paths: of the data preprocessors.
        steps: of the pipelines' normalising steps.
    """
    cfg = edits.cfg
    loaders = [key for key in LOADERS if cfg.get(key)]
    without = [key for key in loaders if not any(step[0] == key for step in steps)]
    twice = [path for path in paths if not _does_nothing(at(cfg, path))]
    where = _where(steps)
    if without and twice:
        raise ConfigError(
            f'images are normalised by {where} and again by {dotted(twice[0])}, but those of '
            f'{", ".join(without)} by the latter alone. Remove one of the two from the config: '
            'nobody can tell which one is meant'
        )
    if without:
        edits.warn(f'images of {", ".join(without)} are not normalised: {where} alone normalises')
    if twice:
        edits.warn(
            f'images were normalised twice, by {where} and by {dotted(twice[0])}: once now, by '
            'Normalize'
        )
    for path in paths:
        node, why = at(cfg, path), 'Normalize in the pipelines normalises and orders the colours'
        for key in ('mean', 'std', 'bgr_to_rgb', 'rgb_to_bgr', 'to_rgb'):
            if path in twice and key in ('mean', 'std'):
                edits.set((*path, key), None, why)
            elif node.get(key) is True:
                edits.set((*path, key), False, why)


def _where(steps: list[KeyPath]) -> str:
    return f'Normalize of {", ".join(dict.fromkeys(step[0] for step in steps))}'


def _normalising_steps(cfg) -> Iterator[KeyPath]:
    for path, node in walk(cfg._cfg_dict):
        if isinstance(node, dict) and str(node.get('type')).rpartition('.')[2] == 'Normalize':
            yield path


def _does_nothing(preprocessor: dict) -> bool:
    """Whether it subtracts 0 and divides by 1, or neither."""
    mean, std = preprocessor.get('mean'), preprocessor.get('std')
    return not mean or (not any(mean) and all(value == 1 for value in std or ()))


def _is_of_albumentations(cfg, path: KeyPath) -> bool:
    """Whether a step is one of albumentations, whose values are fractions of 255."""
    nodes = [at(cfg, path[:k]) for k in range(1, len(path))]
    return any(isinstance(node, dict) and node.get('type') == 'Albu' for node in nodes)


def _preprocessor(cfg, path: KeyPath) -> bool:
    """Whether the dict at ``path`` has a data preprocessor."""
    return isinstance(at(cfg, path).get('data_preprocessor'), dict)


def _is_8_bit_rgb(mean) -> bool:
    """Of one image, or of several that are stacked."""
    return len(mean) % 3 == 0 and (not any(mean) or 1 < max(mean) <= 255)


def drop_old_weights(edits: Edits, owners: list[KeyPath]) -> None:
    """Remove weights of models with the old backbone, and the import that only it needed."""
    cfg = edits.cfg
    for path in (owner[:k] for owner in owners for k in range(1, len(owner) + 1)):
        node = at(cfg, path)
        if node.get('pretrained'):
            edits.set((*path, 'pretrained'), None, 'weights of the old backbone')
        inits = node.get('init_cfg') or []
        inits = inits if isinstance(inits, list) else [inits]
        kept = [init for init in inits if init.get('type') != 'Pretrained']
        if kept != inits:
            why = 'weights of a model with the old backbone'
            edits.set((*path, 'init_cfg'), kept or None, why)
    if cfg.get('resume'):
        edits.set(('resume',), False, 'it would look for a checkpoint of the old backbone')
    if cfg.get('work_dir'):
        edits.warn(
            f'work_dir is {cfg.work_dir}, as before: name another one, or logs and checkpoints of '
            'both mix'
        )
    if cfg.get('load_from'):
        why = 'a model with the old backbone: MMEngine would load what happens to fit, silently'
        edits.set(('load_from',), None, why)
    names = (cfg.get('custom_imports') or {}).get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    kept = [name for name in names if name.split('.')[0] not in OLD_CONVNEXT]
    rest = str({key: value for key, value in cfg.items() if key != 'custom_imports'})
    needed = cfg.get('default_scope') in OLD_CONVNEXT or any(
        f"'{library}." in rest for library in OLD_CONVNEXT
    )
    if kept != names and not needed:
        edits.set(('custom_imports', 'imports'), kept, 'only the old backbone came from there')


def tell_dead_names(edits: Edits, owners: list[KeyPath]) -> None:
    """Tell which layers of the old backbone are named by hooks, optimisers and the like."""
    backbone = build(at(edits.cfg, owners[0])['backbone'], 'meta')
    names = tuple(name for name, _ in backbone.named_parameters())
    dead: dict[str, list[str]] = {}
    for path, value in walk(edits.cfg.to_dict()):
        for text in (*path[-1:], value):
            if not isinstance(text, str) or 'backbone.' not in text:
                continue
            layer = text.rpartition('backbone.')[2]
            if not any(name.startswith(layer) for name in names):
                dead.setdefault(dotted(path[:-1]), []).append(text)
    for where, texts in dead.items():
        more = ' ...' if len(texts) > 3 else ''
        edits.warn(f'{where} names what ConvNeXt has not: {", ".join(texts[:3])}{more}')
