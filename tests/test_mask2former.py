"""Mask2Former's recipes learn real images by heart: panoptic segments, and classes of pixels."""

import json
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoPanopticDataset
from mmdet.datasets.transforms import LoadAnnotations, LoadPanopticAnnotations
from mmdet.registry import TRANSFORMS
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from PIL import Image, ImageDraw
from test_real_data import metrics, train_here

from conftest import ROOT
from convnext_dense.inference.building import build, load

PANOPTIC, SEMANTIC = (f'tests/configs/mask2former_{name}.py' for name in ('coco-tiny', 'camvid'))
VOID = 133  # what mmdet predicts where no segment is
OFFSET = 1000  # mmdet's number of a segment is its class, and so much for each segment of the image


def numbers_of(path):
    """A panoptic map of COCO: (H, W) of the segments' numbers, which three bytes hold."""
    return np.asarray(Image.open(path)).astype(int) @ [1, 256, 256**2]


@TRANSFORMS.register_module()
class LoadDrawnPanoptic(LoadPanopticAnnotations):
    """mmdet's, without panopticapi, of which it has the numbers of colours."""

    def __init__(self):
        LoadAnnotations.__init__(self, with_bbox=True, with_mask=True, with_seg=True)
        self.rgb2id = lambda rgb: rgb.astype(int) @ [1, 256, 256**2]


def draw(source, folder, count=8):
    """Panoptic maps of the first images with two to eight instances; smaller ones lie on top."""
    content = json.loads((source / 'annotations/instances_train2017.json').read_text())
    instances = defaultdict(list)
    for annotation in content['annotations']:
        instances[annotation['image_id']].append(annotation)
    images = [
        image
        for image in sorted(content['images'], key=lambda image: image['file_name'])
        if 2 <= len(instances[image['id']]) <= 8
        and not any(annotation['iscrowd'] for annotation in instances[image['id']])
    ][:count]
    (folder / 'panoptic').mkdir()
    annotations = []
    for image in images:
        picture = Image.new('RGB', (image['width'], image['height']))
        ordered = sorted(instances[image['id']], key=lambda annotation: -annotation['area'])
        for number, annotation in enumerate(ordered, 1):
            for polygon in annotation['segmentation']:
                ImageDraw.Draw(picture).polygon(polygon, fill=(number, 0, 0))
        name = image['file_name'].replace('.jpg', '.png')
        picture.save(folder / 'panoptic' / name)
        seen = Counter(numbers_of(folder / 'panoptic' / name).ravel().tolist())
        segments = [
            dict(annotation, id=number, area=seen[number])
            for number, annotation in enumerate(ordered, 1)
            if seen[number]
        ]
        for segment in segments:
            del segment['segmentation']
        annotations.append(dict(image_id=image['id'], file_name=name, segments_info=segments))
        (folder / image['file_name']).symlink_to(source / 'train2017' / image['file_name'])
    categories = [dict(category, isthing=1) for category in content['categories']]
    stuff = CocoPanopticDataset.METAINFO['stuff_classes']  # none of it is drawn
    categories += [dict(id=200 + i, name=name, isthing=0) for i, name in enumerate(stuff)]
    panoptic = dict(images=images, annotations=annotations, categories=categories)
    (folder / 'panoptic.json').write_text(json.dumps(panoptic))
    return panoptic


def panoptic_quality(pairs):
    """PQ in percent (arXiv 1801.00868), the mean over the classes that occur.

    Args:
        pairs: of each image the true and the predicted segments, class and mask (H, W) each.
    """
    overlaps, hits, misses = defaultdict(float), Counter(), Counter()
    for truth, predicted in pairs:
        unlabelled = ~np.any([mask for _, mask in truth], axis=0)
        matched = set()
        for kind, mask in truth:
            shares = [
                (mask & other).sum() / (mask | (other & ~unlabelled)).sum() if same == kind else 0
                for same, other in predicted
            ]
            best = int(np.argmax(shares)) if shares else -1
            if shares and shares[best] > 0.5:  # at most one is
                overlaps[kind] += shares[best]
                hits[kind] += 1
                matched.add(best)
            else:
                misses[kind] += 1
        for i, (kind, mask) in enumerate(predicted):
            if i not in matched and (mask & unlabelled).sum() <= mask.sum() / 2:
                misses[kind] += 1
    kinds = {*hits, *misses}
    return 100 * np.mean([overlaps[k] / (hits[k] + misses[k] / 2) for k in kinds])


def quality_of(checkpoint, folder, panoptic):
    """PQ of the config's model on the images that ``draw`` has put into a folder."""
    cfg = Config.fromfile(ROOT / PANOPTIC)
    init_default_scope('mmdet')
    model = build(cfg.model, 'cpu')
    load(model, checkpoint)
    pipeline = Compose([step for step in cfg.pipeline if step.type != 'LoadDrawnPanoptic'])
    labels = {category['id']: i for i, category in enumerate(panoptic['categories'])}
    pairs = []
    for image, annotation in zip(panoptic['images'], panoptic['annotations']):
        packed = pipeline(dict(img_path=str(folder / image['file_name']), img_id=0))
        with torch.no_grad():
            sample = model.test_step({key: [value] for key, value in packed.items()})[0]
        predicted = sample.pred_panoptic_seg.sem_seg.squeeze().numpy()
        numbers = numbers_of(folder / 'panoptic' / annotation['file_name'])
        truth = [
            (labels[segment['category_id']], numbers == segment['id'])
            for segment in annotation['segments_info']
        ]
        segments = [(int(i) % OFFSET, predicted == i) for i in np.unique(predicted) if i != VOID]
        pairs.append((truth, segments))
    return panoptic_quality(pairs)


def test_panoptic_quality_of_known_predictions():
    left, right = np.zeros((2, 10, 10), bool)
    left[:, :4], right[:, 6:] = True, True
    shifted = np.roll(left, 1, 1)  # a column of it is unlabelled, and does not count
    assert panoptic_quality([([(0, left), (1, right)], [(0, left), (1, right)])]) == 100
    assert panoptic_quality([([(0, left)], [(0, shifted)])]) == pytest.approx(75)
    assert panoptic_quality([([(0, left), (1, right)], [(0, left)])]) == 50
    # a segment too many, a wrong class
    assert panoptic_quality([([(0, left)], [(0, left), (0, left)])]) == pytest.approx(200 / 3)
    assert panoptic_quality([([(0, left)], [(1, left)])]) == 0
    assert panoptic_quality([([(0, left)], [(0, left), (1, right)])]) == 100


@pytest.mark.slow
def test_panoptic_recipe_learns_eight_images(real_data, tmp_path):
    source, data = real_data('coco_tiny'), tmp_path / 'data'
    data.mkdir()
    panoptic = draw(source, data)
    train_here(PANOPTIC, tmp_path / 'work', '--data-root', data, '--cfg-options')
    checkpoints = sorted(
        (tmp_path / 'work').glob('iter_*.pth'), key=lambda path: path.stat().st_mtime
    )
    curve = [quality_of(checkpoint, data, panoptic) for checkpoint in checkpoints]
    print('PQ', *(f'{quality:.1f}' for quality in curve))
    assert curve[-1] >= 60


@pytest.mark.slow
def test_semantic_recipe_learns_sixteen_scenes(real_data, tmp_path):
    train_here(SEMANTIC, tmp_path, '--data-root', real_data('camvid'), '--cfg-options')
    assert metrics(tmp_path)['mIoU'] >= 85
