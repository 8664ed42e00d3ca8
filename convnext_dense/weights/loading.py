"""Weights into a ConvNeXt: every tensor of the network and of the source is accounted for."""

import difflib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..architectures import Architecture, describe, get_architecture
from ..errors import WeightsError
from . import comparing, downloading, layouts, presets, reading
from .comparing import MISSING, UNKNOWN, Difference
from .layouts import OUTPUT_NORM, STEM

STAGE = re.compile(r'(?:stages|downsample_layers)\.([0-3])\.')


class Inflation(NamedTuple):
    """A stem for 3 bands was made one for ``bands``, by ``method`` (as ``load_weights``)."""

    bands: int
    method: str

    def __str__(self) -> str:
        return f'inflated from 3 to {self.bands} bands ({self.method})'


class LoadReport(NamedTuple):
    """An account of every tensor of the network and of the source; printed, it is one line.

    Attributes:
        layout: of the source, as its library is called in ``layouts.LAYOUTS``.
        loaded: tensors of the network that were copied.
        dropped: tensor of the source -> why it was left out.
        left_as_initialised: output norms of the network that the source does not have.
        changed: tensor of the network -> how the source's was made to fit.
        prefix: of the backbone's names in the source.
    """

    layout: str
    loaded: list[str]
    dropped: dict[str, str]
    left_as_initialised: list[str]
    changed: dict[str, Inflation] = {}
    prefix: str = ''

    def __str__(self) -> str:
        norms = sorted({name.rpartition('.')[0] for name in self.left_as_initialised})
        changes = ''.join(f'; {name} {change}' for name, change in self.changed.items())
        return (
            f'{_describe_layout(self.layout, self.prefix)}: {len(self.loaded)} tensors loaded'
            f'{changes}; dropped: {count_reasons(self.dropped)}; '
            f'left as initialised: {", ".join(norms) or "nothing"}'
        )

    def details(self) -> str:
        """The line, and one for each tensor."""
        notes = {name: f'  ({change})' for name, change in self.changed.items()}
        rows = [f'loaded   {name}{notes.get(name, "")}' for name in self.loaded]
        rows += [f'dropped  {name}  ({why})' for name, why in self.dropped.items()]
        rows += [f'left     {name}  (as initialised)' for name in self.left_as_initialised]
        return '\n'.join([str(self), *rows])


def load_weights(
    net: nn.Module, source: str | Path | Mapping[str, Tensor], inflate: str = 'mean'
) -> LoadReport:
    """Copy weights into a ``ConvNeXt`` in place.

    Args:
        net: the backbone.
        source: path (.pth or .safetensors), URL, name in ``PRESETS``, or state dict; of a backbone,
            a classifier or a whole model, in any of ``layouts.LAYOUTS``. Files of URLs and presets
            are kept in torch.hub's folder. Nothing in a file is executed.
        inflate: how a stem for 3 bands becomes one for ``net.in_channels``. ``'mean'``: each band
            gets the mean over the three, times 3 / in_channels, so that equal bands give the map
            that a grey RGB image gives. ``'zero'``: the three come first, others start at zero.

    Returns:
        The tensors that were loaded, dropped and left. It is also logged, as one line.

    Raises:
        WeightsError: the source cannot be read; or tensors are missing, unknown, of another shape,
            of no floating-point type or not finite. Nothing has been changed then. Only the output
            norms ``norm0`` ... ``norm3`` may be missing, and only together. A source's ``norm3``
            without the others is taken for a classifier's final norm and dropped, unless the
            network emits that map alone.
    """
    net = getattr(net, '_orig_mod', net)  # of torch.compile
    architecture = comparing.convnext_architecture(net)
    if architecture is None:
        raise WeightsError(
            'expected a convnext_dense.ConvNeXt, such as model.backbone, not a '
            f'{type(net).__module__}.{type(net).__name__}'
        )
    preset = presets.find(source)
    published = preset and get_architecture(presets.PRESETS[preset].arch)
    if published and not _same(published, architecture):
        raise WeightsError(
            f'{preset} was not fetched: {_other_architecture(published, architecture)}'
        )
    given, where, _ = read(source)
    tensors, report = match(net, given, where, inflate)
    parameters = net.state_dict()
    if any(tensor.is_meta for tensor in (*parameters.values(), *tensors.values())):
        raise WeightsError(
            'weights cannot be loaded into or from the meta device: build the network on a real one'
        )
    # Copies, since the source may share memory with the network; in the network's type, in which
    # large values may become infinite.
    tensors = {name: t.detach().to(parameters[name], copy=True) for name, t in tensors.items()}
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise WeightsError(
            f'{where} holds values that are not finite (NaN or infinite) in '
            f'{parameters[broken[0]].dtype}: {comparing.first_few(broken)}'
        )
    with torch.no_grad():  # in place: the optimiser may hold the parameters already
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
    print_log(f'ConvNeXt weights from {where}: {report}', logger='current')
    tell_untrained(tensors, where)
    return report


