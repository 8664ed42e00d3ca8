"""A config -> the same config on ConvNeXt, with what was changed and why."""

import copy
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..architectures import ARCHITECTURES
from ..config_names import find_config
from ..errors import ConfigError
from ..roadmap import settings_of
from ..weights import PRESETS
from .cases import choose_case
from .config_files import name_types, read_config
from .editing import Absent, Change, Edits, KeyPath, at, dotted, plain, walk
from .measuring import STRIDES, Map
from .new_backbone import Target, is_there
from .old_backbone import find_owners, other_backbones
from .optimiser import drop_layer_decay, set_layer_decay
from .stages import measure
from .surroundings import drop_old_weights, set_normalisation, tell_dead_names


class Swap(NamedTuple):
    cfg: Config
    owners: list[KeyPath]  # of the dicts whose backbone is ConvNeXt now
    changes: list[Change]
    adapters: list[str]  # what had to be put in or taken out beside the backbone, if anything
    warnings: list[str]
    original: Config  # as it was read


def swap_backbone(
    cfg: str | Path | Config,
    arch: str | None = None,
    checkpoint: str | None = None,
    output_stride: int | None = None,
    layer_decay: bool = False,
    roadmap: str | None = None,
) -> Config:
    """An mmdet 3 or mmseg 1 config -> the same on ConvNeXt.

    The old backbone and neck are run on the meta device to find what they emit. ConvNeXt's maps are
    chosen by stride, every key that held an old width is set to the new one, and images are
    normalised as the weights expect. All else is left as it is. ``plan`` also returns what changed
    and why, ``prove`` trains the result for a step, ``convnext-dense swap`` does all of it and
    writes a config.

    Args:
        cfg: a config, its path, ``mmdet::...``, ``mmseg::...`` or the name of a config of theirs.
            Is not changed.
        arch: name in ``ARCHITECTURES``.
        checkpoint: preset, path or URL of pretrained weights; none: random ones.
        output_stride: 8, 16 or 32 for the deepest map; default: as the old backbone had it.
        layer_decay: set AdamW with layer-wise learning-rate decay. An AdamW that is there keeps its
            settings.
        roadmap: in place of all of these, a step of ``ROADMAP``.

    Raises:
        ConfigError: not a config, no backbone, a method that cannot take another, unknown arch.
    """
    return plan(cfg, arch, checkpoint, output_stride, layer_decay, roadmap).cfg


def plan(
    cfg: str | Path | Config,
    arch: str | None = None,
    checkpoint: str | None = None,
    output_stride: int | None = None,
    layer_decay: bool = False,
    roadmap: str | None = None,
) -> Swap:
    """As ``swap_backbone``, and what was changed and why, and what the user should know."""
    if roadmap:
        settings_of(roadmap)  # raises where it is none
        if arch or checkpoint or layer_decay or output_stride not in (None, STRIDES[-1]):
            raise ConfigError(
                'roadmap (--roadmap) stands alone: its steps are no ConvNeXt of an arch, and have '
                'no weights, no other output stride than 32 and no layer-wise decay'
            )
        output_stride = STRIDES[-1]
    elif arch not in ARCHITECTURES:
        raise ConfigError(f'unknown arch {arch!r}: expected one of {", ".join(ARCHITECTURES)}')
    preset = PRESETS.get(checkpoint) if checkpoint else None
    if preset and preset.arch != arch:
        raise ConfigError(f'the preset {checkpoint} is of arch {preset.arch}, not {arch}')
    if checkpoint and not preset and '://' not in checkpoint and not Path(checkpoint).is_file():
        raise ConfigError(
            f'no weights at {checkpoint}: expected a preset ("convnext-dense convert --list" has '
            'them), a path or a URL'
        )
    if not isinstance(cfg, (Config, str, Path)):
        raise ConfigError(
            f'expected a Config, a path or a name, not a {type(cfg).__name__}; Config(dict(...)) '
            'makes one of a dict'
        )
    if isinstance(cfg, Config):
        cfg = name_types(copy.deepcopy(cfg))
    else:
        cfg = read_config(find_config(str(cfg))[0])
    original, scope = copy.deepcopy(cfg), cfg.get('default_scope') or 'mmdet'
    if scope.startswith('mm') and importlib.util.find_spec(scope) is None:
        raise ConfigError(
            f'the config is one of {scope} (default_scope), which is not installed here: '
            '"convnext-dense doctor" says what is, and how to install it'
        )
    init_default_scope(scope)
    edits, owners = Edits(cfg, in_place=True), find_owners(cfg)
    target = Target(arch or '', checkpoint, output_stride, roadmap)
    for owner in owners:
        if not is_there(at(cfg, owner)['backbone'], target):
            measured = measure(at(cfg, owner))
            if measured.neck_error:
                edits.warn(
                    f'{measured.neck_error}. It is taken to read all maps and to emit the same '
                    'ones as before'
                )
            edits.take(choose_case(measured)(measured, target), owner)
            _tell_old_widths(edits, measured.maps, at(cfg, owner)['backbone'], target)
            if checkpoint:
                set_normalisation(edits, owner, preset)
    if edits.changes:
        drop_old_weights(edits, owners)
        for path in other_backbones(cfg, owners):
            edits.warn(
                f'{dotted(path)} ({at(cfg, path)["type"]}) is another network: left as it is, on '
                'images that are normalised as above where the two share them'
            )
    if arch:
        set_layer_decay(edits, arch, layer_decay)
    else:
        drop_layer_decay(edits)
    if edits.changes:
        tell_dead_names(edits, owners)
    return Swap(cfg, owners, edits.changes, edits.adapters, edits.warnings, original)


def allow_unused(swap: Swap, names: Sequence[str]) -> Swap:
    """Let distributed training look for parameters that a training step does not reach.

    Args:
        names: of these parameters, ``Proof.without_gradient``.
    """
    if not names or swap.cfg.get('find_unused_parameters'):
        return swap
    swap.cfg.find_unused_parameters = True
    why = f'{", ".join(names)} get no gradient, which would stop distributed training'
    change = Change(('find_unused_parameters',), Absent(), True, why)
    return swap._replace(changes=[*swap.changes, change])


def _tell_old_widths(edits: Edits, old: Sequence[Map], backbone: dict, target: Target) -> None:
    """Lists elsewhere in the config, from which a user's code may take the widths."""
    new = target.maps(backbone.get('out_indices', range(len(STRIDES))), STRIDES[-1])
    before, now = [channels for channels, _ in old], [channels for channels, _ in new]
    if len(before) == 1 or before == now:
        return
    for path, value in walk(edits.cfg.to_dict()):
        if plain(value) == before:
            edits.warn(
                f'{dotted(path)} still holds the old widths: neck and heads that took them from '
                'there are set, anything else that reads it is not'
            )
