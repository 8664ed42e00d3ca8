"""Weights of any known layout under the names of another, backbones as well as whole models."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..architectures import Architecture, describe, parameter_shapes
from ..errors import WeightsError
from . import comparing, layouts, loading, reading

OURS = layouts.OFFICIAL._replace(
    name='ours', reshape={}, wrapper='state_dict'
)  # official but for the 1-D GRN
TARGETS = {
    'ours': OURS,
    'official': layouts.OFFICIAL,
    'timm': layouts.TIMM,
    'torchvision': layouts.TORCHVISION,
    'transformers': layouts.TRANSFORMERS,
    'mmpretrain': layouts.MMPRETRAIN,
}


class Conversion(NamedTuple):
    layout: str  # what the source was recognised as
    architecture: (
        Architecture  # of its backbone; its eps is not in the file and stands at its default
    )
    tensors: dict[str, Tensor]
    dropped: dict[str, str]  # name in the source -> why
    kept: tuple[
        str, ...
    ]  # names outside the backbone: necks and heads, which are taken over as they are
    wrapper: str  # key under which a .pth of this layout keeps the tensors; '' for none
    classes: dict = {}  # names and colours of a whole model's classes, as the MMEngine family keeps them

    def __str__(self):
        dropped = (
            ', '.join(f'{why} ({count})' for why, count in loading.counts(self.dropped.values()))
            or 'nothing'
        )
        return (
            f'{self.layout}, ConvNeXt {describe(self.architecture)}: {len(self.tensors) - len(self.kept)} '
            f'tensors of the backbone, {len(self.kept)} of neck and heads as they are; dropped: {dropped}'
        )


def convert(
    source: str | Path | Mapping[str, Tensor], to: str = 'ours', backbone_only: bool = False
) -> Conversion:
    """Rename the backbone in ``source`` to the names of ``to``, bit for bit.

    A detector or segmentor (a backbone below ``backbone.``) keeps its neck and heads as they are: mmdet 2 and 3, and
    mmseg 0 and 1, name theirs alike. From other files that hold more than a backbone the rest is dropped and listed. A classifier's
    final norm and head go along where both layouts have a name for them.

    Args:
        source: as for ``load_weights``.
        to: key of ``TARGETS``.
        backbone_only: without neck, heads and prefix, as timm, torchvision and transformers want it.

    Raises:
        WeightsError: the source cannot be read, or a tensor of its backbone is not one of a ConvNeXt in its layout.
    """
    if to not in TARGETS:
        raise WeightsError(f'unknown layout {to!r}: expected one of {", ".join(TARGETS)}')
    target = TARGETS[to]
    tensors, where, classes = loading.read(source)
    found = layouts.to_ours(tensors, where)
    architecture = layouts.architecture_of(found.tensors)
    _check(found, architecture, where)
    backbone, without_place = layouts.to_theirs(found.tensors, target)
    lost = [name for name in without_place if not name.startswith(tuple(loading.CLASSIFIER))]
    if lost:
        raise WeightsError(
            f'{target.name} has no place for {comparing.few(lost)}: what is left would be another network'
        )
    dropped = dict(found.dropped)
    dropped.update((found.names[name], f'no name for it under {to}') for name in without_place)
    kept, prefix = {}, ''
    if not backbone_only and (found.prefix == 'backbone.' or found.prefix.endswith('.backbone.')):
        prefix, parent = 'backbone.', found.prefix[: -len('backbone.')]
        kept = {
            name[len(parent) :]: value
            for name, value in tensors.items()
            if name.startswith(parent) and not name.startswith(found.prefix)
        }
        dropped = {name: why for name, why in dropped.items() if name[len(parent) :] not in kept}
    converted = {prefix + name: value for name, value in backbone.items()}
    wrapper = 'state_dict' if kept and target.wrapper else target.wrapper
    return Conversion(
        found.layout.name,
        architecture,
        {**converted, **kept},
        dropped,
        tuple(kept),
        wrapper or '',
        classes,
    )


def _check(found, architecture, where):
    """All four stages, each tensor known and of its shape; of the output norms some, each with weight and bias."""
    given = {
        name: value
        for name, value in found.tensors.items()
        if not name.startswith(tuple(loading.CLASSIFIER))
    }
    stem = getattr(given.get(loading.STEM), 'shape', ())
    if architecture is None or min(architecture.dims) == 0 or len(stem) != 4 or stem[1] == 0:
        raise WeightsError(
            f'{where} ({found.layout.name}) does not hold all of a ConvNeXt: stem and four stages'
        )
    if max(architecture.dims) > 2**16:
        raise WeightsError(
            f'{where} ({found.layout.name}) has widths of {architecture.dims}, which are none'
        )
    own = {
        name: torch.empty(shape, device='meta')
        for name, shape in parameter_shapes(architecture, stem[1]).items()
    }
    problems = comparing.compare(own, given)
    pairs = {
        name
        for name in own
        if loading.OUTPUT_NORM.fullmatch(name)
        and f'{name.partition(".")[0]}.weight' not in given
        and f'{name.partition(".")[0]}.bias' not in given
    }
    problems['missing'] = [name for name in problems['missing'] if name not in pairs]
    problems['unknown'] += found.unknown
    problems['not of a floating-point type'] = [
        name for name in given if given[name].dtype not in loading.FLOATS
    ]
    if any(problems.values()):
        raise WeightsError(
            f'{where} ({found.layout.name}) is not a ConvNeXt as {describe(architecture)} has it:\n'
            f'{comparing.listing(problems)}'
        )


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
        name: value.detach().clone().contiguous() for name, value in conversion.tensors.items()
    }
    unfinished = path.with_name(f'.{os.getpid()}{path.suffix}')
    try:
        if path.suffix == '.pth':
            content = {conversion.wrapper: tensors} if conversion.wrapper else tensors
            if (
                conversion.wrapper == 'state_dict'
            ):  # mmseg insists on a meta, and has the classes from it
                content['meta'] = (
                    dict(dataset_meta=conversion.classes) if conversion.classes else {}
                )
            torch.save(content, unfinished)
        else:
            from safetensors.torch import save_file

            save_file(tensors, unfinished, metadata=dict(format='pt'))
        written, _ = reading.read(unfinished)
        if written.keys() != tensors.keys():
            raise ValueError(
                f'not all of it could be read back: {comparing.few(sorted(set(tensors) - set(written)))}'
            )
        os.replace(unfinished, path)
    except Exception as error:  # each of the two writers has its own for a full disk
        raise WeightsError(f'{path} could not be written: {error}') from None
    finally:
        try:
            unfinished.unlink()
        except OSError:  # moved, or never there
            pass
