"""convnext-dense export: detectors. As many detections as the heads give, from random weights."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools.coco import COCO

from conftest import CAPABILITIES, ROOT, export_for_any_size, randomise
from convnext_dense import ConfigError, inferencer, swap_backbone
from convnext_dense.commands.export import main
from convnext_dense.config_names import read_config
from convnext_dense.evaluation.exported_file import ExportedFile
from convnext_dense.export.families import graph_of
from convnext_dense.export.verifying import EXACT, Verifier, match
from convnext_dense.inference.building import build
from convnext_dense.inference.prediction import classes_of, instances
from convnext_dense.runtime.__main__ import main as run
from convnext_dense.runtime.instances import Instances, paste
from convnext_dense.runtime.model import Model
from convnext_dense.runtime.resizing import resize

for name in ('onnx', 'onnxscript', 'onnxruntime'):
    pytest.importorskip(name, reason='needs ONNX export')

ARCH = dict(depths=(1, 1, 1, 1), dims=(16, 32, 48, 64))
DINO = 'dino-4scale_convnext-t-in22k_8xb2-12e_coco'
MASKS = 'mask2former_convnext-t-in1k_8xb2-lsj-50e_coco'
FAMILIES = (
    *('retinanet_r50_fpn_1x_coco', 'fcos_r50-caffe_fpn_gn-head_1x_coco', 'atss_r50_fpn_1x_coco'),
    *('faster-rcnn_r50_fpn_1x_coco', 'mask-rcnn_r50_fpn_1x_coco'),
    *('cascade-mask-rcnn_r50_fpn_1x_coco', DINO),
    *('deformable-detr_r50_16xb2-50e_coco', 'deformable-detr-refine-twostage_r50_16xb2-50e_coco'),
)


def small(name):
    """The config of a detector of mmdet on a tiny ConvNeXt, with few channels."""
    cfg = read_config(name) if name in (DINO, MASKS) else swap_backbone(name, 'atto')
    cfg.test_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(160, 120), keep_ratio=False),
        dict(type='PackDetInputs'),
    ]
    model = cfg.model
    model.backbone.arch = ARCH
    if name == MASKS:
        head = model.panoptic_head
        head.update(in_channels=[16, 32, 48, 64], num_queries=20)
        head.pixel_decoder.encoder.num_layers, head.transformer_decoder.num_layers = 1, 3
        model.test_cfg.max_per_image = 60
        return cfg
    first = model.backbone.get('out_indices', (0, 1, 2, 3))[0]
    model.neck.in_channels = [16, 32, 48, 64][first:]
    if 'roi_head' in model:
        head = model.roi_head
        model.neck.out_channels = model.rpn_head.in_channels = model.rpn_head.feat_channels = 32
        for part in ('bbox_roi_extractor', 'mask_roi_extractor'):
            if part in head:
                head[part].out_channels = 32
        heads = head.bbox_head if isinstance(head.bbox_head, list) else [head.bbox_head]
        for bbox_head in heads:
            bbox_head.update(in_channels=32, fc_out_channels=64)
        if 'mask_head' in head:
            head.mask_head.update(in_channels=32, conv_out_channels=16, num_convs=1)
        model.test_cfg.rpn.update(nms_pre=200, max_per_img=80)
    elif 'encoder' in model:
        model.num_queries = model.test_cfg.max_per_img = 60
        model.encoder.num_layers, model.decoder.num_layers = 1, 2
    else:
        model.neck.out_channels = 32
        model.bbox_head.update(in_channels=32, feat_channels=32, stacked_convs=1)
        model.test_cfg.nms_pre = 300
    return cfg


def seeded(cfg):
    """The model of a config with weights under which a picture has many different detections."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = build(cfg.model, 'cpu')
    randomise(model.backbone)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'backbone' in name:
                continue
            if 'sampling_offsets.weight' in name:
                parameter.normal_(0, 0.02)
            elif parameter.dim() > 1:
                scale = 0.3 if 'reg' in name else 1
                parameter.normal_(0, scale * parameter[0].numel() ** -0.5)
            elif 'head' in name and name.endswith('bias'):
                parameter.zero_()
    return model.eval()


@pytest.fixture(scope='module')
def pictures(scenes):
    paths = sorted((scenes / 'coco/test2017').glob('*'))[:2]
    return [np.asarray(Image.open(path).convert('RGB')) for path in paths]


