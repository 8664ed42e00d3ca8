"""Steps of a data pipeline."""

from collections.abc import Sequence

import numpy as np

from .registry import TRANSFORMS


@TRANSFORMS.register_module()
class IgnoreLabels:
    """Pixels (H, W) of the label map that hold one of ``labels`` count in no loss and no metric: mmseg's number for that, 255,
    takes their place. After ``LoadAnnotations``; for data whose unknown has a number of its own (CamVid's is 11). At
    inference there is no label map, and nothing to do."""

    def __init__(self, labels: Sequence[int], ignore_index: int = 255):
        self.labels, self.ignore_index = list(labels), ignore_index

    def __call__(self, results: dict) -> dict:
        if 'gt_seg_map' in results:
            found = results['gt_seg_map']
            results['gt_seg_map'] = np.where(
                np.isin(found, self.labels), self.ignore_index, found
            ).astype(found.dtype)
        return results
