"""The cross entropy of logits that are resized, a strip at a time, is torch's of all at once."""

import pytest
import torch
import torch.nn.functional as F

from convnext_dense import pixel_losses

IGNORED = 255


@pytest.fixture(params=[1, 2**12, 2**30], ids=['rows', 'strips', 'whole'])
def strip(request, monkeypatch):
    monkeypatch.setattr(pixel_losses, 'CPU_ROWS_BYTES', request.param)


def plain(logits, labels, align_corners):
    size = labels.shape[1:]
    z = F.interpolate(logits, size=size, mode='bilinear', align_corners=align_corners)
    counts = labels != IGNORED
    right = (z.argmax(1) == labels)[counts].sum()
    return F.cross_entropy(z, labels, ignore_index=IGNORED, reduction='sum'), right


def drawn(small, large, classes=5):
    logits = torch.randn(2, classes, *small, dtype=torch.float64)
    labels = torch.randint(0, classes, (2, *large))
    labels[:, : large[0] // 3], labels[0, :, -1] = IGNORED, IGNORED
    return logits, labels


@pytest.mark.usefixtures('strip')
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('small', [(9, 13), (1, 1), (1, 7), (40, 3), (33, 50)])
def test_sum_count_and_gradient_are_torchs(small, align_corners):
    logits, labels = drawn(small, (33, 50))
    results = []
    for function in (plain, lambda *a: pixel_losses.cross_entropy(*a[:2], IGNORED, a[2])):
        leaf = logits.clone().requires_grad_()
        total, right = function(leaf, labels, align_corners)
        (grad,) = torch.autograd.grad(3 * total, leaf)
        results.append((total.detach(), right, grad))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures('strip')
def test_autocast_is_no_further_from_float64_than_mmsegs_order():
    logits, labels = drawn((17, 25), (64, 96))
    logits = logits.bfloat16()
    grads = []
    for dtype in (torch.float64, torch.bfloat16):
        leaf = logits.to(dtype, copy=True).requires_grad_()
        with torch.autocast('cpu', torch.bfloat16, enabled=dtype != torch.float64):
            grads += torch.autograd.grad(plain(leaf, labels, False)[0], leaf)
    leaf = logits.clone().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        total, _ = pixel_losses.cross_entropy(leaf, labels, IGNORED, False)
        total.backward()
    assert total.dtype == torch.float32 and leaf.grad.dtype == torch.bfloat16
    exact, of_mmseg = (grad.double() for grad in grads)
    assert (leaf.grad.double() - exact).norm() <= (of_mmseg - exact).norm()


def test_a_tie_is_not_right_and_what_is_not_finite_stays_so():
    logits, labels = torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 4, dtype=torch.long)
    assert pixel_losses.cross_entropy(logits, labels, IGNORED, False)[1] == 0
    logits[:, 0] = 1
    assert pixel_losses.cross_entropy(logits, labels, IGNORED, False)[1] == 16
    logits[0, 1, 0, 0] = torch.nan
    total, right = pixel_losses.cross_entropy(logits, labels, IGNORED, False)
    assert total.isnan() and right < 16


def test_all_ignored():
    logits, labels = torch.randn(1, 3, 2, 2, requires_grad=True), torch.full((1, 4, 4), IGNORED)
    total, right = pixel_losses.cross_entropy(logits, labels, IGNORED, False)
    total.backward()
    assert total == right == 0 and not logits.grad.any()


@pytest.mark.parametrize('label', [3, -1])
def test_a_label_that_is_no_class_is_refused(label):
    labels = torch.full((1, 4, 4), label)
    with pytest.raises(IndexError, match='out of bounds'):
        pixel_losses.cross_entropy(torch.randn(1, 3, 2, 2), labels, IGNORED, False)
