"""Folders of images and label maps: found as they lie, put into a config, and checked against its classes."""
import contextlib
import io
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
from mmengine.config import Config
from rich.progress import track

from convnext_dense import ConfigError
from convnext_dense.pictures import distinct_colours

IMAGES, LABELS = ('images', 'img_dir', 'imgs'), ('annotations', 'labels', 'ann_dir', 'masks')
SPLITS = dict(train=('train', 'training'), val=('val', 'validation', 'valid', 'test'), test=('test', 'testing', 'val', 'validation', 'valid'))
UNKNOWN = 255


def describe() -> str:
    return (f'ROOT/IMAGES/SPLIT/*.jpg beside ROOT/LABELS/SPLIT/*.png of the same names, with IMAGES one of {", ".join(IMAGES)}, LABELS '
            f'one of {", ".join(LABELS)}, and SPLIT train, val and test (or none: then all images are the test split)')


def put(cfg: Config, root: str, classes=None, ignored=(), training=False) -> None:
    """Point ``cfg`` at the data in ``root``: to its own paths there if they exist and no ``classes`` are named, else to what is found.

    A folder ``images/validation`` beside ``annotations/validation`` is ADE20K's layout: 0 is unknown and classes are counted from 1.
    Elsewhere they are counted from 0. With ``training`` the heads get as many classes as there are names.

    Raises:
        ConfigError: no images with label maps.
    """
    root, wanted = Path(root).absolute(), ('train', 'val', 'test') if training else ('test',)
    datasets = {split: cfg[f'{split}_dataloader'].dataset for split in wanted if cfg.get(f'{split}_dataloader')}
    own = [Path(root, name) for dataset in datasets.values() for name in (dataset.get('data_prefix') or {}).values()]
    is_own = own and all(path.is_dir() for path in own)
    names = classes or classes_of(datasets['test'])
    for split, dataset in datasets.items():
        dataset.data_root = str(root)
        if classes or not is_own:
            images, labels = _folders(root, split)
            is_ade = Path(root, Path(images).parts[0], 'validation').is_dir()
            meta = dict(classes=list(names), palette=[list(colour) for colour in distinct_colours(len(names))])
            if not classes and dataset.get('metainfo'):
                meta = dataset.metainfo
            cfg[f'{split}_dataloader'].dataset = dict(
                type='BaseSegDataset', data_root=str(root), metainfo=meta, data_prefix=dict(img_path=images, seg_map_path=labels),
                img_suffix=_suffix(root, images), seg_map_suffix=_suffix(root, labels), reduce_zero_label=is_ade,
                pipeline=dataset.pipeline)
    if ignored:
        _after_labels([cfg[f'{split}_dataloader'].dataset.pipeline for split in datasets] + [cfg.get('tta_pipeline') or []], ignored)
    if classes and training:
        _count_classes(cfg.model, len(names))


def classes_of(dataset: dict) -> tuple:
    """Names, as the config or else the class of the dataset has them."""
    from mmengine.registry import DATASETS
    kind = DATASETS.get(dataset['type']) if isinstance(dataset['type'], str) else dataset['type']
    names = (dataset.get('metainfo') or {}).get('classes') or (getattr(kind, 'METAINFO', None) or {}).get('classes')
    if not names:
        raise ConfigError('the config does not name the classes of its data: --classes NAME NAME ...')
    return tuple(names)


def _folders(root, split):
    for images in IMAGES:
        for labels in LABELS:
            for name in SPLITS[split] if any((root / images / one).is_dir() for one in sum(SPLITS.values(), ())) else ('',):
                if (root / images / name).is_dir() and (root / labels / name).is_dir():
                    return str(Path(images, name)), str(Path(labels, name))
    raise ConfigError(f'no {split} data in {root}: expected {describe()}')


def _suffix(root, folder):
    found = {}
    for path in (root / folder).rglob('*'):
        if path.is_file() and not path.name.startswith('.'):
            found[path.suffix] = found.get(path.suffix, 0) + 1
    if not found:
        raise ConfigError(f'{root / folder} is empty')
    return max(found, key=found.get)


def _after_labels(pipeline, ignored):
    """Insert the step behind LoadAnnotations. The steps of TestTimeAug are lists of alternatives."""
    step = dict(type='convnext_dense.IgnoreLabels', labels=list(ignored))
    for i, old in reversed(list(enumerate(pipeline))):
        if isinstance(old, dict) and old.get('transforms'):
            _after_labels(old.transforms, ignored)
        elif 'LoadAnnotations' in repr(old):
            pipeline.insert(i + 1, [step] if isinstance(old, list) else step)


def _count_classes(model, count):
    for value in model if isinstance(model, list) else model.values():
        if isinstance(value, (dict, list)):
            _count_classes(value, count)
    if isinstance(model, dict) and 'num_classes' in model:
        model.num_classes = count


def check(cfg: Config, split: str) -> None:
    """Every label of a split is a class of the data or unknown, and the model predicts as many classes as the data have.

    Raises:
        ConfigError: something else, with the numbers.
    """
    dataset = cfg[f'{split}_dataloader'].dataset
    names, predicted = classes_of(dataset), cfg.model.decode_head
    predicted = (predicted[-1] if isinstance(predicted, list) else predicted).get('num_classes')
    if predicted is not None and predicted != len(names):
        raise ConfigError(f'the model predicts {predicted} classes, the data have {len(names)} ({", ".join(names[:3])} ...)')
    steps = [step for step in dataset.pipeline if step['type'].split('.')[-1] in ('LoadAnnotations', 'IgnoreLabels')]
    if not any(step['type'].endswith('LoadAnnotations') for step in steps):
        raise ConfigError(f'the {split} pipeline has no LoadAnnotations: there is no truth to compare with')
    found = _labels(repr(dict(dataset, pipeline=steps)))
    beyond = {value: path for value, path in found.items() if value >= len(names) and value != UNKNOWN}
    if beyond:
        raise ConfigError(f'the {split} labels hold {", ".join(map(str, sorted(beyond)))} ({beyond[min(beyond)]}), but there are {len(names)} '
                          f'classes, 0 ... {len(names) - 1}: if that means unknown, --ignore {" ".join(map(str, sorted(beyond)))}; else name '
                          'all classes with --classes')


@lru_cache(maxsize=None)
def _labels(dataset):
    """Numbers in the label maps of a dataset -> a file that holds them."""
    from mmengine.registry import DATASETS
    with contextlib.redirect_stdout(io.StringIO()):  # mmseg's fork reports what optional package it lacks
        dataset = DATASETS.build(Config.fromstring(f'dataset = {dataset}', '.py').dataset)
    if not len(dataset):
        raise ConfigError(f'no images in {Path(dataset.data_root or "", dataset.data_prefix.get("img_path") or "")}')
    found = {}
    for i in track(range(len(dataset)), 'labels', transient=True, disable=not sys.stdout.isatty()):
        info = dataset.get_data_info(i)
        try:
            values = np.unique(dataset.pipeline(info)['gt_seg_map'])
        except Exception as error:
            raise ConfigError(f'no labels can be read from {info["seg_map_path"]}: {error}') from error
        found.update((int(value), info['seg_map_path']) for value in values if value not in found)
    return found
