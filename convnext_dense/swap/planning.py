"""A config -> the same config on ConvNeXt, with what was changed and why."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..architectures import ARCHITECTURES, get_architecture
from ..errors import ConfigError
from ..inference.building import build
from ..weights import PRESETS
from .editing import Absent, Change, Edits, dotted, plain
from .finding import at, find_config, find_owners, other_backbones, read_config, walk
from .measuring import Map, measure_backbone, measure_neck
from .surroundings import drop_old_weights, set_layer_decay, set_normalisation, tell_dead_names
from .wiring import bindings

OURS = 'convnext_dense.ConvNeXt'
STRIDES = (4, 8, 16, 32)
# As docs/own-data.md has them; the official recipes train three to eight times as long as most configs and have more.
DROP_PATH = dict(
    atto=0.0,
    femto=0.0,
    pico=0.0,
    nano=0.0,
    tiny=0.1,
    small=0.2,
    base=0.3,
    large=0.4,
    xlarge=0.4,
    xxlarge=0.4,
    huge=0.4,
)
NOT_FED = ('type', 'backbone', 'neck', 'data_preprocessor', 'train_cfg', 'test_cfg', 'init_cfg')
# Of an old backbone, what is more than its size: left behind, and told.
METHODS = ('dcn', 'plugins', 'stage_with_dcn', 'sac', 'gen_attention', 'stage_with_gen_attention')


class Swap(NamedTuple):
    cfg: Config
    owners: list[tuple]  # paths of the dicts whose backbone is ConvNeXt now
    changes: list[Change]
    adapters: list[str]  # what had to be put in or taken out beside the backbone, if anything
    warnings: list[str]


def swap_backbone(
    cfg: str | Path | Config,
    arch: str,
    checkpoint: str | None = None,
    output_stride: int | None = None,
    layer_decay: bool = False,
) -> Config:
    """An mmdet 3 or mmseg 1 config -> the same on ConvNeXt: backbone, widths in neck and heads, normalisation of images.

    The old backbone and neck are run on the meta device to find what they emit; ConvNeXt's maps are chosen by stride and
    every key that held an old width is set to the new one. All else is left as it is. ``plan`` also returns what changed
    and why, ``prove`` trains the result for a step, ``tools/swap_backbone.py`` does all of it and writes a config.

    Args:
        cfg: a config, its path, ``mmdet::...``, ``mmseg::...`` or the name of a config of theirs. Is not changed.
        arch: name in ``ARCHITECTURES``.
        checkpoint: preset, path or URL of pretrained weights; none: random ones.
        output_stride: 8, 16 or 32 for the deepest map; default: as the old backbone had it.
        layer_decay: set AdamW with layer-wise learning-rate decay. An AdamW that is there keeps its settings.

    Raises:
        ConfigError: not a config, no backbone, a method that cannot take another, unknown arch.
    """
    return plan(cfg, arch, checkpoint, output_stride, layer_decay).cfg


def plan(cfg, arch, checkpoint=None, output_stride=None, layer_decay=False) -> Swap:
    """As ``swap_backbone``, and what was changed and why, and what the user should know."""
    if arch not in ARCHITECTURES:
        raise ConfigError(f'unknown arch {arch!r}: expected one of {", ".join(ARCHITECTURES)}')
    preset = PRESETS.get(checkpoint)
    if preset and preset.arch != arch:
        raise ConfigError(f'the preset {checkpoint} is of arch {preset.arch}, not {arch}')
    if checkpoint and not preset and '://' not in checkpoint and not Path(checkpoint).is_file():
        raise ConfigError(
            f'no weights at {checkpoint}: expected a preset ("tools/convert_weights.py --list" has them), a path or a URL'
        )
    if not isinstance(cfg, (Config, str, Path)):
        raise ConfigError(
            f'expected a Config, a path or a name, not a {type(cfg).__name__}; Config(dict(...)) makes one of a dict'
        )
    cfg = copy.deepcopy(cfg) if isinstance(cfg, Config) else read_config(find_config(str(cfg))[0])
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    edits = Edits(cfg)
    owners = find_owners(cfg)
    for owner in owners:
        if not _is_there(at(cfg, owner)['backbone'], arch, checkpoint, output_stride):
            _swap_part(edits, owner, arch, checkpoint, output_stride)
            if checkpoint:
                set_normalisation(edits, owner, preset)
    if edits.changes:
        drop_old_weights(edits, owners)
        for path in other_backbones(cfg, owners):
            edits.warnings.append(
                f'{dotted(path)} ({at(cfg, path)["type"]}) is another network: '
                'left as it is, on images that are normalised as above where the two share them'
            )
    set_layer_decay(edits, arch, layer_decay)
    if edits.changes:
        tell_dead_names(edits, owners)
    return Swap(cfg, owners, edits.changes, edits.adapters, edits.warnings)


def allow_unused(swap: Swap, names: Sequence[str]) -> Swap:
    """For parameters that a training step does not reach, as a proof finds them: distributed training has to look for them."""
    if not names or swap.cfg.get('find_unused_parameters'):
        return swap
    swap.cfg.find_unused_parameters = True
    change = Change(
        ('find_unused_parameters',),
        Absent(),
        True,
        f'{", ".join(names)} get no gradient, which would stop distributed training',
    )
    return swap._replace(changes=[*swap.changes, change])


def _is_there(backbone, arch, checkpoint, output_stride):
    old_checkpoint = backbone.get('type') == OURS and (backbone.get('init_cfg') or {}).get(
        'checkpoint'
    )
    return (
        backbone.get('type') == OURS
        and backbone.get('arch', 'tiny') == arch
        and checkpoint in (None, old_checkpoint)
        and output_stride in (None, backbone.get('output_stride', 32))
    )


# ---- backbone, neck and heads ----


def _swap_part(edits: Edits, owner: tuple, arch, checkpoint, output_stride):
    """Choose a stage for each map that is used, then rewire neck and heads to the new widths."""
    parts = at(edits.cfg, owner)
    neck_path, neck, dims = owner + ('neck',), parts.get('neck'), get_architecture(arch).dims
    old, frozen = measure_backbone(parts['backbone'])
    strides = [one.stride for one in old]

    if len(old) > 1 and strides == sorted(
        set(strides), reverse=True
    ):  # deep to shallow, as U-Net's decoder emits them
        return _replace_decoder(edits, owner, arch, checkpoint, output_stride, old, frozen)
    if len(old) > 1 and len(set(old)) == 1:  # a plain ViT: maps of different depth, alike in size
        pyramid = measure_neck(neck, old)[0] if neck else old
        if len(set(pyramid)) > 1:
            edits.set(
                neck_path,
                None,
                'it made a pyramid of maps of one stride, and ConvNeXt emits a pyramid',
            )
            edits.adapters.append('neck that made a pyramid of ViT maps removed')
            neck, old = None, pyramid
            strides = [one.stride for one in old]
        elif len(old) <= len(STRIDES):
            strides = list(STRIDES[-len(old) :])
        else:
            raise ConfigError(
                f'{parts["backbone"]["type"]} emits {len(old)} maps alike in size; ConvNeXt has {len(STRIDES)}'
            )
    if 0 in strides:
        raise ConfigError(
            f'{parts["backbone"]["type"]} emits vectors, not maps: there is no dense prediction to swap it in'
        )

    measured, (used, old_outputs) = old, _used(edits, owner, neck, old)
    beyond = sum(stride > STRIDES[-1] for stride in strides)
    stages, own_stride = _choose_stages(strides[: len(strides) - beyond])
    output_stride = output_stride or own_stride
    emitted = sorted({stages[i] for i in used if i < len(stages)})
    if neck and len(emitted) + beyond < len(used):
        raise ConfigError(
            f'the neck reads maps at strides {strides}, of which ConvNeXt has only {STRIDES}'
        )
    new = [Map(dims[stage], min(STRIDES[stage], output_stride)) for stage in emitted]
    index = {i: emitted.index(stages[i]) for i in used if i < len(stages)}
    _set_backbone(edits, owner, arch, checkpoint, emitted, output_stride, frozen)
    given, users_neck = new, neck_path
    if beyond:
        new, index = _add_level(edits, neck_path, neck, new, {i: strides[i] for i in used})
        users_neck += (1,)
    elif isinstance(neck, list):
        users_neck += (0,)
    for i, k in index.items():
        if new[k].stride != strides[i]:
            edits.adapters.append('other stride')
            edits.warnings.append(
                f'a head or neck read a map at stride {strides[i]} and reads one at stride {new[k].stride}'
            )
    shared_head = (parts.get('roi_head') or {}).get('shared_head')
    if neck:
        _rewire(edits, at(edits.cfg, users_neck), users_neck, old, new, index, neck=True)
        _shift_levels(edits, users_neck, min(used))
        if old_outputs is None:
            return None
        old, new = old_outputs, measure_neck(at(edits.cfg, neck_path), given)[0]
        if len(old) != len(new):
            raise ConfigError(f'the neck emitted {len(old)} maps and now {len(new)}')
        _check_strides(parts, owner, [one.stride for one in old], [one.stride for one in new])
        index = {i: i for i in range(len(new))}
    elif shared_head and not list(bindings(shared_head, (), old)):
        _drop_shared_head(edits, owner, old, new)
    if not neck and index:
        _check_strides(
            parts, owner, [strides[i] for i in index], [new[k].stride for k in index.values()]
        )
    if [one.channels for one in old] != [one.channels for one in new] or any(
        i != k for i, k in index.items()
    ):
        for key in _fed(parts):
            _rewire(edits, parts[key], owner + (key,), old, new, index)
    widths = [one.channels for one in measured]
    if len(widths) > 1 and widths != [one.channels for one in given]:
        edits.warnings += [
            f'{dotted(path)} still holds the old widths: neck and heads that took them from there are set, '
            'anything else that reads it is not'
            for path, value in walk(edits.cfg.to_dict())
            if plain(value) == widths
        ]


def _add_level(edits, path, neck, maps, strides):
    """A neck before the neck that makes the map beyond ConvNeXt's last. Returns its maps, and where each of the old is."""
    width, deepest = (
        neck.get('out_channels', 256) if isinstance(neck, dict) else 256,
        max(strides.values()),
    )
    edits.set(
        path,
        [
            dict(
                type='ChannelMapper',
                in_channels=[one.channels for one in maps],
                kernel_size=1,
                out_channels=width,
                act_cfg=None,
                num_outs=len(strides),
            ),
            *(neck if isinstance(neck, list) else [neck] if neck else []),
        ],
        f'stride {deepest} is beyond ConvNeXt: one convolution of stride 2 makes the map',
    )
    edits.adapters.append(f'extra level at stride {deepest}')
    return [Map(width, stride) for stride in strides.values()], {
        i: k for k, i in enumerate(strides)
    }


