"""New maps in place of old ones: the widths in neck and heads, and the places that name a map."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ..errors import ConfigError
from ..inference.building import build
from .editing import Edits, KeyPath, at, dotted, walk
from .measuring import Map
from .widths import find_widths

Rounding = Callable[[float], int]
# Parts of a model that are given no maps.
NOT_FED = ('type', 'backbone', 'neck', 'data_preprocessor', 'train_cfg', 'test_cfg', 'init_cfg')

# Objects of heads, no modules, that hold the strides of maps.
GENERATORS = ('prior_generator', 'anchor_generator', 'point_generator')


class Exchange(NamedTuple):
    """The maps that a neck or the heads were given, and those that they are given instead.

    A map has two numbers: ``i`` is its place among the old ones, ``k`` among the new ones. The neck
    of RetinaNet does not read the first map of its ResNet, so ConvNeXt emits three:

        i      0    1    2    3          k      0    1    2          places
        width  256  512  1024 2048       width  192  384  768        {1: 0, 2: 1, 3: 2}
    """

    old: Sequence[Map]
    new: Sequence[Map]
    places: dict[int, int]  # i of each map that is read -> k of the map that is read instead


def rewire(
    edits: Edits,
    path: KeyPath,
    exchange: Exchange,
    neck: bool = False,
    rounding: Rounding = math.floor,
) -> None:
    """Set the keys of the part at ``path`` that hold widths of old maps or name an old map.

    With the ``Exchange`` above, ``in_channels=[512, 1024, 2048]`` becomes ``[192, 384, 768]``, and
    ``in_channels=1024, in_index=2`` becomes ``in_channels=384, in_index=1``.

    Args:
        neck: whether the part is a neck.
        rounding: of widths that the part multiplies by its widen_factor. Some parts round up to a
            multiple of 8 after that, others down.
    """
    old, new, places = exchange
    width_keys = list(find_widths(at(edits.cfg, path), path, old, neck))
    for key_path, indices, tail, index_path, factor in width_keys:
        value = at(edits.cfg, key_path)
        widths = [new[places[i]].channels for i in indices if i in places]
        if factor != 1:
            widths = [rounding(width / factor) for width in widths]
        if isinstance(value, int):
            edits.set(key_path, widths[0], 'width of the map that it is given')
        else:
            widths = type(value)([*widths, *tail])
            edits.set(key_path, widths, 'widths of the maps that it is given')
        if index_path:
            chosen, named = at(edits.cfg, index_path), [places[i] for i in indices]
            if isinstance(chosen, int):
                value = named[0] - len(new) if chosen < 0 else named[0]
            else:
                value = type(chosen)(named)
            edits.set(index_path, value, 'place of the map among those that are emitted')


def rewire_neck(
    edits: Edits, path: KeyPath, exchange: Exchange, rounding: Rounding = math.floor
) -> None:
    """Rewire the neck at ``path`` and count its levels from the first map that is read."""
    rewire(edits, path, exchange, neck=True, rounding=rounding)
    neck, left_out = at(edits.cfg, path), min(exchange.places)
    for key in ('start_level', 'end_level'):
        if left_out and neck.get(key, 0) > 0:
            why = (
                'counts from the first map that is emitted; a map that is not used would have a '
                'norm without gradient'
            )
            edits.set((*path, key), neck[key] - left_out, why)


def rewire_heads(edits: Edits, exchange: Exchange, images: int = 1) -> None:
    """Rewire all heads, unless they are given maps of the same widths in the same places.

    Args:
        images: whose maps are concatenated. A head that takes them apart states the width of one.

    Raises:
        ConfigError: a head has been told the strides of its maps, and they are others now.
    """
    old, new, places = exchange
    part = edits.cfg
    check_strides(part, exchange)
    same_widths = [channels for channels, _ in old] == [channels for channels, _ in new]
    if not same_widths or any(i != k for i, k in places.items()):
        for key in heads(part):
            together = images == 1 or any(find_widths(part[key], (key,), old))
            rewire(edits, (key,), exchange if together else _of_one_image(exchange, images))


def _of_one_image(exchange: Exchange, images: int) -> Exchange:
    old, new = (
        [Map(channels // images, stride) for channels, stride in maps]
        for maps in (exchange.old, exchange.new)
    )
    return Exchange(old, new, exchange.places)


def heads(part: dict) -> list[str]:
    """Keys of what may be given the maps. A second backbone is not."""
    return [key for key in part if key not in NOT_FED and 'backbone' not in key]


def check_strides(part: dict, exchange: Exchange) -> None:
    """Heads place anchors and regions by the strides that they are told.

    Raises:
        ConfigError: strides of maps change, and a head has been told them.
    """
    before = [exchange.old[i].stride for i in exchange.places]
    now = [exchange.new[k].stride for k in exchange.places.values()]
    if before == now:
        return
    for place, value in _told_strides(part):
        raise ConfigError(
            f'{place} is {value}, but the maps at strides {before} would be at {now}: boxes would '
            'be misplaced. Leave output_stride out, and it stays as the old backbone has it; where '
            'it is left out, ConvNeXt has no maps at these strides'
        )


def _told_strides(part: dict) -> Iterator[tuple[str, Any]]:
    """Strides that heads are told: by the config, or by default in their code."""
    for path, value in walk(part):
        told = bool(path) and str(path[-1]).endswith('strides') and bool(value)
        if told and not {'backbone', 'neck'} & {*path}:
            yield dotted(path), value
    try:
        model = build(part, 'meta')
    except Exception:  # the proof tells why
        return
    for name, module in model.named_modules():
        if name.partition('.')[0] in ('', 'backbone', 'neck', 'data_preprocessor'):
            continue
        holders = {name: vars(module)}
        for key in GENERATORS:
            holders[f'{name}.{key}'] = getattr(getattr(module, key, None), '__dict__', {})
        for holder, values in holders.items():
            for key, value in values.items():
                if key.endswith('strides') and isinstance(value, (list, tuple)) and len(value):
                    yield f'{holder}.{key}', value
