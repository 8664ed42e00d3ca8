"""Folders of images and label maps: found as they lie, put into a config, and checked against its classes."""

import hashlib
import sys
from functools import cache
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS
from rich.progress import track

from ..errors import ConfigError
from ..printing import quiet
from .pictures import distinct_colours

IMAGES, LABELS = ('images', 'img_dir', 'imgs'), ('annotations', 'labels', 'ann_dir', 'masks')
SPLITS = dict(
    train=('train', 'training'),
    val=('val', 'validation', 'valid', 'test'),
    test=('test', 'testing', 'val', 'validation', 'valid'),
)
UNKNOWN = 255


def describe() -> str:
    return (
        f'ROOT/IMAGES/SPLIT/*.jpg beside ROOT/LABELS/SPLIT/*.png of the same names, with IMAGES one of {", ".join(IMAGES)}, LABELS '
        f'one of {", ".join(LABELS)}, and SPLIT train, val and test (or none: then all images are the test split)'
    )


def put(cfg: Config, root: str, classes=None, ignored=(), training=False) -> None:
    """Point ``cfg`` at the data in ``root``: to its own paths there if they exist, else to what is found.

    With ``classes`` the data are described anew: labels are counted from 0, but in ADE20K's layout (``images/validation``), where 0 is
    unknown, from 1; and with ``training`` the heads get as many classes as there are names.

    Raises:
        ConfigError: no images with label maps.
    """
    root, wanted = Path(root).absolute(), ('train', 'val', 'test') if training else ('test',)
    datasets = {
        split: cfg[f'{split}_dataloader'].dataset
        for split in wanted
        if cfg.get(f'{split}_dataloader')
    }
    own = [
        Path(root, name)
        for dataset in datasets.values()
        for name in (dataset.get('data_prefix') or {}).values()
    ]
    is_own = own and all(path.is_dir() for path in own)
    if not root.is_dir():
        raise ConfigError(f'--data-root: no folder at {root}')
    names = tuple(classes or classes_of(datasets['test']))
    if len(set(names)) < len(names):
        raise ConfigError('--classes names one twice')
    if any(label < len(names) for label in ignored):
        raise ConfigError(
            f'--ignore {min(ignored)}: that is the class {names[min(ignored)]} of {"--classes" if classes else "the config"}'
            + ('' if classes else '; name the classes of your data with --classes')
        )
    for split, dataset in datasets.items():
        dataset.data_root = str(root)
        if classes or not is_own:
            images, labels = _folders(root, split)
            found = dict(
                data_prefix=dict(img_path=images, seg_map_path=labels),
                img_suffix=_suffix(root, images),
                seg_map_suffix=_suffix(root, labels),
            )
            if classes:
                found.update(
                    type='BaseSegDataset',
                    data_root=str(root),
                    pipeline=dataset.pipeline,
                    reduce_zero_label=Path(
                        root, Path(images).parts[0], 'validation'
                    ).is_dir(),  # ADE20K's layout
                    metainfo=dict(
                        classes=list(classes),
                        palette=[list(colour) for colour in distinct_colours(len(classes))],
                    ),
                )
                dataset.clear()
            dataset.update(found)
    for part in ('test_evaluator', 'val_evaluator', 'model') if training else ('test_evaluator',):
        if ignored and unknown(cfg.get(part)) != {UNKNOWN}:
            raise ConfigError(
                f'--ignore turns labels into {UNKNOWN}, and the {part} of the config ignores '
                f'{_listed(unknown(cfg.get(part)))}: set ignore_index={UNKNOWN} in it, in the '
                'config or with --cfg-options'
            )
    pipelines = [cfg[f'{split}_dataloader'].dataset.pipeline for split in datasets] + [
        cfg.get('tta_pipeline') or []
    ]
    for pipeline in pipelines:
        if classes or ignored:  # what the config ignores is of the data that it was made for
            _set_ignored(pipeline, ignored)
    if classes and training:
        for head in _holders(cfg.model, 'num_classes'):
            head.num_classes = len(classes)


def meta_of(dataset: dict) -> dict:
    """Names and colours of the classes, as the config or else the class of the dataset has them."""
    with quiet(), DATASETS.switch_scope_and_registry(None) as registry:
        kind = (
            registry.get(dataset['type']) if isinstance(dataset['type'], str) else dataset['type']
        )
    return dict(getattr(kind, 'METAINFO', None) or {}, **dataset.get('metainfo') or {})


def classes_of(dataset: dict) -> tuple:
    names = meta_of(dataset).get('classes')
    if not names:
        raise ConfigError(
            'the config does not name the classes of its data: --classes NAME NAME ...'
        )
    return tuple(names)


def _folders(root, split):
    for images in IMAGES:
        for labels in LABELS:
            for name in (
                SPLITS[split]
                if any((root / images / one).is_dir() for one in sum(SPLITS.values(), ()))
                else ('',)
            ):
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


