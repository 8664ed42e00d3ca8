"""Broken inputs: a sound data set of a few images, and what can be wrong with it or its config.

``KINDS`` has a function for each kind. It breaks the data set of a ``Case`` in a way that is drawn
from a seed, and returns what a message has to say of it.
"""

import contextlib
import io
import json
import random
import re
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from convnext_dense import config
from convnext_dense.commands import check
from convnext_dense.demo.scenes import ADE_FOLDERS, SHAPES, STUFF
from convnext_dense.printing import markdown_table, progress

WIDTH, HEIGHT = 64, 48
SPLITS = 'train', 'val'
IMAGES = 3  # of a split
RECIPES = dict(coco='demo/mask-rcnn_convnext-atto_shapes', ade='demo/upernet_convnext-atto_shapes')
TEXT = dict(
    coco="""\
_base_ = {base!r}
data_root = {data!r}
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_dataloader = test_cfg = test_evaluator = None
""",
    ade="""\
_base_ = {base!r}
train_dataloader = dict(dataset=dict(data_root={data!r}))
val_dataloader = dict(dataset=dict(data_root={data!r}))
test_dataloader = test_cfg = test_evaluator = None
""",
)


@cache
def base_of(task: str) -> str:
    return config(RECIPES[task])


class Expected(NamedTuple):
    name: str  # has to be in what is printed
    count: int = 1  # of the things that are broken, each of which has to be counted; 0: any


class Case:
    """A sound data set in ``folder``, which is empty, and a config that reads it.

    Args:
        task: ``coco`` for images, boxes and outlines; ``ade`` for images and label maps.
    """

    def __init__(self, folder: Path, task: str, rng: random.Random):
        self.folder, self.task, self.rng = folder, task, rng
        self.config = folder / 'my_config.py'
        for split in SPLITS:
            (self._write_coco if task == 'coco' else self._write_ade)(split)
        sound = TEXT[task].format(base=base_of(task), data=f'{folder}/')
        (folder / 'sound.py').write_text(sound, encoding='utf-8')
        self.config.write_text("_base_ = 'sound.py'\n", encoding='utf-8')

    def image(self) -> Path:
        folder = 'images' if self.task == 'ade' else '.'
        return self.rng.choice(sorted((self.folder / folder).rglob('*.jpg')))

    def label(self) -> Path:
        return self.rng.choice(sorted(self.folder.rglob('*.png')))

    def annotations(self) -> Path:
        return self.rng.choice(sorted(self.folder.rglob('*.json')))

    def scene(self) -> tuple[Image.Image, list[tuple[int, list[int]]]]:
        """An image of rectangles, and the shape and box (x, y, w, h) of each."""
        rng = self.rng
        image = Image.new('RGB', (WIDTH, HEIGHT), tuple(rng.choices(range(256), k=3)))
        rectangles = []
        for left in (2, 34):
            x, y = left + rng.randrange(6), 2 + rng.randrange(10)
            w, h = rng.randrange(12, 24), rng.randrange(12, 32)
            colour = tuple(rng.choices(range(256), k=3))
            ImageDraw.Draw(image).rectangle((x, y, x + w - 1, y + h - 1), fill=colour)
            rectangles.append((rng.randrange(len(SHAPES)), [x, y, w, h]))
        return image, rectangles

    def _write_coco(self, split: str) -> None:
        folder = self.folder / f'{split}2017'
        folder.mkdir()
        images, annotations = [], []
        for number in range(IMAGES):
            image, rectangles = self.scene()
            name = f'{split}_{number}.jpg'
            image.save(folder / name)
            images.append(dict(id=number, file_name=name, width=WIDTH, height=HEIGHT))
            for shape, (x, y, w, h) in rectangles:
                annotation = dict(id=len(annotations) + 1, image_id=number, category_id=shape + 1)
                outline = [x, y, x + w, y, x + w, y + h, x, y + h]
                annotation.update(bbox=[x, y, w, h], area=w * h, iscrowd=0, segmentation=[outline])
                annotations.append(annotation)
        categories = [dict(id=i, name=name) for i, name in enumerate(SHAPES, 1)]
        path = self.folder / f'annotations/instances_{split}2017.json'
        path.parent.mkdir(exist_ok=True)
        truth = dict(images=images, annotations=annotations, categories=categories)
        path.write_text(json.dumps(truth), encoding='utf-8')

    def _write_ade(self, split: str) -> None:
        places = [self.folder / kind / ADE_FOLDERS[split] for kind in ('images', 'annotations')]
        for place in places:
            place.mkdir(parents=True)
        for number in range(IMAGES):
            image, rectangles = self.scene()
            label = Image.new('L', (WIDTH, HEIGHT), 1)
            for shape, (x, y, w, h) in rectangles:
                box = x, y, x + w - 1, y + h - 1
                ImageDraw.Draw(label).rectangle(box, fill=1 + len(STUFF) + shape)
            image.save(places[0] / f'{split}_{number}.jpg')
            label.save(places[1] / f'{split}_{number}.png')


