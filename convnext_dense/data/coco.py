"""COCO annotation files: their categories beside the classes of a config, and each annotation."""

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..printing import progress
from .problems import Problem

BLOCK = 2**24  # bytes
START = re.compile(rb'"categories"\s*:\s*(?=\[)')
ENTRIES = dict(  # what mmdet reads of each entry
    images=('id', 'file_name', 'width', 'height'),
    annotations=('id', 'image_id', 'category_id', 'bbox', 'area'),
    categories=('id', 'name'),
)


class Contents(NamedTuple):
    """What a dataset takes from an annotation file.

    Args:
        images: the entries of ``images`` that can be read.
        objects: class -> number of its objects, those left out not counted.
    """

    images: list[dict]
    objects: Counter
    problems: list[Problem]


def categories(path: str | Path) -> list[dict]:
    """The categories of an annotation file, of which nothing else is parsed where that is possible.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON.
        KeyError: it has no list of categories.
    """
    lists = []
    with open(path, 'rb') as file:
        offset, tail = 0, b''  # of the block, the end of the block before it
        while block := file.read(BLOCK):
            first = offset - len(tail)
            lists += [first + match.end() for match in START.finditer(tail + block)]
            offset += len(block)
            tail = block[-64:]
        candidates = []
        for start in sorted(set(lists)):
            file.seek(start)
            # A category has a few hundred bytes; LVIS has 1203 of them.
            text = file.read(BLOCK).decode('utf-8', 'ignore')
            try:
                candidates.append(json.JSONDecoder().raw_decode(text)[0])
            except ValueError:
                break
    if len(candidates) == 1:  # the word may also be a key of something else
        return candidates[0]
    content = json.loads(Path(path).read_bytes())
    listed = content.get('categories') if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise KeyError('categories')
    return listed


def class_problems(path: str, listed: Sequence[dict], classes: Sequence[str]) -> Iterator[Problem]:
    """Where the classes of a config are not those that mmdet would give the file's categories.

    Args:
        listed: the categories of the file at ``path``.
    """
    named = [category for category in listed if isinstance(category, dict) and 'name' in category]
    names = [str(category['name']) for category in named]
    for name, count in Counter(names).items():
        if count > 1:
            yield Problem('duplicate', path, f'{count} categories have the name {name!r}')
    for name in classes:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f'; there is {near[0]!r}' if near else ''
            detail = f'no category has the name {name!r}, a class of the config{hint}'
            yield Problem('class names', path, detail)
    taken = order(listed, classes)
    if sorted(taken) == sorted(classes) and taken != tuple(classes):
        first = next(i for i, pair in enumerate(zip(taken, classes)) if pair[0] != pair[1])
        detail = (
            f'a {taken[first]!r} would be called {classes[first]!r}. The order of the file is '
            f'classes = {taken!r}'
        )
        yield Problem('class names', path, detail)


def order(listed: Sequence[dict], classes: Sequence[str]) -> tuple[str, ...]:
    """The classes of a config in the order in which mmdet numbers a file's categories."""
    named = [category for category in listed if isinstance(category, dict) and 'name' in category]
    return tuple(str(category['name']) for category in named if str(category['name']) in classes)


def read(path: str, classes: Sequence[str], with_mask: bool, folder: str | Path) -> Contents:
    """Read all of an annotation file, and look at each entry.

    Args:
        with_mask: whether segmentations are read.
        folder: of the images.
    """
    problems: list[Problem] = []
    nothing = Contents([], Counter(), problems)
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        kind = 'missing file' if isinstance(error, FileNotFoundError) else 'unreadable file'
        problems.append(Problem(kind, path, f'not JSON: {error}'))
        return nothing
    entries: dict[str, list[dict]] = {}
    for name, keys in ENTRIES.items():
        listed = content.get(name) if isinstance(content, dict) else None
        if not isinstance(listed, list):
            problems.append(Problem('missing key', path, f'it has no list {name!r}'))
            return nothing
        entries[name] = [
            entry
            for i, entry in enumerate(listed)
            if _has_keys(entry, name, i, keys, path, problems)
        ]
    if not content['images']:
        problems.append(Problem('no images', path))
    problems += class_problems(path, entries['categories'], classes)
    problems += _repeated_ids(path, entries)
    names = {category['id']: category['name'] for category in entries['categories']}
    images = {image['id']: image for image in entries['images']}
    for entry in images.values():
        if not (_is_number(entry['width'], 1) and _is_number(entry['height'], 1)):
            detail = f'image {entry["id"]} is {entry["width"]!r} wide, {entry["height"]!r} high'
            problems.append(Problem('wrong value', path, detail))
    objects: Counter = Counter()
    occupied = set()
    for annotation in progress(entries['annotations'], 'annotations'):
        image = images.get(annotation['image_id'])
        picture = str(Path(folder, image['file_name'])) if image else ''
        wrong = _look_at(annotation, image, names, classes, with_mask)
        if wrong:
            kind, detail = wrong
            box = annotation['bbox'] if _is_box(annotation['bbox']) else ()
            text = f'annotation {annotation["id"]} of image {annotation["image_id"]}: {detail}'
            problems.append(Problem(kind, path, text, picture, tuple(box)))
        if not wrong or wrong[0] == 'ignored mask':
            objects[names[annotation['category_id']]] += 1
            occupied.add(annotation['image_id'])
    for key in images.keys() - occupied:
        picture = str(Path(folder, images[key]['file_name']))
        problems.append(Problem('no objects', path, f'image {key}', picture))
    return Contents(list(images.values()), objects, problems)


