"""What a trained detector or segmentor sees in an image, the images of a folder, or a video."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from PIL import Image

from ..config_names import read_config
from ..data import label_folder
from ..data.pictures import distinct_colours, overlay, read, save_labels, with_legend
from ..errors import ConfigError
from ..printing import progress, quiet
from .building import load

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.gif', '.ppm', '.pgm')
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg')


def inferencer(config: str | Path | Config, checkpoint: str | Path, device: str | None = None):
    """The inferencer of mmdet or mmseg with a trained model, to call with images.

    Theirs load the tensors that happen to fit; this one wants every name and shape of the model.

    Args:
        config: of a detector or segmentor: a ``Config``, its path, or its name as
            ``convnext_dense.config`` takes it.
        checkpoint: path or URL of the trained model.
        device: of torch; default: a GPU where torch sees one.

    Raises:
        ConfigError: there is no such config.
        WeightsError: the checkpoint cannot be read, or is not of this model.
    """
    cfg = config if isinstance(config, Config) else read_config(str(config))
    with quiet():
        if cfg.get('default_scope') == 'mmseg':
            from mmseg.apis import MMSegInferencer as Inferencer
        else:
            from mmdet.apis import DetInferencer as Inferencer

    class CheckedInferencer(Inferencer):
        def _load_weights_to_model(self, model, _, cfg):
            # the classes that the model was trained on come before those of the config's data
            meta = label_folder.meta_of(cfg.test_dataloader.dataset) | load(model, checkpoint)
            names = meta.get('classes') or [str(i) for i in range(256)]
            colours = meta.get('palette') or distinct_colours(len(names))
            palette = [tuple(colour) for colour in colours]  # mmdet takes no other types
            model.dataset_meta = dict(classes=names, palette=palette)

    # lower levels warn of every registry in which a type is not found at first
    MMLogger.get_instance('mmengine', log_level='ERROR')
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    with quiet():
        init_default_scope(cfg.default_scope)
        predictor = CheckedInferencer(model=cfg, device=device, scope=cfg.default_scope)
    predictor.show_progress = False  # a bar of its own for every image
    return predictor


class Predictions:
    """Predicts for files, writes what is seen, and keeps count.

    Files in ``out``: ``overlays/`` and, of a segmentor, ``labels/``; ``close`` writes the boxes and
    masks of a detector to ``predictions.json``.

    Args:
        predictor: of ``inferencer``.
        score: least score of the boxes and masks that are drawn. All are written.
    """

    def __init__(self, predictor, out: Path, score: float):
        self.predictor, self.out, self.score = predictor, out, score
        self.meta = predictor.model.dataset_meta
        self.done = self.others = 0  # files that were predicted for; that are no pictures
        self.failed: dict[str, str] = {}  # file -> why
        self.notes: dict[str, str] = {}  # file -> what was odd about it
        self.images: list[dict] = []  # in COCO's format, as the annotations
        self.annotations: list[dict] = []

    def run(self, source: Path) -> None:
        """Predict for an image, a video, or all of them in a folder and below it.

        Raises:
            ConfigError: there are none. What is wrong with a single file is kept in ``failed``.
        """
        is_folder = source.is_dir()
        paths = sorted(source.rglob('*')) if is_folder else [source]
        written = self.out.resolve()  # by an earlier run, perhaps below the source
        files = [path for path in paths if path.is_file() and written not in path.resolve().parents]
        wanted = [path for path in files if path.suffix.lower() in IMAGES + VIDEOS]
        if not wanted:
            suffixes = ', '.join(IMAGES + VIDEOS)
            raise ConfigError(
                f'{source}: no images or videos; expected files that end in {suffixes}'
            )
        self.others = len(files) - len(wanted)
        root = source if is_folder else source.parent
        stems = Counter(path.relative_to(root).with_suffix('') for path in wanted)
        for path in progress(wanted, 'predicting'):
            name = path.relative_to(root)
            stem = name.with_suffix('')
            key = str(name if stems[stem] > 1 else stem)  # a.jpg and a.png are kept apart
            predict = self._video if path.suffix.lower() in VIDEOS else self._image
            try:
                note = predict(path, key, str(name))
                self.done += 1
                if note:
                    self.notes[str(name)] = note
            except Exception as error:  # of any kind; the other files go on
                self.failed[str(name)] = f'{type(error).__name__}: {error}'

    def close(self) -> None:
        if self.images:
            categories = [dict(id=i, name=name) for i, name in enumerate(self.meta['classes'], 1)]
            content = dict(images=self.images, annotations=self.annotations, categories=categories)
            self._path('predictions.json').write_text(json.dumps(content))

    def report(self) -> None:
        """Print what was done, and what was not and why."""
        for name, note in self.notes.items():
            print(f'{name}: {note}')
        for name, reason in self.failed.items():
            print(f'skipped {name}: {reason}', file=sys.stderr)
        others = f', {self.others} files are no pictures' if self.others else ''
        place = f'see {self.out}' if self.done else 'nothing was written'
        if self.images and not self.annotations:
            print('No object was predicted: the test_cfg of the config drops those of low scores.')
        print(f'{self.done} done, {len(self.failed)} skipped{others}; {place}')

    def _image(self, path, key, name):
        image, note = read(path)
        drawn = self._predict(image, key, name)
        Image.fromarray(drawn).save(self._path(f'overlays/{key}.png'))
        return note

    def _video(self, path, key, name):
        capture = cv2.VideoCapture(str(path))
        if not capture.isOpened():
            raise OSError('no video that can be read')
        expected = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        rate = capture.get(cv2.CAP_PROP_FPS) or 25
        target, writer, count = self._path(f'overlays/{key}.mp4'), None, 0
        try:
            while (frame := capture.read()[1]) is not None:
                frame_key = f'{key}/{count:06d}'
                drawn = self._predict(frame[..., ::-1], frame_key, frame_key, whole_legend=True)
                height, width = (side // 2 * 2 for side in drawn.shape[:2])  # codecs want even ones
                if writer is None:
                    codec = cv2.VideoWriter.fourcc(*'mp4v')
                    writer = cv2.VideoWriter(str(target), codec, rate, (width, height))
                writer.write(np.ascontiguousarray(drawn[:height, :width, ::-1]))
                count += 1
        finally:
            if writer:
                writer.release()
        if not count:
            raise OSError('no frame can be read')
        if count < expected:
            return f'its header promises {expected} frames, {count} can be read'
        return None

    def _predict(self, image, key, name, whole_legend=False):
        """RGB image (H, W, 3) uint8 -> a picture of what is seen in it, (H', W', 3) uint8."""
        results = self.predictor(np.ascontiguousarray(image[..., ::-1]), return_datasamples=True)
        samples = results['predictions'] if isinstance(results, dict) else results
        sample = (samples[0] if isinstance(samples, list) else samples).cpu()
        if 'pred_sem_seg' in sample:
            return self._labels(
                image, sample.pred_sem_seg.data.squeeze(0).numpy(), key, whole_legend
            )
        height, width = image.shape[:2]
        number = len(self.images) + 1
        self.images.append(dict(id=number, file_name=name, height=height, width=width))
        for annotation in instances(sample):
            ids = dict(id=len(self.annotations) + 1, image_id=number)
            self.annotations.append(annotation | ids)
        visualizer = self.predictor.visualizer
        visualizer.add_datasample(
            key, image, sample, draw_gt=False, show=False, pred_score_thr=self.score
        )
        return visualizer.get_image()

    def _labels(self, image, labels, key, whole_legend):
        names, colours = self.meta['classes'], self.meta['palette']
        save_labels(labels, colours, self._path(f'labels/{key}.png'))
        shown = range(len(names)) if whole_legend else np.unique(labels)
        painted = overlay(image, labels, colours)
        return with_legend(painted, [names[i] for i in shown], [colours[i] for i in shown])

    def _path(self, name):
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def instances(sample) -> Iterator[dict]:
    """Predictions of an image as annotations in COCO's format; category 1 is the first class."""
    from pycocotools import mask as rle

    predicted = sample.pred_instances.numpy()
    boxes, labels, scores = (predicted[key].tolist() for key in ('bboxes', 'labels', 'scores'))
    for i, ((left, top, right, bottom), label, score) in enumerate(zip(boxes, labels, scores)):
        width, height = right - left, bottom - top
        annotation = dict(category_id=label + 1, bbox=[left, top, width, height], score=score)
        annotation.update(area=width * height, iscrowd=0)
        if 'masks' in predicted:
            mask = predicted.masks[i]
            code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
            code['counts'] = code['counts'].decode()
            annotation.update(segmentation=code, area=int(mask.sum()))
        yield annotation
