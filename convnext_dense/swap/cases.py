"""The changes that put ConvNeXt into a model, by the kind of the model.

``choose_case`` picks one of five functions. Each takes what was measured of the model and the
ConvNeXt that is wanted, and returns the changes; it changes neither.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch

from ..errors import ConfigError
from ..inference.building import build
from .editing import Edits, KeyPath, at
from .measuring import STRIDES, Emitted, Map, measure_neck, of_mmdet
from .new_backbone import Target, set_backbone
from .rewiring import Exchange, check_strides, heads, rewire, rewire_heads, rewire_neck
from .stages import Measured, choose_stages, measure
from .widths import find_widths

Case = Callable[[Measured, Target], Edits]


def choose_case(measured: Measured) -> Case:
    """The function for a model.

    Raises:
        ConfigError: its backbone emits vectors.
    """
    if _is_decoder(measured.maps):
        return replace_decoder
    if _is_plain_vit(measured):
        return replace_plain_vit
    if any(stride == 0 for _, stride in measured.maps):
        raise ConfigError(
            f'{measured.backbone} emits vectors, not maps: there is no dense prediction to swap it '
            'in'
        )
    if measured.tensor and measured.part.get('neck'):
        raise ConfigError(
            f'{measured.backbone} emits one tensor, which its neck takes as it is; ConvNeXt emits '
            'a tuple of maps. Give the config a neck that takes a tuple, such as FPN'
        )
    if measured.beyond:
        return replace_levels_beyond_32
    return replace_c4 if _untold_shared_heads(measured) else replace_ordinary


def replace_ordinary(measured: Measured, target: Target) -> Edits:
    """The neck is rewired by an ``Exchange`` of the backbone's maps, the heads by one of the neck's
    outputs; without a neck the heads are rewired by that of the backbone's maps."""
    edits = Edits(measured.part)
    exchange = _replace_backbone(edits, measured, target)
    neck = measured.part.get('neck')
    if neck:
        path = ('neck', 0) if isinstance(neck, list) else ('neck',)
        _follow_neck(edits, measured, path, exchange, exchange.new)
    else:
        rewire_heads(edits, exchange)
    return edits


def replace_levels_beyond_32(measured: Measured, target: Target) -> Edits:
    """A neck before the neck makes the maps beyond ConvNeXt's last of its last."""
    edits = Edits(measured.part)
    given = _replace_backbone(edits, measured, target).new
    neck, old, read = measured.part.get('neck'), measured.maps, measured.read
    width = neck.get('out_channels', 256) if isinstance(neck, dict) else 256
    strides = [old[i].stride for i in read]
    mapper = dict(
        type=of_mmdet('ChannelMapper'),
        in_channels=[channels for channels, _ in given],
        kernel_size=1,
        out_channels=width,
        act_cfg=None,
        num_outs=len(strides),
    )
    necks = neck if isinstance(neck, list) else [neck] if neck else []
    why = f'stride {max(strides)} is beyond ConvNeXt: one convolution of stride 2 makes the map'
    edits.set(('neck',), [mapper, *necks], why)
    edits.adapters.append(f'extra level at stride {max(strides)}')
    maps = measure_neck(mapper, given)[0]
    exchange = Exchange(old, maps, {i: k for k, i in enumerate(read)})
    _tell_other_strides(edits, exchange)
    if neck:
        _follow_neck(edits, measured, ('neck', 1), exchange, given)
    else:
        rewire_heads(edits, exchange)
    return edits


def replace_plain_vit(measured: Measured, target: Target) -> Edits:
    """The maps of a plain ViT are alike in size, or there is only one. A neck that makes a pyramid
    of them goes, and the maps of the pyramid are replaced; an FPN takes its place where the heads
    take maps of one width. Without such a neck ConvNeXt's deepest maps replace them:

        (384, 16), (384, 16), (384, 16)   ->   (384, 8), (384, 16), (384, 32)
    """
    edits, maps = Edits(measured.part), measured.maps
    neck = measured.part.get('neck')
    pyramid = measure_neck(neck, maps, measured.tensor)[0] if neck else maps
    if len({*pyramid}) > 1:
        why = 'it made a pyramid of maps of one stride, and ConvNeXt emits a pyramid'
        if _take_one_width(measured.part, pyramid):
            return _replace_pyramid_by_fpn(edits, measured._replace(maps=pyramid), target, why)
        edits.set(('neck',), None, why)
        edits.adapters.append('neck that made a pyramid of ViT maps removed')
    elif len(maps) > len(STRIDES):
        raise ConfigError(
            f'{measured.backbone} emits {len(maps)} maps alike in size; ConvNeXt has {len(STRIDES)}'
        )
    else:
        pyramid = [Map(m.channels, stride) for m, stride in zip(maps, STRIDES[-len(maps) :])]
        exchange = Exchange(maps, pyramid, {i: i for i in range(len(maps))})
        check_strides(measured.part, exchange)
        _tell_other_strides(edits, exchange)
    if edits.cfg.get('neck'):
        as_pyramid = measured._replace(maps=pyramid)
    else:
        as_pyramid = measure(edits.cfg, Emitted(pyramid, measured.frozen))
    edits.take(choose_case(as_pyramid)(as_pyramid, target))
    return edits