def _set_ignored(pipeline, ignored):
    """The step behind LoadAnnotations replaced, or with nothing ``ignored`` left out. The steps of TestTimeAug are lists of alternatives."""
    new = dict(type='convnext_dense.IgnoreLabels', labels=list(ignored))
    for i, step in reversed(list(enumerate(pipeline))):
        if isinstance(step, dict) and step.get('transforms'):
            _set_ignored(step.transforms, ignored)
        elif 'IgnoreLabels' in repr(step):
            del pipeline[i]
    for i, step in reversed(list(enumerate(pipeline))):
        if (
            ignored
            and 'LoadAnnotations' in repr(step)
            and not (isinstance(step, dict) and step.get('transforms'))
        ):
            pipeline.insert(i + 1, [new] if isinstance(step, list) else new)


def unknown(part) -> set:
    """The numbers that an evaluator, or a model when it is trained, leaves out of label maps."""
    numbers = {holder['ignore_index'] for holder in _holders(part, 'ignore_index')} - {None}
    return numbers or {UNKNOWN}


def _holders(part, key):
    """The dicts that have the key, in dicts and lists in one another."""
    if isinstance(part, dict):
        yield from [part] if key in part else []
        part = list(part.values())
    for inner in part if isinstance(part, (list, tuple)) else ():
        yield from _holders(inner, key)


def _listed(numbers) -> str:
    return ', '.join(map(str, sorted(numbers)))


def stamp(cfg: Config, split: str) -> str:
    """Changes when a file of the split does."""
    dataset = cfg[f'{split}_dataloader'].dataset
    files = [
        path
        for name in (dataset.get('data_prefix') or {}).values()
        for path in sorted(Path(dataset.get('data_root') or '', name).rglob('*'))
    ]
    return hashlib.sha256(
        repr([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]).encode()
    ).hexdigest()


def check(cfg: Config, split: str) -> None:
    """Every label of a split is a class of the data or unknown, and the model predicts as many
    classes as the data have. Unknown is what the test evaluator ignores, and 255; in the training
    split, what the model ignores.

    Raises:
        ConfigError: something else, with the numbers.
    """
    dataset = cfg[f'{split}_dataloader'].dataset
    names, predicted = classes_of(dataset), cfg.model.decode_head
    predicted = (predicted[-1] if isinstance(predicted, list) else predicted).get('num_classes')
    if predicted is not None and predicted != len(names):
        raise ConfigError(
            f'the model predicts {predicted} classes, the data have {len(names)} ({", ".join(names[:3])} ...)'
        )
    steps = [
        step
        for step in dataset.pipeline
        if step['type'].split('.')[-1] in ('LoadAnnotations', 'IgnoreLabels')
    ]
    if not any(step['type'].endswith('LoadAnnotations') for step in steps):
        raise ConfigError(
            f'the {split} pipeline has no LoadAnnotations: there is no truth to compare with'
        )
    found = _labels(repr(dict(dataset, pipeline=steps)))
    ignored = (
        {UNKNOWN, *unknown(cfg.get('test_evaluator'))} if split == 'test' else unknown(cfg.model)
    )
    beyond = {
        value: path for value, path in found.items() if value >= len(names) and value not in ignored
    }
    if beyond:
        value = min(beyond)
        raise ConfigError(
            f'the {split} labels hold {", ".join(map(str, sorted(found)))}, those that are ignored left out, and {value} '
            f'({beyond[value]}) is not one of the {len(names)} classes, 0 ... {len(names) - 1}. Name it, --classes has a name for '
            f'each label; or if it means unknown, --ignore {" ".join(map(str, sorted(beyond)))}'
        )


def meaning(cfg: Config) -> str:
    """What the labels of the test data are taken for, in a line."""
    dataset, ignored = cfg.test_dataloader.dataset, unknown(cfg.get('test_evaluator'))
    replaced = {
        label
        for step in dataset.pipeline
        if 'IgnoreLabels' in step['type'] and step.get('ignore_index', UNKNOWN) in ignored
        for label in step['labels']
    }
    classes = ', '.join(f'{i} {name}' for i, name in enumerate(classes_of(dataset)))
    counted = (
        ''
        if UNKNOWN in ignored
        else (
            f'; {UNKNOWN} is not ignored by the test_evaluator: all that is predicted there is wrong'
        )
    )
    return f'{classes}; unknown: {_listed(ignored | replaced)}{counted}'


@cache
def _labels(dataset):
    """Numbers in the label maps of a dataset -> a file that holds them."""
    try:
        with quiet():
            dataset = DATASETS.build(Config.fromstring(f'dataset = {dataset}', '.py').dataset)
    except FileNotFoundError as error:
        raise ConfigError(
            f'no data at {error.filename}: put or link them there, or name their folder with --data-root'
        ) from error
    if not len(dataset):
        raise ConfigError(
            f'no images in {Path(dataset.data_root or "", dataset.data_prefix.get("img_path") or "")}'
        )
    found = {}
    for i in track(range(len(dataset)), 'labels', transient=True, disable=not sys.stdout.isatty()):
        info = dataset.get_data_info(i)
        try:
            values = np.unique(dataset.pipeline(info)['gt_seg_map'])
        except Exception as error:
            raise ConfigError(
                f'no labels can be read from {info["seg_map_path"]}: {error}'
            ) from error
        found.update((int(value), info['seg_map_path']) for value in values if value not in found)
    return found
