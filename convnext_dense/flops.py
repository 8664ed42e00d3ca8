"""Parameters and multiply-adds of any mmdet or mmseg model, part by part, without weights or data."""
from contextlib import ExitStack
from typing import Dict, NamedTuple, Tuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

BOXES, MASKS = 1000, 100  # through the box and mask heads, as the published figures of two-stage detectors count


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


def count(cfg: Config, size: Tuple[int, int]) -> Dict[str, Cost]:
    """Build the model of ``cfg`` and count one image of ``size`` (height, width) at test time.

    Two-stage detectors are counted with 1000 boxes through each box head and 100 through each mask head, as the Swin and
    ConvNeXt papers' figures are. Counted are convolutions, matrix products and ``ELEMENTWISE``: with these every figure
    of both papers comes out to its last printed digit. The model lives on the meta device; one whose forward reads values
    (deformable attention) runs on the CPU instead.

    Returns:
        Part of the model -> cost, in the order of the model. What is used in training alone counts parameters only.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    for device in ('meta', 'cpu'):
        with torch.device(device):
            model = MODELS.build(_without_init(cfg.model)).to(device).eval()
        try:
            return _count(model, torch.zeros(1, 3, *size, device=device))
        except (RuntimeError, NotImplementedError):
            if device == 'cpu':
                raise


def _count(model: nn.Module, image: torch.Tensor) -> Dict[str, Cost]:
    parts = {}
    for name, child in model.named_children():
        heads = name == 'roi_head'
        parts.update({f'{name}.{inner}': module for inner, module in child.named_children()} if heads else {name: child})
    costs = {name: Cost(sum(p.numel() for p in part.parameters()), 0) for name, part in parts.items()}
    costs['rest'] = Cost(sum(p.numel() for p in model.parameters()) - sum(cost.parameters for cost in costs.values()), 0)
    counter = Counter()
    with torch.no_grad(), ExitStack() as watches, counter:
        for module in model.modules():
            watches.callback(module.register_forward_hook(counter.add_elementwise).remove)
        for name, part in parts.items():
            _watch(part, name, costs, counter, watches)
        if hasattr(model, 'roi_head'):
            maps = model.neck(model.backbone(image)) if model.with_neck else model.backbone(image)
            model.rpn_head(maps)
            for kind, rois in (('bbox', BOXES), ('mask', MASKS)):
                heads = getattr(model.roi_head, f'{kind}_head', ())
                extractor = getattr(model.roi_head, f'{kind}_roi_extractor', None)
                for i, head in enumerate(heads if isinstance(heads, nn.ModuleList) else [heads] if heads else []):
                    own = extractor[i] if isinstance(extractor, nn.ModuleList) else extractor
                    head(image.new_zeros(rois, own.out_channels, *own.roi_layers[0].output_size))
        else:
            model(image, _samples(model, image), mode='tensor')
    costs['rest'] = costs['rest']._replace(
        macs=counter.macs() - sum(cost.macs for name, cost in costs.items() if name != 'rest'))
    return {name: cost for name, cost in costs.items() if any(cost)}


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


def _samples(model, image):
    shape = dict(img_shape=image.shape[2:], batch_input_shape=image.shape[2:], ori_shape=image.shape[2:],
                 pad_shape=image.shape[2:], scale_factor=(1., 1.))
    if hasattr(model, 'decode_head'):
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmdet.structures import DetDataSample as Sample
    return [Sample(metainfo=shape)]


def _without_init(value):
    """Nothing is fetched."""
    if isinstance(value, dict):
        return type(value)({key: _without_init(inner) for key, inner in value.items() if key not in ('init_cfg', 'pretrained')})
    return [_without_init(inner) for inner in value] if isinstance(value, list) else value
