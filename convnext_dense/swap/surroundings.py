"""What else in a config knew the old backbone: normalisation, weights, names of layers, the optimiser."""

from ..architectures import get_architecture
from ..errors import ConfigError
from ..inference.building import build
from ..layer_decay import default_num_layers
from ..weights.presets import IMAGENET
from .editing import Edits, dotted
from .finding import OLD_CONVNEXT, at, walk

SEGMENTATION_DECAY = dict(decay_rate=0.9, decay_type='stage_wise')  # the official recipes' forms
DETECTION_DECAY = dict(decay_rate=0.95, decay_type='layer_wise')


def set_normalisation(edits: Edits, owner, preset):
    """ImageNet's mean and std, or the preset's, on RGB, in every data preprocessor between the model and the backbone."""
    mean, std = (preset.mean, preset.std) if preset else IMAGENET
    paths = [owner[:k] + ('data_preprocessor',) for k in range(len(owner), 0, -1)]
    paths = [
        path
        for path in paths
        if isinstance(at(edits.cfg, path[:-1]).get('data_preprocessor'), dict)
    ] or [
        path
        for path in [('data_preprocessor',)]
        if isinstance(edits.cfg.get('data_preprocessor'), dict)
    ]
    if not paths:
        edits.warnings.append(
            'the model has no data_preprocessor: images come as the pipeline leaves them; ConvNeXt '
            f'expects RGB less {list(mean)} over {list(std)}'
        )
    for path in paths:
        if isinstance(at(edits.cfg, path).get('data_preprocessor'), dict):  # of several branches
            path += ('data_preprocessor',)
        node = at(edits.cfg, path)
        bands, old = at(edits.cfg, owner)['backbone'].get('in_channels', 3), node.get('mean')
        if bands != 3 or old and (len(old) != 3 or any(old) and not 1 < max(old) <= 255):
            edits.warnings.append(
                f'{dotted(path)} is for other images than RGB of 8 bits ({bands} bands, mean {old}): left as it is'
            )
            continue
        why = (
            'what the weights were trained with'
            if preset
            else "ImageNet's, in RGB, as ConvNeXt's weights expect"
        )
        edits.set(path + ('mean',), list(mean), why)
        edits.set(path + ('std',), list(std), why)
        edits.set(path + ('to_rgb' if 'to_rgb' in node else 'bgr_to_rgb',), True, why)
        if node.get('rgb_to_bgr'):
            edits.set(path + ('rgb_to_bgr',), False, why)
    if "'Normalize'" in str(edits.cfg.get('train_dataloader')):
        edits.warnings.append(
            'a Normalize in the pipeline is left as it is; the data_preprocessor normalises already'
        )


def drop_old_weights(edits: Edits, owners):
    """Whole-model weights, the old backbone's own keys elsewhere, imports that only it needed."""
    for owner in owners:
        for k in range(1, len(owner) + 1):
            node = at(edits.cfg, owner[:k])
            if node.get('pretrained'):
                edits.set(owner[:k] + ('pretrained',), None, 'weights of the old backbone')
            inits = node.get('init_cfg') or []
            inits = inits if isinstance(inits, list) else [inits]
            kept = [init for init in inits if init.get('type') != 'Pretrained']
            if kept != inits:
                edits.set(
                    owner[:k] + ('init_cfg',),
                    kept or None,
                    'weights of a model with the old backbone',
                )
    if edits.cfg.get('resume'):
        edits.set(('resume',), False, 'it would look for a checkpoint of the old backbone')
    if edits.cfg.get('work_dir'):
        edits.warnings.append(
            f'work_dir is {edits.cfg.work_dir}, as before: name another one, or logs and checkpoints of both mix'
        )
    if edits.cfg.get('load_from'):
        edits.set(
            ('load_from',),
            None,
            'a model with the old backbone: MMEngine would load what happens to fit, silently',
        )
    names = (edits.cfg.get('custom_imports') or {}).get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    kept = [name for name in names if name.split('.')[0] not in OLD_CONVNEXT]
    rest = {key: value for key, value in edits.cfg.items() if key != 'custom_imports'}
    needed = edits.cfg.get('default_scope') in OLD_CONVNEXT or any(
        f"'{library}." in str(rest) for library in OLD_CONVNEXT
    )
    if kept != names and not needed:
        edits.set(('custom_imports', 'imports'), kept, 'only the old backbone came from there')


