"""A swapped config is built at full size, and trained for one step with one block a stage."""

import contextlib
import copy
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope

from ..architectures import get_architecture
from ..backbone import ConvNeXt
from ..errors import ConfigError
from ..inference.building import build
from ..weights import load_weights
from .editing import KeyPath, at, dotted
from .measuring import import_hint
from .new_backbone import ON_ROADMAP
from .noise import Size, noise_batch
from .planning import Swap

# The first that a model can be trained with counts. Pedestrians are higher than wide.
SIZES: tuple[Size, ...] = (128, 128), (256, 128), (320, 320), (512, 512)
FIXED_SIZE = 'BatchFixedSizePad'
TOO_SMALL = re.compile(
    'greater than actual input|too small|smaller than kernel|index k out of range'
)

ORIGINAL_FAILS = 'The original fails the same step: '  # begins the reason


class Proof(NamedTuple):
    step: str  # 'loss', or 'forward' where the method's loss needs data of its own kind
    loss: float
    without_gradient: list[str]  # parameters of the backbone that the step does not reach


def prove(swap: Swap) -> Proof:
    """Build the model on the meta device at full size, then train it for a step on two images.

    The images are noise, packed as the config's training pipeline does it, of 128 pixels if the
    model can do with that. The backbone has one block a stage, so the widths are those of the full
    model. What is built and trained is the part that holds the backbone: the detector of a tracker,
    the student and the teacher of a semi-supervised model. Weights in a local file are loaded into
    the full backbone. If the step fails, the model with its old backbone is run, to tell which of
    the two is at fault.

    Raises:
        ConfigError: it does not run, or its loss does not reach ConvNeXt's stem.
        WeightsError: the weights are not those of the backbone.
    """
    init_default_scope(swap.cfg.get('default_scope') or 'mmdet')
    with without_log_messages(), torch.random.fork_rng(devices=[]):
        return [_prove(swap, owner) for owner in swap.owners][0]


def _prove(swap: Swap, owner: KeyPath) -> Proof:
    try:
        proof = _prove_swapped(swap, owner)
        if proof.step == 'loss':
            return proof
        why = f'{dotted(owner)} trains on ConvNeXt without the loss of its method only'
    except ConfigError as error:
        proof, why = None, str(error)
    before, reason = _run_original(swap, owner)
    if proof and before != 'loss':
        return proof
    blame = f'With its old backbone the same model runs that step ({before}): the swap is at fault'
    raise ConfigError(f'{why}\n{blame if before else ORIGINAL_FAILS + reason}')


def _prove_swapped(swap: Swap, owner: KeyPath) -> Proof:
    model = part(swap.cfg, owner)
    try:
        backbone: Any = build(model, 'meta').backbone
        backbone(torch.zeros(2, backbone.in_channels, *SIZES[0], device='meta'))
    except Exception as error:
        raise ConfigError(
            f'{dotted(owner)} cannot be built: {type(error).__name__}: {error}{import_hint(error)}'
        ) from error
    settings = model.backbone
    checkpoint = (settings.get('init_cfg') or {}).get('checkpoint')
    if checkpoint and Path(checkpoint).is_file():
        arguments = {key: settings[key] for key in settings if key not in ('type', 'init_cfg')}
        load_weights(ConvNeXt(**arguments), checkpoint)
    make_shallow(settings)
    settings.pop('frozen_stages', None)
    try:
        return run_step(random_model(model), swap.cfg if len(owner) == 1 else None)
    except Exception as error:
        raise ConfigError(f'{dotted(owner)} does not train on ConvNeXt: {error}') from error


def _run_original(swap: Swap, owner: KeyPath) -> tuple[str, str]:
    """The step that the model runs with its old backbone; or '', and why it runs none."""
    whole = swap.original if len(owner) == 1 else None
    try:
        model = random_model(part(swap.original, owner))
        return run_step(model, whole, reach_stem=False).step, ''
    except Exception as error:
        return '', first_reason(error)


def first_reason(error: Exception) -> str:
    """Why a model does not run: what the step that was tried first raised."""
    lines = str(error).splitlines()
    reason = lines[1].strip() if len(lines) > 1 else f'{type(error).__name__}: {error}'
    return reason.partition(' pixels: ')[2] or reason