def match(
    net: nn.Module,
    tensors: Mapping[str, Tensor],
    where: str = 'a state dict',
    inflate: str = 'mean',
) -> tuple[dict[str, Tensor], LoadReport]:
    """The tensors that ``load_weights`` would copy, under our names, and its report.

    Looks at names, types and shapes only, so that tensors may be on the meta device.

    Raises:
        WeightsError: as ``load_weights``, but not for values that are not finite.
    """
    if inflate not in ('mean', 'zero'):
        raise WeightsError(f"inflate is 'mean' or 'zero', not {inflate!r}")
    expected = net.state_dict()
    source = layouts.to_ours(tensors, where)
    given, dropped = source.tensors, dict(source.dropped)
    architecture = layouts.architecture_of(given)

    def drop(names: Iterable[str], why: str) -> None:
        for name in names:
            del given[name]
            dropped[source.names[name]] = why

    for start, why in layouts.CLASSIFIER.items():
        drop([name for name in given if name.startswith(start)], why)
    norms = {name for name in given if OUTPUT_NORM.fullmatch(name)}
    expected_norms = {name for name in expected if OUTPUT_NORM.fullmatch(name)}
    if norms == {'norm3.weight', 'norm3.bias'} and (
        norms != expected_norms or _has_head(tensors, source.prefix)
    ):
        drop(sorted(norms), layouts.FINAL_NORM)
        norms = set()
    drop(sorted(norms - expected_norms), 'output norm that this network does not have')
    last = max(map(_stage, expected))
    later = [name for name in given if _stage(name) > last]
    drop(later, 'stage after the last that is emitted')

    changed: dict[str, Inflation] = {}
    bands = expected[STEM].shape[1]
    if STEM in given and given[STEM].dim() == 4 and given[STEM].shape[1] == 3 != bands:
        given[STEM] = _inflated(given[STEM], bands, inflate)
        changed[STEM] = Inflation(bands, inflate)

    left = [] if norms else sorted(expected_norms)
    differences = comparing.compare_backbone(expected, given, source.unknown)
    differences = [item for item in differences if item.kind != MISSING or item.name not in left]
    if differences:
        raise WeightsError(
            f'{where} ({_describe_layout(source.layout.name, source.prefix)}) does not fit this '
            f'ConvNeXt:\n{comparing.listing(differences)}\n'
            f'{_likely_cause(comparing.convnext_architecture(net), architecture, differences)}'
        )
    return given, LoadReport(source.layout.name, list(given), dropped, left, changed, source.prefix)


def read(source: str | Path | Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str, dict]:
    """Path, URL, preset or state dict -> tensors.

    Returns:
        The tensors; the source's name for messages; and the names and colours of its classes
        (``classes``, ``palette``), where it has them.

    Raises:
        WeightsError: there is no such source, or it cannot be read.
    """
    if isinstance(source, Mapping):
        return reading.find_weights(dict(source), 'the state dict'), 'the state dict', {}
    if not isinstance(source, (str, Path)):
        raise WeightsError(
            'source is a path, a URL, a preset or a state dict (of a module: module.state_dict()), '
            f'not a {type(source).__name__}'
        )
    where, path = str(source), Path(source)
    name = presets.find(where)
    if name:
        preset = presets.PRESETS[name]
        where = f'preset {name} (licence: {preset.licence})'
        path = downloading.fetch(preset.source, preset.sha256)
    elif where.startswith(('http://', 'https://')):
        path = downloading.fetch(where)
    elif not os.path.exists(path):
        close = difflib.get_close_matches(where, presets.PRESETS)
        raise WeightsError(
            f'no weights at {path.absolute()}: expected a path, a URL or a preset'
            + (f', such as {", ".join(close)}' if close else '')
        )
    tensors, classes = reading.read(path)
    comparing.check_finite(tensors, where)
    return tensors, where, classes