def _has_keys(
    entry: Any, name: str, i: int, keys: Iterable[str], path: str, problems: list
) -> bool:
    missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
    if missing:
        label = f'with id {entry["id"]}' if isinstance(entry, dict) and 'id' in entry else f'{i}'
        detail = f'entry {label} of {name!r} has no {", ".join(map(repr, missing))}'
        problems.append(Problem('missing key', path, detail))
    return not missing


def _repeated_ids(path: str, entries: dict[str, list[dict]]) -> Iterator[Problem]:
    kinds = dict(images='duplicate image id', annotations='duplicate', categories='duplicate')
    for name, kind in kinds.items():
        for key, count in Counter(entry['id'] for entry in entries[name]).items():
            if count > 1:
                yield Problem(kind, path, f'{count} entries of {name!r} have the id {key}')


def _look_at(annotation, image, names, classes, with_mask) -> tuple[str, str] | None:
    """What is wrong with an annotation, in the order in which mmdet looks at it."""
    box = annotation['bbox']
    if not image:
        return 'no such image', 'its image is not in the file'
    if annotation.get('ignore'):
        return 'other classes', "it is marked with 'ignore'"
    if not _is_box(box):
        if (
            isinstance(box, list)
            and len(box) == 4
            and all(isinstance(x, (int, float)) for x in box)
        ):
            return 'not a number', f'its box is {box}'
        return 'wrong value', f'its box is {box!r}, expected four numbers: x, y, width, height'
    if not isinstance(annotation['area'], (int, float)):
        return 'wrong value', f'its area is {annotation["area"]!r}, expected a number'
    x, y, width, height = box
    if width < 1 or height < 1 or annotation['area'] <= 0:
        return 'too small', f'its box is {width:g} x {height:g}, its area {annotation["area"]:g}'
    if x >= image['width'] or y >= image['height'] or x + width <= 0 or y + height <= 0:
        size = f'{image["width"]} x {image["height"]}'
        return 'outside', f'its box {box} lies outside of the image of {size}'
    name = names.get(annotation['category_id'])
    if name is None:
        return 'unknown category', f'its category_id is {annotation["category_id"]!r}'
    if name not in classes:
        return 'other classes', repr(name)
    return _look_at_mask(annotation, image) if with_mask else None


def _look_at_mask(annotation, image) -> tuple[str, str] | None:
    mask = annotation.get('segmentation')
    if not mask:
        return 'no segmentation', 'it has no segmentation'
    if isinstance(mask, dict):
        size = [image['height'], image['width']]
        if mask.get('size') != size:
            return 'sizes differ', f'its mask is of size {mask.get("size")}, the image of {size}'
        if not isinstance(mask.get('counts'), (list, str)):
            return 'wrong value', 'its segmentation has no counts'
        return None
    if not isinstance(mask, list) or not all(isinstance(polygon, list) for polygon in mask):
        return 'wrong value', 'its segmentation is neither a list of polygons nor run lengths'
    if not all(_is_number(x) for polygon in mask for x in polygon):
        return 'wrong value', 'its segmentation holds something else than finite numbers'
    if not any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in mask):
        return 'ignored mask', f'its polygons have {[len(polygon) for polygon in mask]} coordinates'
    return None


def _is_number(value: Any, at_least: float = -math.inf) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= at_least


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))
