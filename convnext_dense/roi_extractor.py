"""mmdet's RoI extractor, safe on channels-last maps and fast on CPUs. It needs mmdet.

The base config of Mask R-CNN imports it (``custom_imports``).
"""

from collections.abc import Sequence

import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor as MMDetSingleRoIExtractor
from torch import Tensor

from .region_products import align, takes_over
from .registry import MODELS


@MODELS.register_module()
class SingleRoIExtractor(MMDetSingleRoIExtractor):
    """Makes the maps NCHW before RoIAlign, since mmcv's reads channels-last maps wrongly.

    It does not say so. Our backbone emits NCHW, but a neck whose weights are channels-last
    (``model.to(memory_format=torch.channels_last)``) emits channels-last maps again.

    At inference on CPUs RoIAlign is computed by ``region_products``, in either memory format.
    """

    emits_channels_last = False  # as fuse sets it, where the heads can read such maps

    def forward(
        self, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: float | None = None
    ) -> Tensor:
        """Maps (N, C, H_i, W_i) and RoIs (K, 5) -> (K, C, output_size, output_size)."""
        layers = list(self.roi_layers)[: len(feats)]
        if not takes_over(layers, feats, rois):
            return super().forward(tuple(f.contiguous() for f in feats), rois, roi_scale_factor)
        levels = self.map_roi_levels(rois, len(feats))
        if roi_scale_factor is not None:
            rois = self.roi_rescale(rois, roi_scale_factor)
        size = layers[0].output_size
        out = feats[0].new_empty(len(rois), *size, self.out_channels).permute(0, 3, 1, 2)
        for i, (layer, x) in enumerate(zip(layers, feats)):
            here = torch.nonzero(levels == i)[:, 0]
            if len(here):
                out[here] = align(layer, x, rois[here])
        return out if self.emits_channels_last else out.contiguous()
