"""How each library names a ConvNeXt's tensors, as tables from our names to theirs.

In a name, ``{i}`` is the stage from 0, ``{up}`` the stage from 1, ``{even}`` and ``{odd}`` are 2i and 2i + 1, ``{j}``
is the block, ``{n}`` and ``{m}`` are numbers that both sides share. ``.weight`` and ``.bias`` may follow.
Ours are the official names, so that official files need no renaming.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from re import Pattern
from typing import NamedTuple

from torch import Tensor

from ..architectures import Architecture
from ..errors import WeightsError

FINAL_NORM, HEAD, PROJECTOR = (
    "classifier's final norm",
    "classifier's head",
    "distillation's projector",
)


class Reshape(NamedTuple):
    to_ours: Callable[[Tensor], Tensor]  # leaves alone what has not the layout's form
    to_theirs: Callable[[Tensor, int], Tensor] | None = None  # is also given the width of the stem


class Layout(NamedTuple):
    name: str
    table: Mapping[str, str]  # our name -> theirs; the first row that fits counts
    reshape: Mapping[str, Reshape] = {}  # end of our name -> how its tensor is stored
    dropped: Mapping[str, str] = {}  # start of another known name of theirs -> why it is left out
    wrapper: str | None = None  # key under which their .pth files keep the tensors


def _flat(value):
    return value.flatten() if value.dim() > 1 and value.numel() == value.shape[-1] else value


def _channels_first(value):
    return value[:, 0, 0] if value.dim() == 3 and value.shape[1:] == (1, 1) else value


def _linear(value):
    return value[:, :, 0, 0] if value.dim() == 4 and value.shape[2:] == (1, 1) else value


def _dense_kernel(value):
    """Sparse (k*k, in, out), depthwise (k*k, C), to dense (out, in, k, k). The sparse order runs down the columns."""
    side = round(value.shape[0] ** 0.5) if value.dim() in (2, 3) else 0
    if not side or side**2 != value.shape[0]:
        return value
    value = value.permute(2, 1, 0) if value.dim() == 3 else value.permute(1, 0)[:, None]
    return value.reshape(*value.shape[:2], side, side).transpose(2, 3)


# timm's atto, femto, pico and nano, V1 and V2, store the two linear layers as 1x1 convolutions.
LINEAR_OR_CONV = Reshape(
    _linear, lambda value, width: value[:, :, None, None] if width in (40, 48, 64, 80) else value
)
GRN_4D = Reshape(_flat, lambda value, width: value[None, None, None])

OFFICIAL = Layout(
    'official',
    {
        name: name
        for name in (
            'downsample_layers.{i}.{n}',
            'stages.{i}.{j}.dwconv',
            'stages.{i}.{j}.norm',
            'stages.{i}.{j}.pwconv{m}',
            'stages.{i}.{j}.grn.gamma',
            'stages.{i}.{j}.grn.beta',
            'stages.{i}.{j}.gamma',
            'norm{i}',
            'norm',
            'head',
        )
    },
    reshape={
        '.grn.gamma': GRN_4D,
        '.grn.beta': GRN_4D,
    },  # FCMAE files: (1, C); ours and mmpretrain's: (C,)
    dropped={'norms.': FINAL_NORM, 'projectors.': PROJECTOR},  # the DINOv3 and EUPE originals
    wrapper='model',
)

SPARSE = Layout(
    'official, sparse (FCMAE)',
    {
        'downsample_layers.0.{n}': 'downsample_layers.0.{n}',
        'downsample_layers.{i}.0': 'downsample_layers.{i}.0.ln',
        'downsample_layers.{i}.1.weight': 'downsample_layers.{i}.1.kernel',
        'downsample_layers.{i}.1.bias': 'downsample_layers.{i}.1.bias',
        'stages.{i}.{j}.dwconv.weight': 'stages.{i}.{j}.dwconv.kernel',
        'stages.{i}.{j}.dwconv.bias': 'stages.{i}.{j}.dwconv.bias',
        'stages.{i}.{j}.norm': 'stages.{i}.{j}.norm.ln',
        'stages.{i}.{j}.pwconv{m}': 'stages.{i}.{j}.pwconv{m}.linear',
        'stages.{i}.{j}.grn.gamma': 'stages.{i}.{j}.grn.gamma',
        'stages.{i}.{j}.grn.beta': 'stages.{i}.{j}.grn.beta',
    },
    reshape={
        '.grn.gamma': Reshape(_flat),
        '.grn.beta': Reshape(_flat),
        '.bias': Reshape(_flat),
        '.dwconv.weight': Reshape(_dense_kernel),
        '.1.weight': Reshape(_dense_kernel),
    },
)

TIMM = Layout(
    'timm',
    {
        'downsample_layers.0.{n}': 'stem.{n}',
        'downsample_layers.{i}.{n}': 'stages.{i}.downsample.{n}',
        'stages.{i}.{j}.dwconv': 'stages.{i}.blocks.{j}.conv_dw',
        'stages.{i}.{j}.norm': 'stages.{i}.blocks.{j}.norm',
        'stages.{i}.{j}.pwconv{m}': 'stages.{i}.blocks.{j}.mlp.fc{m}',
        'stages.{i}.{j}.grn.gamma': 'stages.{i}.blocks.{j}.mlp.grn.weight',
        'stages.{i}.{j}.grn.beta': 'stages.{i}.blocks.{j}.mlp.grn.bias',
        'stages.{i}.{j}.gamma': 'stages.{i}.blocks.{j}.gamma',
        'norm{i}': 'norm{i}',  # timm has none; a model of ours under its names keeps them
        'norm': 'head.norm',
        'head': 'head.fc',
    },
    reshape={'.pwconv1.weight': LINEAR_OR_CONV, '.pwconv2.weight': LINEAR_OR_CONV},
    dropped={'norm_pre.': FINAL_NORM, 'head.': HEAD},
)

TIMM_FEATURES = TIMM._replace(
    name='timm, features_only',
    table={
        ours: re.sub(r'^(stem|stages)\.', r'\1_', theirs) for ours, theirs in TIMM.table.items()
    },
)

TORCHVISION = Layout(
    'torchvision',
    {
        'downsample_layers.{i}.{n}': 'features.{even}.{n}',
        'stages.{i}.{j}.dwconv': 'features.{odd}.{j}.block.0',
        'stages.{i}.{j}.norm': 'features.{odd}.{j}.block.2',
        'stages.{i}.{j}.pwconv1': 'features.{odd}.{j}.block.3',
        'stages.{i}.{j}.pwconv2': 'features.{odd}.{j}.block.5',
        'stages.{i}.{j}.gamma': 'features.{odd}.{j}.layer_scale',
        'norm{i}': 'norm{i}',  # as for timm
        'norm': 'classifier.0',
        'head': 'classifier.2',
    },
    reshape={'.gamma': Reshape(_channels_first, lambda value, width: value[:, None, None])},
)

TRANSFORMERS = Layout(
    'transformers',
    {
        'downsample_layers.0.0': 'embeddings.patch_embeddings',
        'downsample_layers.0.1': 'embeddings.layernorm',
        'downsample_layers.{i}.{n}': 'encoder.stages.{i}.downsampling_layer.{n}',
        'stages.{i}.{j}.dwconv': 'encoder.stages.{i}.layers.{j}.dwconv',
        'stages.{i}.{j}.norm': 'encoder.stages.{i}.layers.{j}.layernorm',
        'stages.{i}.{j}.pwconv{m}': 'encoder.stages.{i}.layers.{j}.pwconv{m}',
        'stages.{i}.{j}.grn.gamma': 'encoder.stages.{i}.layers.{j}.grn.weight',
        'stages.{i}.{j}.grn.beta': 'encoder.stages.{i}.layers.{j}.grn.bias',
        'stages.{i}.{j}.gamma': 'encoder.stages.{i}.layers.{j}.layer_scale_parameter',
        'norm{i}': 'hidden_states_norms.stage{up}',
        'norm': 'layernorm',
    },
    reshape={'.grn.gamma': GRN_4D, '.grn.beta': GRN_4D},
    dropped={'hidden_states_norms.stem.': "norm of the stem's map, which is not emitted"},
)

TRANSFORMERS_DINOV3 = Layout(
    'transformers, DINOv3',
    {
        'downsample_layers.{i}.{n}': 'stages.{i}.downsample_layers.{n}',
        'stages.{i}.{j}.dwconv': 'stages.{i}.layers.{j}.depthwise_conv',
        'stages.{i}.{j}.norm': 'stages.{i}.layers.{j}.layer_norm',
        'stages.{i}.{j}.pwconv{m}': 'stages.{i}.layers.{j}.pointwise_conv{m}',
        'stages.{i}.{j}.gamma': 'stages.{i}.layers.{j}.gamma',
        'norm{i}': 'norm{i}',  # as for timm
        'norm': 'layer_norm',
    },
)

MMPRETRAIN = Layout(
    'mmpretrain',
    {
        'downsample_layers.{i}.{n}': 'downsample_layers.{i}.{n}',
        'stages.{i}.{j}.dwconv': 'stages.{i}.{j}.depthwise_conv',
        'stages.{i}.{j}.norm': 'stages.{i}.{j}.norm',
        'stages.{i}.{j}.pwconv{m}': 'stages.{i}.{j}.pointwise_conv{m}',
        'stages.{i}.{j}.grn.gamma': 'stages.{i}.{j}.grn.gamma',
        'stages.{i}.{j}.grn.beta': 'stages.{i}.{j}.grn.beta',
        'stages.{i}.{j}.gamma': 'stages.{i}.{j}.gamma',
        'norm{i}': 'norm{i}',
    },
    reshape={'.pwconv1.weight': Reshape(_linear), '.pwconv2.weight': Reshape(_linear)},
    wrapper='state_dict',
)

LAYOUTS = (
    OFFICIAL,
    SPARSE,
    TIMM,
    TIMM_FEATURES,
    TORCHVISION,
    TRANSFORMERS,
    TRANSFORMERS_DINOV3,
    MMPRETRAIN,
)


class Renamed(NamedTuple):
    layout: Layout
    prefix: str  # path to the backbone inside the source, with its trailing dot
    tensors: dict[str, Tensor]  # under our names, in our shapes
    names: dict[str, str]  # our name -> name in the source
    dropped: dict[str, str]  # name in the source -> why
    unknown: tuple[str, ...]  # names inside the backbone that the layout does not know


def to_ours(tensors: Mapping[str, Tensor], where: str) -> Renamed:
    """Find the one ConvNeXt among ``tensors``, whatever its layout and wherever it sits, and rename it to ours.

    Raises:
        WeightsError: there is none, or more than one; or two tensors have the same name with us.
    """
    layout, prefix = _recognise(tensors, where)
    renamed, names, dropped, unknown = {}, {}, {}, []
    for full_name, value in tensors.items():
        if not full_name.startswith(prefix):
            dropped[full_name] = f'outside of {prefix[:-1]}'
            continue
        name = full_name[len(prefix) :]
        ours = translate(name, layout, reverse=True)
        if ours is None:
            reason = next(
                (why for start, why in layout.dropped.items() if name.startswith(start)), None
            )
            if reason:
                dropped[full_name] = reason
            else:
                unknown.append(full_name)
        elif ours in renamed:
            raise WeightsError(f'{where} ({layout.name}) holds {ours} twice')
        else:
            renamed[ours], names[ours] = _reshaped(ours, value, layout), full_name
    return Renamed(layout, prefix, renamed, names, dropped, tuple(unknown))


def to_theirs(
    tensors: Mapping[str, Tensor], layout: Layout
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A backbone under our names -> under ``layout``'s, and the names that it has no place for."""
    width = tensors['downsample_layers.0.0.weight'].shape[0]
    renamed, without_place = {}, []
    for name, value in tensors.items():
        theirs = translate(name, layout)
        if theirs is None:
            without_place.append(name)
            continue
        for end, reshape in layout.reshape.items():
            if name.endswith(end) and reshape.to_theirs:
                value = reshape.to_theirs(value, width)
        renamed[theirs] = value
    return renamed, tuple(without_place)


