"""Folders of images and label maps: put into a config, and checked against its classes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS

from ..errors import ConfigError
from ..printing import progress, quiet
from .locating import data_paths, move_data
from .pictures import distinct_colours

IMAGES, LABELS = ('images', 'img_dir', 'imgs'), ('annotations', 'labels', 'ann_dir', 'masks')
SPLIT_NAMES = dict(
    train=('train', 'training'),
    val=('val', 'validation', 'valid', 'test'),
    test=('test', 'testing', 'val', 'validation', 'valid'),
)
UNKNOWN = 255  # what IgnoreLabels writes, and mmseg ignores unless it is told otherwise


def describe() -> str:
    """The layouts that ``put`` knows, for help texts and messages."""
    return (
        f'ROOT/IMAGES/SPLIT/*.jpg beside ROOT/LABELS/SPLIT/*.png of the same names, with IMAGES '
        f'one of {", ".join(IMAGES)}, LABELS one of {", ".join(LABELS)}, and SPLIT train, val and '
        'test (or none: then all images are the test split)'
    )


def put(
    cfg: Config,
    root: str | Path,
    classes: Sequence[str] | None = None,
    ignored: Sequence[int] = (),
    training: bool = False,
) -> None:
    """Point ``cfg`` at the data in ``root``: in the config's own layout, else in one of ours.

    Args:
        classes: names of the labels from 0 (from 1 in ADE20K's layout, ``images/validation``,
            where 0 is unknown), in place of the config's classes.
        ignored: labels that mean unknown, besides 255.
        training: change all splits, not only the test split, and with ``classes`` the number of
            classes of the heads.

    Raises:
        ConfigError: there are no images with label maps, or the classes do not fit.
    """
    root = Path(root).absolute()
    if not root.is_dir():
        raise ConfigError(f'--data-root: no folder at {root}')
    _check_names(cfg, classes, ignored, training)
    wanted = SPLIT_NAMES if training else ('test',)
    splits = [split for split in wanted if cfg.get(f'{split}_dataloader')]
    move_data(cfg, root, splits)
    paths = [path for split in splits for path in data_paths(cfg, split)]
    is_in_its_layout = bool(paths) and all(path.exists() for path in paths)
    pipelines = [cfg.get('tta_pipeline') or []]
    for split in splits:
        dataset = cfg[f'{split}_dataloader'].dataset
        if classes or not is_in_its_layout:
            layout = _layout(root, split)
            if classes:
                layout = _base_dataset(root, layout, classes) | dict(pipeline=dataset.pipeline)
                dataset.clear()
            dataset.pop('ann_file', None)  # the names of files in the layout that is not there
            dataset.update(layout)
        pipelines.append(dataset.pipeline)
    if classes or ignored:  # the labels that the config ignores are of its own data
        for pipeline in pipelines:
            _set_ignored(pipeline, ignored)
    if classes and training:
        for head in _holders(cfg.model, 'num_classes'):
            head['num_classes'] = len(classes)


def _check_names(cfg, classes, ignored, training):
    names = tuple(classes or classes_of(cfg.test_dataloader.dataset))
    if len(set(names)) < len(names):
        raise ConfigError('--classes names one twice')
    if any(label < len(names) for label in ignored):
        source = '--classes' if classes else 'the config'
        fix = '' if classes else '; name the classes of your data with --classes'
        label = min(ignored)
        raise ConfigError(f'--ignore {label}: that is the class {names[label]} of {source}{fix}')
    for part in ('test_evaluator', 'val_evaluator', 'model') if training else ('test_evaluator',):
        if ignored and unknown(cfg.get(part)) != {UNKNOWN}:
            raise ConfigError(
                f'--ignore turns labels into {UNKNOWN}, and the {part} of the config ignores '
                f'{_listed(unknown(cfg.get(part)))}: set ignore_index={UNKNOWN} in it, in the '
                'config or with --cfg-options'
            )


def _base_dataset(root, layout, classes):
    images = layout['data_prefix']['img_path']
    is_ade20k = (root / Path(images).parts[0] / 'validation').is_dir()
    palette = [list(colour) for colour in distinct_colours(len(classes))]
    return dict(
        type='BaseSegDataset',
        data_root=f'{root}/',
        reduce_zero_label=is_ade20k,
        metainfo=dict(classes=list(classes), palette=palette),
        **layout,
    )


def _layout(root, split):
    """Arguments of a dataset for the images and label maps of a split, as they lie in ``root``."""
    all_names = sum(SPLIT_NAMES.values(), ())
    for images, labels in product(IMAGES, LABELS):
        has_splits = any((root / images / name).is_dir() for name in all_names)
        for name in SPLIT_NAMES[split] if has_splits else ('',):
            prefix = dict(img_path=f'{Path(images, name)}', seg_map_path=f'{Path(labels, name)}')
            if all((root / folder).is_dir() for folder in prefix.values()):
                suffixes = [_suffix(root / folder) for folder in prefix.values()]
                return dict(data_prefix=prefix, img_suffix=suffixes[0], seg_map_suffix=suffixes[1])
    raise ConfigError(f'no {split} data in {root}: expected {describe()}')


def _suffix(folder):
    """The most frequent suffix of its files."""
    suffixes = Counter(path.suffix for path in folder.rglob('[!.]*') if path.is_file())
    if not suffixes:
        raise ConfigError(f'{folder} is empty')
    return suffixes.most_common(1)[0][0]


def _set_ignored(pipeline, ignored):
    """IgnoreLabels behind every LoadAnnotations, in place of those there; none if none is ignored.

    A step of TestTimeAug is a list of alternatives.
    """
    ignore = dict(type='convnext_dense.IgnoreLabels', labels=list(ignored))
    steps: list = []
    for step in pipeline:
        if isinstance(step, dict) and step.get('transforms'):
            _set_ignored(step['transforms'], ignored)
            steps.append(step)
        elif 'IgnoreLabels' not in repr(step):
            steps.append(step)
            if ignored and 'LoadAnnotations' in repr(step):
                steps.append([ignore] if isinstance(step, list) else ignore)
    pipeline[:] = steps


def meta_of(dataset: dict) -> dict:
    """Names and colours of the classes: the config's, else those of the dataset's Python class."""
    with quiet(), DATASETS.switch_scope_and_registry(None) as registry:
        kind = dataset['type']
        kind = registry.get(kind) if isinstance(kind, str) else kind
    return dict(getattr(kind, 'METAINFO', None) or {}, **dataset.get('metainfo') or {})


def classes_of(dataset: dict) -> tuple[str, ...]:
    """Raises ConfigError where neither the config nor the dataset's Python class names them."""
    names = meta_of(dataset).get('classes')
    if not names:
        raise ConfigError('the config does not name the classes of its data: --classes NAME ...')
    return tuple(names)