# ---- images ----


def _image(change: Callable[[Image.Image, Path, random.Random], None]):
    """A kind that writes an image anew."""

    def break_it(case: Case) -> Expected:
        path = case.image()
        with Image.open(path) as image:
            image.load()
        change(image, path, case.rng)
        return Expected(path.name)

    return break_it


def truncated_image(case: Case) -> Expected:
    path = case.image()
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * case.rng.uniform(0.2, 0.9))])
    return Expected(path.name)


def turn_by_exif(image: Image.Image, path: Path, rng: random.Random) -> None:
    exif = Image.Exif()
    exif[0x0112] = rng.choice([5, 6, 7, 8])  # the orientations that exchange width and height
    image.save(path, exif=exif)


def sixteen_bits(image: Image.Image, path: Path, rng: random.Random) -> None:
    values = np.asarray(image.convert('L')).astype(np.uint16) * 257
    Image.fromarray(values).save(path, 'PNG')


def missing_image(case: Case) -> Expected:
    path = case.image()
    path.unlink()
    # Nothing lists the images of a folder; the label map is left.
    return Expected(path.name if case.task == 'coco' else path.with_suffix('.png').name)


# ---- label maps ----


def coloured_label(case: Case) -> Expected:
    path = case.label()
    with Image.open(path) as label:
        label.convert('RGB').save(path)
    return Expected(path.name)