def part(cfg: Config, owner: KeyPath) -> Any:
    """The model in which the backbone of ``owner`` is, with a data preprocessor."""
    model = copy.deepcopy(at(cfg, owner))
    if len(owner) > 1 and 'data_preprocessor' not in model:
        # the model around it prepares the images
        model['data_preprocessor'] = dict(type='DetDataPreprocessor')
    preparing = model.get('data_preprocessor') or {}
    if preparing.get('batch_augments'):
        # They pad small images to the size of training, which takes its memory.
        steps = preparing['batch_augments']
        kept = [step for step in steps if not str(step['type']).endswith(FIXED_SIZE)]
        preparing['batch_augments'] = kept or None
    return model


def make_shallow(backbone: dict) -> None:
    """One block a stage, all of which run: widths and strides stay."""
    depths = (1, 1, 1, 1)
    backbone.update(drop_path_rate=0.0)
    if backbone['type'] == ON_ROADMAP:
        backbone.update(depths=depths)
    else:
        backbone.update(arch=dict(get_architecture(backbone['arch'])._asdict(), depths=depths))


def random_model(cfg: dict) -> Any:
    """The model of a config on the CPU, with random weights, in training mode."""
    torch.manual_seed(0)
    model: Any = revert_sync_batchnorm(build(cfg, 'cpu'))
    with contextlib.suppress(OSError):  # of pretrained weights that code names, not the config
        model.init_weights()
    for parameter in model.parameters():
        # Last layers that begin with zeros (PP-YOLOE's) let no gradient through in the first step.
        if parameter.dim() > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.01)
    model.train()
    return model


def run_step(model, whole: Config | None = None, reach_stem: bool = True) -> Proof:
    """Run the first kind of step that reaches the stem; gradients of earlier ones go.

    Args:
        model: of ``random_model``.
        whole: the config of the model, whose training pipeline packs the images; without it they
            are packed as mmdet's and mmseg's tests do it.
        reach_stem: whether the gradient has to. Old backbones freeze their stem.

    Raises:
        ConfigError: none of them does.
    """
    clock = MessageHub.get_current_instance()  # some losses warm up
    for key, value in dict(iter=0, max_iters=1, epoch=0, max_epochs=1).items():
        clock.update_info(key, value)
    reasons: list[str] = []
    for step, run, size in _attempts(model, whole):
        if size != SIZES[0] and not any(TOO_SMALL.search(reason) for reason in reasons):
            continue
        label = f'{step} at {size[0]} x {size[1]} pixels'
        model.zero_grad()
        try:
            loss = run(model, size)
            loss.backward()
        except Exception as error:
            reasons.append(f'{label}: {type(error).__name__}: {error}')
            continue
        stem, total = next(model.backbone.parameters()).grad, float(loss.detach())
        reached = stem is not None and stem.isfinite().all() and stem.abs().sum() > 0
        if (reach_stem and not reached) or not loss.isfinite():
            reasons.append(f'a {label} of {total:.3g}, which does not reach the stem')
            continue
        parameters = model.backbone.named_parameters()
        return Proof(step, total, [name for name, p in parameters if p.grad is None])
    raise ConfigError('\n  '.join(['nothing of it runs:', *dict.fromkeys(reasons)]))


def _attempts(model, whole: Config | None) -> Iterator[tuple[str, Callable, Size]]:
    """Kinds of steps: not every loss takes masks, and SSD's levels need a larger image."""
    losses: list[Callable] = [_segmentation_loss, partial(_segmentation_loss, padded=True)]
    if not hasattr(model, 'decode_head'):
        losses = [_detection_loss, partial(_detection_loss, with_mask=False), _video_loss]
    if whole is not None and whole.get('train_dataloader'):
        losses.insert(0, partial(_loss_of_pipeline, whole=whole))
    yield from (('loss', loss, size) for size in SIZES for loss in losses)
    yield from (('forward', _raw_outputs, size) for size in SIZES)


