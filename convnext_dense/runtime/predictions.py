"""Goes through the pictures of a folder, writes what is seen in them, and keeps count."""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .instances import Instances, annotations
from .pictures import Colours, overlay, read, save_labels, with_legend

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.gif', '.ppm', '.pgm')


class Predictions:
    """Predicts for files, writes what is seen, and keeps count. ``see`` is what differs.

    Files in ``out``: ``overlays/`` and, of a segmentor, ``labels/``; ``close`` writes the boxes and
    masks of a detector to ``predictions.json``.

    Args:
        classes, colours: of the model.
        score: least score of the detections that are drawn. All are written.
    """

    endings: tuple[str, ...] = IMAGES

    def __init__(self, out: Path, classes: Sequence[str], colours: Colours, score: float):
        self.out, self.classes, self.colours, self.score = out, classes, colours, score
        self.done = self.others = 0  # files that were predicted for; that are no pictures
        self.failed: dict[str, str] = {}  # file -> why
        self.notes: dict[str, str] = {}  # file -> what was odd about it
        self.images: list[dict] = []  # in COCO's format, as the annotations
        self.annotations: list[dict] = []

    def see(self, image: np.ndarray, key: str, name: str) -> np.ndarray:
        """RGB image (H, W, 3) uint8 -> a picture of what is seen in it, (H', W', 3) uint8.

        Args:
            key: of the files that are written.
            name: of the file that was read.
        """
        raise NotImplementedError

    def run(self, source: Path) -> int:
        """Predict for a file, or for all in a folder and below it. What is wrong with a single file
        is kept in ``failed``.

        Returns:
            The number of files of the right endings.
        """
        is_folder = source.is_dir()
        paths = sorted(source.rglob('*')) if is_folder else [source]
        # by an earlier run, perhaps below the source
        written = {self.out.resolve() / name for name in ('overlays', 'labels')}
        files = [
            path for path in paths if path.is_file() and not written & {*path.resolve().parents}
        ]
        wanted = [path for path in files if path.suffix.lower() in self.endings]
        self.others = len(files) - len(wanted)
        root = source if is_folder else source.parent
        stems = Counter(path.relative_to(root).with_suffix('') for path in wanted)
        for path in self.progress(wanted):
            name = path.relative_to(root)
            stem = name.with_suffix('')
            key = str(name if stems[stem] > 1 else stem)  # a.jpg and a.png are kept apart
            try:
                note = self.file(path, key, str(name))
                self.done += 1
                if note:
                    self.notes[str(name)] = note
            except Exception as error:  # of any kind; the other files go on
                self.failed[str(name)] = f'{type(error).__name__}: {error}'
        return len(wanted)

    def progress(self, paths: Sequence[Path]) -> Iterable[Path]:
        return paths

    def file(self, path: Path, key: str, name: str) -> str | None:
        """Predict for a file. Returns what was odd about it."""
        image, note = read(path)
        Image.fromarray(self.see(image, key, name)).save(self.path(f'overlays/{key}.png'))
        return note

    def close(self) -> None:
        if self.images:
            categories = [dict(id=i, name=name) for i, name in enumerate(self.classes, 1)]
            content = dict(images=self.images, annotations=self.annotations, categories=categories)
            self.path('predictions.json').write_text(json.dumps(content))

    def report(self, reason: str) -> None:
        """Print what was done, and what was not and why.

        Args:
            reason: why it may be that no object was found.
        """
        for name, note in self.notes.items():
            print(f'{name}: {note}')
        for name, why in self.failed.items():
            print(f'skipped {name}: {why}', file=sys.stderr)
        others = f', {self.others} files are no pictures' if self.others else ''
        place = f'see {self.out}' if self.done else 'nothing was written'
        if self.images and not self.annotations:
            print(f'No object was predicted: {reason}')
        elif self.annotations:
            drawn = sum(annotation['score'] >= self.score for annotation in self.annotations)
            print(f'{drawn} of {len(self.annotations)} detections reach --score {self.score:g}')
        print(f'{self.done} done, {len(self.failed)} skipped{others}; {place}')

    def keep_instances(self, image: np.ndarray, found: Instances, name: str) -> None:
        height, width = image.shape[:2]
        number = len(self.images) + 1
        self.images.append(dict(id=number, file_name=name, height=height, width=width))
        for annotation in annotations(found):
            ids = dict(id=len(self.annotations) + 1, image_id=number)
            self.annotations.append(annotation | ids)

    def keep_labels(
        self, image: np.ndarray, labels: np.ndarray, key: str, whole_legend: bool = False
    ) -> np.ndarray:
        """Write a label map (H, W). Returns the picture of it, with a legend of its classes or of
        all."""
        names, colours = self.classes, self.colours
        save_labels(labels, colours, self.path(f'labels/{key}.png'))
        shown = range(len(names)) if whole_legend else np.unique(labels)
        painted = overlay(image, labels, colours)
        return with_legend(painted, [names[i] for i in shown], [colours[i] for i in shown])

    def path(self, name: str) -> Path:
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
