"""The files that users have, from end to end.

With each of them a model of ours computes on an image what the file's own model does.
"""

import importlib
from pathlib import Path

import mmdet
import mmseg
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from timm.models.convnext import checkpoint_filter_fn

from conftest import ADE_T, COCO_T, DEMO, ROOT, demo_options, randomise, run
from convnext_dense import ConvNeXt
from convnext_dense.commands.convert import main as convert

ZOO = {
    'mask-rcnn': (mmdet, 'convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py', COCO_T),
    'upernet': (mmseg, 'convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py', ADE_T),
}


def normalised(photo):
    """Tensor (1, 3, 224, 320)."""
    image = np.asarray(Image.open(photo).convert('RGB').resize((320, 224)), dtype=np.float32)
    image = (image - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    return torch.from_numpy(image).float().permute(2, 0, 1)[None]


def build_on(config, checkpoint, scope):
    """A model of a config, its backbone initialised from a file."""
    cfg = Config.fromfile(ROOT / config)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint))
    init_default_scope(scope)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def test_official_classifier_in_mask_rcnn(photo, tmp_path):
    """The maps are those of timm's model on the same file, but for the output norms."""
    classifier = randomise(ConvNeXt('tiny', out_norm=False)).state_dict() | {
        'norm.weight': torch.full((768,), 9.0),
        'norm.bias': torch.zeros(768),
        'head.weight': torch.zeros(1000, 768),
        'head.bias': torch.zeros(1000),
    }
    file = tmp_path / 'convnext_tiny_1k_224.pth'
    torch.save(dict(model=classifier), file)
    peer = timm.create_model('convnext_tiny').eval()
    peer.load_state_dict(checkpoint_filter_fn(dict(model=classifier), peer))

    detector, image = build_on(COCO_T, file, 'mmdet').eval(), normalised(photo)
    with torch.no_grad():
        maps = detector.backbone(image)
        theirs = peer.forward_intermediates(image, indices=4, intermediates_only=True)
    for ours, expected in zip(maps, theirs):
        expected = expected.permute(0, 2, 3, 1)  # channels last, as layer_norm wants them
        expected = F.layer_norm(expected, expected.shape[-1:], eps=1e-6).permute(0, 3, 1, 2)
        assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


def test_backbone_out_of_a_training_checkpoint_of_mmengine(scenes, tmp_path):
    options = {
        'train_cfg.max_iters': 2,
        'train_cfg.val_interval': 2,
        'default_hooks.checkpoint.interval': 2,
    }
    arguments = demo_options('coco', scenes, **options)
    run('tools/train.py', DEMO['coco'], '--work-dir', tmp_path, *arguments)
    written = tmp_path / 'iter_2.pth'
    with pytest.raises(Exception, match='(?i)weights.only|unsupported'):  # torch refuses such files
        torch.load(written, weights_only=True)
    trained = torch.load(written, weights_only=False)['state_dict']
    loaded = build_on(DEMO['ade'], written, 'mmseg').backbone.state_dict()
    assert all(torch.equal(loaded[name], trained[f'backbone.{name}']) for name in loaded)
    assert len(loaded) == sum(name.startswith('backbone.') for name in trained)


@pytest.mark.parametrize('model', ZOO)
def test_zoo_model_in_our_config(model, photo, tmp_path):
    """mmdet's and mmseg's ConvNeXt models, on mmpretrain's backbone, converted by our tool."""
    library, zoo_config, our_config = ZOO[model]
    theirs = Config.fromfile(Path(library.__file__).parent / '.mim/configs' / zoo_config)
    ours = Config.fromfile(ROOT / our_config)
    apis = importlib.import_module(f'{library.__name__}.apis')
    if library is mmdet:
        build, infer, names = apis.init_detector, apis.inference_detector, 80
    else:
        build, infer, names = apis.init_model, apis.inference_model, 150
    names = tuple(f'class {i}' for i in range(names))
    for cfg in (theirs, ours):
        cfg.model.backbone.init_cfg = None
        cfg.test_pipeline[1].scale = (480, 320)
        if library is mmdet:
            cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=20)
    source = build(theirs, device='cpu')
    randomise(source)
    meta = dict(epoch=36, CLASSES=names)
    torch.save(dict(state_dict=source.state_dict(), meta=meta), tmp_path / 'zoo.pth')
    convert([str(tmp_path / 'zoo.pth'), str(tmp_path / 'ours.pth')])
    ours_model = build(ours, str(tmp_path / 'ours.pth'), device='cpu')
    assert ours_model.dataset_meta['classes'] == names
    expected, result = infer(source, str(photo)), infer(ours_model, str(photo))
    if library is mmseg:
        expected, result = expected.seg_logits.data, result.seg_logits.data
        assert (expected - result).abs().max() < 1e-4 * expected.abs().max()
        return
    expected, result = expected.pred_instances, result.pred_instances
    assert len(result) == 20 and torch.equal(result.labels, expected.labels)
    assert torch.allclose(result.scores, expected.scores, atol=1e-4)
    assert torch.allclose(result.bboxes, expected.bboxes, atol=0.05)
    assert (result.masks != expected.masks).float().mean() < 1e-3
