"""The swap as a text config that inherits the old one and states what changed."""

import math
import os
from keyword import iskeyword
from pathlib import Path

from ..errors import ConfigError
from .editing import Absent
from .finding import at, read_config
from .planning import Swap

WIDTH = 120


def write_config(swap: Swap, source: Path, name: str, out: Path, command: str) -> str:
    """Write ``out``, and read it back to see that it says what the swap says. Returns the base that it inherits.

    Args:
        source: path of the old config.
        name: what the user called it; ``mmdet::...`` stays so where MMEngine can follow it.

    Raises:
        ConfigError: the file does not come out as the swapped config.
    """
    relative = os.path.relpath(source.resolve(), out.parent.resolve())
    bases = [name] if '::' in name else []
    bases += [
        relative
        if not relative.startswith(os.pardir * 3) and '::' not in name
        else str(source.resolve())
    ]
    text = '\n\n'.join(
        f'{key} = {_text(value, 0, len(key) + 3)}' for key, value in overlay(swap).items()
    )
    before = out.read_text(encoding='utf-8') if out.exists() else None
    for base in bases:
        out.write_text(f'# {command}\n_base_ = [{base!r}]\n\n{text}\n', encoding='utf-8')
        try:
            written = read_config(out)
        except ConfigError as error:
            reason = error
            continue
        wrong = [
            key
            for key in {*written, *swap.cfg}
            if _comparable(written.get(key)) != _comparable(swap.cfg.get(key))
        ]
        if not wrong:
            return base
        reason = f'{", ".join(wrong)} came out otherwise'
    if before is None:
        out.unlink()
    else:
        out.write_text(before, encoding='utf-8')
    raise ConfigError(f'{out} could not be written as a config that inherits {source}: {reason}')


def overlay(swap: Swap) -> dict:
    """Only what changed: dicts that go are replaced whole, lists are restated whole."""
    tree = {}
    for path, old, _, _ in swap.changes:
        node = tree
        for depth, key in enumerate(path):
            here = at(swap.cfg, path[: depth + 1])
            if depth == len(path) - 1 or isinstance(here, (list, tuple)):
                replaced = isinstance(here, dict) and not isinstance(old, Absent)
                node[key] = dict(_delete_=True, **_dict(here)) if replaced else _dict(here)
                break
            node = node.setdefault(key, {})
            if not isinstance(node, dict) or node.get('_delete_'):
                break
    return tree


def _dict(value):
    """In plain dicts."""
    if isinstance(value, dict):
        return {key: _dict(inner) for key, inner in value.items()}
    return (
        type(value)(_dict(inner) for inner in value) if isinstance(value, (list, tuple)) else value
    )


def _comparable(value):
    """Without the scope that MMEngine notes in what comes from another package; NaN equals NaN."""
    if isinstance(value, dict):
        return {key: _comparable(inner) for key, inner in value.items() if key != '_scope_'}
    if isinstance(value, (list, tuple)):
        return [_comparable(inner) for inner in value]
    return 'nan' if value != value else value


def _text(value, indent, used=0) -> str:
    """As people write configs: on one line where it fits, else a key a line."""
    if isinstance(value, dict) and all(
        isinstance(key, str) and key.isidentifier() and not iskeyword(key) for key in value
    ):
        items = [(f'{key}=', inner) for key, inner in value.items()]
        left, right = 'dict(', ')'
    elif isinstance(value, dict):
        items = [(f'{key!r}: ', inner) for key, inner in value.items()]
        left, right = '{', '}'
    elif isinstance(value, (list, tuple)):
        items = [('', inner) for inner in value]
        left, right = (
            ('[', ']') if isinstance(value, list) else ('(', ',)' if len(value) == 1 else ')')
        )
    else:
        finite = not isinstance(value, float) or math.isfinite(value)
        return repr(value) if finite else f"float('{value}')"
    short = left + ', '.join(key + _text(inner, 0, -WIDTH * WIDTH) for key, inner in items) + right
    if indent + used + len(short) < WIDTH:
        return short
    inner_indent = indent + 4
    lines = [
        ' ' * inner_indent + key + _text(inner, inner_indent, len(key)) for key, inner in items
    ]
    return left + '\n' + ',\n'.join(lines) + right
