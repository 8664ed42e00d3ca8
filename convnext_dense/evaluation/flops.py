"""Parameters and multiply-adds of any mmdet or mmseg model, part by part, without weights or data."""

from contextlib import ExitStack
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import ConfigError
from ..fast_path import plain_operators
from ..inference.building import build

BOXES, MASKS = (
    1000,
    100,
)  # through the box and mask heads, as the published figures of two-stage detectors count


# What the papers' tool, mmcv's counter, adds to convolutions and matrix products, per element of the output.
ELEMENTWISE = {nn.modules.batchnorm._BatchNorm: 2, nn.GroupNorm: 2, nn.ReLU: 1}
BIAS = (nn.Conv2d, nn.ConvTranspose2d)  # one per element where they have one


class Cost(NamedTuple):
    parameters: int
    macs: int  # multiply-adds: what papers print as FLOPs


class Counter(FlopCounterMode):
    """torch's counter of convolutions and matrix products, and what mmcv's had besides."""

    def __init__(self):
        super().__init__(display=False)
        self.elementwise = 0

    def add_elementwise(self, module, inputs, output):
        per_element = sum(cost for kind, cost in ELEMENTWISE.items() if isinstance(module, kind))
        per_element += isinstance(module, BIAS) and module.bias is not None
        self.elementwise += per_element * output.numel() if per_element else 0

    def macs(self) -> int:
        return self.get_total_flops() // 2 + self.elementwise


def count(cfg: Config, size: tuple[int, int]) -> dict[str, Cost]:
    """Build the model of ``cfg`` and count one image of ``size`` (height, width) at test time.

    Two-stage detectors are counted with 1000 boxes through each box head and 100 through each mask head, as the Swin and
    ConvNeXt papers' figures are. Counted are convolutions, matrix products and ``ELEMENTWISE``: with these every figure
    of both papers comes out to its last printed digit. The model lives on the meta device; one whose forward reads values
    (deformable attention) runs on the CPU instead.

    Returns:
        Part of the model -> cost, in the order of the model. Of what is used in training alone, and of heads of their own
        kind beside the box and mask heads (grid, point), only parameters are counted.

    Raises:
        ConfigError: the model cannot be run so.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    # What reads values (deformable attention, say) needs real ones, and what has no raw outputs has to predict.
    for device, mode in (
        ('meta', 'tensor'),
        ('meta', 'predict'),
        ('cpu', 'tensor'),
        ('cpu', 'predict'),
    ):
        try:
            return _count(
                build(cfg.model, device).requires_grad_(False),
                torch.zeros(1, 3, *size, device=device),
                mode,
            )
        except Exception as error:
            reason = error
    raise ConfigError(
        f'{cfg.model.type} does not run on an image of {size[0]} x {size[1]} zeros: {reason}'
    ) from reason


def _count(model: nn.Module, image: torch.Tensor, mode: str) -> dict[str, Cost]:
    parts = {}
    for name, child in model.named_children():
        if name == 'roi_head':
            parts.update({f'{name}.{inner}': module for inner, module in child.named_children()})
        else:
            parts[name] = child
    costs = {
        name: Cost(sum(p.numel() for p in part.parameters()), 0) for name, part in parts.items()
    }
    costs['rest'] = Cost(
        sum(p.numel() for p in model.parameters())
        - sum(cost.parameters for cost in costs.values()),
        0,
    )
    counter = Counter()
    with torch.no_grad(), plain_operators(), ExitStack() as watches, counter:
        for module in model.modules():
            watches.callback(module.register_forward_hook(counter.add_elementwise).remove)
        for name, part in parts.items():
            _watch(part, name, costs, counter, watches)
        if hasattr(model, 'roi_head') and mode == 'tensor':
            _two_stages(model, image)
        else:
            model(image, samples(model, image), mode=mode)
    costs['rest'] = costs['rest']._replace(
        macs=counter.macs() - sum(cost.macs for name, cost in costs.items() if name != 'rest')
    )
    return {name: cost for name, cost in costs.items() if any(cost)}


def _two_stages(model, image):
    """The published number of boxes through the heads, whatever the image."""
    maps = model.extract_feat(image)
    model.rpn_head(maps)
    for owner in (model, model.roi_head):
        if hasattr(owner, 'semantic_head'):
            owner.semantic_head(maps)
    for kind, rois in (('bbox', BOXES), ('mask', MASKS)):
        heads = getattr(model.roi_head, f'{kind}_head', None)
        extractors = getattr(model.roi_head, f'{kind}_roi_extractor', None)
        for i, head in enumerate(
            heads if isinstance(heads, nn.ModuleList) else [heads] if heads else []
        ):
            own = extractors[i] if isinstance(extractors, nn.ModuleList) else extractors
            pooled = image.new_zeros(rois, own.out_channels, *own.roi_layers[0].output_size)
            head(model.roi_head.shared_head(pooled) if model.roi_head.with_shared_head else pooled)


def _watch(part, name, costs, counter, watches):
    """Add up what the calls of ``part`` cost. Not by hooks: mmseg calls the heads' ``forward`` itself."""

    def watch(module):
        forward = module.forward

        def counted(*args, **kwargs):
            before = counter.macs()
            outputs = forward(*args, **kwargs)
            costs[name] = costs[name]._replace(macs=costs[name].macs + counter.macs() - before)
            return outputs

        module.forward = counted
        watches.callback(delattr, module, 'forward')

    for module in part if isinstance(part, nn.ModuleList) else [part]:
        watch(module)


def samples(model, image):
    shape = dict(
        img_shape=image.shape[2:],
        batch_input_shape=image.shape[2:],
        ori_shape=image.shape[2:],
        pad_shape=image.shape[2:],
        scale_factor=(1.0, 1.0),
    )
    if hasattr(model, 'decode_head'):
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmdet.structures import DetDataSample as Sample
    return [Sample(metainfo=shape)]
