"""A swapped config is built at full size, and trained for one step with one block a stage."""

import copy
import logging
import re
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope

from ..architectures import get_architecture
from ..backbone import ConvNeXt
from ..errors import ConfigError
from ..inference.building import build
from ..weights import load_weights
from .editing import dotted
from .finding import at
from .planning import Swap

# Height and width of the image, pixels: the first that a model can do with. Pedestrians are higher than wide.
SIZES = (128, 128), (256, 128), (320, 320), (512, 512)
TOO_SMALL = re.compile(
    'greater than actual input|too small|smaller than kernel|index k out of range'
)


class Proof(NamedTuple):
    step: str  # what was run: 'loss', or where a method's training needs data of its own kind, 'forward'
    loss: float
    without_gradient: list[str]  # parameters of the backbone that the step does not reach


def prove(swap: Swap) -> Proof:
    """Build the model on the meta device at full size, then run one step on two images of 128 pixels and go back to the stem.

    What holds the backbone is proven: the detector within a tracker, the student within a semi-supervised model. With
    one block a stage the widths are those of the full model. Weights in a local file are loaded.

    Raises:
        ConfigError: it does not run, or its loss does not reach ConvNeXt's stem.
    """
    init_default_scope(swap.cfg.get('default_scope') or 'mmdet')
    with quiet(), torch.random.fork_rng(devices=[]):
        return [_prove(swap, owner) for owner in swap.owners][0]


def _prove(swap, owner):
    model = copy.deepcopy(at(swap.cfg, owner))
    if (
        len(owner) > 1 and 'data_preprocessor' not in model
    ):  # it takes its images from that of the model around it
        model['data_preprocessor'] = dict(type='DetDataPreprocessor')
    try:
        backbone = build(model, 'meta').backbone
        backbone(torch.zeros(2, backbone.in_channels, *SIZES[0], device='meta'))
    except Exception as error:
        raise ConfigError(
            f'{dotted(owner)} cannot be built: {type(error).__name__}: {error}'
        ) from error
    checkpoint = (model.backbone.get('init_cfg') or {}).get('checkpoint')  # of ours, so not a list
    if checkpoint and Path(checkpoint).is_file():
        load_weights(
            ConvNeXt(
                **{
                    key: value
                    for key, value in model.backbone.items()
                    if key not in ('type', 'init_cfg')
                }
            ),
            checkpoint,
        )
    arch = get_architecture(model.backbone.arch)
    model.backbone.update(
        arch=dict(arch._asdict(), depths=(1, 1, 1, 1)), drop_path_rate=0.0, frozen_stages=-1
    )
    try:
        return run_step(model)
    except Exception as error:
        raise ConfigError(f'{dotted(owner)} does not train on ConvNeXt: {error}') from error


def run_step(cfg) -> Proof:
    torch.manual_seed(0)
    model = revert_sync_batchnorm(build(cfg, 'cpu'))
    model.init_weights()
    model.train()
    clock = MessageHub.get_current_instance()  # some losses warm up
    for key, value in dict(iter=0, max_iters=1, epoch=0, max_epochs=1).items():
        clock.update_info(key, value)
    reasons = []
    for step, run, size in _attempts(model):
        if size != SIZES[0] and not any(TOO_SMALL.search(reason) for reason in reasons):
            continue
        model.zero_grad()
        try:
            loss = run(model, size)
            loss.backward()
        except Exception as error:
            reasons.append(
                f'{step} at {size[0]} x {size[1]} pixels: {type(error).__name__}: {error}'
            )
            continue
        stem = next(model.backbone.parameters()).grad
        if (
            stem is None
            or not stem.isfinite().all()
            or not stem.abs().sum() > 0
            or not loss.isfinite()
        ):
            reasons.append(
                f'a {step} at {size[0]} x {size[1]} pixels of {float(loss.detach()):.3g}, which does not reach the stem'
            )
            continue
        return Proof(
            step,
            float(loss.detach()),
            [name for name, p in model.backbone.named_parameters() if p.grad is None],
        )
    raise ConfigError('\n  '.join(['nothing of it runs:', *dict.fromkeys(reasons)]))


def _attempts(model):
    """What is run, the first that works counts: not every loss takes masks, and SSD's levels need a larger image."""
    losses = (
        [_segmentation_loss]
        if hasattr(model, 'decode_head')
        else [_detection_loss, partial(_detection_loss, with_mask=False), _video_loss]
    )
    yield from (('loss', loss, size) for size in SIZES for loss in losses)
    yield from (('forward', _forward, size) for size in SIZES)


def _detection_loss(model, size, with_mask=True):
    from mmdet.testing import demo_mm_inputs, demo_mm_proposals

    texts = (
        dict(texts=['a . b .'] * 2, custom_entities=True)
        if hasattr(model, 'language_model')
        else {}
    )
    shapes = [(getattr(model.backbone, 'in_channels', 3), *size)] * 2
    batch = demo_mm_inputs(
        2, shapes, num_items=[2, 2], num_classes=2, with_mask=with_mask, with_semantic=True, **texts
    )
    for sample, proposals in zip(batch['data_samples'], demo_mm_proposals(shapes, 20)):
        sample.gt_instances.labels.zero_()
        sample.proposals = proposals  # for Fast R-CNN, which has no RPN
    return _total(model(**model.data_preprocessor(batch, True), mode='loss'))


def _segmentation_loss(model, size):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = (torch.arange(size[0] * size[1]) % 2).reshape(1, *size)
    shape = dict(img_shape=size, ori_shape=size, pad_shape=size)
    samples = [
        SegDataSample(gt_sem_seg=PixelData(data=labels.clone()), metainfo=shape) for _ in range(2)
    ]
    images = torch.randint(
        0, 256, (2, getattr(model.backbone, 'in_channels', 3), *size), dtype=torch.uint8
    )
    batch = model.data_preprocessor(dict(inputs=list(images), data_samples=samples), True)
    return _total(model(batch['inputs'], batch['data_samples'], mode='loss'))


def _video_loss(model, size):
    from mmdet.testing import demo_track_inputs

    batch = demo_track_inputs(1, 2, image_shapes=(3, *size), num_classes=2, with_mask=True)
    for sample in batch['data_samples']:
        for frame in sample:
            frame.gt_instances.labels.zero_()
    return _total(model(**model.data_preprocessor(batch, True), mode='loss'))


def _forward(model, size):
    """Where the training wants data of its own kind: the raw outputs."""
    return _sum(model(_images(model, size), mode='tensor'))


def _images(model, size):
    return torch.randn(2, getattr(model.backbone, 'in_channels', 3), *size)


def _total(losses):
    return sum(_sum(value) for name, value in losses.items() if 'loss' in name)


def _sum(outputs):
    if isinstance(outputs, torch.Tensor):
        return outputs.float().square().mean() if outputs.is_floating_point() else 0.0
    if isinstance(outputs, dict):
        outputs = tuple(outputs.values())
    return sum(_sum(output) for output in outputs) if isinstance(outputs, (list, tuple)) else 0.0


@contextmanager
def quiet():
    """The libraries' notes on initialisation and on their own code say nothing of the swap."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)
