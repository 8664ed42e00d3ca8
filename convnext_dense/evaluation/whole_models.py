"""Whole detectors and segmentors to time: a config's model as the zoos have it, and as here."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from ..backbone import ConvNeXt
from ..config_names import read_config
from ..errors import ConfigError
from ..folding import fuse
from ..inference.building import build
from ..inference.precision import to_bf16
from ..rearranging import rearrange
from ..swap.noise import noise_batch
from ..weights import convert
from .flops import samples
from .peers import BOUND, Scenario, autocast, images_of, mmpretrain_backbone, randomise, worst
from .timing import Candidate

ZOO, HOST_HEADS, OURS, FUSED = (
    "mmpretrain's backbone",
    'convnext_dense, heads of the host',
    'convnext_dense',
    'convnext_dense, fused',
)
IN_TRAINING = ZOO, HOST_HEADS, OURS


def whole_model(name: str, scenario: Scenario, device: str) -> Candidate:
    """A config's model with random weights, the same under every name.

    Args:
        name: ``ZOO``: mmpretrain's ConvNeXt under the heads of mmdet or mmseg; ``HOST_HEADS``: our
            backbone under these; ``OURS``: with ``rearrange``; ``FUSED``: with ``fuse``.
        scenario: its ``dtype`` is that of autocast; at inference ``'bfloat16'`` is ``to_bf16``.

    Returns:
        Inference up to boxes, masks or labels; or forward, losses and backward. The error is that
        of the logits, or of a detector's maps, relative to float64. ``ZOO`` is not available where
        mmpretrain is not installed, and for strides that its ConvNeXt does not have.

    Raises:
        ConfigError: its outputs are not those of the same model in float64.
    """
    cfg = read_config(scenario.arch)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    torch.manual_seed(0)
    model = randomise(build(cfg.model, 'cpu'))
    images = images_of(scenario.size)
    expected = _outputs(copy.deepcopy(model).double(), images.double())
    try:
        model = _named(name, model)
    except (ImportError, NotImplementedError):
        return Candidate(lambda: None, device, is_available=False)
    dtype = getattr(torch, scenario.dtype)
    context: Callable = partial(autocast, device, dtype)
    with context():
        error = worst(_outputs(model, images), expected)
    if not error < BOUND[scenario.dtype]:
        raise ConfigError(f'{name} is another model: its outputs differ by {error:.2g}')
    model.to(device)
    if scenario.dtype == 'bfloat16' and not scenario.train:
        to_bf16(model, device)
        context = nullcontext
    make = _training_step if scenario.train else _prediction
    return Candidate(make(model, cfg, images, context), device, error, model=model)


def _named(name: str, model: nn.Module) -> nn.Module:
    if name == FUSED:
        return fuse(model)
    if name == OURS:
        rearrange(model)
        return model
    _undo_rearranging(model)
    if name == ZOO:
        for parent in list(model.modules()):
            for child, module in parent.named_children():
                if type(module) is ConvNeXt:
                    setattr(parent, child, _of_mmpretrain(module))
    return model


def _undo_rearranging(model: nn.Module) -> None:
    """Give parts that our configs name, or derive from, the classes of mmdet and mmseg again."""
    hosts: dict[type, type] = {}
    if hasattr(model, 'decode_head'):
        from ..heads import REARRANGED
        from ..segmentor import EncoderDecoder, MMSegEncoderDecoder

        hosts = {rearranged: host for host, rearranged in REARRANGED.items()}
        hosts[EncoderDecoder] = MMSegEncoderDecoder
    if hasattr(model, 'roi_head'):
        from ..roi_extractor import MMDetSingleRoIExtractor, SingleRoIExtractor

        hosts = {SingleRoIExtractor: MMDetSingleRoIExtractor}
    for module in model.modules():
        if type(module) in hosts:
            module.__class__ = hosts[type(module)]


def _of_mmpretrain(net: ConvNeXt) -> nn.Module:
    if net.out_strides != tuple(4 * 2**i for i in net.out_indices):
        raise NotImplementedError(f'strides {net.out_strides}')
    model = mmpretrain_backbone(net.architecture, net.out_indices)
    model.load_state_dict(convert(net.state_dict(), 'mmpretrain').tensors)
    model.train(net.training)  # not chained: it returns None
    return model


def _outputs(model: Any, images: Tensor) -> list[Tensor]:
    """Logits of a segmentor, maps of a detector's neck."""
    with torch.no_grad():
        if not hasattr(model, 'decode_head'):
            return list(model.extract_feat(images))
        logits = model(images)
        return list(logits) if isinstance(logits, (list, tuple)) else [logits]


def _prediction(model: Any, cfg: Config, images: Tensor, context: Callable) -> Callable:
    device = next(model.parameters()).device
    images, batch = images.to(device), samples(model, images) * len(images)

    def predict():
        with torch.no_grad(), context():
            return model(images, copy.deepcopy(batch), mode='predict')

    return predict


def _training_step(model: Any, cfg: Config, images: Tensor, context: Callable) -> Callable:
    height, width = images.shape[2:]
    batch = noise_batch(cfg, images.shape[1], (height, width), len(images))
    model.train()  # not chained: it returns None in distilled models of mmdet
    batch = model.data_preprocessor(batch, training=True)

    def step():
        model.zero_grad(set_to_none=False)  # so that gradients are not counted as activations
        with context():
            losses = model(batch['inputs'], copy.deepcopy(batch['data_samples']), mode='loss')
        model.parse_losses(losses)[0].backward()

    return step