def tell_untrained(tensors: Mapping[str, Tensor], where: str) -> None:
    """Warn of tensors, under our names, that are as a network is initialised."""
    biases = [tensor for name, tensor in tensors.items() if name.endswith('dwconv.bias')]
    if biases and not any(bias.any() for bias in biases):
        print_log(
            f'{where}: all biases of its depthwise convolutions are 0, as in a network that was '
            'never trained: ask for another file, or train from these as from random weights',
            logger='current',
            level=logging.WARNING,
        )


def count_reasons(dropped: Mapping[str, str]) -> str:
    """Each reason for which tensors were dropped and how often, for a message."""
    counts = Counter(dropped.values())
    return ', '.join(f'{why} ({count})' for why, count in counts.items()) or 'nothing'


def _describe_layout(layout: str, prefix: str) -> str:
    return layout + (f', backbone below {prefix!r}' if prefix else '')


def _has_head(names: Iterable[str], prefix: str) -> bool:
    """Whether a classifier's head stands beside the backbone at ``prefix``."""
    parent = prefix.rpartition('.')[0].rpartition('.')[0]  # of module.backbone.: module
    return any(name.startswith(f'{parent}.head.' if parent else 'head.') for name in names)


def _stage(name: str) -> int:
    """The stage that a tensor of ours is of, with the stem or downsampling before it; -1: none."""
    match = STAGE.match(name)
    return int(match[1]) if match else -1


def _inflated(stem: Tensor, bands: int, inflate: str) -> Tensor:
    """(C, 3, 4, 4) -> (C, bands, 4, 4)."""
    if inflate == 'mean':
        return stem.mean(1, keepdim=True).repeat(1, bands, 1, 1) * (3 / bands)
    if bands < 3:
        raise WeightsError(
            "inflate='zero' keeps the 3 bands of the file and adds others: "
            f"for {bands} take inflate='mean'"
        )
    return torch.cat([stem, stem.new_zeros(len(stem), bands - 3, *stem.shape[2:])], 1)


def _likely_cause(
    network: Architecture | None, source: Architecture | None, differences: list[Difference]
) -> str:
    """For a message: why the architectures or the tensors' names do not fit."""
    if network and source and not _same(source, network):
        return _other_architecture(source, network)
    unknown = [name for kind, name, *_ in differences if kind == UNKNOWN]
    missing = [name for kind, name, *_ in differences if kind == MISSING]
    if any('stem.2.' in name or 'downsample_layers.0.2.' in name for name in unknown):
        return (
            "The source has an overlapping stem of two or more convolutions (timm's _ols): "
            'it is another network.'
        )
    if 'downsample_layers.0.1.bias' in missing:
        return "The source has norms without bias (timm's zepto and _rms): it is another network."
    if any(OUTPUT_NORM.match(name) for name in missing):
        return (
            'The source has norms for some of the maps that this network emits, not for all: give '
            'the out_indices of its network, or delete its norm0 ... norm3 to start them afresh.'
        )
    return (
        'Was it changed, or is it from a modified ConvNeXt? Nothing is loaded in part: give '
        'tensors their names back, or take the original file.'
    )


def _same(a: Architecture, b: Architecture) -> bool:
    """Whether their tensors are the same; eps has none."""
    return a == b._replace(eps=a.eps)


def _other_architecture(source: Architecture, network: Architecture) -> str:
    widths = ''
    if source.dims != network.dims:
        widths = f' (and in_channels of the neck or the heads, for maps of {list(source.dims)})'
    return (
        f'The source is a ConvNeXt {describe(source)}, this network is {describe(network)}: '
        f'set arch{widths}, or take other weights.'
    )
