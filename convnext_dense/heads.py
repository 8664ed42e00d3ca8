"""mmseg's heads with their convolutions over resized maps rearranged. It imports mmseg.

Each computes what its base class does, from the same parameters; ``resized_convolution.py`` tells
why. Their losses keep less for the backward pass. Configs name ``convnext_dense.UPerHead`` and
``convnext_dense.FCNHead``; ``rearrange`` puts all into a model that exists. ``LinearHead`` is of
this package alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmseg.models import decode_heads as mmseg_heads
from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.utils import Upsample, resize
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from . import fast_path
from .layers import is_watched
from .pixel_losses import cross_entropy
from .registry import MODELS
from .resized_convolution import convolve_resized, is_plain

Maps = Sequence[Tensor]  # (N, C_i, H_i, W_i)


class _Rearranged(mmseg_heads.decode_head.BaseDecodeHead):
    """What the heads share."""

    def loss_by_feat(
        self, seg_logits: Tensor, batch_data_samples: Sequence[SegDataSample]
    ) -> dict[str, Tensor]:
        """mmseg's, in less memory (``pixel_losses.py``) where it is the mean over all pixels."""
        losses = self.loss_decode
        losses = list(losses) if isinstance(losses, nn.ModuleList) else [losses]
        is_eager = torch.is_grad_enabled() and not (is_plain() or fast_path.is_compiling())
        if not is_eager or self.sampler is not None or not all(map(_is_mean_of_pixels, losses)):
            return super().loss_by_feat(seg_logits, batch_data_samples)
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)
        total, right = cross_entropy(seg_logits, labels, self.ignore_index, self.align_corners)
        values = dict.fromkeys((loss.loss_name for loss in losses), 0)
        for loss in losses:
            values[loss.loss_name] += loss.loss_weight * total / labels.numel()
        eps = torch.finfo(torch.float32).eps  # as in mmseg
        count = (labels != self.ignore_index).sum() + eps
        return dict(values, acc_seg=(100 * (right + eps) / count)[None])

    def resized_convolutions(self) -> list[nn.Module]:
        """The ``ConvModule`` that read resized maps."""
        raise NotImplementedError

    def _convolve(self, conv: nn.Module, maps: Maps, like: Tensor) -> Tensor:
        """``conv`` over the concatenation of ``maps``, each resized to the size of ``like``."""
        return convolve_resized(conv, maps, like.shape[2:], self.align_corners)

    def _resize(self, x: Tensor, like: Tensor) -> Tensor:
        size = like.shape[2:]
        return resize(x, size=size, mode='bilinear', align_corners=self.align_corners)


def _is_mean_of_pixels(loss: nn.Module) -> bool:
    """Whether it is the mean over all pixels, those that are ignored too, of cross entropies."""
    return (
        type(loss) is CrossEntropyLoss
        and not (loss.use_sigmoid or loss.use_mask or loss.avg_non_ignore)
        and loss.reduction == 'mean'
        and loss.class_weight is None
    )


class _PyramidPooling(_Rearranged):
    """A convolution over a map and its pooled maps, as in PSPNet and UperNet."""

    bottleneck: nn.Module
    psp_modules: nn.ModuleList

    def resized_convolutions(self) -> list[nn.Module]:
        return [self.bottleneck]

    def _pool(self, x: Tensor) -> Tensor:
        pyramid = self.psp_modules
        # The pyramid's own forward also resizes, which only its hooks need.
        pooled = pyramid(x) if is_watched(pyramid) else [module(x) for module in pyramid]
        return self._convolve(self.bottleneck, [x, *pooled], x)


@MODELS.register_module()
class UPerHead(_PyramidPooling, mmseg_heads.UPerHead):
    """mmseg's UPerHead (arXiv 1807.10221). Arguments, parameters and results are mmseg's."""

    def resized_convolutions(self) -> list[nn.Module]:
        return [self.bottleneck, self.fpn_bottleneck]

    def psp_forward(self, inputs: Maps) -> Tensor:
        return super().psp_forward(inputs) if is_plain() else self._pool(inputs[-1])

    def _forward_feature(self, inputs: Maps) -> Tensor:
        if is_plain():
            return super()._forward_feature(inputs)
        inputs = self._transform_inputs(inputs)
        maps = [conv(x) for conv, x in zip(self.lateral_convs, inputs)]
        maps.append(self.psp_forward(inputs))
        for i in range(len(maps) - 1, 0, -1):
            # In place: nothing else needs the resized map, and fresh memory costs time.
            maps[i - 1] = self._resize(maps[i], maps[i - 1]).add_(maps[i - 1])
        maps = [conv(x) for conv, x in zip(self.fpn_convs, maps)] + maps[-1:]
        return self._convolve(self.fpn_bottleneck, maps, maps[0])


class PSPHead(_PyramidPooling, mmseg_heads.PSPHead):
    """mmseg's PSPHead (arXiv 1612.01105)."""

    def _forward_feature(self, inputs: Maps) -> Tensor:
        if is_plain():
            return super()._forward_feature(inputs)
        return self._pool(self._transform_inputs(inputs))


class ASPPHead(_Rearranged, mmseg_heads.ASPPHead):
    """mmseg's ASPPHead (DeepLabV3, arXiv 1706.05587)."""

    def resized_convolutions(self) -> list[nn.Module]:
        return [self.bottleneck]

    def _forward_feature(self, inputs: Maps) -> Tensor:
        if is_plain():
            return super()._forward_feature(inputs)
        x = self._transform_inputs(inputs)
        return self._convolve(self.bottleneck, [self.image_pool(x), *self.aspp_modules(x)], x)


