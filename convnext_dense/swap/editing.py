"""Paths into a config, and changes of it that remember what was there and why it went."""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

from mmengine.config import Config, ConfigDict

from ..errors import ConfigError

KeyPath = tuple  # keys and indices from the top: ('model', 'neck', 'in_channels', 0)


class Absent:
    """The old value of a key that was not there."""

    def __repr__(self):
        return '-'


class Change(NamedTuple):
    path: KeyPath
    old: Any
    new: Any
    why: str


class Edits:
    """A config that is being changed: what was changed and why, and what its user should know.

    Args:
        cfg: a config or a part of it.
        in_place: change it, not a copy.
    """

    def __init__(self, cfg: Config | dict, in_place: bool = False):
        self.cfg: Any = cfg if in_place else copy.deepcopy(cfg)
        self.changes: list[Change] = []
        self.adapters: list[str] = []
        self.warnings: list[str] = []

    def set(self, path: KeyPath, value: Any, why: str) -> None:
        """Set the key at ``path``. An equal value, or None for a key that is absent, is no change.

        Raises:
            ConfigError: a tuple, which cannot be changed, holds the value.
        """
        node, key = at(self.cfg, path[:-1]), path[-1]
        if isinstance(node, tuple):
            raise ConfigError(f'{dotted(path)} stands in a tuple, and has to be set: write a list')
        present = isinstance(node, list) or key in node
        old = node[key] if present else None
        if plain(old) == plain(value):
            return
        old = copy.deepcopy(old) if present else Absent()
        node[key] = ConfigDict(value) if isinstance(value, dict) else value
        self.changes.append(Change(path, old, copy.deepcopy(value), why))

    def update(self, path: KeyPath, why: str, **values) -> None:
        """Set several keys of the dict at ``path`` for the same reason."""
        for key, value in values.items():
            self.set((*path, key), value, why)

    def take(self, others: 'Edits', path: KeyPath = ()) -> None:
        """Do what others did to the part at ``path``."""
        for change in others.changes:
            self.set((*path, *change.path), change.new, change.why)
        self.adapters += others.adapters
        self.warnings += others.warnings

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def at(node, path: KeyPath):
    for key in path:
        node = node[key]
    return node


def walk(node, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """(path, value) of ``node`` and of everything in it."""
    yield path, node
    if isinstance(node, dict):
        items = list(node.items())
    else:
        items = list(enumerate(node)) if isinstance(node, (list, tuple)) else []
    for key, value in items:
        yield from walk(value, (*path, key))


def dotted(path: KeyPath) -> str:
    return '.'.join(map(str, path))


def plain(value):
    """A value as it is compared: MMEngine takes lists and tuples for the same."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
