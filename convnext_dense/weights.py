"""Weights: a file is read without executing it, its layout renamed to ours, and every tensor accounted for."""
import hashlib
import re
from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Union

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from .errors import WeightsError


class LoadReport(NamedTuple):
    layout: str  # what the source was recognised as
    loaded: List[str]  # tensors of the network that were copied
    dropped: Dict[str, str]  # tensor of the source -> why it was left out
    left_as_initialised: List[str]  # tensors of the network that the source does not have

    def __str__(self):
        reasons = ', '.join(sorted(set(self.dropped.values()))) or 'nothing'
        left = ', '.join(sorted({name.rpartition('.')[0] for name in self.left_as_initialised})) or 'nothing'
        return f'{self.layout}: {len(self.loaded)} tensors loaded; dropped: {reasons}; left as initialised: {left}'


# The official layout needs no renaming. A lone final norm belongs to the classifier, which normalises the pooled
# vector: it is not norm3, which the official dense models start afresh.
CLASSIFIER_ONLY = {r'norm\.(weight|bias)': "classifier's final norm", r'head\..*': "classifier's head"}
OUTPUT_NORM = re.compile(r'norm\d\.(weight|bias)')
STAGE = re.compile(r'(?:stages|downsample_layers)\.([0-3])\.')


def load_weights(net: nn.Module, source: Union[str, Path, Mapping[str, Tensor]]) -> LoadReport:
    """Copy weights into a ``ConvNeXt`` in place and account for every tensor on both sides.

    Args:
        net: the backbone.
        source: path, URL (kept in torch.hub's folder) or state dict, in the official layout: a classifier's (under
            ``model``) or that of a detector or segmentor (under ``state_dict``, the backbone below ``backbone.``).

    Returns:
        A report; it is logged as one line.

    Raises:
        WeightsError: the source cannot be read, or tensors are missing, unknown or of another shape. Only the output
            norms ``norm0`` ... ``norm3`` may be missing, and only together.
    """
    if not hasattr(net, 'downsample_layers'):
        raise WeightsError(f'expected a ConvNeXt, such as model.backbone, not a {type(net).__name__}')
    where = 'a state dict' if isinstance(source, Mapping) else str(source)
    tensors = source if isinstance(source, Mapping) else _read(where)
    for wrapper in ('model', 'state_dict'):
        if isinstance(tensors, Mapping) and isinstance(tensors.get(wrapper), Mapping):
            tensors = tensors[wrapper]
    if not isinstance(tensors, Mapping) or not all(isinstance(name, str) for name in tensors):
        raise WeightsError(f'{where} holds a {type(tensors).__name__}, expected a dict of names and tensors')
    tensors, layout = _take_backbone(tensors, where)

    own = net.state_dict()
    not_tensors = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if not_tensors:
        raise WeightsError(f'{where} ({layout}) holds entries that are no tensors: {", ".join(not_tensors[:3])}')
    dropped = {}
    for name in list(tensors):
        reason = next((why for pattern, why in CLASSIFIER_ONLY.items() if re.fullmatch(pattern, name)), None)
        stage = STAGE.match(name)
        if OUTPUT_NORM.fullmatch(name) and name not in own:
            reason = 'output norm that this network does not have'
        elif stage and int(stage[1]) >= len(net.stages):
            reason = 'stage after the last that is emitted'
        if reason:
            dropped[name] = reason
            del tensors[name]

    problems = compare(own, tensors)
    left = problems['missing']
    if all(OUTPUT_NORM.fullmatch(name) for name in left) and not any(map(OUTPUT_NORM.fullmatch, tensors)):
        problems['missing'] = []  # a classifier's file: the output norms start afresh
    else:
        left = []
    problems['not finite'] = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if any(problems.values()):
        raise WeightsError(f'{where} ({layout}) does not fit this ConvNeXt:\n{listing(problems)}\n'
                           'Is it of another size (arch), or not a ConvNeXt in the official layout?')

    with torch.no_grad():  # in place: the optimiser may hold the parameters already
        for name, value in tensors.items():
            own[name].copy_(value)
    report = LoadReport(layout, list(tensors), dropped, left)
    print_log(f'ConvNeXt weights from {where}: {report}', logger='current')
    return report


def compare(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Dict[str, List[str]]:
    """Kind of difference (missing, unknown, of another shape) -> the tensors that it is true of."""
    return {
        'missing': [name for name in own if name not in given],
        'unknown': [name for name in given if name not in own],
        'of another shape': [f'{name} {tuple(given[name].shape)} where {tuple(own[name].shape)} is expected'
                             for name in own if name in given and given[name].shape != own[name].shape],
    }


def listing(problems: Mapping[str, List[str]]) -> str:
    """A line per kind of difference, with its first few tensors."""
    return '\n'.join(f'  {len(names)} {kind}: {", ".join(names[:3])}{", ..." if len(names) > 3 else ""}'
                     for kind, names in problems.items() if names)


def _take_backbone(tensors, where):
    """Strip the path to the backbone (``backbone.``, ``module.backbone.`` ...), found by the stem's first tensor."""
    stems = [name for name in tensors if name.endswith('downsample_layers.0.0.weight')]
    if len(stems) != 1:
        found = ', '.join(list(tensors)[:3]) or 'nothing'
        raise WeightsError(f'{where} holds {len(stems)} ConvNeXt stems under the official name '
                           f'downsample_layers.0.0.weight, expected one. Its first entries: {found}')
    prefix = stems[0][:-len('downsample_layers.0.0.weight')]
    layout = f'official, backbone below {prefix!r}' if prefix else 'official'
    return {name[len(prefix):]: value for name, value in tensors.items() if name.startswith(prefix)}, layout


def _read(where: str) -> Mapping:
    """Path or URL -> what the file holds. Nothing in the file is executed."""
    path = Path(where)
    if re.match(r'https?://', where):
        # The name holds the whole URL: many hosts serve a file of the same name.
        name = f'{hashlib.sha256(where.encode()).hexdigest()[:8]}-{where.rpartition("/")[2]}'
        path = Path(torch.hub.get_dir()) / 'checkpoints' / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            print_log(f'fetching {where} to {path}', logger='current')
            try:
                torch.hub.download_url_to_file(where, str(path))
            except OSError as error:
                raise WeightsError(f'could not fetch {where}: {error}\nFetch it elsewhere and put it at {path}, or name '
                                   'a local file as checkpoint; init_cfg=None trains from random weights.') from None
    if not path.is_file():
        raise WeightsError(f'no weights at {path.absolute()}: expected a path or a URL')
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # a file that is no checkpoint fails in a dozen ways
        raise WeightsError(
            f'{path} cannot be read as plain tensors ({type(error).__name__}). It is cut short (a file that was fetched: '
            'delete it to fetch it again), no checkpoint at all, or a training checkpoint with more than tensors in it: '
            "save its 'state_dict' alone.") from error
