"""Rows of a comparison, kept from run to run: a row is valid as long as its key stays the same.

The key of a row is a hash of all that its figures depend on: config, checkpoint, test files and
options. A run that finds a row with the key that it computes takes it; else it measures anew.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from mmengine.config import Config

from ..data.locating import data_paths

FORMAT = 4  # of what is kept; what an older version has left in another format is measured anew


@dataclass
class Row:
    """What a comparison knows of one model. None: not measured, or it cannot be."""

    name: str
    config: str  # path
    checkpoint: str | None = None  # path or URL; None: it is still to be trained
    folder: str = ''  # of its label maps and its config, below that of the page
    # 'fused', 'bf16' or 'fused, bf16': of the weights of the row without; or an engine of a file
    form: str = ''
    is_ours: bool = False  # it has a backbone of this package
    label: str = ''  # its name in tables and plots
    meaning: str | None = None  # of the labels, in a line; None of a detector
    key: str | None = None  # what the figures depend on, as a hash
    error: str | None = None  # why it is not compared
    note: str | None = None  # why some figures are missing

    parameters: int | None = None
    flops: int | None = None  # multiply-adds of one network input
    input: list[int] | None = None  # height and width of the network input, in pixels
    size: list[int] | None = None  # height and width of the first image, in pixels
    images: int | None = None  # of the test split
    data: str | None = None  # hash of their names
    classes: list[str] = field(default_factory=list)
    palette: list[list[int]] = field(default_factory=list)  # RGB of the classes, 0 ... 255
    examples: list[Sequence[str]] = field(default_factory=list)  # [image, name of its label map]

    metrics: dict[str, float] = field(default_factory=dict)  # the first is the main one
    per_class: dict[str, dict] = field(default_factory=dict)  # class -> IoU and Acc in percent
    tta: dict[str, float] | None = None  # metrics with test-time augmentation
    memory: int | None = None  # bytes at the peak of one image, above the weights
    seconds: list[float] | None = None  # of one image, a figure a run
    batch_seconds: list[float] | None = None  # of ``batch`` images at once
    batch: int | None = None

    def known(self) -> dict:
        """The fields that are not None, as JSON holds them."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def row_key(cfg: Config, checkpoint: str, form: str, tta: bool, examples: int, device: str) -> str:
    """Of all that the scores, the memory and the saved label maps of a row depend on."""
    path = Path(checkpoint)
    stamp = (path.stat().st_size, path.stat().st_mtime) if path.exists() else None
    weights = checkpoint, stamp
    return _hash(
        FORMAT, cfg.pretty_text, data_stamp(cfg, 'test'), weights, form, tta, examples, device
    )


def speed_key(rows: Sequence[Row], runs: int, batch: int) -> str:
    """Of all that the seconds depend on. They are kept for all rows together, as they are taken
    in turns."""
    return _hash([row.key for row in rows], runs, batch, torch.get_num_threads())


def data_stamp(cfg: Config, split: str) -> str:
    """Changes when a file of the split does: one is added, removed, or written to."""
    paths = data_paths(cfg, split)
    files = [file for path in paths for file in (path, *sorted(path.rglob('*'))) if file.is_file()]
    return _hash(*((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


def load_kept(path: Path, key: str) -> dict | None:
    """What ``keep`` has written there under this key, else None."""
    content = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    return content if content.get('key') == key else None


def keep(path: Path, content: dict) -> None:
    """Write ``content``, which has a ``key``: whole or not at all, whenever it is interrupted."""
    new = path.with_suffix('.new')
    new.write_text(json.dumps(content, indent=1), encoding='utf-8')
    new.replace(path)


def _hash(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()
