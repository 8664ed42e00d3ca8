"""What a trained detector or segmentor sees in an image, the images of a folder, or a video."""

import json
import sys
from collections import Counter

import cv2
import numpy as np
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from PIL import Image
from rich.progress import track

from ..data import label_folder
from ..data.pictures import distinct_colours, overlay, read, save_labels, with_legend
from ..printing import quiet
from .building import load

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.gif', '.ppm', '.pgm')
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg')


def make_predictor(cfg, checkpoint, device):
    """The framework's inferencer. It would load what happens to fit; this one checks the checkpoint to the last name and shape."""
    with quiet():
        if cfg.get('default_scope') == 'mmseg':
            from mmseg.apis import MMSegInferencer as Inferencer
        else:
            from mmdet.apis import DetInferencer as Inferencer

    class Checked(Inferencer):
        def _load_weights_to_model(self, model, _, cfg):
            meta = dict(
                label_folder.meta_of(cfg.test_dataloader.dataset), **load(model, checkpoint)
            )  # what it was trained on comes first
            names = meta.get('classes') or [str(i) for i in range(256)]
            colours = meta.get('palette') or distinct_colours(len(names))
            model.dataset_meta = dict(
                classes=names, palette=[tuple(colour) for colour in colours]
            )  # mmdet takes no other types

    MMLogger.get_instance(
        'mmengine', log_level='ERROR'
    )  # else it warns of every registry that it falls back from
    with quiet():
        init_default_scope(cfg.default_scope)
        predictor = Checked(model=cfg, device=device, scope=cfg.default_scope)
    predictor.show_progress = False  # its own, for every image
    return predictor


class Job:
    """Goes through the input; counts what is done, what is not, and why."""

    def __init__(self, predictor, args):
        self.predictor, self.args, self.done, self.failed, self.notes = predictor, args, 0, {}, {}
        self.meta = predictor.model.dataset_meta
        self.images, self.annotations, self.others = [], [], 0

    def run(self):
        source = self.args.input
        files = (
            [path for path in sorted(source.rglob('*')) if path.is_file()]
            if source.is_dir()
            else [source]
        )
        wanted = [path for path in files if path.suffix.lower() in IMAGES + VIDEOS]
        if not wanted:
            sys.exit(
                f'{source}: no images or videos; expected files that end in {", ".join(IMAGES + VIDEOS)}'
            )
        self.others = len(files) - len(wanted)
        root = source if source.is_dir() else source.parent
        stems = Counter(path.relative_to(root).with_suffix('') for path in wanted)
        for path in track(wanted, 'predicting', disable=not sys.stdout.isatty()):
            name = path.relative_to(root)
            key = (
                name if stems[name.with_suffix('')] > 1 else name.with_suffix('')
            )  # a.jpg and a.png keep their results apart
            try:
                if path.suffix.lower() in VIDEOS:
                    self.notes[str(name)] = self.video(path, str(key))
                else:
                    image, self.notes[str(name)] = read(path)
                    drawn = self.predict(image, str(key), str(name))
                    write(
                        self.args.out / 'overlays' / f'{key}.png',
                        lambda file: Image.fromarray(drawn).save(file),
                    )
                self.done += 1
            except Exception as error:  # whatever is wrong with one file, the others go on
                self.failed[str(name)] = f'{type(error).__name__}: {error}'

    def predict(self, image, key, name, whole_legend=False):
        """RGB image (H, W, 3) uint8 -> the picture with what is seen in it; results kept under ``key``."""
        found = self.predictor(np.ascontiguousarray(image[..., ::-1]), return_datasamples=True)
        found = found['predictions'] if isinstance(found, dict) else found
        sample = (found[0] if isinstance(found, list) else found).cpu()
        if 'pred_sem_seg' in sample:
            labels = sample.pred_sem_seg.data.squeeze(0).numpy()
            write(
                self.args.out / 'labels' / f'{key}.png',
                lambda file: save_labels(labels, self.meta['palette'], file),
            )
            present = range(len(self.meta['classes'])) if whole_legend else np.unique(labels)
            names, colours = (
                [self.meta[what][i] for i in present] for what in ('classes', 'palette')
            )
            return with_legend(overlay(image, labels, self.meta['palette']), names, colours)
        self.images.append(
            dict(
                id=len(self.images) + 1, file_name=name, height=image.shape[0], width=image.shape[1]
            )
        )
        self.annotations += [
            dict(one, id=len(self.annotations) + i, image_id=len(self.images))
            for i, one in enumerate(instances(sample), 1)
        ]
        visualizer = self.predictor.visualizer
        visualizer.add_datasample(
            key, image, sample, draw_gt=False, show=False, pred_score_thr=self.args.score
        )
        return visualizer.get_image()

    def video(self, path, key):
        capture = cv2.VideoCapture(str(path))
        expected, rate = (
            int(capture.get(cv2.CAP_PROP_FRAME_COUNT)),
            capture.get(cv2.CAP_PROP_FPS) or 25,
        )
        if not capture.isOpened():
            raise OSError('no video that can be read')
        target, writer, count = self.args.out / 'overlays' / f'{key}.mp4', None, 0
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            while True:
                is_there, frame = capture.read()
                if not is_there:
                    break
                drawn = self.predict(
                    frame[..., ::-1], f'{key}/{count:06d}', f'{key}/{count:06d}', whole_legend=True
                )
                drawn = drawn[
                    : drawn.shape[0] // 2 * 2, : drawn.shape[1] // 2 * 2
                ]  # as codecs want it
                writer = writer or cv2.VideoWriter(
                    str(target), cv2.VideoWriter_fourcc(*'mp4v'), rate, drawn.shape[1::-1]
                )
                writer.write(np.ascontiguousarray(drawn[..., ::-1]))
                count += 1
        finally:
            if writer:
                writer.release()
        if not count:
            raise OSError('no frame can be read')
        return (
            f'its header promises {expected} frames, {count} can be read'
            if count < expected
            else None
        )

    def close(self):
        if self.images:
            categories = [dict(id=i, name=name) for i, name in enumerate(self.meta['classes'], 1)]
            content = dict(images=self.images, annotations=self.annotations, categories=categories)
            write(
                self.args.out / 'predictions.json',
                lambda file: file.write_text(json.dumps(content)),
            )
        for name, why in self.notes.items():
            if why and name not in self.failed:
                print(f'{name}: {why}')
        for name, why in self.failed.items():
            print(f'skipped {name}: {why}', file=sys.stderr)
        print(
            f'{self.done} done, {len(self.failed)} skipped{f", {self.others} files are no pictures" if self.others else ""}; '
            + (f'see {self.args.out}' if self.done else 'nothing was written')
        )


def instances(sample):
    """The predictions of an image as annotations in COCO's format; category 1 is the first class."""
    from pycocotools import mask as rle

    found = sample.pred_instances.numpy()
    for i, (box, label, score) in enumerate(
        zip(found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist())
    ):
        x, y, right, bottom = box
        one = dict(
            category_id=label + 1,
            bbox=[x, y, right - x, bottom - y],
            area=(right - x) * (bottom - y),
            iscrowd=0,
            score=score,
        )
        if 'masks' in found:
            mask = rle.encode(np.asfortranarray(found.masks[i].astype(np.uint8)))
            one.update(
                segmentation=dict(mask, counts=mask['counts'].decode()),
                area=int(found.masks[i].sum()),
            )
        yield one


def write(path, save):
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path)
