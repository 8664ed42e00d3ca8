"""The swap as a text config that inherits the old one and states what changed."""

import math
import os
from keyword import iskeyword
from pathlib import Path
from typing import Any

from ..config_names import inheriting
from ..errors import ConfigError
from .config_files import is_new_style, read_config
from .editing import Absent, at
from .planning import Swap

WIDTH = 120  # characters of a line of the config that is written


def write_config(swap: Swap, source: Path, name: str, out: Path, command: str) -> None:
    """Write ``out``, and read it back to see that it says what the swap says.

    A text config cannot inherit a new-style one, so that is exported beside ``out``.

    Args:
        source: path of the old config.
        name: of the old config, as ``find_config`` returns it.
        out: path of the new config. Its folder is made.
        command: is noted in the first line.

    Raises:
        ConfigError: the file cannot be written, or does not come out as the swapped config. What
            was at ``out`` before is there again.
    """
    text = [f'{key} = {_text(value, 0, len(key) + 3)}' for key, value in overlay(swap).items()]
    body = '\n\n'.join(text)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        before = out.read_text(encoding='utf-8') if out.exists() else None
        new_style = is_new_style(source)
        if new_style:
            source = exported(out)
            name = str(source)
            _export(swap, source)
        base = _base(source, name, out)
        out.write_text(f'# {command}\n_base_ = [{base}]\n\n{body}\n', encoding='utf-8')
        reason = _difference(swap, out)
        if not reason:
            return
        if new_style:
            source.unlink()
        if before is None:
            out.unlink()
        else:
            out.write_text(before, encoding='utf-8')
    except OSError as error:
        raise ConfigError(f'{out} cannot be written: {error}') from error
    raise ConfigError(f'{out} could not be written as a config that inherits {source}: {reason}')


def exported(out: Path) -> Path:
    """Where a new-style config is exported to, which the config at ``out`` is to inherit."""
    return out.with_name(f'{out.stem}_base.py')


def _export(swap: Swap, path: Path) -> None:
    try:
        swap.original.dump(path)
    except Exception as error:  # an object that no text makes, of which yapf complains in many ways
        path.unlink(missing_ok=True)
        raise ConfigError(
            f'the new-style config cannot be exported as a text config, which the new one would '
            f'inherit: {type(error).__name__}: {error}. Swap it in Python: '
            'convnext_dense.swap_backbone(PATH, ...) returns the whole config'
        ) from error


def _base(source: Path, name: str, out: Path) -> str:
    """What the new config calls the old one, as Python: no path of this machine.

    Not ``LIBRARY::...`` itself: MMEngine follows some of these names in one family only.
    """
    if '::' in name:
        return inheriting(name)
    return repr(os.path.relpath(source.resolve(), out.parent.resolve()))


def _difference(swap: Swap, out: Path) -> str:
    """Why the config at ``out`` is not that of the swap; empty if it is."""
    try:
        written = read_config(out)
    except ConfigError as error:
        return str(error)
    keys = {*written, *swap.cfg}
    wrong = [k for k in keys if _comparable(written.get(k)) != _comparable(swap.cfg.get(k))]
    return f'{", ".join(wrong)} came out otherwise' if wrong else ''


def overlay(swap: Swap) -> dict:
    """Only what changed: dicts that go are replaced whole, lists are restated whole."""
    tree: dict[str, Any] = {}
    for path, old, _, _ in swap.changes:
        node = tree
        for depth, key in enumerate(path):
            value = at(swap.cfg, path[: depth + 1])
            if depth == len(path) - 1 or isinstance(value, (list, tuple)):
                replaced = isinstance(value, dict) and not isinstance(old, Absent)
                node[key] = dict(_delete_=True, **_dict(value)) if replaced else _dict(value)
                break
            node = node.setdefault(key, {})
            if not isinstance(node, dict) or node.get('_delete_'):
                break
    return tree


def _dict(value):
    """In plain dicts."""
    if isinstance(value, dict):
        return {key: _dict(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_dict(inner) for inner in value)
    return value


def _comparable(value):
    """Without the scope that MMEngine notes in what comes from another package; NaN equals NaN."""
    if isinstance(value, dict):
        return {key: _comparable(inner) for key, inner in value.items() if key != '_scope_'}
    if isinstance(value, (list, tuple)):
        return [_comparable(inner) for inner in value]
    return 'nan' if value != value else value


def _text(value, indent: int, used: int = 0) -> str:
    """As people write configs: on one line if it fits, else a line for each key.

    Args:
        indent: columns before the value's lines.
        used: columns of its first line that stand before it.
    """
    if isinstance(value, dict):
        names = all(isinstance(k, str) and k.isidentifier() and not iskeyword(k) for k in value)
        left, right = ('dict(', ')') if names else ('{', '}')
        items = [(f'{k}=' if names else f'{k!r}: ', inner) for k, inner in value.items()]
    elif isinstance(value, (list, tuple)):
        left, right = '[]' if isinstance(value, list) else ('(', ',)' if len(value) == 1 else ')')
        items = [('', inner) for inner in value]
    else:
        finite = not isinstance(value, float) or math.isfinite(value)
        return repr(value) if finite else f"float('{value}')"
    inner_texts = [key + _text(inner, 0, -WIDTH * WIDTH) for key, inner in items]
    short = left + ', '.join(inner_texts) + right
    if indent + used + len(short) < WIDTH:
        return short
    margin = ' ' * (indent + 4)
    lines = [margin + key + _text(inner, indent + 4, len(key)) for key, inner in items]
    return left + '\n' + ',\n'.join(lines) + right
