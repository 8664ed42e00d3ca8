"""What a trained detector or segmentor sees in an image, the images of a folder, or a video."""

from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from ..config_names import read_config
from ..data import label_folder
from ..data.pictures import distinct_colours, labels_of
from ..errors import ConfigError
from ..printing import progress, quiet
from ..runtime import predictions
from ..runtime.instances import Instances
from ..runtime.predictions import IMAGES
from .building import load

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
            model.dataset_meta = classes_of(cfg, load(model, checkpoint))

    # lower levels warn of every registry in which a type is not found at first
    MMLogger.get_instance('mmengine', log_level='ERROR')
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    with quiet():
        init_default_scope(cfg.default_scope)
        predictor = CheckedInferencer(model=cfg, device=device, scope=cfg.default_scope)
    predictor.show_progress = False  # a bar of its own for every image
    return predictor


def classes_of(cfg: Config, loaded: dict) -> dict:
    """Names (``classes``) and colours (``palette``) of what a model predicts.

    Those that it was trained on come before those of the config's data.

    Args:
        loaded: what ``load`` found in the checkpoint.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset')
    meta = (label_folder.meta_of(dataset) if dataset else {}) | loaded
    names = meta.get('classes') or [str(i) for i in range(256)]
    colours = meta.get('palette') or ()
    if len(colours) < len(names):  # a data set of the user's own, as a type that has colours
        colours = distinct_colours(len(names))
    return dict(classes=names, palette=[tuple(colour) for colour in colours])  # as mmdet wants it


class Predictions(predictions.Predictions):
    """Predicts for images and videos, with a model in PyTorch.

    Args:
        predictor: of ``inferencer``.
        score: as in the base class.
    """

    endings = IMAGES + VIDEOS

    def __init__(self, predictor, out: Path, score: float):
        meta = predictor.model.dataset_meta
        super().__init__(out, meta['classes'], meta['palette'], score)
        self.predictor = predictor

    def run(self, source: Path) -> int:
        """Predict for an image, a video, or all of them in a folder and below it.

        Raises:
            ConfigError: there are none. What is wrong with a single file is kept in ``failed``.
        """
        count = super().run(source)
        if not count:
            endings = ', '.join(self.endings)
            raise ConfigError(
                f'{source}: no images or videos; expected files that end in {endings}'
            )
        return count

    def progress(self, paths):
        return progress(paths, 'predicting')

    def file(self, path, key, name):
        is_video = path.suffix.lower() in VIDEOS
        return self._video(path, key) if is_video else super().file(path, key, name)

    def see(self, image, key, name, whole_legend=False):
        results = self.predictor(np.ascontiguousarray(image[..., ::-1]), return_datasamples=True)
        samples = results['predictions'] if isinstance(results, dict) else results
        sample = (samples[0] if isinstance(samples, list) else samples).cpu()
        if 'pred_sem_seg' in sample:
            labels = labels_of(sample.pred_sem_seg)
            return self.keep_labels(image, labels, key, whole_legend)
        self.keep_instances(image, instances(sample), name)
        visualizer = self.predictor.visualizer
        visualizer.add_datasample(
            key, image, sample, draw_gt=False, show=False, pred_score_thr=self.score
        )
        return visualizer.get_image()

    def _video(self, path, key):
        capture = cv2.VideoCapture(str(path))
        if not capture.isOpened():
            raise OSError('no video that can be read')
        expected = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        rate = capture.get(cv2.CAP_PROP_FPS) or 25
        target, writer, count = self.path(f'overlays/{key}.mp4'), None, 0
        try:
            while (frame := capture.read()[1]) is not None:
                frame_key = f'{key}/{count:06d}'
                drawn = self.see(frame[..., ::-1], frame_key, frame_key, whole_legend=True)
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


def instances(sample) -> Instances:
    """The predictions of an image."""
    found = sample.pred_instances.numpy()
    return Instances(
        found.bboxes, found.scores, found.labels, found.masks if 'masks' in found else None
    )
