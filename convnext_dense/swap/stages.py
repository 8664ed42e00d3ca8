"""Which maps of a backbone are read, and which stage of ConvNeXt replaces each of them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import ConfigError
from .editing import Edits
from .measuring import STRIDES, Emitted, Map, NotRegistered, measure_backbone, measure_neck
from .rewiring import Exchange, heads, rewire_neck
from .widths import find_widths


class Measured(NamedTuple):
    """A part of a model, that with the backbone and the heads, as it was run."""

    part: dict
    maps: Sequence[Map]  # this one and the next two are what the backbone emits, as in Emitted
    frozen: bool
    tensor: bool
    # Indices of the maps that the neck or a head reads. ConvNeXt is not to emit the others: the
    # norm of a map that nothing reads gets no gradient, at which distributed training stops.
    read: list[int]
    outputs: Sequence[Map] | None  # of the neck; None without one, or if it cannot be run
    neck_error: str = ''  # why it cannot
    images: int = 1  # whose maps the neck is given

    @property
    def backbone(self) -> str:
        return self.part['backbone']['type']

    @property
    def beyond(self) -> int:
        """Number of maps beyond ConvNeXt's deepest stride. They come last."""
        return sum(stride > STRIDES[-1] for _, stride in self.maps)


def choose_stages(strides: Sequence[int]) -> tuple[list[int], int]:
    """The stage that replaces each map, and ConvNeXt's output stride.

    The deepest map is replaced by the last stage, at the stride of that map; the others by the
    stage whose stride is nearest to theirs:

        strides 8, 16, 32  (those of DINO)      ->  stages 1, 2, 3     output stride 32
        strides 4, 8, 8, 8 (those of PSPNet)    ->  stages 0, 1, 2, 3  output stride 8
    """
    output_stride = max(8, min(32, strides[-1]))
    stage_strides = [min(stride, output_stride) for stride in STRIDES]
    stages = [len(STRIDES) - 1]
    for stride in reversed(strides[:-1]):
        distances = [abs(math.log2(of_stage / stride)) for of_stage in stage_strides]
        nearest = [stage for stage, distance in enumerate(distances) if distance == min(distances)]
        stages.insert(0, max([s for s in nearest if s < stages[0]], default=nearest[0]))
    return stages, output_stride


def measure(part: dict, emitted: Emitted | None = None) -> Measured:
    """Run the backbone of a part of a model, and its neck on the maps.

    Args:
        emitted: by the backbone, if it is known.

    Raises:
        ConfigError: the backbone cannot be built or run.
    """
    emitted = emitted or measure_backbone(part['backbone'])
    neck, maps = part.get('neck'), emitted.maps
    every = list(range(len(maps)))
    if not neck:
        return Measured(part, *emitted, _read_by_heads(part, maps), None)
    try:
        outputs, used, images = measure_neck(neck, maps, emitted.tensor)
    except NotRegistered:
        raise
    except ConfigError as error:
        return Measured(part, *emitted, every, None, str(error))
    read = [i for i in every if used[i]] or every
    read = every[read[0] : read[-1] + 1]
    # NAS-FCOS's neck looks at the sizes of maps that it does not use: can it do without them?
    trial, fewer = Edits(dict(neck=neck)), [maps[i] for i in read]
    exchange = Exchange(maps, fewer, {i: k for k, i in enumerate(read)})
    rewire_neck(trial, ('neck', 0) if isinstance(neck, list) else ('neck',), exchange)
    try:
        unchanged = measure_neck(trial.cfg['neck'], fewer)[0] == outputs
    except ConfigError:
        unchanged = False
    read = read if unchanged else every
    return Measured(part, *emitted, read, outputs, images=images)


def _read_by_heads(part: dict, maps: Sequence[Map]) -> list[int]:
    every, read = list(range(len(maps))), set()
    for key in heads(part):
        width_keys = find_widths(part[key], (key,), maps)
        indices = {i for width_key in width_keys for i in width_key.indices}
        if isinstance(part[key], dict) and 'in_channels' in part[key] and not indices:
            return every  # its widths are not recognised, so it may read any map
        read |= indices
    return sorted(read) or every