def _check_strides(parts, owner, old, new):
    """Anchors and regions are placed by strides that heads are told; on maps of other strides they would be elsewhere.

    Raises:
        ConfigError: the strides have changed and a head has been told the old ones.
    """
    if old == new:
        return
    for path, value in walk(parts):
        if (
            path
            and str(path[-1]).endswith('strides')
            and value
            and not {'backbone', 'neck'} & {*path}
        ):
            raise ConfigError(
                f'{dotted(owner + path)} is {value}, but the maps at strides {old} would be at {new}: boxes would '
                'be misplaced. Leave output_stride as the old backbone has it'
            )


def _replace_decoder(edits, owner, arch, checkpoint, output_stride, old, frozen):
    """U-Net is encoder and decoder in one. In its place the head reads all of ConvNeXt's maps, resized and concatenated."""
    parts, dims = at(edits.cfg, owner), list(get_architecture(arch).dims)
    if not isinstance(parts.get('decode_head'), dict) or parts.get('neck'):
        raise ConfigError(
            f'{parts["backbone"]["type"]} emits its maps from deep to shallow; only a single decode_head '
            "without a neck can be given ConvNeXt's instead"
        )
    edits.adapters.append('decoder of the backbone replaced by concatenated maps')
    stages, deep, why = list(range(4)), 2, 'the old backbone had a decoder; ConvNeXt has not'
    output_stride = output_stride or STRIDES[-1]
    _set_backbone(edits, owner, arch, checkpoint, stages, output_stride, frozen)
    for key, value in dict(
        in_channels=dims, in_index=stages, input_transform='resize_concat'
    ).items():
        edits.set(
            owner + ('decode_head', key),
            value,
            f'{why}: the maps are resized to the first and concatenated',
        )
    auxiliary = parts.get('auxiliary_head') or []
    for i in range(len(auxiliary)) if isinstance(auxiliary, list) else [None]:
        path = owner + ('auxiliary_head',) + (() if i is None else (i,))
        for key, value in dict(in_channels=dims[deep], in_index=deep).items():
            edits.set(
                path + (key,),
                value,
                f'{why}: the auxiliary head reads stage {deep}, as in the official recipes',
            )
    edits.warnings.append(
        f'heads read maps at strides {[one.stride for one in old]} and read maps at strides '
        f'{[min(stride, output_stride) for stride in STRIDES]}: their output is coarser'
    )


