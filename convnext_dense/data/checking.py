"""The data of a config beside the config: classes, sizes, annotations, label maps.

``quick_problems`` looks at the categories and at some headers, for data sets that are loaded.
``check_all`` reads every file. Both look into data sets that repeat, join or mix others, and know
COCO's format (mmdet's CocoDataset) and label maps (mmseg's BaseSegDataset). Others are named as not
checked.
"""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from torch import nn

from ..errors import ConfigError
from ..printing import progress, quiet
from . import coco, images
from .label_folder import UNKNOWN
from .locating import SPLITS, evaluators
from .problems import Problem

HEADERS = 200  # images of each data set whose headers are read
SMALL = 2**25  # bytes of an annotation file that is read whole in little time
LABEL_STEPS = 'LoadAnnotations', 'IgnoreLabels'
COCO, LABEL_MAPS = 'COCO', 'label maps'
NECKS = 'FPN', 'PAFPN'  # that are told the widths of all maps of a backbone
# Parts of a model, and types of heads, whose classes are not those of the data.
OTHER_PARTS, OTHER_HEADS = ('backbone', 'neck', 'rpn', 'semantic_head'), {'RPNHead', 'STDCHead'}


class Report(NamedTuple):
    """Of a data set.

    Args:
        split: train, val or test; several with commas if they read the same.
        source: its annotation file or folder.
        kind: ``COCO``, ``LABEL_MAPS``, or why it is not checked.
        images: number of its images.
        classes: class -> number of objects, or of pixels.
    """

    split: str
    source: str
    kind: str
    images: int
    classes: Counter
    problems: list[Problem]