def replace_decoder(measured: Measured, target: Target) -> Edits:
    """A backbone that is encoder and decoder in one, such as U-Net: the head reads all of
    ConvNeXt's maps instead, resized and concatenated.

    Raises:
        ConfigError: there is more than one head, or a neck.
    """
    edits, part = Edits(measured.part), measured.part
    if not isinstance(part.get('decode_head'), dict) or part.get('neck'):
        raise ConfigError(
            f'{measured.backbone} emits its maps from deep to shallow; only a single decode_head '
            "without a neck can be given ConvNeXt's instead"
        )
    edits.adapters.append('decoder of the backbone replaced by concatenated maps')
    stages, output_stride = [0, 1, 2, 3], target.output_stride or STRIDES[-1]
    new = target.maps(stages, output_stride)
    dims, strides = [channels for channels, _ in new], [stride for _, stride in new]
    set_backbone(edits, target, stages, output_stride, measured.frozen)
    edits.update(
        ('decode_head',),
        'the old backbone had a decoder; ConvNeXt has not: the maps are resized to the first and '
        'concatenated',
        in_channels=dims,
        in_index=stages,
        input_transform='resize_concat',
    )
    auxiliary = part.get('auxiliary_head') or []
    paths: list[KeyPath] = [('auxiliary_head',)]
    if isinstance(auxiliary, list):
        paths = [('auxiliary_head', i) for i in range(len(auxiliary))]
    for path in paths:
        why = 'the auxiliary head reads the third stage, as in the official recipes'
        edits.update(path, why, in_channels=dims[2], in_index=2)
    edits.warn(
        f'heads read maps at strides {[stride for _, stride in measured.maps]} before and at '
        f'strides {strides} now: their output is coarser'
    )
    return edits


def replace_c4(measured: Measured, target: Target) -> Edits:
    """C4 models run the last stage of the old backbone on each region. It goes: ConvNeXt runs its
    own last stage on the image, and regions are cut out at the size that the shared head left."""
    edits = Edits(measured.part)
    exchange = _replace_backbone(edits, measured, target)
    for path in _untold_shared_heads(measured):
        _drop_shared_head(edits, path, exchange)
    edits.adapters.append('shared head removed')
    rewire_heads(edits, exchange)
    return edits


# ---- steps of these ----


def _replace_pyramid_by_fpn(edits: Edits, measured: Measured, target: Target, why: str) -> Edits:
    """An FPN makes the levels of the pyramid, ``measured.maps``, of ConvNeXt's maps."""
    pyramid, neck = measured.maps, measured.part['neck']
    levels = [i for i, (_, stride) in enumerate(pyramid) if stride <= STRIDES[-1]]
    given = _replace_backbone(edits, measured._replace(read=levels), target).new
    fpn = dict(
        type=of_mmdet('FPN'),
        in_channels=[channels for channels, _ in given],
        out_channels=pyramid[0].channels,
        num_outs=len(pyramid),
    )
    fpn |= {key: neck[key] for key in ('norm_cfg', 'add_extra_convs') if neck.get(key)}
    edits.set(('neck',), fpn, f'{why}; an FPN gives its maps the width that the heads take')
    edits.adapters.append('neck that made a pyramid of ViT maps replaced by an FPN')
    now = measure_neck(fpn, given)[0]
    rewire_heads(edits, Exchange(pyramid, now, {i: i for i in range(len(now))}))
    return edits


def _take_one_width(part: dict, maps: Sequence[Map]) -> bool:
    """Whether a head has a single ``in_channels`` for maps of all strides."""
    return any(
        key.path[-1] == 'in_channels' and isinstance(at(part, key.path), int) and not key.index_path
        for head in heads(part)
        for key in find_widths(part[head], (head,), maps)
    )


def _replace_backbone(edits: Edits, measured: Measured, target: Target) -> Exchange:
    """Put ConvNeXt in, and return the exchange of the maps up to its deepest stride."""
    old, read, beyond = measured.maps, measured.read, measured.beyond
    strides = [stride for _, stride in old]
    stage_of, output_stride = choose_stages(strides[: len(strides) - beyond])
    output_stride = target.output_stride or output_stride
    replaced = {i: stage_of[i] for i in read if i < len(stage_of)}
    stages = sorted({*replaced.values()})
    if measured.part.get('neck') and len(stages) + beyond < len(read):
        raise ConfigError(
            f'the neck reads maps at strides {strides}, of which ConvNeXt has only {STRIDES}'
        )
    set_backbone(edits, target, stages, output_stride, measured.frozen)
    new = target.maps(stages, output_stride)
    exchange = Exchange(old, new, {i: stages.index(stage) for i, stage in replaced.items()})
    if not beyond:
        _tell_other_strides(edits, exchange)
    return exchange


