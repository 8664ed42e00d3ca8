"""Names and shapes of a network's tensors against those of a file."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..architectures import Architecture
from ..errors import ConfigError, WeightsError

# Kinds of difference, as messages name them and in their order.
MISSING = 'missing'  # the file has no such tensor
UNKNOWN = 'unknown'  # the network has no such tensor
RESHAPED = 'of another shape'
NOT_FLOATING = 'not of a floating-point type'
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Difference(NamedTuple):
    """Why a tensor of the network and one of the file do not fit."""

    kind: str
    name: str
    given_shape: tuple[int, ...] = ()  # in the file; of ``RESHAPED``
    expected_shape: tuple[int, ...] = ()  # in the network; of ``RESHAPED``
    dtype: torch.dtype | None = None  # in the file; of ``NOT_FLOATING``

    def __str__(self) -> str:
        if self.kind == RESHAPED:
            return f'{self.name} {self.given_shape} where {self.expected_shape} is expected'
        return f'{self.name} ({self.dtype})' if self.dtype else self.name


def compare(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[Difference]:
    """The differences in names and shapes between a network's tensors and those of a file."""
    differences = [Difference(MISSING, name) for name in expected if name not in given]
    differences += [Difference(UNKNOWN, name) for name in given if name not in expected]
    for name, tensor in expected.items():
        if name in given and given[name].shape != tensor.shape:
            shapes = tuple(given[name].shape), tuple(tensor.shape)
            differences.append(Difference(RESHAPED, name, *shapes))
    return differences


def compare_backbone(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], unknown: Iterable[str]
) -> list[Difference]:
    """As ``compare``, for the renamed tensors of a backbone in a file.

    Its tensors that could not be renamed (``unknown``, by their names in the file) differ as well,
    and those that hold integers or the like: no weight of a ConvNeXt does.
    """
    differences = compare(expected, given)
    differences += [Difference(UNKNOWN, name) for name in unknown]
    for name, tensor in given.items():
        if tensor.dtype not in FLOATS:
            differences.append(Difference(NOT_FLOATING, name, dtype=tensor.dtype))
    return differences


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """
    Args:
        where: what has these tensors, for the message.

    Raises:
        WeightsError: there is a NaN or an infinity in one of them.
    """
    names = [
        name
        for name, tensor in tensors.items()
        # not FSDP's ShardedTensor, whose shards are here as tensors too
        if type(tensor) in (Tensor, nn.Parameter)
        and tensor.is_floating_point()
        and not tensor.isfinite().all()
    ]
    if names:
        raise WeightsError(
            f'{where}: {len(names)} of {len(tensors)} tensors hold NaN or infinity '
            f'({first_few(names)}), as of a training that diverged, or of damage: take an earlier '
            'checkpoint, or fetch the file again'
        )


def listing(differences: Iterable[Difference]) -> str:
    """For a message: a line per kind of difference, with its first few tensors."""
    kinds: dict[str, list[Difference]] = {
        kind: [] for kind in (MISSING, UNKNOWN, RESHAPED, NOT_FLOATING)
    }
    for difference in differences:
        kinds[difference.kind].append(difference)
    return '\n'.join(
        f'  {len(group)} {kind}: {first_few(group)}' for kind, group in kinds.items() if group
    )


def first_few(items: Sequence) -> str:
    """The first three, for a message."""
    return ', '.join(str(item)[:200] for item in items[:3]) + (', ...' if len(items) > 3 else '')


def convnext_architecture(module: object) -> Architecture | None:
    """Of a ``ConvNeXt`` of ours; None for any other module.

    The backbone imports this room, so that its class cannot be asked for here.
    """
    architecture = getattr(module, 'architecture', None)
    return architecture if isinstance(architecture, Architecture) else None