def leaves(dataset) -> Iterator[Any]:
    """The data sets that read files, in a data set that may repeat, join or mix them."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if inner == [None]:
        yield dataset
        return
    for part in inner:
        yield from leaves(part)


def kind_of(leaf) -> str:
    """``COCO``, ``LABEL_MAPS`` or a sentence on why the data set is not checked."""
    kind = type(leaf)
    bases = {f'{base.__module__.partition(".")[0]}.{base.__name__}' for base in kind.__mro__}
    storage = (getattr(leaf, 'backend_args', None) or {}).get('backend', 'local')
    if storage != 'local' or '://' in source_of(leaf):
        return f'its files are in another storage ({storage})'
    if 'mmdet.CocoDataset' in bases and kind.load_data_list.__qualname__.startswith('CocoDataset.'):
        return COCO
    if 'mmseg.BaseSegDataset' in bases:
        return LABEL_MAPS
    return f"{kind.__name__} is neither COCO's format nor a folder of label maps"


def source_of(leaf) -> str:
    prefix = getattr(leaf, 'data_prefix', None) or {}
    return str(getattr(leaf, 'ann_file', '') or prefix.get('img_path') or prefix.get('img') or '')


def classes_of(leaf) -> tuple[str, ...]:
    return tuple(leaf.metainfo.get('classes') or ())


def quick_problems(
    splits: Mapping[str, Any], model: nn.Module | None, cfg: Config
) -> tuple[list[Problem], list[str]]:
    """
    Args:
        splits: train, val, test -> a data set that is loaded.
        model: its heads are compared with the classes.
        cfg: its evaluators may read annotation files of their own.

    Returns:
        What is wrong, and sentences on what was not looked at.
    """
    problems: list[Problem] = []
    notes: list[str] = []
    for split, dataset in splits.items():
        for leaf in leaves(dataset):
            kind, source = kind_of(leaf), source_of(leaf)
            if kind in (COCO, LABEL_MAPS):
                look = _quick_coco if kind == COCO else _quick_label_maps
                problems += look(leaf)
            else:
                notes.append(f'the {split} data ({source}) are not checked: {kind}')
            if kind == COCO:
                problems += evaluator_problems(cfg, split, leaf)
                problems += _evaluated_images(cfg, split, leaf)
            if model is not None:
                problems += head_problems(model, leaf)
    if model is not None:
        problems += width_problems(model)
    problems += _differences(splits)
    every = [leaf for dataset in splits.values() for leaf in leaves(dataset)]
    orders = list(_different_orders(every))
    if orders:  # the advice on one file's order would contradict that on the other's
        problems = orders + [problem for problem in problems if problem.kind != 'class names']
    return list(dict.fromkeys(problems)), notes


def _quick_coco(leaf) -> Iterator[Problem]:
    path, classes = str(leaf.ann_file), classes_of(leaf)
    if os.path.getsize(path) <= SMALL and _is_plain_coco(leaf):
        yield from _annotations_of(leaf).problems
    else:
        yield from coco.class_problems(path, coco.categories(path), classes)
    for info in _some(leaf):
        size = info['height'], info['width']
        yield from images.image_problems(info['img_path'], size, path, turns(leaf), decode=False)


def _quick_label_maps(leaf) -> Iterator[Problem]:
    yield from _left_out_files(leaf)
    has_labels = _loads_labels(leaf)
    for info in _some(leaf):
        yield from images.image_problems(info['img_path'], None, '', turns(leaf), decode=False)
        if has_labels and info.get('seg_map_path'):
            path = info['seg_map_path']
            yield from images.label_map_problems(path, info['img_path'], turns(leaf))


def _some(leaf) -> Iterator[dict]:
    count = len(leaf)
    for i in np.unique(np.linspace(0, count - 1, min(count, HEADERS)).astype(int)):
        yield leaf.get_data_info(int(i))


def _differences(splits: Mapping[str, Any]) -> Iterator[Problem]:
    """Classes of one split that are not those of another."""
    named = [(split, leaf) for split, dataset in splits.items() for leaf in leaves(dataset)]
    named = [(split, leaf) for split, leaf in named if classes_of(leaf)]
    for split, leaf in named[1:]:
        first, other = classes_of(named[0][1]), classes_of(leaf)
        if first != other:
            detail = f'{split} has the classes {_few(other)}, {named[0][0]} has {_few(first)}'
            yield Problem('class names', source_of(leaf), detail)


def _different_orders(data: Iterable) -> Iterator[Problem]:
    """Annotation files that have the same classes in another order than the first.

    Args:
        data: data sets that read files.
    """
    orders: dict[str, tuple[str, ...]] = {}
    for leaf in data:
        path, classes = source_of(leaf), classes_of(leaf)
        if kind_of(leaf) == COCO and path not in orders:
            with contextlib.suppress(OSError, ValueError, KeyError):  # told elsewhere
                taken = coco.order(coco.categories(path), classes)
                if sorted(taken) == sorted(classes):
                    orders[path] = taken
    first = next(iter(orders), '')
    for path, taken in orders.items():
        if taken != orders[first]:
            detail = f'its order is {taken!r}, and that of {first} is {orders[first]!r}'
            yield Problem('order of categories', path, detail)


def evaluator_problems(cfg: Config, split: str, leaf) -> Iterator[Problem]:
    """Of the annotation files that evaluators read, where they are not the data set's.

    Beside panoptic data, a file of instances has the things alone.
    """
    for evaluator in evaluators(cfg, split):
        path, classes = str(evaluator.ann_file), classes_of(leaf)
        if not _is_plain_coco(leaf) and 'Panoptic' not in str(evaluator.type):
            classes = tuple(leaf.metainfo.get('thing_classes') or classes)
        if '://' not in path and Path(path) != Path(leaf.ann_file):
            yield from _of_categories(path, classes)


def _evaluated_images(cfg: Config, split: str, leaf) -> Iterator[Problem]:
    """Evaluators whose annotation file lacks images of the data set, as far as it is small."""
    for evaluator in evaluators(cfg, split):
        path = str(evaluator.ann_file)
        is_read = '://' not in path and Path(path) != Path(leaf.ann_file) and Path(path).is_file()
        if not is_read or os.path.getsize(path) > SMALL:
            continue
        try:
            listed = {image.get('id') for image in json.loads(Path(path).read_bytes())['images']}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # a problem of the file
        if any(info.get('img_id') not in listed for info in _some(leaf)):
            detail = f'it lacks images of {leaf.ann_file}, which the {split} data set reads'
            yield Problem('other images', path, detail)


def head_problems(model: nn.Module, leaf) -> Iterator[Problem]:
    """Heads that predict another number of classes than a data set has.

    Left out are parts and types of heads with other classes (proposals, boundaries), panoptic data,
    whose heads share the classes out, and models that are given the classes as text.
    """
    classes, kind = classes_of(leaf), kind_of(leaf)
    is_checked = kind == LABEL_MAPS or kind == COCO and _is_plain_coco(leaf)
    if not classes or not is_checked or getattr(leaf, 'return_classes', False):
        return
    for name, module in model.named_modules():
        count = getattr(module, 'num_classes', None)
        bases = {base.__name__ for base in type(module).__mro__}
        is_other = bases & OTHER_HEADS or any(part in name for part in OTHER_PARTS)
        if isinstance(count, int) and count != len(classes) and not is_other:
            detail = f'it predicts {count} classes, the data have {_few(classes)}'
            yield Problem(
                'number of classes', f'{name or "model"} ({type(module).__name__})', detail
            )


def width_problems(model: Any) -> Iterator[Problem]:
    """A neck, or heads without a neck, for other widths than those of a backbone of ours."""
    backbone: Any = getattr(model, 'backbone', None)
    if not type(backbone).__module__.startswith('convnext_dense.'):
        return
    widths, neck = backbone.out_channels, getattr(model, 'neck', None)
    if neck is not None:
        readers = [('neck', neck, list(widths))] if type(neck).__name__ in NECKS else []
    else:
        readers = [
            (name, part, _read_widths(part, widths))
            for name, part in model.named_modules()
            if hasattr(part, 'in_index') and hasattr(part, 'input_transform')
        ]
    for name, part, given in readers:
        expected = part.in_channels
        expected = list(expected) if isinstance(expected, (list, tuple)) else expected
        if expected != given:
            detail = f'in_channels is {expected}, its maps have {given}'
            yield Problem('other widths', f'{name} ({type(part).__name__})', detail)


def _read_widths(head: Any, widths: Sequence[int]) -> Any:
    """As mmseg's heads keep in_channels: one width, a list, or the sum where they concatenate."""
    is_one = isinstance(head.in_index, int)
    indices = [head.in_index] if is_one else head.in_index
    selected = [widths[i] for i in indices if i < len(widths)]
    if is_one:
        return selected[0] if selected else None
    return sum(selected) if head.input_transform == 'resize_concat' else selected