class DepthwiseSeparableASPPHead(ASPPHead, mmseg_heads.DepthwiseSeparableASPPHead):
    """mmseg's DepthwiseSeparableASPPHead (DeepLabV3+, arXiv 1802.02611).

    Its decoder begins with a depthwise convolution, in which there is no product to move.
    """

    def forward(self, inputs: Maps) -> Tensor:
        if is_plain():
            return super().forward(inputs)
        x = self._forward_feature(inputs)
        if self.c1_bottleneck is not None:
            fine = self.c1_bottleneck(inputs[0])
            x = torch.cat([self._resize(x, fine), fine], 1)
        return self.cls_seg(self.sep_bottleneck(x))


@MODELS.register_module()
class FCNHead(_Rearranged, mmseg_heads.FCNHead):
    """mmseg's FCNHead (arXiv 1411.4038), whose input may be ``resize_concat``."""

    def resized_convolutions(self) -> list[nn.Module]:
        if self.input_transform != 'resize_concat' or not self.num_convs or is_watched(self.convs):
            return []
        return [self.convs[0], *([self.conv_cat] if self.concat_input else [])]

    def _forward_feature(self, inputs: Maps) -> Tensor:
        if is_plain() or not self.resized_convolutions():
            return super()._forward_feature(inputs)
        maps = [inputs[i] for i in self.in_index]
        first, *others = self.convs
        x = self._convolve(first, maps, maps[0])
        for conv in others:
            x = conv(x)
        return self._convolve(self.conv_cat, [*maps, x], x) if self.concat_input else x


@MODELS.register_module()
class LinearHead(_Rearranged):
    """A linear classifier of each pixel, for frozen backbones.

    A batch norm and a 1x1 convolution for each map, with dropout between them; their logits are
    summed at the size of the first map. That is one 1x1 convolution over all maps, resized and
    concatenated. DINOv3's linear evaluation (arXiv 2508.10104) trains it on one map.

    Args:
        in_channels: channels of each map in ``in_index``.
        norm_cfg: the batch norm.
        kwargs: as of mmseg's heads.
    """

    def __init__(self, in_channels: Sequence[int], norm_cfg: dict, **kwargs):
        options = dict(channels=sum(in_channels), input_transform='multiple_select')
        super().__init__(in_channels, norm_cfg=norm_cfg, **options, **kwargs)
        self.norms = nn.ModuleList(build_norm_layer(norm_cfg, n)[1] for n in in_channels)

    def forward(self, inputs: Maps) -> Tensor:
        maps = self._transform_inputs(inputs)
        weights = self.conv_seg.weight.split(self.in_channels, 1)
        logits = self.conv_seg.bias[:, None, None]
        for x, norm, weight in zip(maps, self.norms, weights):
            x = norm(x) if self.dropout is None else self.dropout(norm(x))
            logits = logits + self._resize(F.conv2d(x, weight), maps[0])
        return logits


class SegformerHead(_Rearranged, mmseg_heads.SegformerHead):
    """mmseg's SegformerHead (arXiv 2105.15203)."""

    def resized_convolutions(self) -> list[nn.Module]:
        return [self.fusion_conv] if self.interpolate_mode == 'bilinear' else []

    def forward(self, inputs: Maps) -> Tensor:
        if is_plain() or not self.resized_convolutions():
            return super().forward(inputs)
        maps = [conv(x) for conv, x in zip(self.convs, self._transform_inputs(inputs))]
        return self.cls_seg(self._convolve(self.fusion_conv, maps, maps[0]))


class FPNHead(_Rearranged, mmseg_heads.FPNHead):
    """mmseg's FPNHead (Semantic FPN, arXiv 1901.02446)."""

    def resized_convolutions(self) -> list[nn.Module]:
        heads = [[*head] for head in self.scale_heads if not is_watched(head)]
        return [conv for head in heads for up, conv in zip(head, head[1:]) if _doubles(up)]

    def forward(self, inputs: Maps) -> Tensor:
        if is_plain():
            return super().forward(inputs)
        x, *others = (
            head(x) if is_watched(head) else self._scale(head, x)
            for head, x in zip(self.scale_heads, self._transform_inputs(inputs))
        )
        for other in others:
            x = x + self._resize(other, x)
        return self.cls_seg(x)

    def _scale(self, head: nn.Sequential, x: Tensor) -> Tensor:
        layers: list[Any] = list(head)
        up: Any = None
        for layer in layers:
            if _doubles(layer) and layer is not layers[-1]:
                up = layer
            elif up is not None:
                size = [2 * side for side in x.shape[2:]]
                x, up = convolve_resized(layer, [x], size, up.align_corners), None
            else:
                x = layer(x)
        return x


def _doubles(layer: Any) -> bool:
    """Whether it is the layer that FPNHead has between its convolutions."""
    if type(layer) is not Upsample or is_watched(layer):
        return False
    return (layer.size, layer.scale_factor, layer.mode) == (None, 2, 'bilinear')


# mmseg's class -> the same, rearranged.
REARRANGED: dict[type[nn.Module], type[_Rearranged]] = {
    getattr(mmseg_heads, head.__name__): head
    for head in (
        UPerHead,
        PSPHead,
        ASPPHead,
        DepthwiseSeparableASPPHead,
        FCNHead,
        SegformerHead,
        FPNHead,
    )
}