def label_of_other_size(case: Case) -> Expected:
    path = case.label()
    with Image.open(path) as label:
        size = case.rng.choice([(HEIGHT, WIDTH), (WIDTH // 2, HEIGHT), (WIDTH, HEIGHT + 1)])
        label.resize(size, Image.Resampling.NEAREST).save(path)
    return Expected(path.name)


def label_out_of_range(case: Case) -> Expected:
    path = case.label()
    with Image.open(path) as label:
        values = np.array(label)
    values[: case.rng.randrange(1, HEIGHT), : case.rng.randrange(1, WIDTH)] = case.rng.randrange(
        1 + len(STUFF) + len(SHAPES), 250
    )
    Image.fromarray(values).save(path)
    return Expected(path.name)


def unreadable_label(case: Case) -> Expected:
    path = case.label()
    content = path.read_bytes()
    path.write_bytes(case.rng.choice([b'', b'no picture', content[: len(content) // 2]]))
    return Expected(path.name)


def missing_label(case: Case) -> Expected:
    path = case.label()
    path.unlink()
    return Expected(path.name)


# ---- annotations of COCO ----


def _annotation(change: Callable[[dict, random.Random], object]):
    """A kind that changes some annotations."""

    def break_it(case: Case) -> Expected:
        path, truth = _read(case)
        chosen = case.rng.sample(truth['annotations'], case.rng.randint(1, 3))
        for annotation in chosen:
            change(annotation, case.rng)
        path.write_text(json.dumps(truth), encoding='utf-8')
        return Expected(path.name, len(chosen))

    return break_it


def _truth(change: Callable[[dict, random.Random], object]):
    """A kind that changes the whole."""

    def break_it(case: Case) -> Expected:
        path, truth = _read(case)
        change(truth, case.rng)
        path.write_text(json.dumps(truth), encoding='utf-8')
        return Expected(path.name)

    return break_it


def _read(case: Case) -> tuple[Path, dict]:
    path = case.annotations()
    return path, json.loads(path.read_text(encoding='utf-8'))


def truncated_json(case: Case) -> Expected:
    path = case.annotations()
    text = path.read_text(encoding='utf-8')
    path.write_text(text[: int(len(text) * case.rng.uniform(0.05, 0.95))], encoding='utf-8')
    return Expected(path.name)


def empty_json(case: Case) -> Expected:
    path, truth = _read(case)
    nothing = json.dumps(truth | dict(images=[], annotations=[]))
    path.write_text(case.rng.choice(['', '{}', '[]', nothing]), encoding='utf-8')
    return Expected(path.name)


def spoil_box(annotation: dict, rng: random.Random) -> None:
    annotation['bbox'][rng.randrange(4)] = rng.choice([float('nan'), float('inf')])


def flatten_box(annotation: dict, rng: random.Random) -> None:
    annotation['bbox'][rng.choice([2, 3])] = 0
    annotation['area'] = 0


def move_box_outside(annotation: dict, rng: random.Random) -> None:
    i = rng.randrange(2)
    annotation['bbox'][i] += rng.choice([-1, 1]) * 3 * WIDTH


def repeat_image(truth: dict, rng: random.Random) -> None:
    truth['images'].append(dict(rng.choice(truth['images'])))


def repeat_name(truth: dict, rng: random.Random) -> None:
    first, second = rng.sample(truth['categories'], 2)
    second['name'] = first['name']


def delete_key(truth: dict, rng: random.Random) -> None:
    owner, key = rng.choice(
        [
            (truth, 'images'),
            (truth, 'annotations'),
            (truth, 'categories'),
            (rng.choice(truth['images']), 'file_name'),
            (rng.choice(truth['images']), 'width'),
            (rng.choice(truth['images']), 'id'),
            (rng.choice(truth['annotations']), 'bbox'),
            (rng.choice(truth['annotations']), 'image_id'),
            (rng.choice(truth['annotations']), 'category_id'),
            (rng.choice(truth['categories']), 'name'),
        ]
    )
    del owner[key]


def change_size(truth: dict, rng: random.Random) -> None:
    image = rng.choice(truth['images'])
    image['width'], image['height'] = rng.choice(
        [(HEIGHT, WIDTH), (2 * WIDTH, HEIGHT), (640, 427), (WIDTH, HEIGHT - 1)]
    )


def reorder_categories(truth: dict, rng: random.Random) -> None:
    before = list(truth['categories'])
    while truth['categories'] == before:
        rng.shuffle(truth['categories'])


# ---- configs ----


def _config(*changes: tuple[str, str, str]):
    """A kind that adds a line to the config: (its task, or both; the line; what is to be named)."""

    def break_it(case: Case) -> Expected:
        fitting = [change for change in changes if change[0] in ('both', case.task)]
        _, line, name = case.rng.choice(fitting)
        inherits = '' if line.startswith('_base_') else case.config.read_text(encoding='utf-8')
        case.config.write_text(f'{inherits}{line}\n', encoding='utf-8')
        return Expected(name, 0)  # the same key can be wrong in several ways

    return break_it


MISSPELLED = _config(
    ('both', 'train_datalaoder = dict(batch_size=2)', 'train_datalaoder'),
    ('both', 'optim_wraper = dict(clip_grad=None)', 'optim_wraper'),
    ('both', 'default_hooks = dict(checkpoint=dict(max_keep_ckpt=2))', 'max_keep_ckpt'),
    ('both', 'default_hooks = dict(logger=dict(intervall=1))', 'intervall'),
    ('both', 'model = dict(backbone=dict(drop_path=0.1))', 'drop_path'),
    ('both', 'train_dataloader = dict(dataset=dict(piepline=[]))', 'piepline'),
    ('ade', 'model = dict(decode_head=dict(num_class=7))', 'num_class'),
    ('coco', 'model = dict(roi_head=dict(bbox_head=dict(num_class=5)))', 'num_class'),
)
WRONG_TYPES = _config(
    ('both', "train_dataloader = dict(dataset=dict(type='NoSuchDataset'))", 'NoSuchDataset'),
    ('both', "model = dict(backbone=dict(type='convnext_dense.ConvNeXT'))", 'ConvNeXT'),
    ('both', "model = dict(backbone=dict(arch='tinny'))", 'tinny'),
    ('both', "train_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImg')]))", 'LoadImg'),
    ('both', "train_dataloader = 'coco'", 'train_dataloader'),
)
SYNTAX = _config(
    ('both', 'model = dict(', 'my_config.py'),
    ('both', 'train_cfg = dict(max_iters=10', 'my_config.py'),
    ('both', '  val_cfg = None', 'my_config.py'),
    ('both', "data_root = 'data", 'my_config.py'),
    ('both', 'train_cfg = dict(max_iters=absent)', 'my_config.py'),
)
CLASS_COUNTS = _config(
    ('ade', 'model = dict(decode_head=dict(num_classes=19))', '19'),
    ('ade', 'model = dict(auxiliary_head=dict(num_classes=6))', '6'),
    ('coco', 'model = dict(roi_head=dict(bbox_head=dict(num_classes=80)))', '80'),
    ('coco', 'model = dict(roi_head=dict(mask_head=dict(num_classes=4)))', '4'),
    ('both', "train_dataloader = dict(dataset=dict(metainfo=dict(classes=('disc',))))", 'disc'),
)
ABSENT = _config(
    ('coco', "train_dataloader = dict(dataset=dict(ann_file='absent.json'))", 'absent.json'),
    ('coco', "val_evaluator = dict(ann_file='/absent/val.json')", '/absent/val.json'),
    ('coco', "train_dataloader = dict(dataset=dict(data_prefix=dict(img='gone/')))", 'gone'),
    ('ade', "train_dataloader = dict(dataset=dict(data_prefix=dict(img_path='gone')))", 'gone'),
    ('both', "val_dataloader = dict(dataset=dict(data_root='/absent/data'))", '/absent/data'),
    ('both', "_base_ = '/absent/base.py'", '/absent/base.py'),
)

BOTH = 'coco', 'ade'
KINDS: dict[str, tuple[tuple[str, ...], Callable[[Case], Expected]]] = {
    'image: of zero bytes': (BOTH, _image(lambda image, path, rng: path.write_bytes(b''))),
    'image: truncated JPEG': (BOTH, truncated_image),
    'image: turned by EXIF': (BOTH, _image(turn_by_exif)),
    'image: 1x1': (BOTH, _image(lambda image, path, rng: image.resize((1, 1)).save(path))),
    'image: grey': (BOTH, _image(lambda image, path, rng: image.convert('L').save(path))),
    'image: RGBA': (BOTH, _image(lambda image, path, rng: image.convert('RGBA').save(path, 'PNG'))),
    'image: CMYK': (BOTH, _image(lambda image, path, rng: image.convert('CMYK').save(path))),
    'image: 16 bit': (BOTH, _image(sixteen_bits)),
    'image: renamed text': (BOTH, _image(lambda image, path, rng: path.write_text('no image'))),
    'image: missing': (BOTH, missing_image),
    'label map: RGB': (('ade',), coloured_label),
    'label map: other size': (('ade',), label_of_other_size),
    'label map: out of range': (('ade',), label_out_of_range),
    'label map: unreadable': (('ade',), unreadable_label),
    'label map: missing': (('ade',), missing_label),
    'JSON: truncated': (('coco',), truncated_json),
    'JSON: empty': (('coco',), empty_json),
    'JSON: NaN boxes': (('coco',), _annotation(spoil_box)),
    'JSON: zero area': (('coco',), _annotation(flatten_box)),
    'JSON: outside boxes': (('coco',), _annotation(move_box_outside)),
    'JSON: unknown category': (
        ('coco',),
        _annotation(lambda annotation, rng: annotation.update(category_id=rng.randint(6, 99))),
    ),
    'JSON: no segmentation': (
        ('coco',),
        _annotation(lambda annotation, rng: annotation.pop('segmentation')),
    ),
    'JSON: missing keys': (('coco',), _truth(delete_key)),
    'JSON: duplicate image id': (('coco',), _truth(repeat_image)),
    'JSON: duplicate category name': (('coco',), _truth(repeat_name)),
    'JSON: other order of categories': (('coco',), _truth(reorder_categories)),
    'JSON: wrong size of an image': (('coco',), _truth(change_size)),
    'config: misspelled key': (BOTH, MISSPELLED),
    'config: wrong type': (BOTH, WRONG_TYPES),
    'config: syntax error': (BOTH, SYNTAX),
    'config: wrong number of classes': (BOTH, CLASS_COUNTS),
    'config: missing files': (BOTH, ABSENT),
}


# ---- what the check makes of them ----

OUTCOMES = {
    'refused': 'refused, named',
    'counted': 'passed, named or counted',
    'nameless': 'refused without a name',
    'silent': 'silently used',
    'crashed': 'traceback',
}
GOOD = 'refused', 'counted'
COUNT = re.compile(r'^[a-z ]+: (\d+)$', re.MULTILINE)  # the heading of what is wrong


class Result(NamedTuple):
    kind: str
    number: int  # of the input
    outcome: str  # key of OUTCOMES
    printed: str


def storm(count: int, seed: int) -> list[Result]:
    """Break ``count`` data sets, each kind as often as the others, and check each.

    Raises:
        RuntimeError: the check finds fault with a sound data set.
    """
    for task in BOTH:
        with TemporaryDirectory() as folder:
            status, printed = run_check(Case(Path(folder), task, random.Random(seed)))
        if status or COUNT.search(printed):
            raise RuntimeError(f'fault is found with a sound data set of {task}:\n{printed}')
    kinds = list(KINDS)
    numbers = progress(range(count), 'broken inputs', count)
    return [check_input(kinds[number % len(kinds)], number, seed) for number in numbers]


def check_input(kind: str, number: int, seed: int) -> Result:
    """Make an input, check it, and judge what was said."""
    rng = random.Random(f'{seed} {number}')
    tasks, break_it = KINDS[kind]
    with TemporaryDirectory() as folder:
        case = Case(Path(folder), rng.choice(tasks), rng)
        expected = break_it(case)
        status, printed = run_check(case)
        printed = printed.replace(folder, '')
    if 'Traceback' in printed:
        return Result(kind, number, 'crashed', printed)
    is_named = expected.name in printed
    counts = COUNT.findall(printed)
    if counts and expected.count and str(expected.count) not in counts:
        is_named = False  # some were lost
    if status:
        return Result(kind, number, 'refused' if is_named else 'nameless', printed)
    return Result(kind, number, 'counted' if is_named else 'silent', printed)


def run_check(case: Case) -> tuple[int, str]:
    """The exit status of ``convnext-dense check``, and all that it prints but for its table, in
    which all files are named."""
    output, status = io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            check.main([str(case.config), '--out', str(case.folder / 'check'), '--jobs', '0'])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            output.write(end.code if isinstance(end.code, str) else '')
        except Exception:
            status = 1
            traceback.print_exc()
    return status, output.getvalue().rpartition('┘')[2]


def table(results: Sequence[Result]) -> str:
    """A line for each kind."""
    lines = []
    for kind in KINDS:
        of_kind = [result for result in results if result.kind == kind]
        counts = Counter(result.outcome for result in of_kind)
        lines.append([kind, len(of_kind), *(counts[outcome] or '' for outcome in OUTCOMES)])
    return markdown_table(['kind', 'inputs', *OUTCOMES.values()], lines, '---:')
