"""How each library names a ConvNeXt's tensors: a table for each, from our names to theirs.

In a name ``{i}`` is the number of the stage, 0 to 3. Where a library counts stages differently, it
is ``{up}`` (i + 1), ``{even}`` (2i) or ``{odd}`` (2i + 1). ``{j}`` is the number of the block;
``{n}`` and ``{m}`` are numbers that are the same in both names. ``.weight`` and ``.bias`` may
follow. Ours are the official names, so that official files need no renaming.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from re import Pattern
from typing import NamedTuple

from torch import Tensor

from ..architectures import Architecture
from ..errors import WeightsError

STEM = 'downsample_layers.0.0.weight'
FIRST_DWCONV = 'stages.0.0.dwconv.weight'  # its name tells the layouts apart
OUTPUT_NORM = re.compile(r'norm([0-3])\.(weight|bias)')

# Why a tensor is left out.
FINAL_NORM = "classifier's final norm"
HEAD = "classifier's head"
PROJECTOR = "distillation's projector"
CLASSIFIER = {'norm.': FINAL_NORM, 'head.': HEAD}  # beginning of our name -> why

# A template's field for the stage: its value -> our number of the stage
STAGE_FIELDS: dict[str, Callable[[int], int]] = {
    'i': lambda number: number,
    'up': lambda number: number - 1,
    'even': lambda number: number // 2,
    'odd': lambda number: number // 2,
}


class Reshape(NamedTuple):
    """How the shape in which a layout stores a tensor becomes ours, and the way back."""

    to_ours: Callable[[Tensor], Tensor]  # returns tensors of another shape than expected as given
    to_theirs: Callable[[Tensor, int], Tensor] | None = None  # is also given the stem's width


class Layout(NamedTuple):
    name: str
    table: Mapping[str, str]  # our name -> theirs; the first row that fits counts
    reshape: Mapping[str, Reshape] = {}  # end of our name -> how its tensor is stored
    dropped: Mapping[str, str] = {}  # beginning of another name of theirs -> why it is left out
    wrapper: str | None = None  # key under which their .pth files keep the tensors


def _flat(value: Tensor) -> Tensor:
    """(1, ..., 1, C) -> (C,)."""
    return value.flatten() if value.dim() > 1 and value.numel() == value.shape[-1] else value


def _channels_first(value: Tensor) -> Tensor:
    """(C, 1, 1) -> (C,)."""
    return value[:, 0, 0] if value.dim() == 3 and value.shape[1:] == (1, 1) else value


def _linear(value: Tensor) -> Tensor:
    """(out, in, 1, 1) -> (out, in)."""
    return value[:, :, 0, 0] if value.dim() == 4 and value.shape[2:] == (1, 1) else value


def _dense_kernel(value: Tensor) -> Tensor:
    """Sparse (k*k, in, out) or depthwise (k*k, C) -> dense (out, in, k, k).

    The k*k positions of a sparse kernel run down its columns.
    """
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
    # (1, 1, 1, C) in classifiers, (1, C) in FCMAE files, (C,) in our own
    reshape={'.grn.gamma': GRN_4D, '.grn.beta': GRN_4D},
    # in the original files of DINOv3 and EUPE
    dropped={'norms.': FINAL_NORM, 'projectors.': PROJECTOR},
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
        'norm{i}': 'norm{i}',  # timm has no such norms; of ours they keep their names
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
        'norm{i}': 'norm{i}',  # as in TIMM
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
        'norm{i}': 'norm{i}',  # as in TIMM
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
    """A backbone of some layout under our names."""

    layout: Layout
    prefix: str  # path to the backbone inside the source, with its trailing dot
    tensors: dict[str, Tensor]  # under our names, in our shapes
    names: dict[str, str]  # our name -> name in the source
    dropped: dict[str, str]  # name in the source -> why
    unknown: list[str]  # names inside the backbone that the layout does not have


def to_ours(tensors: Mapping[str, Tensor], where: str) -> Renamed:
    """Find the only ConvNeXt among ``tensors``, of any layout and below any prefix, and rename it.

    Args:
        where: name of the source in messages.

    Raises:
        WeightsError: there is none, or more than one; or two tensors get the same name.
    """
    layout, prefix = _recognise(tensors, where)
    renamed = Renamed(layout, prefix, {}, {}, {}, [])
    for full_name, tensor in tensors.items():
        if not full_name.startswith(prefix):
            renamed.dropped[full_name] = f'outside of {prefix[:-1]}'
            continue
        theirs = full_name[len(prefix) :]
        ours = translate(theirs, layout, reverse=True)
        reasons = [why for start, why in layout.dropped.items() if theirs.startswith(start)]
        if ours in renamed.tensors:
            raise WeightsError(f'{where} ({layout.name}) holds {ours} twice')
        if ours is not None:
            renamed.tensors[ours] = _reshaped(ours, tensor, layout)
            renamed.names[ours] = full_name
        elif reasons:
            renamed.dropped[full_name] = reasons[0]
        else:
            renamed.unknown.append(full_name)
    return renamed


def to_theirs(
    tensors: Mapping[str, Tensor], layout: Layout
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Rename a backbone from our names to those of ``layout``.

    Returns:
        The tensors, and the names of ours that the layout has no place for.
    """
    width = tensors[STEM].shape[0]
    renamed, without_place = {}, []
    for name, tensor in tensors.items():
        theirs = translate(name, layout)
        if theirs is None:
            without_place.append(name)
            continue
        for end, reshape in layout.reshape.items():
            if name.endswith(end) and reshape.to_theirs:
                tensor = reshape.to_theirs(tensor, width)
        renamed[theirs] = tensor
    return renamed, tuple(without_place)