def _few(names: tuple[str, ...]) -> str:
    return f'{len(names)}: {", ".join(names[:8])}{" ..." if len(names) > 8 else ""}'


def turns(leaf) -> bool:
    """Whether the pipeline turns images as their EXIF data say."""
    for step in leaf.pipeline.transforms:
        if hasattr(step, 'color_type'):
            ignores = 'ignore' in step.color_type or 'unchanged' in step.color_type
            return not ignores and step.imdecode_backend in ('cv2', 'pillow')
    return True


def has_masks(leaf) -> bool:
    return any(getattr(step, 'with_mask', False) for step in leaf.pipeline.transforms)


def _loads_labels(leaf) -> bool:
    return any(type(step).__name__ == 'LoadAnnotations' for step in leaf.pipeline.transforms)


def _annotations_of(leaf) -> coco.Contents:
    path = str(leaf.ann_file)
    return coco.read(path, classes_of(leaf), has_masks(leaf), image_folder(leaf))


def _is_plain_coco(leaf) -> bool:
    """Panoptic annotations are of another form."""
    return type(leaf).parse_data_info.__qualname__.startswith('CocoDataset.')


def image_folder(leaf) -> str:
    return leaf.data_prefix.get('img') or ''


def _left_out_files(leaf) -> Iterator[Problem]:
    """Images whose suffix is not the config's, and label maps of which there is no image."""
    if leaf.ann_file and not os.path.isdir(leaf.ann_file):
        return  # the names are listed in a file
    folder = leaf.data_prefix.get('img_path') or ''
    known = Image.registered_extensions()
    names = {path.relative_to(folder) for path in Path(folder).rglob('*') if path.suffix}
    taken = {str(name)[: -len(leaf.img_suffix)] for name in names if _ends(name, leaf.img_suffix)}
    for name in sorted(names):
        if not _ends(name, leaf.img_suffix) and name.suffix.lower() in known:
            detail = f'the config reads files that end with {leaf.img_suffix}'
            yield Problem('other suffix', str(Path(folder, name)), detail)
    labels = leaf.data_prefix.get('seg_map_path')
    if not labels or labels == folder:
        return
    for path in sorted(Path(labels).rglob(f'*{leaf.seg_map_suffix}')):
        if str(path.relative_to(labels))[: -len(leaf.seg_map_suffix)] not in taken:
            yield Problem('label map without image', str(path))