@pytest.mark.parametrize('name', [*FAMILIES, MASKS])
def test_the_graph_predicts_what_mmdet_does(name, pictures):
    """In torch, at a size that no stride divides; and all pictures at once."""
    model = seeded(small(name))
    graph = graph_of(model, 'labels').eval()
    size = (133, 187)
    verifier = Verifier(model, graph, pictures)
    samples = verifier.expected(size)
    inputs = verifier.inputs(pictures, size)
    with torch.no_grad():
        outputs = graph(**{key: torch.from_numpy(value) for key, value in inputs.items()})
    assert len(outputs) == 3 + ('mask' in name)
    compared, equal, _ = verifier.same_instances(samples, zip(*(x.numpy() for x in outputs)), EXACT)
    assert equal >= 0.999 * compared and compared >= 20
    assert len(torch.cat([sample.pred_instances.labels for sample in samples]).unique()) >= 3


def test_only_what_rounding_changes_is_excused(pictures):
    model, size = seeded(small('retinanet_r50_fpn_1x_coco')), (133, 187)
    verifier = Verifier(model, graph_of(model, 'labels'), pictures)
    samples = verifier.expected(size)
    outputs = [[part.copy() for part in instances(sample)[:3]] for sample in samples]
    outputs[0][0][:2] += 1  # two boxes, a pixel away
    compared, equal, _ = verifier.same_instances(samples, outputs, EXACT)
    assert equal == compared - 2
    verifier.chance[size][0].add(1)
    _, equal, note = verifier.same_instances(samples, outputs, EXACT)
    assert equal == compared - 1 and '1 others, which the framework changes by rounding' in note
    verifier.chance[size][0].update(range(10))
    outputs[0][0][:10] += 5  # too many to be chance
    assert verifier.same_instances(samples, outputs, EXACT)[1] == compared - 10


def test_the_last_places_of_full_lists_are_not_compared(pictures):
    model, size = seeded(small('retinanet_r50_fpn_1x_coco')), (133, 187)
    verifier = Verifier(model, graph_of(model, 'labels'), pictures)
    samples = verifier.expected(size)
    verifier.chance[size] = [set(), set()]
    outputs = [[part.copy() for part in instances(sample)[:3]] for sample in samples]
    count, equal, _ = verifier.same_instances(samples, outputs, EXACT)
    assert count == equal
    outputs[0][0][-1] += 5
    compared, equal, note = verifier.same_instances(samples, outputs, EXACT)
    assert compared == equal == count - 1 and '1 ties for the last places' in note
    outputs[0][1][-1] = -1  # the file's list is not full: it lost a detection
    compared, equal, _ = verifier.same_instances(samples, outputs, EXACT)
    assert compared == count == equal + 1


def test_a_mask_may_differ_by_a_pixel():
    masks = np.zeros((3, 1, 20, 20), bool)
    masks[:, 0, 5:12, 5:12] = True
    masks[1, 0, 5, 5] = masks[2, 0, 5, 5:7] = False
    one = np.ones(1)
    whole, near, far = (Instances(np.zeros((1, 4)), one, one, mask) for mask in masks)
    assert match(whole, near, 0.5, 20, EXACT)[0] == []
    assert match(whole, far, 0.5, 20, EXACT)[0] == [0]


def test_pixels_at_the_threshold_may_differ():
    """The row of a thin mask, whose probabilities fall from left to right."""
    probabilities = np.linspace(0.7, 0.3, 28, dtype=np.float32)[None, None].repeat(28, 1)
    box, ones = np.array([[2, 9, 198, 11]], np.float32), np.ones(1)
    file = Instances(box, ones, ones, probabilities)
    for shift, missing in ((0.005, []), (0.05, [0])):
        masks = paste(probabilities[0] + shift, box[0], 20, 200, 0.5)[None]
        assert (masks[0] ^ paste(probabilities[0], box[0], 20, 200, 0.5)).sum() > 2
        assert match(Instances(box, ones, ones, masks), file, 0.5, 200, EXACT)[0] == missing


