"""Models that need more than new widths: plain ViTs, C4, U-Net, and levels beyond stride 32."""

from collections.abc import Sequence

import torch

from ..errors import ConfigError
from ..inference.building import build
from .editing import Edits, KeyPath, at
from .measuring import STRIDES, Map, measure_neck
from .new_backbone import Target, set_backbone
from .rewiring import Exchange, rewire
from .widths import find_widths


def as_pyramid(edits: Edits, owner: KeyPath, maps: list[Map]) -> list[Map]:
    """The maps with the strides at which ConvNeXt is to replace them.

    The maps of a plain ViT are alike in size. A neck that makes a pyramid of them goes, and the
    maps of the pyramid are replaced. Without such a neck ConvNeXt's deepest maps replace them:

        (384, 16), (384, 16), (384, 16)   ->   (384, 8), (384, 16), (384, 32)
    """
    if len(maps) < 2 or len(set(maps)) > 1:
        return maps
    part = at(edits.cfg, owner)
    pyramid = measure_neck(part['neck'], maps)[0] if part.get('neck') else maps
    if len(set(pyramid)) > 1:
        why = 'it made a pyramid of maps of one stride, and ConvNeXt emits a pyramid'
        edits.set((*owner, 'neck'), None, why)
        edits.adapters.append('neck that made a pyramid of ViT maps removed')
        return pyramid
    if len(maps) > len(STRIDES):
        raise ConfigError(
            f'{part["backbone"]["type"]} emits {len(maps)} maps alike in size; '
            f'ConvNeXt has {len(STRIDES)}'
        )
    return [Map(m.channels, stride) for m, stride in zip(maps, STRIDES[-len(maps) :])]


def add_levels(
    edits: Edits, owner: KeyPath, old: Sequence[Map], read: list[int], new: list[Map]
) -> Exchange:
    """Put a neck before the neck, which makes the maps beyond ConvNeXt's last of its last."""
    neck = at(edits.cfg, owner).get('neck')
    width = neck.get('out_channels', 256) if isinstance(neck, dict) else 256
    strides = [old[i].stride for i in read]
    mapper = dict(
        type='ChannelMapper',
        in_channels=[channels for channels, _ in new],
        kernel_size=1,
        out_channels=width,
        act_cfg=None,
        num_outs=len(strides),
    )
    necks = neck if isinstance(neck, list) else [neck] if neck else []
    why = f'stride {max(strides)} is beyond ConvNeXt: one convolution of stride 2 makes the map'
    edits.set((*owner, 'neck'), [mapper, *necks], why)
    edits.adapters.append(f'extra level at stride {max(strides)}')
    maps = [Map(width, stride) for stride in strides]
    return Exchange(old, maps, {i: k for k, i in enumerate(read)})


def is_decoder(maps: Sequence[Map]) -> bool:
    """Whether maps come from deep to shallow, as U-Net's decoder emits them."""
    strides = [stride for _, stride in maps]
    return len(strides) > 1 and strides == sorted(set(strides), reverse=True)


def replace_decoder(
    edits: Edits, owner: KeyPath, target: Target, maps: list[Map], frozen: bool
) -> None:
    """Swap a backbone that is encoder and decoder in one, such as U-Net.

    The head reads all of ConvNeXt's maps instead, resized and concatenated.

    Raises:
        ConfigError: there is more than one head, or a neck.
    """
    part = at(edits.cfg, owner)
    if not isinstance(part.get('decode_head'), dict) or part.get('neck'):
        raise ConfigError(
            f'{part["backbone"]["type"]} emits its maps from deep to shallow; only a single '
            "decode_head without a neck can be given ConvNeXt's instead"
        )
    edits.adapters.append('decoder of the backbone replaced by concatenated maps')
    stages, output_stride = [0, 1, 2, 3], target.output_stride or STRIDES[-1]
    new = target.maps(stages, output_stride)
    dims, strides = [channels for channels, _ in new], [stride for _, stride in new]
    set_backbone(edits, owner, target, stages, output_stride, frozen)
    edits.update(
        (*owner, 'decode_head'),
        'the old backbone had a decoder; ConvNeXt has not: the maps are resized to the first and '
        'concatenated',
        in_channels=dims,
        in_index=stages,
        input_transform='resize_concat',
    )
    path, auxiliary = (*owner, 'auxiliary_head'), part.get('auxiliary_head') or []
    paths = [(*path, i) for i in range(len(auxiliary))] if isinstance(auxiliary, list) else [path]
    for path in paths:
        why = 'the auxiliary head reads the third stage, as in the official recipes'
        edits.update(path, why, in_channels=dims[2], in_index=2)
    edits.warn(
        f'heads read maps at strides {[stride for _, stride in maps]} before and at strides '
        f'{strides} now: their output is coarser'
    )


def drop_shared_head(edits: Edits, owner: KeyPath, exchange: Exchange) -> None:
    """Remove the last stage of the old backbone, which C4 models run on each region.

    ConvNeXt runs its own last stage on the image, so regions are cut out at the size that the
    shared head left. A shared head that is told the widths of its maps can stay.
    """
    old, new, _ = exchange
    regions = at(edits.cfg, owner).get('roi_head') or {}
    shared, side = regions.get('shared_head'), 16
    if not shared or list(find_widths(shared, (), old)):
        return
    with torch.no_grad():
        region = torch.zeros(1, old[0].channels, side, side, device='meta')
        _, channels, left, _ = build(shared, 'meta')(region).shape
    path = (*owner, 'roi_head')
    why = (
        'it was the last stage of the old backbone; ConvNeXt runs its own on the image, at stride '
        f'{new[0].stride}'
    )
    edits.set((*path, 'shared_head'), None, why)
    edits.adapters.append('shared head removed')
    for key, part in list(regions.items()):
        if not isinstance(part, dict):
            continue
        rewire(edits, (*path, key), Exchange([Map(channels, 0)], new, {0: 0}))
        layer = part.get('roi_layer')
        if layer and isinstance(layer.get('output_size'), int):
            size = layer['output_size'] * left // side
            why = 'the size that the shared head left'
            edits.set((*path, key, 'roi_layer', 'output_size'), size, why)
