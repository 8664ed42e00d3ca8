"""The examples of docs/plain-pytorch.md, run."""

import re

import pytest
import torch

from conftest import ROOT

PAGE = (ROOT / 'docs/plain-pytorch.md').read_text()
TORCHVISION, SMP = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)


def model_of(code, small='atto'):
    assert "'tiny'" in code
    namespace = {}
    exec(code.replace("'tiny'", f'{small!r}'), namespace)
    return namespace['model']


def test_torchvision_trains_and_predicts():
    model = model_of(TORCHVISION)
    model.transform.min_size, model.transform.max_size = (
        (128,),
        256,
    )  # 800 and 1333 pixels take long
    boxes = torch.tensor([[10.0, 10.0, 90.0, 90.0]])
    target = dict(
        boxes=boxes, labels=torch.tensor([3]), masks=torch.ones(1, 128, 128, dtype=torch.uint8)
    )
    losses = model([torch.rand(3, 128, 128)], [target])
    sum(losses.values()).backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
    assert {'boxes', 'labels', 'scores', 'masks'} == set(model.eval()([torch.rand(3, 100, 150)])[0])


def test_segmentation_models_pytorch_trains():
    model = model_of(SMP)
    logits = model(torch.rand(2, 3, 128, 192))
    assert logits.shape == (2, 11, 128, 192)
    torch.nn.functional.cross_entropy(logits, torch.zeros(2, 128, 192, dtype=torch.long)).backward()
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())


def test_other_decoders_of_segmentation_models_pytorch():
    model_of(SMP)
    import segmentation_models_pytorch as smp

    for decoder in (smp.Unet, smp.FPN, smp.Segformer):
        assert decoder('convnext_dense_tiny', encoder_weights=None, classes=3)(
            torch.rand(2, 3, 64, 96)
        ).shape == (2, 3, 64, 96)


@pytest.mark.parametrize('code', [TORCHVISION, SMP])
def test_examples_stay_short(code):
    assert len([line for line in code.splitlines() if line.strip() and 'import' not in line]) <= 12
