"""Steps of a data pipeline."""

from collections.abc import Sequence

import numpy as np

from .registry import TRANSFORMS


@TRANSFORMS.register_module()
class IgnoreLabels:
    """Leave pixels that hold one of ``labels`` out of every loss and metric.

    Their label becomes mmseg's number for that, 255. Put it after ``LoadAnnotations``, for data
    whose unknown has a number of its own (CamVid's is 11). Without a label map, as in inference,
    it does nothing.
    """

    def __init__(self, labels: Sequence[int], ignore_index: int = 255):
        self.labels, self.ignore_index = list(labels), ignore_index

    def __call__(self, results: dict) -> dict:
        """``results['gt_seg_map']``: (H, W), of any integer type, which is kept."""
        if 'gt_seg_map' in results:
            label_map = results['gt_seg_map']
            is_unknown = np.isin(label_map, self.labels)
            new_map = np.where(is_unknown, self.ignore_index, label_map)
            results['gt_seg_map'] = new_map.astype(label_map.dtype)
        return results
