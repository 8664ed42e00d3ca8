"""Channels-last maps between the parts of a whole model at inference, where all can read them.

Convolutions on CPUs are faster so, and a backbone's maps need not be turned. They round more: of a
3x3 convolution of 512 channels the relative error is 1.2e-6 in place of 2.4e-7, on a CPU with
AVX-512. So only ``fuse`` asks for it. A part may not be able to read such maps: some of mmcv's
operators do it wrongly and do not say so, and ``view`` raises.
"""

from typing import Any

from torch import nn

from .backbone import ConvNeXt

# Classes of mmdet and mmseg whose code was read; a model of nearly each was seen to predict the
# same when fused (tests hold Mask R-CNN and UperNet to it). Others are given NCHW.
READERS = {
    'mmdet': {'FPN', 'RPNHead', 'Shared2FCBBoxHead', 'Shared4Conv1FCBBoxHead', 'FCNMaskHead'}
    | {'RetinaHead', 'FCOSHead', 'ATSSHead'},
    'mmseg': {'FCNHead'},
    'convnext_dense': {'UPerHead', 'PSPHead', 'ASPPHead', 'DepthwiseSeparableASPPHead', 'FCNHead'}
    | {'SegformerHead', 'FPNHead'},
}
MODELS = {
    'mmdet': {'MaskRCNN', 'FasterRCNN', 'CascadeRCNN', 'RetinaNet', 'FCOS', 'ATSS'},
    'mmseg': {'EncoderDecoder'},
    'convnext_dense': {'EncoderDecoder'},
}
ROI_HEADS = {'mmdet': {'StandardRoIHead', 'CascadeRoIHead'}}
EXTRACTORS = {'convnext_dense': {'SingleRoIExtractor'}}
PREPROCESSORS = {'mmdet': {'DetDataPreprocessor'}, 'mmseg': {'SegDataPreProcessor'}}


def use_channels_last(model: Any) -> None:
    """Let the backbone and the RoI extractors of ``model`` emit channels-last maps, in place, if
    every part that reads them can."""
    if not _is_of(model, MODELS):
        return
    roi_head = getattr(model, 'roi_head', None)
    parts = [part for part in _children(model) if part is not roi_head]
    parts += _children(roi_head) if roi_head is not None else []
    known = READERS, EXTRACTORS, PREPROCESSORS
    for part in parts:
        if type(part) is not ConvNeXt and not any(_is_of(part, kinds) for kinds in known):
            return
    if roi_head is not None and not _is_of(roi_head, ROI_HEADS):
        return
    emitting: list[Any] = [part for part in parts if hasattr(part, 'emits_channels_last')]
    for part in emitting:
        part.emits_channels_last = True


def _is_of(part: Any, kinds: dict[str, set[str]]) -> bool:
    package = type(part).__module__.partition('.')[0]
    return type(part).__name__ in kinds.get(package, ())


def _children(part: nn.Module) -> list[nn.Module]:
    """Those of lists one by one. Losses hold no maps."""
    children: list[nn.Module] = []
    for child in part.children():
        children += list(child) if isinstance(child, nn.ModuleList) else [child]
    return children