def _ends(path: Path, suffix: str) -> bool:
    return str(path).endswith(suffix)


# ---- all files of a config


def check_all(cfg: Config, jobs: int, ignored: set[int]) -> list[Report]:
    """Read every image, label map and annotation of a config.

    Args:
        jobs: processes that read.
        ignored: labels that mean unknown.

    Raises:
        ConfigError: a data set cannot be built.
    """
    reports = []
    files: dict[str, set[str]] = {}
    for splits, leaf in data_sets(cfg):
        kind, source = kind_of(leaf), source_of(leaf)
        if kind == COCO and not _is_plain_coco(leaf):
            kind = f'of {type(leaf).__name__} only the classes are checked'
            problems = _of_categories(source, classes_of(leaf))
            reports.append(Report(splits, source, kind, 0, Counter(), problems))
            continue
        if kind not in (COCO, LABEL_MAPS):
            reports.append(Report(splits, source, kind, 0, Counter(), []))
            continue
        read = _all_of_coco if kind == COCO else _all_label_maps
        paths, classes, problems = read(leaf, splits, jobs, ignored)
        if not paths and not problems:
            problems.append(Problem('no images', source))
        if kind == COCO:
            for split in splits.split(', '):
                problems += evaluator_problems(cfg, split, leaf)
        files[splits] = files.get(splits, set()) | set(paths)
        reports.append(Report(splits, source, kind, len(paths), classes, problems))
    orders = {
        problem.file: problem for problem in _different_orders(leaf for _, leaf in data_sets(cfg))
    }
    for report in reports if orders else []:
        kept = [problem for problem in report.problems if problem.kind != 'class names']
        report.problems[:] = kept + [orders[file] for file in [report.source] if file in orders]
    trained = set().union(*(paths for name, paths in files.items() if 'train' in name))
    for report in reports:
        if 'train' not in report.split:
            both = sorted(files.get(report.split, set()) & trained)
            report.problems.extend(Problem('in two splits', path, image=path) for path in both)
    return reports


def data_sets(cfg: Config) -> list[tuple[str, Any]]:
    """The data sets of a config, built but not loaded: once for splits that read the same."""
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    names: dict[str, list[str]] = {}
    configs: dict[str, dict] = {}
    for split in SPLITS:
        loader = cfg.get(f'{split}_dataloader') or {}
        if not isinstance(loader, dict):
            raise ConfigError(f'{split}_dataloader is {loader!r}, expected a dict')
        for leaf in _leaf_configs(loader.get('dataset')):
            key = repr({**dict(sorted(leaf.items())), 'pipeline': _label_steps(leaf)})
            names.setdefault(key, []).append(split)
            configs.setdefault(key, leaf)
    built = []
    for key, leaf in configs.items():
        try:
            with quiet():
                dataset = DATASETS.build(dict(leaf, lazy_init=True))
        except Exception as error:
            raise ConfigError(
                f'the {names[key][0]} data set ({leaf.get("type")}) cannot be built: '
                f'{type(error).__name__}: {error}'
            ) from error
        built.append((', '.join(names[key]), dataset))
    return built


def _label_steps(leaf: Mapping) -> list[dict]:
    """The steps of its pipeline that decide which labels there are."""
    steps = [step for step in leaf.get('pipeline') or [] if isinstance(step, dict)]
    return [dict(step) for step in steps if str(step.get('type')).rpartition('.')[2] in LABEL_STEPS]