def translate(name: str, layout: Layout, reverse: bool = False) -> str | None:
    """Our name -> theirs, or theirs -> ours in ``reverse``; None if the table has no row for it.

    Theirs -> ours counts only if it leads back: in torchvision ``features.{even}`` also fits
    ``features.3``, which is no downsampling but a stage.
    """
    for source, target in layout.table.items():
        if reverse:
            source, target = target, source
        match = _pattern(source).fullmatch(name)
        if match:
            fields = match.groupdict()
            leaf = fields.pop('leaf') or ''
            numbers = {key: int(digits) for key, digits in fields.items()}
            i = _stage(numbers)
            numbers.update(i=i, up=i + 1, even=2 * i, odd=2 * i + 1)
            translated = target.format(**numbers) + leaf
            return translated if not reverse or translate(translated, layout) == name else None
    return None


def _stage(numbers: Mapping[str, int]) -> int:
    for field, to_ours in STAGE_FIELDS.items():
        if field in numbers:
            return to_ours(numbers[field])
    return 0


@cache
def _pattern(template: str) -> Pattern:
    fields = re.sub(r'\\{(\w+)\\}', r'(?P<\1>0|[1-9][0-9]{0,3})', re.escape(template))
    return re.compile(fields + r'(?P<leaf>\.weight|\.bias)?')


def architecture_of(tensors: Mapping[str, Tensor]) -> Architecture | None:
    """Of a backbone under our names; None where it has not four stages.

    Its eps is the default: files do not hold it.
    """
    matches = [re.match(r'stages\.([0-3])\.(\d+)\.', name) for name in tensors]
    blocks = {(match[1], match[2]) for match in matches if match}
    first = [tensors.get(f'stages.{i}.0.dwconv.weight') for i in range(4)]
    dims = [tensor.shape[0] for tensor in first if tensor is not None and tensor.dim()]
    if len(dims) < 4:
        return None
    depths = [sum(stage == str(i) for stage, _ in blocks) for i in range(4)]
    generation = 2 if any('.grn.' in name for name in tensors) else 1
    return Architecture(tuple(depths), tuple(dims), generation)  # type: ignore[arg-type]  # of four


def _recognise(tensors: Mapping[str, Tensor], where: str) -> tuple[Layout, str]:
    """By the first depthwise convolution, which each layout names differently."""
    matches = []
    for layout in LAYOUTS:
        first = str(translate(FIRST_DWCONV, layout))
        matches += [
            (layout, name.removesuffix(first))
            for name in tensors
            if f'.{name}'.endswith(f'.{first}')
        ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        places = [f'{prefix or "the top level"} ({layout.name})' for layout, prefix in matches]
        raise WeightsError(
            f'{where} holds more than one ConvNeXt: {", ".join(places[:4])}. '
            'Pass the one that is meant as a state dict'
        )
    raise WeightsError(
        f'{where} holds no ConvNeXt in a layout that is known '
        f'({", ".join(layout.name for layout in LAYOUTS)}). Is it a model with another backbone? '
        f'Its first names: {", ".join(list(tensors)[:3]) or "none"}'
    )


def _reshaped(name: str, tensor: Tensor, layout: Layout) -> Tensor:
    for end, reshape in layout.reshape.items():
        if name.endswith(end):
            return reshape.to_ours(tensor)
    return tensor
