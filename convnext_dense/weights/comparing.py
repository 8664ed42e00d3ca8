"""Names and shapes of a network's tensors against those of a file."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from torch import Tensor, nn

from ..architectures import Architecture
from ..errors import ConfigError, WeightsError


def compare(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Kind of difference (missing, unknown, of another shape) -> the tensors that it is true of."""
    return {
        'missing': [name for name in own if name not in given],
        'unknown': [name for name in given if name not in own],
        'of another shape': [
            f'{name} {tuple(given[name].shape)} where {tuple(own[name].shape)} is expected'
            for name in own
            if name in given and given[name].shape != own[name].shape
        ],
    }


def listing(problems: Mapping[str, list[str]]) -> str:
    """A line per kind of difference, with its first few tensors."""
    return '\n'.join(
        f'  {len(names)} {kind}: {few(names)}' for kind, names in problems.items() if names
    )


def few(names: list[str]) -> str:
    """The first three, for a message."""
    return ', '.join(name[:200] for name in names[:3]) + (', ...' if len(names) > 3 else '')


def check_names(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    heads_may_differ: bool,
    may_differ: Sequence[str] = (),
) -> list[str]:
    """Compare names and shapes. Returns a warning for each part in ``may_differ``, and for each
    class layer whose number of classes differs, if ``heads_may_differ``.

    Raises:
        WeightsError, ConfigError: as ``CheckpointHook``.
    """
    given = {name.removeprefix('module.'): value for name, value in state_dict.items()}
    expected = model.state_dict()
    backbones = [
        name
        for name, module in model.named_modules()
        if isinstance(getattr(module, 'architecture', None), Architecture)
        or name.endswith('backbone')
    ]
    problems, warnings = compare(expected, given), []
    for part in may_differ:
        _check_part(part, {**expected, **given}, backbones)
        missing, unknown, reshaped = (
            [text for text in texts if _is_in(text, [part])] for texts in problems.values()
        )
        warnings.append(
            f'may_differ, {part}: {len(missing + reshaped)} tensors of the model left '
            f'as initialised, {len(unknown + reshaped)} of the checkpoint dropped'
        )
    # A layer that predicts classes differs in its number of outputs alone.
    heads = [
        text
        for text in problems['of another shape']
        if heads_may_differ
        and not _is_in(text, [*backbones, *may_differ])
        and expected[_name(text)].shape[1:] == given[_name(text)].shape[1:]
    ]
    problems = {
        kind: [text for text in texts if text not in heads and not _is_in(text, may_differ)]
        for kind, texts in problems.items()
    }
    wrong = [_name(text) for texts in problems.values() for text in texts]
    if wrong:
        advice = ''
        if heads_may_differ and not any(_is_in(name, backbones) for name in wrong):
            fitting = [
                name
                for name in given
                if name in expected and given[name].shape == expected[name].shape
            ]
            parts = [*may_differ, *_parts(wrong, fitting)]
            advice = (
                '\nTo fine-tune from all that fits, name the parts that differ: '
                f'default_hooks = dict(checkpoint=dict(may_differ={parts}))'
            )
        raise WeightsError(
            f'the checkpoint is not of this model:\n{listing(problems)}\n'
            'Load the weights of a backbone alone through model.backbone.init_cfg; a whole model '
            'needs the same architecture and heads; only to fine-tune may the number of classes '
            "differ. Models of the zoos, whose backbone is mmpretrain's, are renamed by "
            f'tools/convert_weights.py.{advice}'
        )
    return warnings + [f'not loaded, other shape: {text}' for text in heads]


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
    return list(
        dict.fromkeys(
            next((part for part in _beginnings(name) if part not in shared), name) for name in names
        )
    )


def _beginnings(name: str) -> Iterable[str]:
    """``a.b.c`` -> ``a``, ``a.b``, ``a.b.c``."""
    return accumulate(name.split('.'), '{}.{}'.format)


def _is_in(text: str, parts: Iterable[str]) -> bool:
    return any(f'{_name(text)}.'.startswith(f'{part}.') for part in parts)


def _name(text: str) -> str:
    """Of a tensor, behind which its shapes may follow."""
    return text.partition(' ')[0]
