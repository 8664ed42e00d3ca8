"""Layer-wise learning-rate decay in a swapped config."""

from typing import Any

from ..architectures import get_architecture
from ..errors import ConfigError
from ..inference.building import build
from ..layer_decay import default_num_layers
from .editing import Edits

CONSTRUCTOR = 'convnext_dense.LayerDecayOptimWrapperConstructor'
SEGMENTATION_DECAY = dict(
    decay_rate=0.9, decay_type='stage_wise'
)  # as the official recipes have it
DETECTION_DECAY = dict(decay_rate=0.95, decay_type='layer_wise')
OF_LAYER_DECAY = {'custom_keys', 'num_layers', 'decay_rate', 'decay_type', 'layer_decay_rate'}
WHY = 'layer-wise decay was asked for'
RATE, IMAGES = 1e-4, 16  # of AdamW, and the images a step that it is for


def set_layer_decay(edits: Edits, arch: str, wanted: bool) -> None:
    """Set AdamW with layer-wise decay if it is wanted and not there.

    A number of layers that is there follows the depths of ``arch`` in any case.

    Raises:
        ConfigError: it is wanted, and the config has no optimiser or a model that cannot be built.
    """
    optim = edits.cfg.get('optim_wrapper') or {}
    kind = (optim.get('optimizer') or {}).get('type')
    if not wanted or optim.get('constructor') == CONSTRUCTOR:
        if edits.changes:
            _follow_depths(edits, optim, arch)
            if kind and not str(kind).startswith('Adam'):
                edits.warn(
                    f'{kind} is kept; ConvNeXt is trained with AdamW and layer-wise decay: '
                    '--layer-decay'
                )
        return
    if not kind:
        raise ConfigError('layer_decay needs a config with optim_wrapper.optimizer')
    path = ('optim_wrapper', 'optimizer')
    if kind != 'AdamW':
        adamw = dict(type='AdamW', lr=RATE, betas=(0.9, 0.999), weight_decay=0.05)
        edits.set(path, adamw, f'{WHY}; {_rates(edits.cfg)}')
        if (edits.cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
            why = 'the images a step that the new rate is for'
            edits.set(('auto_scale_lr', 'base_batch_size'), IMAGES, why)
        _end_at_zero(edits)
    for key, default in dict(lr=1e-3, weight_decay=1e-2).items():
        if key not in edits.cfg.optim_wrapper.optimizer:
            why = "torch's default, which layer-wise decay has to know"
            edits.set((*path, key), default, why)
    edits.set(('optim_wrapper', 'constructor'), CONSTRUCTOR, WHY)
    _set_decay(edits, optim.get('paramwise_cfg') or {})


def drop_layer_decay(edits: Edits) -> None:
    """Train without layer-wise decay: it tells layers by names that other backbones do not have."""
    optim = edits.cfg.get('optim_wrapper') or {}
    kind = str((optim.get('optimizer') or {}).get('type', ''))
    if edits.changes and kind and not kind.startswith('Adam'):
        edits.warn(f'{kind} is kept; the steps of the roadmap were published with AdamW')
    old = optim.get('paramwise_cfg') or {}
    if OF_LAYER_DECAY.isdisjoint({*old} - {'custom_keys'}):
        return
    why = "layer-wise decay knows ConvNeXt's layers alone"
    edits.set(('optim_wrapper', 'constructor'), 'DefaultOptimWrapperConstructor', why)
    kept = {key: value for key, value in old.items() if key not in OF_LAYER_DECAY - {'custom_keys'}}
    edits.set(('optim_wrapper', 'paramwise_cfg'), kept or None, why)


def _rates(cfg) -> str:
    """The rate for the batch sizes that the config makes on one GPU and on eight.

    AdamW's goes about with the square root of the batch size.
    """
    batch = (cfg.get('train_dataloader') or {}).get('batch_size')
    text = f'the rate is for {IMAGES} images a step, and you change it for other numbers'
    if not isinstance(batch, int):
        return f'{text}: with the square root of it'
    rates = [f'{RATE * (batch * gpus / IMAGES) ** 0.5:.2g}' for gpus in (1, 8)]
    return f'{text}; with {batch} on a GPU to about {rates[0]} (one GPU) or {rates[1]} (eight)'


def _follow_depths(edits: Edits, optim: dict, arch: str) -> None:
    if 'num_layers' in (optim.get('paramwise_cfg') or {}):
        layers = default_num_layers(get_architecture(arch).depths)
        path = ('optim_wrapper', 'paramwise_cfg', 'num_layers')
        edits.set(path, layers, f'what the depths of {arch} imply')


def _end_at_zero(edits: Edits) -> None:
    """Schedules that end at a rate above zero: the end was for the old optimiser's larger rates."""
    schedulers, path = edits.cfg.get('param_scheduler') or [], ('param_scheduler',)
    several = isinstance(schedulers, list)
    for i, scheduler in enumerate(schedulers if several else [schedulers]):
        if scheduler.get('eta_min'):
            place = (*path, i, 'eta_min') if several else (*path, 'eta_min')
            edits.set(place, 0.0, 'an end for the old rate, which was larger')


def _set_decay(edits: Edits, old: dict) -> None:
    """Replace ``paramwise_cfg``, and keep its multipliers for the heads' parameters."""
    segments = edits.cfg.get('default_scope') == 'mmseg'
    decay: dict[str, Any] = dict(SEGMENTATION_DECAY if segments else DETECTION_DECAY)
    try:
        model = build(edits.cfg.model, 'meta')
    except Exception as error:
        raise ConfigError(f'the model cannot be built: {type(error).__name__}: {error}') from error
    names = [name for name, _ in model.named_parameters() if 'backbone' not in name]
    old_keys = old.get('custom_keys') or {}
    kept = {key: dict(old_keys[key]) for key in old_keys if any(key in name for name in names)}
    if kept:
        decay['custom_keys'] = kept
    lost = sorted({*old} - OF_LAYER_DECAY)
    lost += [f'custom_keys[{key!r}]' for key in old_keys if key not in kept]
    if lost:
        edits.warn(
            'of paramwise_cfg these are gone, layer-wise decay has no place for them: '
            f'{", ".join(lost)}'
        )
    path = ('optim_wrapper', 'paramwise_cfg')
    edits.set(path, decay, f'{WHY}; keys of the heads are kept')
