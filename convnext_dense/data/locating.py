"""Where the data of a config lie: the files that it names, and the same in another folder."""

import sys
from pathlib import Path

SPLITS = ('train', 'val', 'test')


def move_data(cfg, new_root):
    """Point the datasets, and the evaluators that read annotations themselves, at another folder."""
    for split in SPLITS:
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        if not dataset:
            continue
        old_root = dataset.get('data_root')
        for evaluator in evaluators(cfg, split):
            if not old_root or not Path(evaluator.ann_file).is_relative_to(old_root):
                sys.exit(
                    f'--data-root: the {split} split does not read from one data_root; use --cfg-options'
                )
            evaluator.ann_file = str(Path(new_root, Path(evaluator.ann_file).relative_to(old_root)))
        dataset.data_root = f'{new_root}/'


def evaluators(cfg, split):
    """Those of a split that read an annotation file of their own."""
    found = cfg.get(f'{split}_evaluator') or []
    return [
        evaluator
        for evaluator in (found if isinstance(found, (list, tuple)) else [found])
        if evaluator.get('ann_file')
    ]


def data_paths(cfg, split):
    """Local files and folders that a plain dataset and its evaluators read."""
    dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}
    root, prefixes = dataset.get('data_root') or '', dataset.get('data_prefix')
    names = [dataset.get('ann_file'), *(prefixes.values() if isinstance(prefixes, dict) else [])]
    paths = [
        str(Path(root, name)) if '://' not in root else root
        for name in names
        if name and isinstance(name, str)
    ]
    paths += [evaluator.ann_file for evaluator in evaluators(cfg, split)]
    return dict.fromkeys(Path(path) for path in paths if '://' not in path)