def _fed(parts) -> list[str]:
    """What may be given the maps: not a second backbone."""
    return [key for key in parts if key not in NOT_FED and 'backbone' not in key]


def _choose_stages(strides: Sequence[int]) -> tuple[list[int], int]:
    """Stage for each map, and the output stride: the deepest map is the last stage's, the others go by stride."""
    output_stride = max(8, min(32, strides[-1]))
    mine = [min(stride, output_stride) for stride in STRIDES]
    stages, above = [], len(mine)
    for stride in reversed(strides):
        distances = [abs(math.log2(own / stride)) for own in mine]
        nearest = [stage for stage, distance in enumerate(distances) if distance == min(distances)]
        above = max([stage for stage in nearest if stage < above], default=nearest[0])
        stages.insert(0, above)
    return stages, output_stride


def _used(edits, owner, neck, old) -> tuple[list[int], list[Map] | None]:
    """The maps that anything reads, and what the neck makes of all.

    A map that is emitted for nothing has a norm without gradient, which stops DDP.
    """
    every = list(range(len(old)))
    if not neck:
        parts = at(edits.cfg, owner)
        found = {
            key: [i for binding in bindings(parts[key], (key,), old) for i in binding.indices]
            for key in _fed(parts)
        }
        # A head whose widths are not recognised may read any map.
        if any(
            'in_channels' in parts[key] and not found[key]
            for key in found
            if isinstance(parts[key], dict)
        ):
            return every, None
        return sorted({i for indices in found.values() for i in indices}) or every, None
    try:
        outputs, used = measure_neck(neck, old)
    except ConfigError as error:
        edits.warnings.append(
            f'{error}. What it reads and emits is taken to be all maps, as wide as before'
        )
        return every, None
    read = [i for i in every if used[i]] or every
    read = every[read[0] : read[-1] + 1]
    # Can it do without the others? NAS-FCOS's neck looks at the sizes of maps that it does not read.
    trial, kept = Edits(Config(dict(neck=copy.deepcopy(neck)))), [old[i] for i in read]
    path = ('neck', 0) if isinstance(neck, list) else ('neck',)
    _rewire(
        trial, at(trial.cfg, path), path, old, kept, {i: k for k, i in enumerate(read)}, neck=True
    )
    _shift_levels(trial, path, read[0])
    try:
        same = measure_neck(trial.cfg.neck, kept)[0] == outputs
    except ConfigError:
        same = False
    return read if same else every, outputs


