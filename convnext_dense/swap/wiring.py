"""Which keys of a neck or head hold the widths of the maps that it is given."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .measuring import Map


class Binding(NamedTuple):
    """A key that holds the widths of maps ``indices``, in this order, and then ``tail``, which are widths of its own."""

    path: tuple
    indices: tuple[int, ...]
    tail: tuple = ()
    index_path: tuple | None = None  # of the key that names the maps, mmseg's in_index


def bindings(
    part, path: tuple, maps: Sequence[Map], neck: bool = False, direct: bool = True
) -> Iterator[Binding]:
    """Walk ``part``, found at ``path`` of the config and fed with ``maps``.

    A list of widths is recognised by its values. A single width says little, many layers are 256 wide: it counts as
    ``in_index`` says, else as the last map's if it is a head's own ``in_channels``, else only where there is one map.
    """
    widths = [one.channels for one in maps]
    if isinstance(part, (list, tuple)):
        for i, item in enumerate(part):
            yield from bindings(item, path + (i,), maps, neck, direct)
    if not isinstance(part, dict):
        return
    chosen = part.get('in_index')
    for key, value in part.items():
        here, index_path = path + (key,), path + ('in_index',) if chosen is not None else None
        if isinstance(value, dict) or _is_list(value, dict):
            yield from bindings(value, here, maps, neck, direct=False)
        elif _is_list(value, int):
            value, every = list(value), tuple(range(len(maps)))
            if key == 'in_channels' and isinstance(chosen, (list, tuple)):
                if _at(widths, chosen) == value:
                    yield Binding(here, _positive(chosen, maps), index_path=index_path)
            elif key == 'in_channels' and value in (
                runs := [widths[i : i + len(value)] for i in every]
            ):  # not all maps
                yield Binding(here, every[runs.index(value) :][: len(value)])
            elif (
                len(maps) > 1 and value[: len(maps)] == widths
            ):  # SSD's neck goes on with levels of its own
                yield Binding(here, every, tail=tuple(value[len(maps) :]))
            elif len(maps) > 1 and value == widths[::-1]:  # YOLOv3's neck begins with the deepest
                yield Binding(here, every[::-1])
        elif isinstance(value, int):
            if key == 'in_channels' and isinstance(chosen, int):
                if _at(widths, [chosen]) == [value]:
                    yield Binding(here, _positive([chosen], maps), index_path=index_path)
            elif key == 'in_channels' and (direct or len(maps) == 1) and value == widths[-1]:
                yield Binding(here, (len(maps) - 1,))
            elif (
                key == 'out_channels' and len(maps) == 1 and not neck and value == widths[0]
            ):  # a RoI extractor's
                yield Binding(here, (0,))
            elif (
                key == 'channels'
                and part.get('num_convs') == 0
                and value == part.get('in_channels') == widths[-1]
            ):
                yield Binding(here, (len(maps) - 1,))  # FCNHead without convolutions
            elif key.endswith('_in_channels') and value in widths:  # c1_in_channels of DeepLabV3+
                yield Binding(here, (widths.index(value),))


def _is_list(value, kind) -> bool:
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(item, kind) for item in value)
    )


def _at(widths, indices):
    return [widths[i] for i in indices if -len(widths) <= i < len(widths)]


def _positive(indices, maps):
    return tuple(i % len(maps) for i in indices)
