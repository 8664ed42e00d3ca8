"""Changes of a config that remember what was there and why it went."""

import copy
from typing import Any, NamedTuple

from mmengine.config import Config, ConfigDict

from ..errors import ConfigError
from .finding import at


class Absent:
    """The old value of a key that was not there."""

    def __repr__(self):
        return '-'


class Change(NamedTuple):
    path: tuple
    old: Any
    new: Any
    why: str


class Edits:
    """Changes values of a config and remembers which and why."""

    def __init__(self, cfg: Config):
        self.cfg, self.changes, self.adapters, self.warnings = cfg, [], [], []

    def set(self, path: tuple, value, why: str):
        """Set the key at ``path`` unless it has this value; a key that is not there is None already."""
        node = at(self.cfg, path[:-1])
        if isinstance(node, tuple):
            raise ConfigError(f'{dotted(path)} stands in a tuple; write a list')
        old = node[path[-1]] if isinstance(node, list) else node.get(path[-1])
        present = isinstance(node, list) or path[-1] in node
        if present and plain(old) == plain(value) or not present and value is None:
            return
        node[path[-1]] = ConfigDict(value) if isinstance(value, dict) else value
        self.changes.append(
            Change(path, copy.deepcopy(old) if present else Absent(), copy.deepcopy(value), why)
        )


def dotted(path) -> str:
    return '.'.join(map(str, path))


def plain(value):
    """To compare: lists and tuples are alike in a config."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
