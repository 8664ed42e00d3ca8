"""What a backbone emits and what a neck makes of it: both are built without weights and run."""

import inspect
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmengine.registry import MODELS

from ..architectures import get_architecture
from ..errors import ConfigError
from ..inference.building import build
from .editing import walk

STRIDES = (4, 8, 16, 32)  # of ConvNeXt's stages
# Side of the image that a backbone is run on, pixels, by device. The meta device needs neither
# time nor memory; what cannot run there runs on the CPU. A backbone that is made for images of one
# size (img_size) is then tried with that.
SIDES = dict(meta=512, cpu=256)
# Device and size of the image that a neck's maps are of. The neck of pedestrian re-identification
# pools maps of just 256 x 128 pixels; SSD's, which halves them six times, needs large ones.
NECK_SIZES = ('meta', (256, 128)), ('meta', (512, 512)), ('cpu', (256, 256))


class Map(NamedTuple):
    channels: int
    stride: int  # in pixels of the image; 0 for a vector


class Emitted(NamedTuple):
    """What a backbone emits, in its order."""

    maps: Sequence[Map]
    frozen: bool = False  # all of its parameters
    tensor: bool = False  # one map, not in a tuple


def measure_backbone(cfg: dict) -> Emitted:
    """Run a backbone.

    Raises:
        ConfigError: it cannot be built or run, or emits no maps.
    """
    if cfg.get('type') == 'mmpretrain.ConvNeXt':  # of a package that often cannot be imported
        indices = cfg.get('out_indices', -1)
        dims = get_architecture(cfg.get('arch', 'tiny')).dims
        indices = [indices] if isinstance(indices, int) else indices
        return Emitted([Map(dims[i], STRIDES[i]) for i in indices])
    channels = cfg.get('in_channels', 3)
    fixed = next((value for path, value in walk(cfg) if path and path[-1] == 'img_size'), None)
    fixed = fixed[0] if isinstance(fixed, (list, tuple)) and fixed else fixed
    attempts = [*SIDES.items(), *((device, fixed) for device in SIDES if fixed)]
    for device, side in attempts:
        try:
            backbone = build(cfg, device)
            if required_inputs(backbone) > 1:
                raise SeveralInputs
            with torch.no_grad():
                outputs = backbone(torch.zeros(1, channels, side, side, device=device))
            backbone.train()  # some freeze their layers only here
            frozen = not any(parameter.requires_grad for parameter in backbone.parameters())
            tensor = isinstance(outputs, torch.Tensor)
            maps = [_map(output, side) for output in ([outputs] if tensor else outputs)]
        except SeveralInputs:
            raise ConfigError(
                f'{cfg.get("type")} cannot be given another backbone: it is given more than one '
                'image or map at once, and what it does between them is part of the method'
            ) from None
        except Exception as error:
            reason = error
            continue
        if hasattr(backbone, 'decode_head'):
            raise ConfigError(
                f'the backbone {cfg.get("type")} is itself a segmentor: its outputs are the scores '
                'of classes. Swap the backbone within it, in a config whose model it is'
            )
        return Emitted(maps, frozen, tensor)
    raise ConfigError(
        f'the backbone {cfg.get("type")} cannot be built and run, so its maps are not known: '
        f'{type(reason).__name__}: {reason}{import_hint(reason)}'
    ) from reason


class Made(NamedTuple):
    """What a neck makes of the maps that it is given."""

    maps: list[Map]
    used: list[bool]  # of the maps that it is given, those that a gradient of its outputs reaches
    images: int  # whose maps it is given: change detection compares two


def measure_neck(cfg, maps: Sequence[Map], tensor: bool = False) -> Made:
    """Run a neck (a dict, or several in a list) on ``maps``.

    Args:
        tensor: it is given the only map, not a tuple of it.

    Raises:
        ConfigError: it cannot be built or run.
    """
    for device, size in NECK_SIZES:
        try:
            inputs = []
            for channels, stride in maps:
                shape = 1, channels, *(side // stride for side in size)
                inputs.append(torch.zeros(shape, device=device, requires_grad=True))
            neck = build(cfg, device)
            images = required_inputs(neck)
            outputs = neck(*[inputs[0] if tensor else tuple(inputs)] * images)
            outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
            sum(output.sum() for output in outputs).backward()
            used = [given.grad is not None for given in inputs]
            return Made([_map(output, size[0]) for output in outputs], used, images)
        except Exception as error:
            reason = error
    if hint := import_hint(reason):
        raise NotRegistered(f'{type(reason).__name__}: {reason}{hint}') from reason
    name = cfg.get('type') if isinstance(cfg, dict) else [part.get('type') for part in cfg]
    raise ConfigError(
        f'the neck {name} does not run on maps of {[channels for channels, _ in maps]} channels at '
        f'strides {[stride for _, stride in maps]}: {type(reason).__name__}: {reason}'
    ) from reason


def required_inputs(module: torch.nn.Module) -> int:
    """Number of arguments without which the module cannot be called."""
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    needed = [p for p in parameters if p.default is p.empty and p.kind in kinds]
    return max(1, len(needed))


class SeveralInputs(Exception):
    """A backbone that compares or mixes several images or maps."""


class NotRegistered(ConfigError):
    """A type that no registry knows."""


def import_hint(error: Exception) -> str:
    """How a module that registers a type is named, if it is missing."""
    if not re.search('is not in the .* registry', str(error)):
        return ''
    return (
        '. If a module of yours registers it, which your training script imports, name that '
        'module: --import MODULE, or in the config custom_imports = dict(imports=["MODULE"])'
    )


def of_mmdet(name: str) -> str:
    """The type of a layer of mmdet, as a config of the current scope names it."""
    with MODELS.switch_scope_and_registry(None) as registry:
        return name if registry.get(name) else f'mmdet.{name}'


def _map(output, side: int) -> Map:
    """Of a tensor (N, C, H, W) or (N, C), or of a pair of a map and a class token."""
    output = output[0] if isinstance(output, (tuple, list)) else output
    return Map(output.shape[1], round(side / output.shape[2]) if output.dim() == 4 else 0)