def _leaf_configs(dataset) -> Iterator[dict]:
    if isinstance(dataset, (list, tuple)):
        for part in dataset:
            yield from _leaf_configs(part)
    elif dataset:
        inner = dataset.get('datasets') or dataset.get('dataset')
        if inner:
            yield from _leaf_configs(inner)
        else:
            yield dataset


def _of_categories(path: str, classes: tuple[str, ...]) -> list[Problem]:
    try:
        return list(coco.class_problems(path, coco.categories(path), classes))
    except (OSError, ValueError, KeyError) as error:
        return [images.unreadable(path, error)]


def _all_of_coco(leaf, title: str, jobs: int, ignored: set[int]):
    folder, path = image_folder(leaf), str(leaf.ann_file)
    content = _annotations_of(leaf)
    follows = turns(leaf)
    paths = [str(Path(folder, image['file_name'])) for image in content.images]

    def look(i):
        size = content.images[i]['height'], content.images[i]['width']
        return Counter(), list(images.image_problems(paths[i], size, path, follows, decode=True))

    _, problems = _in_processes(look, len(paths), jobs, f'images ({title})')
    return paths, content.objects, content.problems + problems


def _all_label_maps(leaf, title: str, jobs: int, ignored: set[int]):
    try:
        infos = leaf.load_data_list()
    except (OSError, AssertionError) as error:
        return [], Counter(), [Problem('missing file', source_of(leaf), str(error))]
    classes, follows = classes_of(leaf), turns(leaf)
    steps = [step for step in leaf.pipeline.transforms if type(step).__name__ in LABEL_STEPS]

    def look(i):
        path, label_path = infos[i]['img_path'], infos[i].get('seg_map_path')
        problems = list(images.image_problems(path, None, '', follows, decode=True))
        if not steps or not label_path:
            return Counter(), problems
        problems += images.label_map_problems(label_path, path, follows)
        if any(problem.file == label_path for problem in problems):
            return Counter(), problems
        try:
            with Image.open(label_path) as opened:
                if opened.mode.startswith('I') and np.asarray(opened).max() > UNKNOWN:
                    detail = 'it has 16 bits, and numbers above 255'
                    return Counter(), [*problems, Problem('label map', label_path, detail, path)]
            result = infos[i]
            for step in steps:
                result = step(result)
        except Exception as error:
            return Counter(), [*problems, images.unreadable(label_path, error)]
        pixels, wrong = images.label_problems(
            result['gt_seg_map'], label_path, classes, ignored, path
        )
        return pixels, problems + wrong

    pixels, problems = _in_processes(look, len(infos), jobs, f'label maps ({title})')
    return [info['img_path'] for info in infos], pixels, [*_left_out_files(leaf), *problems]


def annotation_problems(cfg: Config) -> list[Problem]:
    """What is wrong in the annotation files and folders that a config reads; no image is looked
    at."""
    problems = []
    for _, leaf in data_sets(cfg):
        if kind_of(leaf) == COCO and _is_plain_coco(leaf):
            content = _annotations_of(leaf)
            problems += content.problems
            if not content.objects:
                detail = 'none of its images has an object of the classes'
                problems.append(Problem('no images', source_of(leaf), detail))
        elif kind_of(leaf) == LABEL_MAPS and not leaf.load_data_list():
            problems.append(Problem('no images', source_of(leaf)))
    return problems


class _Calls(torch.utils.data.Dataset):
    """A function of an index, for dataloader workers to call."""

    def __init__(self, function, count: int):
        self.function, self.count = function, count

    def __len__(self):
        return self.count

    def __getitem__(self, i: int):
        return self.function(i)


def _unchanged(answer):
    """In place of torch's own function, which updates a Counter with itself, and so doubles it."""
    return answer


def _in_processes(function, count: int, jobs: int, title: str) -> tuple[Counter, list[Problem]]:
    loader: Iterable = torch.utils.data.DataLoader(
        _Calls(function, count),
        batch_size=None,
        num_workers=min(jobs, count),
        collate_fn=_unchanged,
    )
    total: Counter = Counter()
    problems: list[Problem] = []
    for counts, some in progress(loader, title, count):
        total += counts
        problems += some
    return total, problems
