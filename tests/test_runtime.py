"""The runner without torch, against OpenCV, mmdet and pycocotools. Its use of whole files is in
test_export.py."""

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from pycocotools import mask as coco_mask

from convnext_dense.runtime.instances import paste, run_lengths
from convnext_dense.runtime.resizing import resize, target_size

SIZES = (1, 7), (37, 53), (240, 320), (426, 640)


@pytest.mark.parametrize('factor', [0.3, 0.5, 0.77, 1, 1.6])
def test_resizing_is_that_of_opencv(factor):
    """Equal where it was written; on other processors OpenCV rounds a grey level otherwise."""
    generator = np.random.default_rng(0)
    for height, width in SIZES:
        image = generator.integers(0, 256, (height, width, 3), np.uint8)  # the hardest there is
        size = max(1, int(height * factor)), max(1, int(width * factor * 1.02))
        expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        assert np.abs(resize(image, *size).astype(int) - expected).max() <= 1


@pytest.mark.parametrize('keep_ratio', [True, False])
@pytest.mark.parametrize('size', [dict(scale=(1333, 800)), dict(scale_factor=(0.7, 0.9))], ids=str)
def test_sizes_are_those_of_mmcv(size, keep_ratio):
    step = mmcv.transforms.Resize(**size, keep_ratio=keep_ratio)
    for height, width in ((427, 640), (640, 427), (333, 517), (1201, 1803)):
        result = step(dict(img=np.zeros((height, width, 3), np.uint8)))
        rule = size | dict(keep_ratio=keep_ratio)
        assert target_size(height, width, rule) == result['img_shape']
    assert target_size(5, 7, {}) == (5, 7)


def test_masks_are_coded_as_pycocotools_does():
    generator = np.random.default_rng(0)
    masks = [generator.random(generator.integers(1, 40, 2)) < share for share in (0, 0.1, 0.9, 1)]
    disc = np.hypot(*np.mgrid[-300:300, -400:400]) < 250
    for mask in (*masks, disc, ~disc):
        expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        code = run_lengths(mask)
        assert code['size'] == expected['size'] and code['counts'] == expected['counts'].decode()


def test_masks_are_pasted_as_mmdet_does():
    """Boxes inside, across the border, on whole pixels, of no size, and outside."""
    generator, pixels, wrong = np.random.default_rng(0), 0, 0
    for i in range(60):
        height, width = generator.integers(20, 200, 2)
        corners = np.sort(generator.random((2, 2)) * (width + 10, height + 10) - 5, 0)
        box = (corners.round() if i % 3 == 0 else corners).astype(np.float32).ravel()
        probabilities = generator.random((28, 28)).astype(np.float32)
        values, place = _do_paste_mask(
            torch.from_numpy(probabilities)[None, None],
            torch.from_numpy(box)[None],
            int(height),
            int(width),
        )
        expected = np.zeros((height, width), bool)
        expected[place] = values[0] >= 0.5
        wrong += (paste(probabilities, box, height, width, 0.5) != expected).sum()
        pixels += expected.sum()
    assert pixels > 30_000 and wrong <= 2
    for box in ((50, 50, 60, 60), (-20, -20, -5, -5)):
        assert not paste(probabilities, np.array(box, np.float32), 40, 30, 0.5).any()