def set_layer_decay(edits: Edits, arch, wanted):
    """AdamW with layer-wise decay if it is wanted; a number of layers that stands there always follows the depths."""
    optim = edits.cfg.get('optim_wrapper') or {}
    kind = (optim.get('optimizer') or {}).get('type')
    there = optim.get('constructor') == 'convnext_dense.LayerDecayOptimWrapperConstructor'
    if there or not wanted:
        if edits.changes and 'num_layers' in (optim.get('paramwise_cfg') or {}):
            edits.set(
                ('optim_wrapper', 'paramwise_cfg', 'num_layers'),
                default_num_layers(get_architecture(arch).depths),
                f'what the depths of {arch} imply',
            )
        if edits.changes and kind and not str(kind).startswith('Adam'):
            edits.warnings.append(
                f'{kind} is kept; ConvNeXt is trained with AdamW and layer-wise decay: --layer-decay'
            )
        return
    if not kind:
        raise ConfigError('layer_decay needs a config with optim_wrapper.optimizer')
    why = 'layer-wise decay was asked for'
    if kind != 'AdamW':
        edits.set(
            ('optim_wrapper', 'optimizer'),
            dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
            f'{why}; the rate is for 16 images a step',
        )
        schedulers = edits.cfg.get('param_scheduler') or []
        for i, scheduler in (
            enumerate(schedulers) if isinstance(schedulers, list) else [(None, schedulers)]
        ):
            if scheduler.get('eta_min'):
                edits.set(
                    ('param_scheduler',) + (() if i is None else (i,)) + ('eta_min',),
                    0.0,
                    'an end for the old rate, which was larger',
                )
    for key, default in dict(lr=1e-3, weight_decay=1e-2).items():
        if key not in optim.optimizer:
            edits.set(
                ('optim_wrapper', 'optimizer', key),
                default,
                "torch's default, which layer-wise decay has to know",
            )
    edits.set(
        ('optim_wrapper', 'constructor'), 'convnext_dense.LayerDecayOptimWrapperConstructor', why
    )
    decay = dict(
        SEGMENTATION_DECAY if edits.cfg.get('default_scope') == 'mmseg' else DETECTION_DECAY
    )
    old_keys = (optim.get('paramwise_cfg') or {}).get('custom_keys') or {}
    try:
        names = [
            name
            for name, _ in build(edits.cfg.model, 'meta').named_parameters()
            if 'backbone' not in name
        ]
    except Exception as error:
        raise ConfigError(f'the model cannot be built: {type(error).__name__}: {error}') from error
    custom = {
        key: dict(value) for key, value in old_keys.items() if any(key in name for name in names)
    }
    if custom:
        decay['custom_keys'] = custom
    lost = sorted(
        {*(optim.get('paramwise_cfg') or {})}
        - {'custom_keys', 'num_layers', 'decay_rate', 'decay_type', 'layer_decay_rate'}
    )
    lost += [f'custom_keys[{key!r}]' for key in old_keys if key not in custom]
    if lost:
        edits.warnings.append(
            f'of paramwise_cfg these are gone, layer-wise decay has no place for them: {", ".join(lost)}'
        )
    edits.set(('optim_wrapper', 'paramwise_cfg'), decay, f'{why}; keys of the heads are kept')


def tell_dead_names(edits: Edits, owners):
    """Layers of the old backbone that hooks, optimisers and the like name, and ConvNeXt has not."""
    names = [
        name for name, _ in build(at(edits.cfg, owners[0])['backbone'], 'meta').named_parameters()
    ]
    dead = {}
    for path, value in walk(edits.cfg.to_dict()):
        for text in (*path[-1:], value):
            if (
                isinstance(text, str)
                and 'backbone.' in text
                and not any(name.startswith(text.rpartition('backbone.')[2]) for name in names)
            ):
                dead.setdefault(dotted(path[:-1]), []).append(text)
    for path, texts in dead.items():
        edits.warnings.append(
            f'{path} names what ConvNeXt has not: {", ".join(texts[:3])}{" ..." if len(texts) > 3 else ""}'
        )