def test_detections_that_are_nearly_the_same_are_not_taken_for_each_other():
    """Two queries see the same; their scores differ by less than the tolerance."""
    scores = np.array([0.5001, 0.50002], np.float32)
    found = Instances(np.ones((2, 4)), scores, np.ones(2), np.ones((2, 4, 4), bool))
    reference = found._replace(scores=scores - np.float32(3e-5))
    for file in (found, Instances(*(part[::-1] for part in found))):
        assert match(reference, file, 0.5, 20, EXACT)[0] == []


# ---- the file ----


@pytest.fixture(scope='module')
def exported(scenes, tmp_path_factory):
    """Config, checkpoint and file of a Mask R-CNN on V2, whose pictures are resized."""
    folder = tmp_path_factory.mktemp('mask')
    config, checkpoint, out = folder / 'config.py', folder / 'model.pth', folder / 'model.onnx'
    base = str(ROOT / 'configs/demo/mask-rcnn_convnext-atto_shapes.py')
    arch = ARCH | dict(_delete_=True, generation=2)
    model = dict(
        backbone=dict(arch=arch, drop_path_rate=0.0), neck=dict(in_channels=[16, 32, 48, 64])
    )
    config.write_text(f'_base_ = {base!r}\nmodel = {model}\n')
    torch.save(dict(state_dict=seeded(Config.fromfile(config)).state_dict()), checkpoint)
    data = ('--data-root', str(scenes / 'coco'))
    main([str(config), str(checkpoint), '-o', str(out), *data])
    return config, checkpoint, out


def test_the_file_has_the_contract_of_the_page(exported):
    model = Model(exported[2])
    (image,) = model.session.get_inputs()
    assert (image.name, image.shape, image.type) == ('image', ['N', 'H', 'W', 3], 'tensor(uint8)')
    names = [output.name for output in model.session.get_outputs()]
    assert names == ['boxes', 'scores', 'labels', 'masks']
    images = np.random.default_rng(0).integers(0, 256, (3, 75, 111, 3), np.uint8)
    shapes = [output.shape for output in model.session.run(None, dict(image=images))]
    assert shapes == [(3, 50, 4), (3, 50), (3, 50), (3, 50, 28, 28)]
    assert model.meta['task'] == 'detection' and model.meta['fused']
    assert model.meta['thresholds'] == dict(score=0.05, mask=0.5)


def test_the_runner_writes_what_predict_writes(exported, scenes, tmp_path, exits, capsys):
    """Boxes in pixels of pictures of other sizes, masks in them, and the same JSON."""
    config, checkpoint, file = exported
    folder = tmp_path / 'pictures'
    folder.mkdir()
    paths = sorted((scenes / 'coco/test2017').glob('*'))
    for i, size in enumerate([(192, 192), (300, 170), (131, 257)]):
        Image.open(paths[i]).resize(size).save(folder / f'{i}.png')
    exits('predict', config, checkpoint, folder, '--out', tmp_path / 'predicted')
    with pytest.raises(SystemExit) as stopped:
        run([str(file), str(folder), '--out', str(tmp_path / 'out')])
    assert not stopped.value.code
    drawn, every = map(int, re.findall(r'(\d+) of (\d+) detections', capsys.readouterr().out)[-1])
    assert every >= 30 and drawn <= every
    expected, written = (
        COCO(tmp_path / name / 'predictions.json') for name in ('predicted', 'out')
    )
    assert written.imgs == expected.imgs and written.cats == expected.cats
    keys = {
        frozenset(annotation) for coco in (expected, written) for annotation in coco.anns.values()
    }
    assert len(keys) == 1
    for number, image in expected.imgs.items():
        reference, found = (_instances(coco, number) for coco in (expected, written))
        assert len(reference.scores) >= 10
        missing = match_in_picture(reference, found)
        assert missing <= 1, (image, missing)
        overlay = Image.open(tmp_path / 'out/overlays' / f'{number - 1}.png')
        assert overlay.size == (image['width'], image['height'])


def test_interrupted_the_runner_keeps_what_it_has(exported, scenes, tmp_path, monkeypatch, capsys):
    predict, seen = Model.__call__, []

    def interrupted(model, image):
        if seen:
            raise KeyboardInterrupt
        seen.append(image)
        return predict(model, image)

    monkeypatch.setattr(Model, '__call__', interrupted)
    folder, out = scenes / 'coco/test2017', tmp_path / 'out'
    with pytest.raises(SystemExit) as stopped:
        run([str(exported[2]), str(folder), '--out', str(out)])
    assert stopped.value.code == 0
    captured = capsys.readouterr()
    assert 'interrupted' in captured.err and '1 done' in captured.out
    assert len(json.loads((out / 'predictions.json').read_text())['images']) == 1


