"""Weights of any known layout under the names of another: backbones and whole models."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..architectures import Architecture, describe, parameter_shapes
from ..errors import WeightsError
from . import comparing, layouts, loading, reading
from .comparing import MISSING

# The official names, but GRN's parameters stay as they are: (C,).
OURS = layouts.OFFICIAL._replace(name='ours', reshape={}, wrapper='state_dict')
TARGETS = {
    'ours': OURS,
    'official': layouts.OFFICIAL,
    'timm': layouts.TIMM,
    'torchvision': layouts.TORCHVISION,
    'transformers': layouts.TRANSFORMERS,
    'mmpretrain': layouts.MMPRETRAIN,
}
MAX_WIDTH = 2**16  # channels: more is damage, and its shapes would be too large to compare with


class Conversion(NamedTuple):
    """Weights under other names, ready for ``save``; printed, it is one line."""

    layout: str  # of the source, as its library is called in ``layouts.LAYOUTS``
    architecture: Architecture  # of the backbone; with the default eps: files do not hold it
    tensors: dict[str, Tensor]
    dropped: dict[str, str]  # name in the source -> why
    kept: tuple[str, ...]  # names outside the backbone (neck, heads), which are not changed
    wrapper: str  # key under which a .pth of the new layout keeps the tensors; '' for none
    classes: dict = {}  # a whole model's ``classes`` and ``palette``, as MMEngine keeps them

    def __str__(self) -> str:
        return (
            f'{self.layout}, ConvNeXt {describe(self.architecture)}, whose maps have '
            f'{", ".join(map(str, self.architecture.dims))} channels: '
            f'{len(self.tensors) - len(self.kept)} tensors of the backbone, {len(self.kept)} of '
            f'neck and heads as they are; dropped: {loading.count_reasons(self.dropped)}'
        )


def convert(
    source: str | Path | Mapping[str, Tensor], to: str = 'ours', backbone_only: bool = False
) -> Conversion:
    """Rename the backbone in ``source`` to the names of ``to``, bit for bit.

    A detector or segmentor (a backbone below ``backbone.``) keeps its neck and heads as they are:
    mmdet 2 and 3, and mmseg 0 and 1, name theirs alike. Of other files that hold more than a
    backbone the rest is dropped and listed. A classifier's final norm and head go along where both
    layouts have a name for them.

    Args:
        source: as for ``load_weights``.
        to: key of ``TARGETS``.
        backbone_only: without neck, heads and prefix, as timm, torchvision and transformers
            expect it.

    Raises:
        WeightsError: the source cannot be read; a tensor of its backbone is not one of a ConvNeXt
            in its layout; or ``to`` is no layout, or has no name for a tensor of the backbone.
    """
    if to not in TARGETS:
        raise WeightsError(f'unknown layout {to!r}: expected one of {", ".join(TARGETS)}')
    target = TARGETS[to]
    tensors, where, classes = loading.read(source)
    ours = layouts.to_ours(tensors, where)
    architecture = _check(ours, where)
    loading.tell_untrained(ours.tensors, where)
    backbone, without_place = layouts.to_theirs(ours.tensors, target)
    lost = [name for name in without_place if not _is_classifier(name)]
    if lost:
        raise WeightsError(
            f'{target.name} has no place for {comparing.first_few(lost)}: '
            'what is left would be another network'
        )
    dropped = ours.dropped | {
        ours.names[name]: f'no name for it under {to}' for name in without_place
    }
    kept, prefix = {}, ''
    if not backbone_only and f'.{ours.prefix}'.endswith('.backbone.'):
        prefix = 'backbone.'
        parent = ours.prefix.removesuffix(prefix)  # of module.backbone.: module.
        others = [name for name in tensors if not name.startswith(ours.prefix)]
        kept = {name[len(parent) :]: name for name in others if name.startswith(parent)}
        dropped = {name: why for name, why in dropped.items() if name not in kept.values()}
    converted = {prefix + name: tensor for name, tensor in backbone.items()}
    converted |= {name: tensors[old] for name, old in kept.items()}
    wrapper = 'state_dict' if kept and target.wrapper else target.wrapper or ''
    return Conversion(
        ours.layout.name, architecture, converted, dropped, tuple(kept), wrapper, classes
    )


def _is_classifier(name: str) -> bool:
    return name.startswith(tuple(layouts.CLASSIFIER))


def _check(ours: layouts.Renamed, where: str) -> Architecture:
    """The backbone's architecture, of which it has every tensor and no other, in its shape.

    Output norms may be missing, each with weight and bias.
    """
    source = f'{where} ({ours.layout.name})'
    given = {name: tensor for name, tensor in ours.tensors.items() if not _is_classifier(name)}
    architecture = layouts.architecture_of(given)
    stem = given.get(layouts.STEM, torch.empty(0)).shape
    if architecture is None or min(architecture.dims) == 0 or len(stem) != 4 or stem[1] == 0:
        raise WeightsError(f'{source} does not hold all of a ConvNeXt: stem and four stages')
    if max(architecture.dims) > MAX_WIDTH:
        raise WeightsError(
            f'{source} has stages of {architecture.dims} channels: expected {MAX_WIDTH} or fewer'
        )
    shapes = parameter_shapes(architecture, stem[1])
    expected = {name: torch.empty(shape, device='meta') for name, shape in shapes.items()}
    modules = {name.rpartition('.')[0] for name in given}
    differences = [
        item
        for item in comparing.compare_backbone(expected, given, ours.unknown)
        if item.kind != MISSING
        or not layouts.OUTPUT_NORM.fullmatch(item.name)
        or item.name.rpartition('.')[0] in modules
    ]
    if differences:
        raise WeightsError(
            f'{source} is not a ConvNeXt as {describe(architecture)} has it:\n'
            f'{comparing.listing(differences)}'
        )
    return architecture


def save(conversion: Conversion, path: str | Path) -> None:
    """Write .safetensors or .pth, whole or not at all. Only .pth keeps the classes.

    Raises:
        WeightsError: another ending, a file that is there already, or a disk that does not take it.
    """
    path = Path(path)
    if path.suffix not in ('.pth', '.safetensors'):
        raise WeightsError(f'{path}: expected a name that ends in .pth or .safetensors')
    if os.path.exists(path):
        raise WeightsError(f'{path} exists already; it is not overwritten')
    tensors = {
        name: tensor.detach().clone().contiguous() for name, tensor in conversion.tensors.items()
    }
    unfinished = path.with_name(f'.{os.getpid()}{path.suffix}')
    try:
        if path.suffix == '.pth':
            torch.save(_wrapped(tensors, conversion), unfinished)
        else:
            from safetensors.torch import save_file

            save_file(tensors, unfinished, metadata=dict(format='pt'))
        written, _ = reading.read(unfinished)
        lost = tensors.keys() ^ written.keys()
        if lost:
            names = comparing.first_few(sorted(lost))
            raise ValueError(f'not all of it could be read back: {names}')
        os.replace(unfinished, path)
    except Exception as error:  # each of the two writers has its own for a full disk
        raise WeightsError(f'{path} could not be written: {error}') from None
    finally:
        with contextlib.suppress(OSError):  # moved, or never there
            unfinished.unlink()


def _wrapped(tensors: dict[str, Tensor], conversion: Conversion) -> dict[str, Any]:
    if not conversion.wrapper:
        return tensors
    content: dict[str, Any] = {conversion.wrapper: tensors}
    if conversion.wrapper == 'state_dict':  # mmseg expects a meta, in which it finds the classes
        content['meta'] = {'dataset_meta': conversion.classes} if conversion.classes else {}
    return content
