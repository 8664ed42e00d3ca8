"""A file of ``convnext-dense export`` in a comparison, in place of the model that it comes from."""

import numpy as np
import torch
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from ..errors import ConfigError
from ..export.engines import ENGINES, Run, opened
from ..runtime.model import Model, UnusableFile


class ExportedFile:
    """Predicts for batches of mmdet's and mmseg's data sets, as their ``test_step`` does.

    Args:
        path: of the file.
        engine: of ``ENGINES``.

    Raises:
        ConfigError: the file is damaged, or not of ``convnext-dense export``; or it gives logits.
    """

    def __init__(self, path: str, engine: str):
        try:
            model = Model(path, torch.get_num_threads())
        except UnusableFile as error:
            raise ConfigError(str(error)) from error
        self.model, self.meta = model, model.meta
        if self.meta['output'] == 'logits':
            raise ConfigError(f'{path} gives logits; compared are files with labels or boxes')
        shape = model.session.get_inputs()[0].shape
        self.takes_batches = not isinstance(shape[0], int)
        self.size = tuple(shape[1:3]) if isinstance(shape[1], int) else None
        self.run: Run = lambda inputs: model.session.run(None, dict(inputs))
        if engine != ENGINES[0]:
            self.run = opened(path, engine)

    def data_preprocessor(self, data: dict, training: bool = False) -> dict:
        """The images as they are, (N, 3, H, W) uint8: the rest is in the file."""
        return dict(data, inputs=torch.stack(list(data['inputs'])))

    def test_step(self, data: dict) -> list:
        """Samples with predictions, for images that the pipeline has resized."""
        images = [_rgb(image) for image in data['inputs']]
        others = {image.shape[:2] for image in images} - {self.size}
        if self.size and others:
            raise ConfigError(
                f'{self.model.path} takes pictures of {self.size} (height, width), and the '
                f'pipeline gives {others.pop()}: export it without --static, or set the Resize of '
                'the test pipeline to that size, keep_ratio=False'
            )
        samples = list(data['data_samples'])
        is_batch = self.takes_batches and len({image.shape for image in images}) == 1
        is_batch &= len({sample.ori_shape for sample in samples}) == 1
        size = len(images) if is_batch else 1
        for i in range(0, len(images), size):
            self._predict(np.stack(images[i : i + size]), samples[i : i + size])
        return samples

    def _predict(self, images, samples):
        inputs = dict(image=images)
        if self.model.takes_size:
            inputs['size'] = np.array(samples[0].ori_shape[:2], np.int64)
        if self.meta['task'] == 'segmentation':
            for labels, sample in zip(self.run(inputs)[0], samples):
                data = torch.from_numpy(labels.astype(np.int64))[None]
                sample.set_data(dict(pred_sem_seg=PixelData(data=data)))
            return
        for *outputs, sample in zip(*self.run(inputs), samples):
            instances = self.model.instances(outputs, sample.ori_shape[:2], sample.scale_factor)
            sample.pred_instances = InstanceData(
                bboxes=torch.from_numpy(instances.boxes),
                scores=torch.from_numpy(instances.scores),
                labels=torch.from_numpy(instances.labels.astype(np.int64)),
            )
            if instances.masks is not None:
                sample.pred_instances.masks = torch.from_numpy(instances.masks)


def _rgb(image: Tensor) -> np.ndarray:
    """(3, H, W) uint8, BGR as the pipelines have it -> (H, W, 3)."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy()[..., ::-1])