def _shift_levels(edits, path, dropped):
    """Levels of a neck count from the first map that it is given."""
    neck = at(edits.cfg, path)
    for key in ('start_level', 'end_level'):
        if dropped and neck.get(key, 0) > 0:
            edits.set(
                path + (key,),
                neck[key] - dropped,
                'counts from the first map that is emitted; a map that is not used would have a norm without gradient',
            )


def _rewire(edits, part, path, old, new, index, neck=False):
    for key_path, indices, tail, index_path in list(bindings(part, path, old, neck)):
        value = at(edits.cfg, key_path)
        widths = [new[index[i]].channels for i in indices if i in index]
        if isinstance(value, int):
            edits.set(key_path, widths[0], 'width of the map that it is given')
        else:
            edits.set(
                key_path, type(value)(widths + list(tail)), 'widths of the maps that it is given'
            )
        if index_path:
            chosen, places = at(edits.cfg, index_path), [index[i] for i in indices]
            if isinstance(chosen, int):
                places = places[0] - len(new) if chosen < 0 else places[0]
            edits.set(
                index_path, type(chosen)(places), 'place of the map among those that are emitted'
            )


def _drop_shared_head(edits, owner, old, new):
    """The last stage of the old backbone, which C4 models run on each region."""
    path = owner + ('roi_head', 'shared_head')
    head, side = at(edits.cfg, path), 16
    with torch.no_grad():
        output = build(head, 'meta')(torch.zeros(1, old[0].channels, side, side, device='meta'))
    edits.set(
        path,
        None,
        f'it was the last stage of the old backbone; ConvNeXt runs its own on the image, at stride {new[0].stride}',
    )
    edits.adapters.append('shared head removed')
    deep = [Map(output.shape[1], 0)]
    parts = at(edits.cfg, owner + ('roi_head',))
    for key, part in list(parts.items()):
        if isinstance(part, dict):
            _rewire(edits, part, owner + ('roi_head', key), deep, new, {0: 0})
        layer = part.get('roi_layer') if isinstance(part, dict) else None
        if layer and isinstance(layer.get('output_size'), int):
            edits.set(
                owner + ('roi_head', key, 'roi_layer', 'output_size'),
                layer['output_size'] * output.shape[2] // side,
                'the size that the shared head left',
            )