def check_names(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    heads_may_differ: bool,
    may_differ: Sequence[str] = (),
    expected: Mapping[str, Tensor] | None = None,
) -> list[str]:
    """Compare names and shapes of a whole model with those of a checkpoint.

    Args:
        model: a detector or segmentor.
        state_dict: the checkpoint's tensors.
        heads_may_differ: layers outside the backbone may have another number of outputs (classes).
        may_differ: beginnings of names outside the backbone. Tensors below them may be missing,
            unknown, or of any shape.
        expected: names and tensors of the model (default: those that it has).

    Returns:
        A warning for each part in ``may_differ``, and for each tensor that differs in its number of
        outputs.

    Raises:
        WeightsError: any other difference.
        ConfigError: a part in ``may_differ`` reaches into the backbone, or is in neither the model
            nor the checkpoint.
    """
    given = {name.removeprefix('module.'): tensor for name, tensor in state_dict.items()}
    expected = model.state_dict() if expected is None else expected
    backbones = [
        name
        for name, module in model.named_modules()
        if convnext_architecture(module) or name.endswith('backbone')
    ]
    differences, warnings = compare(expected, given), []
    for part in may_differ:
        _check_part(part, [*expected, *given], backbones)
        kinds = [kind for kind, name, *_ in differences if _is_in(name, [part])]
        left, dropped = len(kinds) - kinds.count(UNKNOWN), len(kinds) - kinds.count(MISSING)
        warnings.append(
            f'may_differ, {part}: {left} tensors of the model left as initialised, '
            f'{dropped} of the checkpoint dropped'
        )
    differing = {item.name for item in differences}
    differences = [item for item in differences if not _is_in(item.name, may_differ)]
    # A layer that predicts classes differs in its number of outputs alone.
    outputs = [
        item
        for item in differences
        if item.kind == RESHAPED
        and item.given_shape[1:] == item.expected_shape[1:]
        and not _is_in(item.name, backbones)
    ]
    heads = outputs if heads_may_differ else []
    wrong = [item for item in differences if item not in heads]
    if not wrong:
        return warnings + [f'not loaded, other shape: {item}' for item in heads]
    advice = ''
    if heads_may_differ and not any(_is_in(item.name, backbones) for item in wrong):
        fitting = [name for name in given if name in expected and name not in differing]
        parts = [*may_differ, *_parts([item.name for item in wrong], fitting)]
        advice = (
            '\nTo fine-tune from all that fits, name the parts that differ: '
            f'default_hooks = dict(checkpoint=dict(may_differ={parts}))'
        )
    reason = (
        'Load the weights of a backbone alone through model.backbone.init_cfg; a whole model '
        'needs the same architecture and heads; only to fine-tune, through load_from, may the '
        "number of classes differ. Models of the zoos, whose backbone is mmpretrain's, are renamed "
        'by convnext-dense convert.'
    )
    if all(item in outputs for item in wrong):
        reason = (
            'These layers differ in their number of outputs alone, as of another number of '
            'classes: test and resume with the config that it was trained with, or fine-tune it '
            'through load_from.'
        )
    raise WeightsError(f'the checkpoint is not of this model:\n{listing(wrong)}\n{reason}{advice}')


def _check_part(part: str, names: Iterable[str], backbones: Iterable[str]) -> None:
    if any(_is_in(part, [name]) or _is_in(name, [part]) for name in backbones):
        raise ConfigError(
            f'may_differ: {part!r} reaches into the backbone, which is loaded whole: '
            'name parts outside it'
        )
    parts = {beginning for name in names for beginning in _beginnings(name)}
    if part not in parts:
        close = difflib.get_close_matches(part, sorted(parts))
        raise ConfigError(
            f'may_differ: {part!r} is in neither the model nor the checkpoint: '
            'expected the beginning of names of parameters, up to a dot'
            + (f', such as {", ".join(close)}' if close else '')
        )


def _parts(names: Iterable[str], fitting: Iterable[str]) -> list[str]:
    """The largest parts that hold ``names`` and none of the ``fitting``."""
    shared = {beginning for name in fitting for beginning in _beginnings(name)}
    parts = [next((p for p in _beginnings(name) if p not in shared), name) for name in names]
    return list(dict.fromkeys(parts))


def _beginnings(name: str) -> Iterable[str]:
    """``a.b.c`` -> ``a``, ``a.b``, ``a.b.c``."""
    return accumulate(name.split('.'), '{}.{}'.format)


def _is_in(name: str, parts: Iterable[str]) -> bool:
    return any(f'{name}.'.startswith(f'{part}.') for part in parts)