def _loss_of_pipeline(model, size: Size, whole: Config) -> torch.Tensor:
    """As MMEngine trains: a method may have a ``train_step`` of its own."""
    batch, update = noise_batch(whole, _bands(model), size), _Update()
    preprocessor = model.data_preprocessor
    model.data_preprocessor = _unpadded(model, size)
    try:
        model.train_step(batch, update)
    finally:
        model.data_preprocessor = preprocessor
    return update.loss


class _Update:
    """Takes the place of MMEngine's OptimWrapper: remembers the loss, and updates nothing."""

    loss: torch.Tensor

    def optim_context(self, model) -> contextlib.nullcontext:
        return contextlib.nullcontext()

    def update_params(self, loss: torch.Tensor) -> None:
        self.loss = loss


def _unpadded(model, size: Size) -> Any:
    """The data preprocessor, without padding to the crops of the recipe."""
    preprocessor = copy.copy(model.data_preprocessor)
    if getattr(preprocessor, 'size', None):
        preprocessor.size = size
    return preprocessor


def _detection_loss(model, size: Size, with_mask: bool = True) -> torch.Tensor:
    from mmdet.testing import demo_mm_inputs, demo_mm_proposals

    texts: dict[str, Any] = {}
    if hasattr(model, 'language_model'):
        texts = dict(texts=['a . b .'] * 2, custom_entities=True)
    shapes = [(_bands(model), *size)] * 2
    batch = demo_mm_inputs(
        2, shapes, num_items=[2, 2], num_classes=2, with_mask=with_mask, with_semantic=True, **texts
    )
    for sample, proposals in zip(batch['data_samples'], demo_mm_proposals(shapes, 20)):
        sample.gt_instances.labels.zero_()
        sample.proposals = proposals  # for Fast R-CNN, which has no RPN
    return _total(model(**model.data_preprocessor(batch, True), mode='loss'))


def _segmentation_loss(model, size: Size, padded: bool = False) -> torch.Tensor:
    """Of small images, or ``padded`` to the crops of the recipe, which takes ten times as long."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = (torch.arange(size[0] * size[1]) % 2).reshape(1, *size)
    shape = dict(img_shape=size, ori_shape=size, pad_shape=size)
    samples = [
        SegDataSample(gt_sem_seg=PixelData(data=labels.clone()), metainfo=shape) for _ in range(2)
    ]
    images = torch.randint(0, 256, (2, _bands(model), *size), dtype=torch.uint8)
    preprocessor = model.data_preprocessor if padded else _unpadded(model, size)
    batch = preprocessor(dict(inputs=list(images), data_samples=samples), True)
    return _total(model(batch['inputs'], batch['data_samples'], mode='loss'))


def _video_loss(model, size: Size) -> torch.Tensor:
    from mmdet.testing import demo_track_inputs

    batch = demo_track_inputs(1, 2, image_shapes=(3, *size), num_classes=2, with_mask=True)
    for sample in batch['data_samples']:
        for frame in sample:
            frame.gt_instances.labels.zero_()
    return _total(model(**model.data_preprocessor(batch, True), mode='loss'))


def _raw_outputs(model, size: Size) -> torch.Tensor:
    """For methods whose loss needs data of its own kind."""
    return _sum(model(torch.randn(2, _bands(model), *size), mode='tensor'))


def _bands(model) -> int:
    """Of the images that the model takes. Two stacked ones have those of both."""
    mean = getattr(model.data_preprocessor, 'mean', None)
    if mean is not None and mean.numel() > 1:
        return mean.numel()
    if hasattr(model, 'backbone_inchannels'):  # change detection
        return 2 * model.backbone_inchannels
    return getattr(model.backbone, 'in_channels', 3)


def _total(losses: dict) -> Any:
    return sum(_sum(value) for name, value in losses.items() if 'loss' in name)


def _sum(outputs) -> Any:
    """Of the mean squares of all tensors in ``outputs``."""
    if isinstance(outputs, torch.Tensor):
        return outputs.float().square().mean() if outputs.is_floating_point() else 0.0
    if isinstance(outputs, dict):
        outputs = tuple(outputs.values())
    return sum(_sum(output) for output in outputs) if isinstance(outputs, (list, tuple)) else 0.0


@contextlib.contextmanager
def without_log_messages() -> Iterator[None]:
    """Silence logs and warnings, in which the libraries tell how they initialise models."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)
