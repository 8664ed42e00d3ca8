"""Parameters and multiply-adds of any mmdet or mmseg model, part by part; no weights, no data."""

import itertools
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from ..errors import ConfigError
from ..fast_path import plain_operators
from ..inference.building import build
from ..rearranging import rearrange

# Through each box head and each mask head, as in the published figures of two-stage detectors.
BOXES, MASKS = 1000, 100
# What mmcv's counter, the papers' tool, adds to convolutions and matrix products: operations for
# each element of the output.
ELEMENTWISE = {nn.modules.batchnorm._BatchNorm: 2, nn.GroupNorm: 2, nn.ReLU: 1}
BIAS = (nn.Conv2d, nn.ConvTranspose2d)  # one per element where they have a bias


class Cost(NamedTuple):
    parameters: int
    macs: int  # multiply-adds: what papers print as FLOPs


class Counter(FlopCounterMode):
    """torch's counter of convolutions and matrix products, and what mmcv's counter adds to them."""

    def __init__(self):
        super().__init__(display=False, custom_mapping={torch.ops.aten.baddbmm_: _baddbmm})
        self.elementwise = 0

    def add_elementwise(self, module, inputs, output):
        per_element = sum(cost for kind, cost in ELEMENTWISE.items() if isinstance(module, kind))
        per_element += isinstance(module, BIAS) and module.bias is not None
        self.elementwise += per_element * output.numel() if per_element else 0

    def macs(self) -> int:
        return self.get_total_flops() // 2 + self.elementwise


def _baddbmm(total, left, right, **_) -> int:
    """Shapes -> operations. torch has this only for the operator that is not in place."""
    return 2 * left[0] * left[1] * left[2] * right[2]


def usual_size(cfg: Config) -> tuple[int, int]:
    """Height and width of the image for which papers print FLOPs: 800 x 1280 for detectors, for
    segmentors the crop by four times the crop.
    """
    side = cfg.get('crop_size', (512, 512))[0]
    return (side, 4 * side) if cfg.get('default_scope') == 'mmseg' else (800, 1280)


def total(costs: Iterable[Cost]) -> Cost:
    parameters, macs = zip(*costs)
    return Cost(sum(parameters), sum(macs))


def count(cfg: Config, size: tuple[int, int], is_rearranged: bool = False) -> dict[str, Cost]:
    """Build the model of ``cfg`` and count one image of ``size`` (height, width) at test time.

    Counted is the form that is published; with ``is_rearranged`` what is computed by a model that
    ``convnext_dense.rearrange`` has changed, interpolation included.

    Two-stage detectors are counted with 1000 boxes through each box head and 100 through each mask
    head, as the Swin and ConvNeXt papers' figures are. Counted are convolutions, matrix products
    and ``ELEMENTWISE``: with these every figure of both papers comes out to its last printed digit.
    The model lives on the meta device; if its forward reads values (as deformable attention does),
    it runs on the CPU instead.

    Returns:
        Part of the model -> cost, in the order of the model. Only parameters are counted of parts
        that are used in training alone, and of other heads than the box and mask heads (grid,
        point).

    Raises:
        ConfigError: the model cannot be run so.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    # Some models have no raw outputs ("tensor"): they have to predict.
    for device, mode in itertools.product(('meta', 'cpu'), ('tensor', 'predict')):
        try:
            model = build(cfg.model, device).requires_grad_(False)
            if is_rearranged:
                rearrange(model)
            with nullcontext() if is_rearranged else plain_operators():
                return _count(model, torch.zeros(1, 3, *size, device=device), mode)
        except Exception as error:
            reason = error
    line = (str(reason).splitlines() or [''])[0][:300]
    raise ConfigError(
        f'{cfg.model.type} does not run on an image of {size[0]} x {size[1]} zeros: '
        f'{type(reason).__name__}: {line}'
    ) from reason


def _count(model: Any, image: torch.Tensor, mode: str) -> dict[str, Cost]:
    parts: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        if name == 'roi_head':
            parts.update({f'{name}.{inner}': module for inner, module in child.named_children()})
        else:
            parts[name] = child
    macs, counter = dict.fromkeys(parts, 0), Counter()
    with torch.no_grad(), ExitStack() as watches, counter:
        # Not hooks of the modules: what has hooks is not rearranged.
        watches.callback(register_module_forward_hook(counter.add_elementwise).remove)
        for name, part in parts.items():
            for module in _listed(part):
                _watch(module, name, macs, counter, watches)
        if hasattr(model, 'roi_head') and mode == 'tensor':
            _two_stages(model, image)
        else:
            model(image, samples(model, image), mode=mode)
    costs = {name: Cost(_parameters(part), macs[name]) for name, part in parts.items()}
    known = total(costs.values())
    rest = Cost(_parameters(model) - known.parameters, counter.macs() - known.macs)
    return {name: cost for name, cost in {**costs, 'rest': rest}.items() if any(cost)}


def _parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def _listed(module):
    """The modules of a ModuleList, or the one module, or none."""
    if isinstance(module, nn.ModuleList):
        return list(module)
    return [] if module is None else [module]


def _two_stages(model, image):
    """The published number of boxes through the heads, whatever the image."""
    maps = model.extract_feat(image)
    model.rpn_head(maps)
    for parent in (model, model.roi_head):
        if hasattr(parent, 'semantic_head'):
            parent.semantic_head(maps)
    for kind, boxes in (('bbox', BOXES), ('mask', MASKS)):
        heads = _listed(getattr(model.roi_head, f'{kind}_head', None))
        extractors = _listed(getattr(model.roi_head, f'{kind}_roi_extractor', None))
        if len(extractors) == 1:
            extractors *= len(heads)
        for head, extractor in zip(heads, extractors, strict=True):
            side = extractor.roi_layers[0].output_size
            pooled = image.new_zeros(boxes, extractor.out_channels, *side)
            head(model.roi_head.shared_head(pooled) if model.roi_head.with_shared_head else pooled)


def _watch(module, name, macs, counter, watches):
    """Add what calls of ``module`` cost to ``macs[name]``.

    Not by hooks, as mmseg calls the heads' ``forward`` itself.
    """
    forward = module.forward

    def counted(*args, **kwargs):
        before = counter.macs()
        outputs = forward(*args, **kwargs)
        macs[name] += counter.macs() - before
        return outputs

    module.forward = counted
    watches.callback(delattr, module, 'forward')


def samples(model: nn.Module, image: torch.Tensor) -> list:
    """What a detector or segmentor takes beside an image (N, C, H, W): one data sample."""
    if hasattr(model, 'decode_head'):
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmdet.structures import DetDataSample as Sample
    shapes = ('img_shape', 'batch_input_shape', 'ori_shape', 'pad_shape')
    metainfo = dict.fromkeys(shapes, image.shape[2:])
    return [Sample(metainfo=dict(metainfo, scale_factor=(1.0, 1.0)))]