def test_every_class_has_a_colour():
    """Of a data set of 100 classes whose type has the 80 colours of COCO."""
    cfg = Config(dict(test_dataloader=dict(dataset=dict(type='CocoDataset'))))
    init_default_scope('mmdet')
    assert len(classes_of(cfg, {})['palette']) == 80
    many = classes_of(cfg, dict(classes=[str(i) for i in range(100)]))
    assert len(many['classes']) == len(set(many['palette'])) == 100


def test_the_page_runs_the_file_without_the_runner(exported, scenes, tmp_path, monkeypatch):
    page = (ROOT / 'docs/export.md').read_text()
    (code,) = re.findall(r'^```python\n(import json\n.*?)^```', page, re.MULTILINE | re.DOTALL)
    photo = sorted((scenes / 'coco/test2017').glob('*'))[0]
    Image.open(photo).resize((257, 131)).save(tmp_path / 'photo.jpg')
    shutil.copy(exported[2], tmp_path / 'model.onnx')
    monkeypatch.chdir(tmp_path)
    seen = {}
    exec(code, seen)
    assert set(seen['names']) <= set(Model('model.onnx').meta['classes'])
    expected = Model('model.onnx')(np.array(Image.open('photo.jpg').convert('RGB')))
    count = 5  # Pillow's resizing is not OpenCV's, so that the least ones differ
    assert np.abs(seen['scores'][:count] - expected.scores[:count]).max() < 0.05
    first = expected.boxes[expected.scores.argmax()]
    assert np.abs(seen['boxes'][:count] - first).max(1).min() < 5


def test_the_page_scores_what_the_runner_wrote(exported, scenes, tmp_path, monkeypatch):
    """Against annotations with other ids, in another order. What was predicted is the truth."""
    page = (ROOT / 'docs/export.md').read_text()
    (code,) = re.findall(r'^```python\n(from pycoco.*?)^```', page, re.MULTILINE | re.DOTALL)
    arguments = [exported[2], scenes / 'coco/test2017', '--out', tmp_path / 'predictions']
    with pytest.raises(SystemExit):
        run([str(argument) for argument in arguments])
    truth = json.loads((tmp_path / 'predictions/predictions.json').read_text())
    for row in truth['annotations']:
        left, top, width, height = row['bbox']
        row.update(image_id=900 - row['image_id'], category_id=7 * row['category_id'] + 3)
        row.update(iscrowd=0, area=width * height)
    for image in truth['images']:
        image['id'] = 900 - image['id']
    for category in truth['categories']:
        category['id'] = 7 * category['id'] + 3
    (tmp_path / 'instances.json').write_text(json.dumps(truth))
    monkeypatch.chdir(tmp_path)
    seen = {}
    exec(code, seen)
    assert seen['scores'].stats[0] > 0.9


def _instances(coco, image):
    found = coco.loadAnns(coco.getAnnIds(imgIds=[image]))
    boxes = np.array([annotation['bbox'] for annotation in found])
    boxes[:, 2:] += boxes[:, :2]
    scores, labels = (
        np.array([annotation[key] for annotation in found]) for key in ('score', 'category_id')
    )
    masks = np.stack([coco.annToMask(annotation) for annotation in found]).astype(bool)
    return Instances(boxes, scores, labels, masks)


def match_in_picture(reference, found):
    """How many detections of ``reference`` are not in ``found``."""
    missing = 0
    for box, score, label, mask in zip(*reference):
        near = (found.labels == label) & (np.abs(found.scores - score) < 1e-4)
        near &= np.abs(found.boxes - box).max(1) < 0.02
        overlaps = [(mask & m).sum() >= 0.98 * (mask | m).sum() for m in found.masks[near]]
        missing += not any(overlaps)
    return missing


@pytest.mark.slow
@pytest.mark.parametrize('name', FAMILIES)
def test_every_family_is_exported_for_any_number_and_size(name, scenes, tmp_path):
    cfg = small(name)
    done = export_for_any_size(cfg, seeded(cfg), scenes / 'coco/test2017', tmp_path / 'model.onnx')
    assert len(done.rows) == 5 * (1 + CAPABILITIES['OpenVINO'])
    assert all(row.compared >= 40 for row in done.rows)


