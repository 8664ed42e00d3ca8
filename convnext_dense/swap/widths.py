"""Which keys of a neck or head hold the widths of the maps that it is given."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .editing import KeyPath
from .measuring import Map


class WidthKey(NamedTuple):
    """A key that holds the widths of some maps.

    ``bbox_head.in_channels = (512, 1024, 512, 256)``, where the neck is given maps of 512 and 1024
    channels and goes on with levels that it makes itself, has indices (0, 1) and tail (512, 256).
    """

    path: KeyPath
    indices: tuple[int, ...]  # of the maps, in the order of the widths
    tail: tuple[int, ...] = ()  # widths that follow, which are not those of maps
    index_path: KeyPath | None = None  # of the key that names the maps, mmseg's in_index
    factor: float = 1.0  # by which the part multiplies the widths that it is told


def find_widths(
    part, path: KeyPath, maps: Sequence[Map], neck: bool = False, direct: bool = True
) -> Iterator[WidthKey]:
    """Walk through ``part``, which is at ``path`` of the config and is given ``maps``.

    A list of widths is recognised by its values. A single width says little, since many layers are
    256 wide: it counts as the width of the map that ``in_index`` names; without ``in_index`` as
    that of the last map if it is the head's ``in_channels``, not that of a part of the head, or if
    there is only one map.

    Args:
        part: dict of a neck or head, or a list of them.
        neck: whether it is a neck: its ``out_channels`` are its choice.
        direct: whether ``part`` is the neck or head, not a part of it.
    """
    if isinstance(part, (list, tuple)):
        for i, item in enumerate(part):
            yield from find_widths(item, (*path, i), maps, neck, direct)
    if not isinstance(part, dict):
        return
    widths, chosen = [channels for channels, _ in maps], part.get('in_index')
    factor = part.get('widen_factor') or 1.0
    for key, value in part.items():
        if isinstance(value, dict) or _is_list(value, dict):
            yield from find_widths(value, (*path, key), maps, neck, direct=False)
            continue
        if isinstance(value, int):
            values, indices = [value], _map_of_number(part, key, value, widths, neck, direct)
        elif _is_list(value, int):
            values, indices = list(value), _maps_of_list(part, key, list(value), widths)
        else:
            continue
        if factor != 1 and key == 'in_channels':
            of_maps = [_nearest(v * factor, widths) for v in values]
            run = _maps_of_list(part, key, of_maps, widths)
            if run:
                yield WidthKey((*path, key), run, factor=factor)
            continue
        if indices:
            named = key == 'in_channels' and isinstance(value, int) == isinstance(chosen, int)
            index_path = (*path, 'in_index') if named and chosen is not None else None
            yield WidthKey((*path, key), indices, tuple(values[len(indices) :]), index_path)


def _nearest(width: float, widths: list[int]) -> float:
    """The width of a map that ``width`` becomes when it is rounded, to a multiple of 8 at most."""
    nearest = min(widths, key=lambda other: abs(other - width))
    return nearest if abs(nearest - width) < 8 else width


def _maps_of_list(part, key: str, values: Sequence[float], widths: list[int]) -> tuple[int, ...]:
    """Indices of the maps whose widths ``values`` begin with; none if they are other numbers."""
    every, chosen = tuple(range(len(widths))), part.get('in_index')
    if key == 'in_channels' and isinstance(chosen, (list, tuple)):
        return _named(chosen, values, widths)
    if key == 'in_channels':  # of neighbouring maps, not always of all
        for run in (every[start:][: len(values)] for start in every):
            if [widths[i] for i in run] == values:
                return run
    if len(widths) > 1 and values[: len(widths)] == widths:  # SSD's heads have more levels
        return every
    if len(widths) > 1 and values == widths[::-1]:  # YOLOv3's neck begins with the deepest map
        return every[::-1]
    return ()


def _map_of_number(part, key: str, value: int, widths: list[int], neck, direct) -> tuple[int, ...]:
    """Index of the map whose width ``value`` is; none if it is another number."""
    chosen, single = part.get('in_index'), len(widths) == 1
    if key == 'in_channels' and isinstance(chosen, int):
        return _named([chosen], [value], widths)
    of_last_map = (
        (key == 'in_channels' and (direct or single))
        or (key == 'out_channels' and single and not neck)  # of a RoI extractor
        # FCNHead without convolutions is as wide as its map
        or (key == 'channels' and part.get('num_convs') == 0 and part.get('in_channels') == value)
    )
    if of_last_map and value == widths[-1]:
        return (len(widths) - 1,)
    if key.endswith('_in_channels') and value in widths:  # c1_in_channels of DeepLabV3+
        return (widths.index(value),)
    return ()


def _named(chosen: Sequence[int], values: Sequence[float], widths: list[int]) -> tuple[int, ...]:
    """The indices ``chosen``, counted from the first map, if theirs are these widths."""
    count = len(widths)
    if [widths[i] for i in chosen if -count <= i < count] != values:
        return ()
    return tuple(i % count for i in chosen)


def _is_list(value, kind: type) -> bool:
    if not isinstance(value, (list, tuple)):
        return False
    return bool(value) and all(isinstance(item, kind) for item in value)