def _set_backbone(edits, owner, arch, checkpoint, stages, output_stride, frozen):
    old = at(edits.cfg, owner)['backbone']
    size = arch.rpartition('_')[2]
    new = dict(type=OURS, arch=arch, drop_path_rate=DROP_PATH[size])
    if old.get('type') == OURS:  # what the user chose stays
        if old.get('arch', 'tiny') == arch and 'drop_path_rate' in old:
            new['drop_path_rate'] = old['drop_path_rate']
        keys = ['in_channels', 'out_norm', 'frozen_stages', 'checkpointing']
        keys += ['layer_scale_init_value'] * (get_architecture(arch).generation == 1)
        new.update({key: old[key] for key in keys if key in old})
    else:
        if old.get('in_channels', 3) != 3:
            new['in_channels'] = old['in_channels']
        if old.get('with_cp'):
            new['checkpointing'] = 'block'
        if frozen:
            new['frozen_stages'] = len(STRIDES)
        left = [key for key in METHODS if old.get(key)]
        if left:
            edits.warnings.append(
                f'{", ".join(left)} were layers within {old["type"]}: they are gone with it'
            )
    if tuple(stages) != (0, 1, 2, 3):
        new['out_indices'] = tuple(stages)
    if output_stride != STRIDES[-1]:
        new['output_stride'] = output_stride
        edits.adapters.append(f'output_stride={output_stride}')
        edits.warnings.append(
            f'the deepest map stays at stride {output_stride}, where the last stages cost more than at 32: '
            '--output-stride 32 is the ordinary ConvNeXt'
        )
    if checkpoint:
        new['init_cfg'] = dict(type='Pretrained', checkpoint=checkpoint)
    why = 'this drop path is for short schedules, the official recipes have more'
    if old.get('frozen_stages', -1) >= 0 and 'frozen_stages' not in new:
        why += f'; frozen_stages={old["frozen_stages"]} is not kept, ConvNeXt is fine-tuned whole'
    edits.set(owner + ('backbone',), new, why)
    if not checkpoint:
        frozen = ', and is frozen' if new.get('frozen_stages') == len(STRIDES) else ''
        edits.warnings.append(
            f'the backbone starts from random weights{frozen}, and images keep their normalisation: name '
            'pretrained weights with checkpoint'
        )