def _follow_neck(
    edits: Edits, measured: Measured, path: KeyPath, exchange: Exchange, given: Sequence[Map]
) -> None:
    """Rewire the neck at ``path``, and the heads by what all necks make of the maps ``given``.

    A neck that could not be run is taken to emit the same maps as before.
    """
    outputs, reasons = measured.outputs, []
    for rounding, alike in itertools.product((math.floor, math.ceil), (False, True)):
        trial = Edits(edits.cfg)
        rewire_neck(trial, path, exchange, rounding)
        if alike and not _emit_widths_as_given(trial, path, at(edits.cfg, path)):
            continue
        try:
            now = measure_neck(trial.cfg['neck'], given)[0] if outputs else []
        except ConfigError as error:
            reasons.append(error)
            continue
        edits.take(trial)
        break
    else:
        factor = at(edits.cfg, path).get('widen_factor') or 1
        if factor == 1:
            raise reasons[0]
        raise ConfigError(
            f'the neck multiplies its in_channels by widen_factor={factor} and rounds them, and '
            f'runs on no maps of {[channels for channels, _ in given]} channels: choose another '
            f"arch, or state the neck's widths as they are, with widen_factor=1. {reasons[0]}"
        )
    if outputs is None:
        check_strides(edits.cfg, exchange)
        return
    if len(outputs) != len(now):
        raise ConfigError(f'the neck emitted {len(outputs)} maps and now {len(now)}')
    places = {i: i for i in range(len(now))}
    rewire_heads(edits, Exchange(outputs, now, places), measured.images)


def _emit_widths_as_given(trial: Edits, path: KeyPath, before: dict) -> bool:
    """Give a neck that emitted maps as wide as those that it was given new ones of that kind, too.

    Some necks (YOLOv8's) add a map that they are given to one that they emit.

    Returns:
        Whether it was such a neck.
    """
    if not before.get('in_channels') or before['in_channels'] != before.get('out_channels'):
        return False
    why = 'the neck emits maps as wide as those that it is given, as before'
    trial.set((*path, 'out_channels'), at(trial.cfg, path)['in_channels'], why)
    return True


def _tell_other_strides(edits: Edits, exchange: Exchange) -> None:
    for i, k in exchange.places.items():
        before, now = exchange.old[i].stride, exchange.new[k].stride
        if before != now:
            edits.adapters.append('other stride')
            edits.warn(
                f'a head or neck read a map at stride {before} and reads one at stride {now}'
            )


def _is_plain_vit(measured: Measured) -> bool:
    """Whether maps are alike in size, or one from which the neck makes finer and coarser ones."""
    maps, outputs = measured.maps, measured.outputs or []
    if len(maps) > 1:
        return len({*maps}) == 1
    strides = {stride for _, stride in outputs}
    return len(strides) > 1 and min(strides) < maps[0].stride


def _is_decoder(maps: Sequence[Map]) -> bool:
    """Whether maps come from deep to shallow, as U-Net's decoder emits them."""
    strides = [stride for _, stride in maps]
    return len(strides) > 1 and strides == sorted(set(strides), reverse=True)


def _untold_shared_heads(measured: Measured) -> list[KeyPath]:
    """Paths of the RoI heads whose shared head is not told the widths of its maps. Others stay."""
    regions = measured.part.get('roi_head') or {}
    paths: list[KeyPath] = [('roi_head',)] if regions else []
    if isinstance(regions, list):
        paths = [('roi_head', i) for i in range(len(regions))]
    untold = []
    for path in [] if measured.part.get('neck') else paths:
        shared = at(measured.part, path).get('shared_head')
        if shared and not list(find_widths(shared, (), measured.maps)):
            untold.append(path)
    return untold


def _drop_shared_head(edits: Edits, path: KeyPath, exchange: Exchange) -> None:
    """Remove the shared head of the RoI head at ``path``, and give the others what it was given."""
    regions, (old, new, _), side = at(edits.cfg, path), exchange, 16
    with torch.no_grad():
        region = torch.zeros(1, old[0].channels, side, side, device='meta')
        _, channels, left, _ = build(regions['shared_head'], 'meta')(region).shape
    why = (
        'it was the last stage of the old backbone; ConvNeXt runs its own on the image, at stride '
        f'{new[0].stride}'
    )
    edits.set((*path, 'shared_head'), None, why)
    for key, part in list(regions.items()):
        if not isinstance(part, dict):
            continue
        rewire(edits, (*path, key), Exchange([Map(channels, 0)], new, {0: 0}))
        layer = part.get('roi_layer')
        if layer and isinstance(layer.get('output_size'), int):
            size = layer['output_size'] * left // side
            why = 'the size that the shared head left'
            edits.set((*path, key, 'roi_layer', 'output_size'), size, why)
