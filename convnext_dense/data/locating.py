"""Where the data of a config lie: the files that it names, and the same files in another folder."""

from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from ..errors import ConfigError

SPLITS = ('train', 'val', 'test')
OF_EVALUATORS = ('ann_file', 'seg_prefix')  # the second of panoptic maps


def move_data(cfg: Config, new_root: str | Path, splits: Sequence[str] = SPLITS) -> None:
    """Point the config at another folder, in which the files lie as in its ``data_root``.

    Changes the datasets, and the evaluators that read an annotation file of their own.

    Raises:
        ConfigError: an evaluator's annotation file is not in the ``data_root`` of its split.
    """
    for split in splits:
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        if not dataset:
            continue
        old_root = dataset.get('data_root')
        for evaluator in evaluators(cfg, split):
            for key in filter(evaluator.get, OF_EVALUATORS):
                path = Path(evaluator[key])
                if not old_root or not path.is_relative_to(old_root):
                    raise ConfigError(
                        f'--data-root: the {split} split does not read from one data_root: its '
                        f'evaluator reads {path}. Set each path with --cfg-options'
                    )
                evaluator[key] = str(Path(new_root) / path.relative_to(old_root))
        dataset.data_root = f'{new_root}/'


def evaluators(cfg: Config, split: str) -> list:
    """The evaluators of a split that read an annotation file of their own."""
    configs = cfg.get(f'{split}_evaluator') or []
    configs = configs if isinstance(configs, (list, tuple)) else [configs]
    return [evaluator for evaluator in configs if evaluator.get('ann_file')]


def data_paths(cfg: Config, split: str) -> list[Path]:
    """Local files and folders that a plain dataset and its evaluators read, each once."""
    dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}
    root, prefixes = dataset.get('data_root') or '', dataset.get('data_prefix')
    names = [dataset.get('ann_file'), *(prefixes.values() if isinstance(prefixes, dict) else [])]
    names = [name for name in names if name and isinstance(name, str)]
    # Path would make one slash of the two in a URL
    paths = [root if '://' in root else str(Path(root, name)) for name in names]
    read = [evaluator.get(key) for evaluator in evaluators(cfg, split) for key in OF_EVALUATORS]
    paths += filter(None, read)
    return [Path(path) for path in dict.fromkeys(paths) if '://' not in path]
