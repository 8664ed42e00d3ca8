"""What a backbone emits and what a neck makes of it, found by running them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..architectures import get_architecture
from ..errors import ConfigError
from ..inference.building import build

# Of the image that they are run on, pixels. A backbone made for one size is run on that. A neck first sees the size of
# pedestrians, since the one that re-identifies them pools just that, then one large enough for SSD's.
SIDES = dict(meta=512, cpu=256)
NECK_SIZES = ('meta', (256, 128)), ('meta', (512, 512)), ('cpu', (256, 256))


class Map(NamedTuple):
    channels: int
    stride: int  # of the image; 0 for a vector


def measure_backbone(cfg: dict) -> tuple[list[Map], bool]:
    """The maps that it emits, in its order, and whether all of it is frozen.

    Raises:
        ConfigError: it cannot be built or run.
    """
    if (
        cfg.get('type') == 'mmpretrain.ConvNeXt'
    ):  # the same network, from a package that often cannot be imported
        chosen = cfg.get('out_indices', -1)
        dims = get_architecture(cfg.get('arch', 'tiny')).dims
        return [
            Map(dims[i], 4 * 2 ** (i % 4))
            for i in ([chosen] if isinstance(chosen, int) else chosen)
        ], False
    channels = cfg.get('in_channels', 3)
    own = cfg.get('img_size')
    own_side = own if isinstance(own, int) or not own else own[0]
    for device, side in (
        *SIDES.items(),
        *(((device, own_side) for device in SIDES) if own else ()),
    ):
        try:
            backbone = build(cfg, device)
            with torch.no_grad():
                outputs = backbone(torch.zeros(1, channels, side, side, device=device))
            backbone.train()  # some freeze their layers only here
            frozen = not any(parameter.requires_grad for parameter in backbone.parameters())
            return [_map(output, side) for output in outputs], frozen
        except Exception as error:
            reason = error
    raise ConfigError(
        f'the backbone {cfg.get("type")} cannot be built and run, so its maps are not known: '
        f'{type(reason).__name__}: {reason}'
    ) from reason


def measure_neck(cfg, maps: Sequence[Map]) -> tuple[list[Map], list[bool]]:
    """What the neck (a dict, or several in a list) emits for ``maps``, and which of these it uses.

    Raises:
        ConfigError: it cannot be built or run.
    """
    for device, size in NECK_SIZES:
        try:
            inputs = [
                torch.zeros(
                    1, channels, *(side // stride for side in size), device=device
                ).requires_grad_()
                for channels, stride in maps
            ]
            outputs = build(cfg, device)(tuple(inputs))
            outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
            sum(output.sum() for output in outputs).backward()
            return [_map(output, size[0]) for output in outputs], [
                image.grad is not None for image in inputs
            ]
        except Exception as error:
            reason = error
    name = cfg.get('type') if isinstance(cfg, dict) else [part.get('type') for part in cfg]
    raise ConfigError(
        f'the neck {name} does not run on maps of {[channels for channels, _ in maps]} channels: '
        f'{type(reason).__name__}: {reason}'
    ) from reason


def _map(output, side) -> Map:
    output = (
        output[0] if isinstance(output, (tuple, list)) else output
    )  # a class token beside the map
    return Map(output.shape[1], round(side / output.shape[2]) if output.dim() == 4 else 0)