def unknown(part) -> set[int]:
    """The labels that an evaluator, or a model when it is trained, ignores."""
    numbers = {holder['ignore_index'] for holder in _holders(part, 'ignore_index')} - {None}
    return numbers or {UNKNOWN}


def _holders(part, key) -> Iterator[dict]:
    """The dicts that have the key, in dicts and lists in one another."""
    if isinstance(part, dict):
        yield from [part] if key in part else []
        part = list(part.values())
    for inner in part if isinstance(part, (list, tuple)) else ():
        yield from _holders(inner, key)


def _listed(numbers):
    return ', '.join(map(str, sorted(numbers)))


def check(cfg: Config, split: str) -> None:
    """Every label of a split is a class of the data, or unknown; and the model fits the classes.

    Unknown is what the test evaluator ignores, and 255; in the training split, what the model
    ignores.

    Raises:
        ConfigError: a label is neither, or the model predicts another number of classes.
    """
    dataset = cfg[f'{split}_dataloader'].dataset
    names, head = classes_of(dataset), cfg.model.decode_head
    predicted = (head[-1] if isinstance(head, list) else head).get('num_classes')
    if predicted is not None and predicted != len(names):
        raise ConfigError(
            f'the model predicts {predicted} classes, the data have {len(names)} '
            f'({", ".join(names[:3])} ...)'
        )
    ends = ('LoadAnnotations', 'IgnoreLabels')
    steps = [step for step in dataset.pipeline if step['type'].split('.')[-1] in ends]
    if not any(step['type'].endswith('LoadAnnotations') for step in steps):
        raise ConfigError(
            f'the {split} pipeline has no LoadAnnotations: there is no truth to compare with'
        )
    paths = _labels(repr(dict(dataset, pipeline=steps)))
    tested = {UNKNOWN, *unknown(cfg.get('test_evaluator'))}
    ignored = tested if split == 'test' else unknown(cfg.model)
    wrong = {label for label in paths if label >= len(names)} - ignored
    if wrong:
        label = min(wrong)
        raise ConfigError(
            f'the {split} labels hold {_listed(paths)}, those that are ignored left out, and '
            f'{label} ({paths[label]}) is not one of the {len(names)} classes, 0 ... '
            f'{len(names) - 1}. Name it, --classes has a name for each label; or if it means '
            f'unknown, --ignore {" ".join(map(str, sorted(wrong)))}'
        )


def meaning(cfg: Config) -> str:
    """What the labels of the test data are taken for, in a line."""
    dataset, ignored = cfg.test_dataloader.dataset, unknown(cfg.get('test_evaluator'))
    steps = [step for step in dataset.pipeline if 'IgnoreLabels' in step['type']]
    steps = [step for step in steps if step.get('ignore_index', UNKNOWN) in ignored]
    replaced = {label for step in steps for label in step['labels']}
    text = ', '.join(f'{i} {name}' for i, name in enumerate(classes_of(dataset)))
    text += f'; unknown: {_listed(ignored | replaced)}'
    if UNKNOWN not in ignored:
        text += f'; {UNKNOWN} is not ignored by the test_evaluator: all that is predicted there '
        text += 'is wrong'
    return text


@cache
def _labels(dataset):
    """The labels in the maps of a dataset (its config as text) -> a file that holds each."""
    try:
        with quiet():
            dataset = DATASETS.build(Config.fromstring(f'dataset = {dataset}', '.py').dataset)
    except FileNotFoundError as error:
        raise ConfigError(
            f'no data at {error.filename}: put or link them there, or name their folder with '
            '--data-root'
        ) from error
    if not len(dataset):
        prefix = dataset.data_prefix.get('img_path') or ''
        raise ConfigError(f'no images in {Path(dataset.data_root or "", prefix)}')
    paths: dict[int, str] = {}
    for i in progress(range(len(dataset)), 'labels'):
        info = dataset.get_data_info(i)
        path = info['seg_map_path']
        try:
            labels = np.unique(dataset.pipeline(info)['gt_seg_map'])
        except Exception as error:
            raise ConfigError(f'no labels can be read from {path}: {error}') from error
        paths = dict.fromkeys(map(int, labels), path) | paths
    return paths
