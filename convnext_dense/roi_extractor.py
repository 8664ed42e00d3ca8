"""mmdet's RoI extractor, safe on channels-last maps. It needs mmdet.

The base config of Mask R-CNN imports it (``custom_imports``).
"""

from collections.abc import Sequence

from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor as MMDetSingleRoIExtractor
from torch import Tensor

from .registry import MODELS


@MODELS.register_module()
class SingleRoIExtractor(MMDetSingleRoIExtractor):
    """Makes the maps NCHW before RoIAlign, since mmcv's reads channels-last maps wrongly.

    It does not say so. Our backbone emits NCHW, but a neck whose weights are channels-last
    (``model.to(memory_format=torch.channels_last)``) emits channels-last maps again.
    """

    def forward(
        self, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: float | None = None
    ) -> Tensor:
        """Maps (N, C, H_i, W_i) and RoIs (K, 5) -> (K, C, output_size, output_size)."""
        return super().forward(tuple(f.contiguous() for f in feats), rois, roi_scale_factor)