def translate(name: str, layout: Layout, reverse: bool = False) -> str | None:
    """Our name -> theirs, or theirs -> ours in ``reverse``; None if the table has no row for it.

    Theirs -> ours counts only if it leads back: ``features.3`` is a stage and no reduction in torchvision.
    """
    for source, target in layout.table.items():
        if reverse:
            source, target = target, source
        match = _pattern(source).fullmatch(name)
        if match:
            fields = {key: int(value) for key, value in match.groupdict().items() if key != 'leaf'}
            stage = fields.get(
                'i',
                fields.get('up', 0) - 1
                if 'up' in fields
                else fields.get('even', fields.get('odd', 0)) // 2,
            )
            fields |= dict(i=stage, up=stage + 1, even=2 * stage, odd=2 * stage + 1)
            translated = target.format(**fields) + (match['leaf'] or '')
            return translated if not reverse or translate(translated, layout) == name else None
    return None


@cache
def _pattern(template: str) -> Pattern:
    fields = re.sub(r'\\{(\w+)\\}', r'(?P<\1>0|[1-9][0-9]{0,3})', re.escape(template))
    return re.compile(fields + r'(?P<leaf>\.weight|\.bias)?')


def architecture_of(tensors: Mapping[str, Tensor]) -> Architecture | None:
    """Of a backbone under our names; None where it has not four stages. Files do not tell the eps."""
    blocks = [set(), set(), set(), set()]
    for name in tensors:
        match = re.match(r'stages\.([0-3])\.(\d+)\.', name)
        if match:
            blocks[int(match[1])].add(int(match[2]))
    dims = [
        tuple(tensors[name].shape)[:1]
        for name in (f'stages.{i}.0.dwconv.weight' for i in range(4))
        if name in tensors
    ]
    if not all(blocks) or len(dims) < 4 or not all(dims):
        return None
    generation = 2 if any('.grn.' in name for name in tensors) else 1
    return Architecture(tuple(map(len, blocks)), tuple(dim for (dim,) in dims), generation)


def _recognise(tensors: Mapping[str, Tensor], where: str) -> tuple[Layout, str]:
    """By the first depthwise convolution, whose name differs in every layout."""
    found = []
    for layout in LAYOUTS:
        first = translate('stages.0.0.dwconv.weight', layout)
        found += [
            (layout, name[: -len(first)])
            for name in tensors
            if name == first or name.endswith(f'.{first}')
        ]
    if len(found) == 1:
        return found[0]
    if found:
        places = ', '.join(
            f'{prefix or "the top level"} ({layout.name})' for layout, prefix in found[:4]
        )
        raise WeightsError(
            f'{where} holds more than one ConvNeXt: {places}. Pass the one that is meant as a state dict'
        )
    raise WeightsError(
        f'{where} holds no ConvNeXt in a layout that is known ({", ".join(x.name for x in LAYOUTS)}). Is '
        f'it a model with another backbone? Its first names: {", ".join(list(tensors)[:3]) or "none"}'
    )


def _reshaped(name, value, layout):
    for end, reshape in layout.reshape.items():
        if name.endswith(end):
            return reshape.to_ours(value)
    return value
