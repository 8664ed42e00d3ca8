"""The examples of docs/plain-pytorch.md, run on a smaller network."""

import re

import pytest
import segmentation_models_pytorch as smp
import torch

from conftest import ROOT

PAGE = (ROOT / 'docs/plain-pytorch.md').read_text()
(SHAPES,) = re.findall(r'```python shapes\n(.*?)```', PAGE, re.DOTALL)
TORCHVISION, SMP = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)


def model_of(example):
    """The ``model`` that an example makes, with the atto network in place of the tiny one."""
    assert "'tiny'" in example
    namespace = {}
    exec(example.replace("'tiny'", "'atto'"), namespace)
    return namespace['model']


def test_widths_and_strides():
    *setup, last = SHAPES.strip().splitlines()
    namespace = {}
    exec('\n'.join(setup), namespace)
    code, promised = last.split('#')
    assert eval(code, namespace) == eval(promised)


def test_torchvision_trains_and_predicts():
    model = model_of(TORCHVISION)
    model.transform.min_size = (128,)  # 800 pixels take long
    model.transform.max_size = 256
    boxes = torch.tensor([[10.0, 10.0, 90.0, 90.0]])
    masks = torch.ones(1, 128, 128, dtype=torch.uint8)
    target = dict(boxes=boxes, labels=torch.tensor([3]), masks=masks)
    losses = model([torch.rand(3, 128, 128)], [target])
    sum(losses.values()).backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
    (prediction,) = model.eval()([torch.rand(3, 100, 150)])
    assert set(prediction) == {'boxes', 'labels', 'scores', 'masks'}


def test_segmentation_models_pytorch_trains():
    model = model_of(SMP)
    logits = model(torch.rand(2, 3, 128, 192))
    assert logits.shape == (2, 11, 128, 192)
    labels = torch.zeros(2, 128, 192, dtype=torch.long)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())


@pytest.mark.parametrize('decoder', ['Unet', 'FPN', 'Segformer'])
def test_other_decoders_of_segmentation_models_pytorch(decoder):
    model_of(SMP)  # registers the encoder
    model = getattr(smp, decoder)('convnext_dense_tiny', encoder_weights=None, classes=3)
    assert model(torch.rand(2, 3, 64, 96)).shape == (2, 3, 64, 96)


@pytest.mark.parametrize('example', [TORCHVISION, SMP], ids=['torchvision', 'smp'])
def test_examples_stay_short(example):
    lines = [line for line in example.splitlines() if line.strip() and 'import' not in line]
    assert len(lines) <= 12