@pytest.mark.slow
def test_masks_of_queries_are_of_the_whole_picture(scenes, tmp_path):
    """In the runner and in a comparison, of a picture whose size was not verified."""
    cfg, out = small(MASKS), tmp_path / 'model.onnx'
    export_for_any_size(cfg, seeded(cfg), scenes / 'coco/test2017', out)
    photo = sorted((scenes / 'coco/test2017').glob('*'))[0]
    image = np.asarray(Image.open(photo).convert('RGB').resize((257, 131)))
    predictor = inferencer(cfg, out.with_suffix('.pth'), 'cpu')
    (sample,) = predictor(image[..., ::-1].copy(), return_datasamples=True)['predictions']
    expected = instances(sample)
    assert expected.masks.shape[1:] == (131, 257) and len(expected.scores) >= 20
    assert 0.01 < expected.masks.mean() < 0.99
    found = Model(out)(image)
    small_image = torch.from_numpy(resize(image, 120, 160)[..., ::-1].copy()).permute(2, 0, 1)
    data = dict(inputs=[small_image], data_samples=[sample])
    (compared,) = ExportedFile(str(out), 'onnxruntime').test_step(data)
    for part in (found, instances(compared)):
        missing, pixels, _ = match(expected, part, 0.5, 257, EXACT)
        assert not missing and pixels < 0.01


# ---- what is not exported ----

REFUSED = {
    'gfl_r50_fpn_1x_coco': 'GFLHead._predict_by_feat_single',
    'paa_r50_fpn_1x_coco': 'PAAHead.predict_by_feat',
    'tood_r50_fpn_1x_coco': 'TOODHead._predict_by_feat_single',
    'ga-retinanet_r50_fpn_1x_coco': 'GuidedAnchorHead.predict_by_feat',
    'sabl-faster-rcnn_r50_fpn_1x_coco': 'SABLHead',
    'htc_r50_fpn_1x_coco': 'HybridTaskCascadeRoIHead.predict',
    'detr_r50_8xb2-150e_coco': 'DETR cannot be exported',
    'mask2former_r50_8xb2-lsj-50e_coco-panoptic': 'MaskFormerFusionHead.panoptic_postprocess',
    'maskformer_r50_ms-16xb1-75e_coco': 'MaskFormerHead.forward',
    'atss_r50-caffe_fpn_dyhead_1x_coco': 'ModulatedDeformConv2d (mmcv.ops.modulated_deform_conv)',
    'solo_r50_fpn_1x_coco': 'SingleStageInstanceSegmentor.predict',
}


@pytest.mark.parametrize('name', REFUSED)
def test_a_head_that_predicts_in_its_own_way_is_refused_by_name(name):
    cfg = read_config(name)
    init_default_scope('mmdet')
    model = build(cfg.model, 'cpu')
    with pytest.raises(ConfigError, match='cannot be exported') as error:
        graph_of(model, 'labels')
    assert REFUSED[name] in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    'key, value, expected',
    [
        ('nms', dict(type='soft_nms', iou_threshold=0.5), 'soft_nms'),
        ('nms', None, 'its suppression is None'),
        ('max_per_img', -1, 'test_cfg.max_per_img is -1'),
        ('min_bbox_size', 8, 'min_bbox_size is in pixels of the picture before it is resized'),
    ],
    ids=str,
)
def test_thresholds_that_are_not_known_are_refused(key, value, expected):
    cfg = small('retinanet_r50_fpn_1x_coco')
    cfg.model.test_cfg[key] = value
    with pytest.raises(ConfigError, match=expected):
        graph_of(seeded(cfg), 'labels')


def test_pictures_without_objects_prove_nothing(exported, scenes, tmp_path, exits):
    config, checkpoint, _ = exported
    data = ('--data-root', scenes / 'coco')
    out = tmp_path / 'model.onnx'
    options = ('--cfg-options', 'model.test_cfg.rcnn.score_thr=0.999')
    message = exits('export', config, checkpoint, '-o', out, *data, *options)
    assert 'the model sees no object in 4 pictures' in message and not out.exists()
    assert 'model.test_cfg.rcnn.score_thr=0.01' in message
    assert 'is of a segmentor' in exits('export', config, checkpoint, '--output', 'logits', *data)
