"""One model of a comparison, in a process of its own (timing.Process): what it scores, what it takes, and what it is."""

import copy
import hashlib
import sys
import time
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, EVALUATOR, MODELS, init_default_scope
from rich.progress import track

from ..data.pictures import save_labels
from ..errors import ConfigError
from ..folding import fuse
from ..inference.building import build, load
from ..printing import quiet
from .flops import count
from .timing import peak_memory, synchronize

BURST, WARM_UP = 5, 0.7  # predictions in a turn, and seconds before they are timed


class Contestant:
    """A segmentor, or a detector, with its test data.

    Args:
        config, checkpoint: paths.
        is_fused: run ``convnext_dense.fuse`` of it.
        folder: where label maps go (``predictions/`` and, of the ``examples`` images, ``truth/``).
        batch: number of images of ``batch_seconds``.

    Raises:
        ConfigError, WeightsError: config, data and checkpoint do not fit.
    """

    def __init__(
        self,
        config: str,
        checkpoint: str,
        is_fused: bool,
        folder: str,
        device: str,
        batch: int,
        examples: int,
    ):
        self.cfg, self.folder, self.device = Config.fromfile(config), Path(folder), device
        init_default_scope(self.cfg.get('default_scope', 'mmseg'))
        self.dataset = DATASETS.build(self.cfg.test_dataloader.dataset)
        self.model = revert_sync_batchnorm(build(self.cfg.model, device))
        load(self.model, checkpoint)
        parameters = sum(
            p.numel() for p in self.model.parameters()
        )  # fused ones are folded into one another
        self.model = fuse(self.model) if is_fused else self.model
        if not len(self.dataset):
            raise ConfigError('its test split has no images')
        total = len(self.dataset)
        self.examples = {i * total // examples for i in range(min(examples, total))}
        self.one = pseudo_collate([self.dataset[0]])
        self.batch = pseudo_collate([self.dataset[0]] * batch)
        with torch.no_grad():
            shape = self.model.data_preprocessor(copy.deepcopy(self.one), False)['inputs'].shape[2:]
        meta = self.dataset.metainfo
        self.facts = dict(
            parameters=parameters,
            input=list(shape),
            images=total,
            classes=list(meta['classes']),
            palette=[list(colour) for colour in meta['palette']]
            if isinstance(meta.get('palette'), (list, tuple))
            else [],
            data=hashlib.sha256(
                repr(
                    [Path(self.dataset.get_data_info(i)['img_path']).name for i in range(total)]
                ).encode()
            ).hexdigest()[:16],
            size=list(self.one['data_samples'][0].ori_shape),
            flops=self._flops(shape),
        )

    def _flops(self, shape):
        try:
            return sum(cost.macs for cost in count(self.cfg, tuple(shape)).values())
        except ConfigError:
            return None  # an operator that does not run on zeros; the rest of the row stands

    def score(self, model=None, dataset=None, title='test images') -> dict:
        """What the config's ``test_evaluator`` says of the test split: ``metrics``, of detectors
        average precisions in percent, of segmentors all its figures; and where it measures IoU,
        ``per_class``, in percent. Label maps of a segmentor are saved.

        Raises:
            ConfigError: there is no ``test_evaluator``, or it has no figures.
        """
        model, dataset = model or self.model, dataset or self.dataset
        is_segmentor, evaluator = hasattr(self.model, 'decode_head'), self._evaluator(dataset)
        for i in track(range(len(dataset)), title, transient=True, disable=not sys.stdout.isatty()):
            data = pseudo_collate([dataset[i]])
            with torch.no_grad():
                (sample,) = model.test_step(data)
            if is_segmentor:
                self._save(sample, i, model is self.model)
            evaluator.process(data_samples=[sample], data_batch=data)
        per_class = _per_class(evaluator) if is_segmentor else {}  # evaluate() empties the metrics
        with quiet():  # COCO's tables
            figures = evaluator.evaluate(len(dataset))
        if is_segmentor:
            # the first is what models are compared by, and IoUMetric returns aAcc before mIoU
            metrics = {
                name: float(figures[name])
                for name in sorted(figures, key=lambda name: name.endswith('aAcc'))
                if isinstance(figures[name], Real)
            }
        else:
            metrics = {
                name.split('/')[-1]: 100 * value
                for name, value in figures.items()
                if name.endswith('mAP')
            }
        if not metrics:
            raise ConfigError(f'its test_evaluator has no figures to compare by, only {figures}')
        return dict(metrics=metrics, per_class=per_class)

    def _evaluator(self, dataset) -> Evaluator:
        """As MMEngine's runner builds it."""
        metrics = self.cfg.get('test_evaluator')
        if not metrics:
            raise ConfigError('its config has no test_evaluator, which says how it is scored')
        with quiet():
            evaluator = (
                EVALUATOR.build(dict(dict(type='Evaluator'), **metrics))
                if 'metrics' in metrics
                else Evaluator(metrics)
            )
        evaluator.dataset_meta = dataset.metainfo
        return evaluator

    def _save(self, sample, i, is_single):
        """The label maps, unless they are of test-time augmentation. Raises ConfigError where
        they are of other sizes."""
        predicted, truth = (
            part.data.squeeze(0).cpu() for part in (sample.pred_sem_seg, sample.gt_sem_seg)
        )
        if predicted.shape != truth.shape:
            raise ConfigError(
                f'{sample.img_path}: predicted is a map of {tuple(predicted.shape)}, the labels '
                f'are {tuple(truth.shape)}; LoadAnnotations comes behind Resize in the pipeline'
            )
        if is_single:
            root = self.dataset.data_prefix['img_path']
            name = Path(sample.img_path).relative_to(root).with_suffix('.png')
            maps = dict(predictions=predicted)
            if i in self.examples:
                maps['truth'] = truth
            for folder, labels in maps.items():
                path = self.folder / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                save_labels(labels.numpy(), self.facts['palette'], path)

    def tta_score(self) -> dict:
        """As ``score``, with the config's test-time augmentation."""
        if 'tta_pipeline' not in self.cfg or 'tta_model' not in self.cfg:
            raise ConfigError('its config has no tta_pipeline and tta_model')
        test_cfg = self.model.test_cfg
        model = MODELS.build(dict(self.cfg.tta_model, module=self.model))
        self.model.test_cfg = self.cfg.get('tta_test_cfg', test_cfg)
        try:
            return self.score(
                model,
                DATASETS.build(
                    dict(self.cfg.test_dataloader.dataset, pipeline=self.cfg.tta_pipeline)
                ),
                'TTA',
            )
        finally:
            self.model.test_cfg = test_cfg

    def example_names(self) -> list:
        """Of a segmentor: paths of the example images, and the names of their label maps."""
        root = self.dataset.data_prefix.get('img_path')
        if not root:
            return []
        paths = [Path(self.dataset.get_data_info(i)['img_path']) for i in sorted(self.examples)]
        return [(str(path), str(path.relative_to(root).with_suffix('.png'))) for path in paths]

    def seconds(self) -> list:
        """Of BURST predictions of one image."""
        return self._timed(self.one)

    def batch_seconds(self) -> list:
        return self._timed(self.batch)

    def memory(self) -> int:
        return peak_memory(lambda: self._predict(copy.deepcopy(self.one)), self.device)

    def _timed(self, data):
        """After WARM_UP seconds of the same, for after other models had the machine it takes several calls to be as fast as before."""
        seconds, begin = [], time.perf_counter()
        while len(seconds) < BURST:
            own = copy.deepcopy(data)
            synchronize(self.device)
            start = time.perf_counter()
            self._predict(own)
            synchronize(self.device)
            if start - begin > WARM_UP:
                seconds.append(time.perf_counter() - start)
        return seconds

    def _predict(self, data):
        """From the image as its pipeline leaves it to the result at the size of the file."""
        with torch.no_grad():
            return self.model.test_step(data)


def _per_class(evaluator) -> dict:
    """Name of a class -> its IoU and Acc in percent, by the first metric that measures them."""
    from mmseg.evaluation import IoUMetric

    metric = next(
        (
            metric
            for metric in evaluator.metrics
            if isinstance(metric, IoUMetric) and metric.results
        ),
        None,
    )
    if metric is None:
        return {}
    areas = (sum(column) for column in zip(*metric.results))
    values = metric.total_area_to_metrics(*areas, ['mIoU'], metric.nan_to_num)
    return {
        name: dict(IoU=_percent(iou), Acc=_percent(acc))
        for name, iou, acc in zip(metric.dataset_meta['classes'], values['IoU'], values['Acc'])
    }


def _percent(value):
    """None: a class that is neither there nor predicted."""
    return None if np.isnan(value) else 100 * float(value)
