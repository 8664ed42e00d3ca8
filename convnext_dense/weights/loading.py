"""Weights into a ConvNeXt: every tensor of the network and of the source accounted for, or nothing is changed."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..architectures import Architecture, describe, get_architecture
from ..errors import WeightsError
from . import layouts, presets, reading
from .comparing import compare, few, listing

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
STEM = 'downsample_layers.0.0.weight'
OUTPUT_NORM = re.compile(r'norm([0-3])\.(weight|bias)')
STAGE = re.compile(r'(?:stages|downsample_layers)\.([0-3])\.')
CLASSIFIER = {'norm.': layouts.FINAL_NORM, 'head.': layouts.HEAD}


class LoadReport(NamedTuple):
    layout: str  # what the source was recognised as
    loaded: list[str]  # tensors of the network that were copied
    dropped: dict[str, str]  # tensor of the source -> why it was left out
    left_as_initialised: list[
        str
    ]  # tensors of the network that the source does not have: output norms
    changed: dict[
        str, str
    ] = {}  # tensor of the network -> what was done to the source's to make it fit

    def __str__(self):
        """One line."""
        reasons = (
            ', '.join(f'{why} ({count})' for why, count in counts(self.dropped.values()))
            or 'nothing'
        )
        left = (
            ', '.join(sorted({name.rpartition('.')[0] for name in self.left_as_initialised}))
            or 'nothing'
        )
        changed = ''.join(f'; {name} {what}' for name, what in self.changed.items())
        return (
            f'{self.layout}: {len(self.loaded)} tensors loaded{changed}; dropped: {reasons}; '
            f'left as initialised: {left}'
        )

    def details(self) -> str:
        """A line per tensor."""
        rows = [
            f'loaded   {name}' + (f'  ({self.changed[name]})' if name in self.changed else '')
            for name in self.loaded
        ]
        rows += [f'dropped  {name}  ({why})' for name, why in self.dropped.items()]
        rows += [f'left     {name}  (as initialised)' for name in self.left_as_initialised]
        return '\n'.join([str(self), *rows])


def load_weights(
    net: nn.Module, source: str | Path | Mapping[str, Tensor], inflate: str = 'mean'
) -> LoadReport:
    """Copy weights into a ``ConvNeXt`` in place and account for every tensor on both sides.

    Args:
        net: the backbone.
        source: path (.pth or .safetensors), URL, name of ``PRESETS``, or state dict; in any layout of
            ``layouts.LAYOUTS``, of a classifier, a backbone or a whole model. URLs and presets are kept in torch.hub's
            folder. Nothing in a file is executed.
        inflate: how a stem for 3 bands becomes one for ``net.in_channels``. ``'mean'``: each band gets the mean over
            the three, times 3 / in_channels, so that equal bands give the map that a grey RGB image gives.
            ``'zero'``: the three come first and the further ones start at zero.

    Returns:
        A report; it is logged as one line.

    Raises:
        WeightsError: the source cannot be read, or tensors are missing, unknown, of another shape, of no floating-point
            type or not finite. Nothing has been changed then. Only the output norms ``norm0`` ... ``norm3`` may be
            missing, and only together: a lone ``norm3`` is a classifier's and is dropped, unless it is the only map's.
    """
    net = getattr(net, '_orig_mod', net)  # of torch.compile
    # Told by its architecture: the backbone imports this module, so its class cannot be asked for.
    if not isinstance(getattr(net, 'architecture', None), Architecture):
        raise WeightsError(
            'expected a convnext_dense.ConvNeXt, such as model.backbone, not a '
            f'{type(net).__module__}.{type(net).__name__}'
        )
    preset = presets.find(source)
    published = preset and get_architecture(presets.PRESETS[preset].arch)
    if published and not _same(published, net.architecture):
        raise WeightsError(
            f'{preset} was not fetched: ' + _other_architecture(published, net.architecture)
        )
    tensors, where, _ = read(source)
    own = net.state_dict()
    values, report = match(net, tensors, where, inflate)
    if any(value.is_meta for value in (*own.values(), *values.values())):
        raise WeightsError(
            'weights cannot be loaded into or from the meta device: build the network on a real one'
        )
    # Copies, in the network's own type: what is large for it is infinite, and the source may share memory with it.
    values = {name: value.detach().to(own[name], copy=True) for name, value in values.items()}
    broken = [name for name, value in values.items() if not torch.isfinite(value).all()]
    if broken:
        raise WeightsError(
            f'{where} holds values that are not finite (NaN or infinite) in {own[broken[0]].dtype}: {few(broken)}'
        )
    with torch.no_grad():  # in place: the optimiser may hold the parameters already
        for name, value in values.items():
            own[name].copy_(value)
    print_log(f'ConvNeXt weights from {where}: {report}', logger='current')
    return report


def match(
    net: nn.Module,
    tensors: Mapping[str, Tensor],
    where: str = 'a state dict',
    inflate: str = 'mean',
) -> tuple[dict[str, Tensor], LoadReport]:
    """What ``load_weights`` would copy, by name, and its report. Names, types and shapes only, so also for meta tensors."""
    if inflate not in ('mean', 'zero'):
        raise WeightsError(f"inflate is 'mean' or 'zero', not {inflate!r}")
    own = net.state_dict()
    source = layouts.to_ours(tensors, where)
    given, dropped = source.tensors, dict(source.dropped)
    architecture = layouts.architecture_of(given)

    def drop(names, why):
        for name in names:
            del given[name]
            dropped[source.names[name]] = why

    for start, why in CLASSIFIER.items():
        drop([name for name in given if name.startswith(start)], why)
    norms = {name for name in given if OUTPUT_NORM.fullmatch(name)}
    own_norms = {name for name in own if OUTPUT_NORM.fullmatch(name)}
    beside = source.prefix.rpartition('.')[0].rpartition('.')[0]  # of module.backbone.: module
    has_head = any(name.startswith(f'{beside}.head.' if beside else 'head.') for name in tensors)
    if norms == {'norm3.weight', 'norm3.bias'} and (norms != own_norms or has_head):
        drop(norms, layouts.FINAL_NORM)
        norms = set()
    drop(sorted(norms - own_norms), 'output norm that this network does not have')
    drop(
        [
            name
            for name in given
            if STAGE.match(name) and int(STAGE.match(name)[1]) >= len(net.stages)
        ],
        'stage after the last that is emitted',
    )

    changed = {}
    if STEM in given and given[STEM].dim() == 4 and given[STEM].shape[1] == 3 != net.in_channels:
        given[STEM] = _inflated(given[STEM], net.in_channels, inflate)
        changed[STEM] = f'inflated from 3 to {net.in_channels} bands ({inflate})'

    problems = compare(own, given)
    left = sorted(own_norms) if not norms else []
    problems['missing'] = [name for name in problems['missing'] if name not in left]
    problems['unknown'] += source.unknown
    problems['not of a floating-point type'] = [
        f'{name} ({value.dtype})' for name, value in given.items() if value.dtype not in FLOATS
    ]
    label = source.layout.name + (f', backbone below {source.prefix!r}' if source.prefix else '')
    if any(problems.values()):
        raise WeightsError(
            f'{where} ({label}) does not fit this ConvNeXt:\n{listing(problems)}\n'
            f'{_likely_cause(net, architecture, problems)}'
        )
    return given, LoadReport(label, list(given), dropped, left, changed)


def read(source: str | Path | Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str, dict]:
    """Path, URL, preset or state dict -> tensors, what to call the source in messages, and its classes if it has any."""
    if isinstance(source, Mapping):
        return reading.find_weights(dict(source), 'the state dict'), 'the state dict', {}
    if not isinstance(source, (str, Path)):
        raise WeightsError(
            'source is a path, a URL, a preset or a state dict (of a module: module.state_dict()), not a '
            f'{type(source).__name__}'
        )
    source, path = str(source), Path(source)
    where, source = source, presets.find(source) or source
    if source in presets.PRESETS:
        where = f'preset {source} (licence: {presets.PRESETS[source].licence})'
        path = presets.fetch(presets.PRESETS[source].source)
    elif re.match(r'https?://', source):
        path = presets.fetch(source)
    elif not os.path.exists(path):
        close = difflib.get_close_matches(source, presets.PRESETS)
        raise WeightsError(
            f'no weights at {path.absolute()}: expected a path, a URL or a preset'
            + (f', such as {", ".join(close)}' if close else '')
        )
    tensors, classes = reading.read(path)
    return tensors, where, classes


def _inflated(stem: Tensor, bands: int, inflate: str) -> Tensor:
    """(C, 3, 4, 4) -> (C, bands, 4, 4)."""
    if inflate == 'mean':
        return stem.mean(1, keepdim=True).repeat(1, bands, 1, 1) * (3 / bands)
    if bands < 3:
        raise WeightsError(
            f"inflate='zero' keeps the 3 bands of the file and adds others; with {bands} it is 'mean'"
        )
    return torch.cat([stem, stem.new_zeros(len(stem), bands - 3, *stem.shape[2:])], 1)


def _likely_cause(
    net: nn.Module, found: Architecture | None, problems: Mapping[str, list[str]]
) -> str:
    if found and not _same(found, net.architecture):
        return _other_architecture(found, net.architecture)
    if any('stem.2.' in name or 'downsample_layers.0.2.' in name for name in problems['unknown']):
        return "The source has an overlapping stem of two or more convolutions (timm's _ols): it is another network."
    if 'downsample_layers.0.1.bias' in problems['missing']:
        return "The source has norms without bias (timm's zepto and _rms): it is another network."
    if any(OUTPUT_NORM.match(name) for name in problems['missing']):
        return (
            'The source has norms for some of the maps that this network emits, and not for all: give out_indices '
            'as it had, or delete its norm0 ... norm3 to start them afresh.'
        )
    return 'Was it changed, or is it from a modified ConvNeXt?'


def _same(a: Architecture, b: Architecture) -> bool:
    """Of the same tensors; eps has none."""
    return a == b._replace(eps=a.eps)


def _other_architecture(source: Architecture, network: Architecture) -> str:
    return (
        f'The source is a ConvNeXt {describe(source)}, this network is {describe(network)}: '
        'set arch, or take other weights.'
    )


def counts(values: Iterable[str]) -> list[tuple[str, int]]:
    """Each value and how often it occurs, in order of appearance."""
    values = list(values)
    return [(value, values.count(value)) for value in dict.fromkeys(values)]
