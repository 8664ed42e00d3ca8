"""What else of a config was for the old backbone: normalisation, weights, names of layers."""

from ..inference.building import build
from ..weights.presets import IMAGENET, Preset
from .config_files import OLD_CONVNEXT
from .editing import Edits, KeyPath, at, dotted, walk


def set_normalisation(edits: Edits, owner: KeyPath, preset: Preset | None) -> None:
    """The preset's mean and std, or ImageNet's, on RGB, in each data preprocessor.

    A detector within a tracker may have one of its own, and so may the tracker. Preprocessors of
    other images than RGB of 8 bits are left as they are.
    """
    cfg = edits.cfg
    mean, std = (preset.mean, preset.std) if preset else IMAGENET
    above = [owner[:k] for k in range(len(owner), 0, -1)]
    paths = [path for path in above if _preprocessor(cfg, path)] or [()]
    paths = [(*path, 'data_preprocessor') for path in paths if _preprocessor(cfg, path)]
    if not paths:
        edits.warn(
            'the model has no data_preprocessor: images come as the pipeline leaves them; ConvNeXt '
            f'expects RGB less {list(mean)} over {list(std)}'
        )
    imagenet = "ImageNet's, in RGB, as ConvNeXt's weights expect"
    why = 'what the weights were trained with' if preset else imagenet
    for path in paths:
        if _preprocessor(cfg, path):  # one preprocessor for several branches
            path = (*path, 'data_preprocessor')
        node = at(cfg, path)
        bands, old = at(cfg, owner)['backbone'].get('in_channels', 3), node.get('mean')
        if bands != 3 or (old and not _is_8_bit_rgb(old)):
            edits.warn(
                f'{dotted(path)} is for other images than RGB of 8 bits ({bands} bands, mean '
                f'{old}): left as it is'
            )
            continue
        edits.update(path, why, mean=list(mean), std=list(std))
        edits.set((*path, 'to_rgb' if 'to_rgb' in node else 'bgr_to_rgb'), True, why)
        if node.get('rgb_to_bgr'):
            edits.set((*path, 'rgb_to_bgr'), False, why)
    if "'Normalize'" in str(cfg.get('train_dataloader')):
        edits.warn(
            'a Normalize in the pipeline is left as it is; the data_preprocessor normalises already'
        )


def _preprocessor(cfg, path: KeyPath) -> bool:
    """Whether the dict at ``path`` has a data preprocessor."""
    return isinstance(at(cfg, path).get('data_preprocessor'), dict)


def _is_8_bit_rgb(mean) -> bool:
    return len(mean) == 3 and (not any(mean) or 1 < max(mean) <= 255)


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
