"""One model of a comparison with its test data: its scores, speed, memory and size."""

import copy
import hashlib
import time
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, EVALUATOR, MODELS, init_default_scope

from ..data.pictures import save_labels
from ..errors import ConfigError
from ..export.engines import ENGINES
from ..folding import fuse
from ..inference.building import build, load
from ..inference.precision import to_bf16
from ..printing import progress, quiet
from .exported_file import ExportedFile
from .flops import count
from .test_time_augmentation import with_test_time_augmentation
from .timing import peak_memory, synchronize

BURST = 5  # timed predictions in a turn
WARM_UP = 0.7  # seconds of predictions before the timed ones


class ModelUnderTest:
    """A segmentor or a detector with its test data; a ``Process`` asks it for what it measures.

    Args:
        config, checkpoint: paths.
        checkpoint: or a file of ``convnext-dense export``, as the form says.
        form: ``'fused'``: test what ``convnext_dense.fuse`` makes of the model; ``'bf16'``: what
            ``to_bf16`` makes of it; ``'fused, bf16'``; or of ``ENGINES``, which runs a file.
        folder: where ``score`` saves a segmentor's label maps: ``predictions/`` of all test
            images, and ``truth/`` of the examples.
        device: ``'cpu'`` or ``'cuda'``.
        batch: number of images that are predicted at once for the throughput.
        examples: number of test images to show, spread evenly over the split.

    Raises:
        ConfigError, WeightsError: config, data and checkpoint do not fit.
    """

    def __init__(
        self,
        config: str,
        checkpoint: str,
        form: str = '',
        folder: str = '',
        device: str = 'cpu',
        batch: int = 1,
        examples: int = 1,
    ):
        self.cfg, self.folder, self.device = Config.fromfile(config), Path(folder), device
        init_default_scope(self.cfg.get('default_scope', 'mmseg'))
        self.dataset = DATASETS.build(self.cfg.test_dataloader.dataset)
        self.model: Any = self._exported(checkpoint, form) if form in ENGINES else None
        if self.model is None:
            model = revert_sync_batchnorm(build(self.cfg.model, device))
            load(model, checkpoint)
            self.model = fuse(model) if 'fused' in form else model
        if 'bf16' in form:
            to_bf16(self.model, device)
        total = len(self.dataset)
        if not total:
            raise ConfigError('its test split has no images')
        self.examples = {i * total // examples for i in range(min(examples, total))}
        self.sample = pseudo_collate([self.dataset[0]])
        self.batch = pseudo_collate([self.dataset[0]] * batch)

    def _exported(self, path, engine):
        model, classes = ExportedFile(path, engine), list(self.dataset.metainfo['classes'])
        if list(model.meta['classes']) != classes:
            raise ConfigError(f'{path} predicts {model.meta["classes"]}, the data have {classes}')
        return model

    def facts(self) -> dict:
        """The model's size and what it is tested on, by the names of the fields of ``Row``."""
        with torch.no_grad():
            data = self.model.data_preprocessor(copy.deepcopy(self.sample), False)
        shape, meta = tuple(data['inputs'].shape[2:]), self.dataset.metainfo
        try:
            flops = sum(cost.macs for cost in count(self.cfg, shape).values())
        except ConfigError:  # one of its operators cannot be run to count them
            flops = None
        # before some are folded into others
        parameters = build(self.cfg.model, 'meta').parameters()
        names = [path.name for path in self._image_paths(range(len(self.dataset)))]
        return dict(
            parameters=sum(parameter.numel() for parameter in parameters),
            input=list(shape),
            images=len(names),
            classes=list(meta['classes']),
            palette=self._palette(),
            data=hashlib.sha256(repr(names).encode()).hexdigest()[:16],
            size=list(self.sample['data_samples'][0].ori_shape),
            flops=flops,
        )

    def score(self) -> dict:
        """What the config's ``test_evaluator`` says of the test split.

        Saves the label maps of a segmentor.

        Returns:
            ``metrics``: of segmentors all figures, of detectors average precisions in percent.
            ``per_class``: IoU and Acc in percent by the name of the class; empty where the
            evaluator does not measure IoU.

        Raises:
            ConfigError: there is no ``test_evaluator``, or it has no figures.
        """
        return self._score(self.model, self.dataset, 'test images')

    def tta_score(self) -> dict:
        """As ``score``, with the config's test-time augmentation. Saves nothing."""
        if isinstance(self.model, ExportedFile):
            raise ConfigError('a file is scored without it')
        cfg, test_cfg = with_test_time_augmentation(self.cfg), self.model.test_cfg
        # around the model that has its weights, not around a new one
        model = MODELS.build(dict(cfg.model, module=self.model))
        self.model.test_cfg = cfg.model.module.get('test_cfg', test_cfg)
        try:
            return self._score(model, DATASETS.build(cfg.test_dataloader.dataset), 'TTA')
        finally:
            self.model.test_cfg = test_cfg

    def _score(self, model, dataset, title):
        is_segmentor, evaluator = 'decode_head' in self.cfg.model, self._evaluator(dataset)
        for i in progress(range(len(dataset)), title):
            data = pseudo_collate([dataset[i]])
            with torch.no_grad():
                (sample,) = model.test_step(data)
            if is_segmentor:
                self._check_and_save(sample, i, is_saved=model is self.model)
            evaluator.process(data_samples=[sample], data_batch=data)
        per_class = _per_class(evaluator) if is_segmentor else {}  # evaluate() empties the metrics
        with quiet():  # COCO's tables
            figures = evaluator.evaluate(len(dataset))
        if is_segmentor:
            # models are compared by the first figure, and IoUMetric returns aAcc before mIoU
            names = sorted(figures, key=lambda name: name.endswith('aAcc'))
            names = [name for name in names if isinstance(figures[name], Real)]
            metrics = {name: float(figures[name]) for name in names}
        else:
            names = [name for name in figures if name.endswith('mAP')]
            metrics = {name.split('/')[-1]: 100 * figures[name] for name in names}
        if not metrics:
            raise ConfigError(f'its test_evaluator has no figures to compare by, only {figures}')
        return dict(metrics=metrics, per_class=per_class)

    def _evaluator(self, dataset) -> Evaluator:
        """As MMEngine's runner builds it."""
        config = self.cfg.get('test_evaluator')
        if not config:
            raise ConfigError('its config has no test_evaluator, which says how it is scored')
        config = config if 'metrics' in config else dict(metrics=config)
        with quiet():
            evaluator = EVALUATOR.build(dict(dict(type='Evaluator'), **config))
        evaluator.dataset_meta = dataset.metainfo
        return evaluator

    def _check_and_save(self, sample, i, is_saved):
        """The predicted map (H, W) of test image ``i``, and of an example the true one."""
        maps = dict(predictions=sample.pred_sem_seg, truth=sample.gt_sem_seg)
        maps = {folder: part.data.squeeze(0).cpu() for folder, part in maps.items()}
        predicted, truth = (tuple(labels.shape) for labels in maps.values())
        if predicted != truth:
            raise ConfigError(
                f'{sample.img_path}: predicted is a map of {predicted}, the labels are {truth}; '
                'LoadAnnotations comes behind Resize in the pipeline'
            )
        if i not in self.examples:
            maps.pop('truth')
        for folder, labels in maps.items() if is_saved else ():
            path = self.folder / folder / self._map_name(sample.img_path)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_labels(labels.numpy(), self._palette(), path)

    def _palette(self):
        palette = self.dataset.metainfo.get('palette')
        return [list(colour) for colour in palette] if isinstance(palette, (list, tuple)) else []

    def _image_paths(self, indices):
        return [Path(self.dataset.get_data_info(i)['img_path']) for i in indices]

    def _map_name(self, image):
        """Of the label map of an image, below ``predictions`` and ``truth``."""
        root = self.dataset.data_prefix['img_path']
        return Path(image).relative_to(root).with_suffix('.png')

    def example_names(self) -> list[tuple[str, str]]:
        """Of a segmentor: paths of the example images, and the names of their label maps."""
        if not self.dataset.data_prefix.get('img_path'):
            return []
        paths = self._image_paths(sorted(self.examples))
        return [(str(path), str(self._map_name(path))) for path in paths]

    def seconds(self) -> tuple[list[float], list[float]]:
        """Seconds of ``BURST`` predictions of one image, and of as many of a batch."""
        return self._timed(self.sample), self._timed(self.batch)

    def memory(self) -> int | None:
        """Bytes at the peak of a prediction of one image, above the weights; None of a file."""
        if isinstance(self.model, ExportedFile):  # its engine has an allocator of its own
            return None
        return peak_memory(lambda: self._predict(copy.deepcopy(self.sample)), self.device)

    def _timed(self, data):
        # When other models have had the machine, it takes several calls to be as fast as before.
        seconds: list[float] = []
        begin = time.perf_counter()
        while len(seconds) < BURST:
            inputs = copy.deepcopy(data)  # the model may change them
            synchronize(self.device)
            start = time.perf_counter()
            self._predict(inputs)
            synchronize(self.device)
            if start - begin > WARM_UP:
                seconds.append(time.perf_counter() - start)
        return seconds

    def _predict(self, data):
        """From the image as its pipeline hands it over to the result at the size of the file."""
        with torch.no_grad():
            return self.model.test_step(data)


def _per_class(evaluator):
    """Name of a class -> its IoU and Acc in percent, by the first metric that measures them."""
    from mmseg.evaluation import IoUMetric

    metrics = [metric for metric in evaluator.metrics if isinstance(metric, IoUMetric)]
    metric = next((metric for metric in metrics if metric.results), None)
    if metric is None:
        return {}
    areas = (sum(column) for column in zip(*metric.results))
    values = metric.total_area_to_metrics(*areas, ['mIoU'], metric.nan_to_num)
    figures = zip(metric.dataset_meta['classes'], values['IoU'], values['Acc'])
    return {name: dict(IoU=_percent(iou), Acc=_percent(acc)) for name, iou, acc in figures}


def _percent(share):
    """None: the class is neither there nor predicted."""
    return None if np.isnan(share) else 100 * float(share)
