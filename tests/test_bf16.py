"""Whole models in bfloat16: the layers that gain compute in it, results are fp32 and the same."""

import pytest
import torch
from mmengine.registry import init_default_scope
from torch import nn

from conftest import DEMO
from convnext_dense import ConfigError, fuse
from convnext_dense.config_names import read_config
from convnext_dense.evaluation.flops import samples
from convnext_dense.evaluation.peers import randomise
from convnext_dense.inference import precision
from convnext_dense.inference.building import build

DINO = 'dino-4scale_convnext-t-in22k_8xb2-12e_coco'


@pytest.fixture(autouse=True)
def fast_bf16(monkeypatch):
    """Whatever CPU this is."""
    rates = {torch.float32: 1e9, torch.bfloat16: 2e9}
    monkeypatch.setattr(precision, 'product_rate', lambda dtype, device: rates[dtype])
    return rates


def pair(name, side):
    """Predictions of a config's model with random weights, in fp32 and in bf16; and the types in
    which its convolutions and linear layers computed."""
    cfg = read_config(name)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = randomise(build(cfg.model, 'cpu'))
    images = torch.randn(1, 3, side, side)
    half, types = fuse(model), set()
    precision.to_bf16(half, 'cpu')
    for layer in half.modules():
        if type(layer) in (nn.Conv2d, nn.Linear):
            layer.register_forward_hook(lambda _, inputs, output: types.add(output.dtype))
    with torch.no_grad():
        full, half = (
            network(images, samples(network, images), mode='predict')[0]
            for network in (model, half)
        )
    return full, half, types


def test_a_segmentor_gives_the_same_labels():
    full, half, types = pair(DEMO['ade'], 128)
    assert torch.bfloat16 in types
    assert half.seg_logits.data.dtype == torch.float32
    logits, expected = half.seg_logits.data, full.seg_logits.data
    assert (logits - expected).norm() < 0.02 * expected.norm()
    assert (half.pred_sem_seg.data == full.pred_sem_seg.data).float().mean() > 0.99


@pytest.mark.parametrize('name', [DEMO['coco'], DINO])
def test_a_detector_gives_coordinates_in_fp32(name):
    """With deformable attention and without; multiples of 1 would tell of bf16 above 128."""
    _, half, types = pair(name, 256)
    boxes = half.pred_instances.bboxes
    assert torch.bfloat16 in types and boxes.dtype == torch.float32 and len(boxes) > 10
    assert (boxes[boxes > 128] % 0.5 > 0).any()


def test_what_a_trained_detector_sees_stays(tmp_path):
    """Boxes of a detector whose scores do not tie."""
    full, half, _ = pair(DEMO['coco'], 256)
    best = full.pred_instances.bboxes[:5]
    moved = torch.cdist(best, half.pred_instances.bboxes, p=float('inf')).min(1).values
    # Rounding may let another of two boxes survive their suppression.
    assert moved.median() < 2 and moved.max() < 16


def test_it_is_refused_where_it_is_slower(fast_bf16, tmp_path, capsys):
    fast_bf16[torch.bfloat16] = 0.6e9
    model = nn.Conv2d(3, 3, 1)
    with pytest.raises(ConfigError, match='1 GFLOP/s in it, and at 1 in fp32'):
        precision.to_bf16(model, 'cpu')
    assert 'forward' not in vars(model)


def test_rates_are_measured(monkeypatch):
    monkeypatch.undo()
    assert 1e7 < precision.product_rate(torch.float32, 'cpu', side=256) < 1e15
