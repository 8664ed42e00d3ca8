"""tools/predict.py and tools/show_features.py on pictures as people have them."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from pycocotools.coco import COCO

from conftest import DEMO, ROOT, randomise
from convnext_dense import ConvNeXt, inferencer
from convnext_dense.commands.features import main
from convnext_dense.data.pictures import read
from convnext_dense.inference import features

PREDICT, SHOW = ROOT / 'tools/predict.py', ROOT / 'tools/show_features.py'


@pytest.fixture(scope='module', params=['coco', 'ade'])
def model(request, tmp_path_factory):
    """(task, config, checkpoint), weights at random; the checkpoint has a palette of its own."""
    cfg = Config.fromfile(ROOT / DEMO[request.param])
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    built = MODELS.build(cfg.model)
    path = tmp_path_factory.mktemp(request.param) / 'model.pth'
    names = cfg.test_dataloader.dataset.metainfo.classes
    palette = [[40 * i, 255 - 40 * i, 128] for i in range(len(names))]
    meta = dict(dataset_meta=dict(classes=names, palette=palette))
    torch.save(dict(state_dict=built.state_dict(), meta=meta), path)
    return request.param, str(ROOT / DEMO[request.param]), str(path)


@pytest.fixture
def pictures(tmp_path):
    """Good, odd and broken files of the same scene, 120 x 200. The camera was turned for one: it is
    200 x 120."""
    folder = tmp_path / 'pictures'
    (folder / 'below').mkdir(parents=True)
    y, x = np.mgrid[:120, :200]
    scene = Image.fromarray(np.stack([x, y * 2, 255 - x], -1).astype(np.uint8))
    scene.save(folder / 'good.png')
    scene.save(folder / 'good.jpg', quality=98)
    scene.save(folder / 'below' / 'good.webp', quality=98)
    scene.convert('CMYK').save(folder / 'cmyk.jpg', quality=98)
    deep = np.asarray(scene.convert('L')).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / 'deep.png')
    transparent = scene.convert('RGBA')
    transparent.putalpha(99)
    transparent.save(folder / 'alpha.png')
    exif = Image.Exif()
    exif[0x112] = 6  # orientation: show it rotated by 270 degrees
    scene.rotate(90, expand=True).save(folder / 'turned.JPG', exif=exif, quality=98)
    (folder / 'empty.jpg').touch()
    for name in ('good.jpg', 'good.png'):
        content = (folder / name).read_bytes()
        (folder / f'cut_{name}').write_bytes(content[: len(content) // 2])
    (folder / 'text.png').write_text('no picture')
    (folder / 'notes.txt').touch()
    return folder


GOOD = ('good.png', 'good.jpg', 'below/good.webp', 'cmyk.jpg', 'alpha.png', 'turned.JPG')
BROKEN = ('empty.jpg', 'cut_good.jpg', 'cut_good.png', 'text.png')
OVERLAYS = {
    *('good.png.png', 'good.jpg.png', 'below/good.png'),
    *('cmyk.png', 'deep.png', 'alpha.png', 'turned.png'),
}


def test_pictures_are_read_as_people_see_them(pictures):
    expected = read(pictures / 'good.png')[0].astype(int)
    assert expected.shape == (120, 200, 3)
    for name in GOOD:
        assert np.abs(read(pictures / name)[0] - expected).mean() < 3, name
    eight_bits = np.asarray(Image.open(pictures / 'good.png').convert('L')).astype(int)
    grey, note = read(pictures / 'deep.png')
    assert np.abs(grey - eight_bits[..., None]).max() <= 1 and '16 bits' in note


def test_a_folder_of_good_odd_and_broken_files(model, pictures, tmp_path, exits):
    task, config, checkpoint = model
    out = tmp_path / 'out'
    output = exits(PREDICT, config, checkpoint, pictures, '--out', out, '--score', 0)
    assert '7 done, 4 skipped, 1 files are no pictures' in output
    assert all(f'skipped {name}' in output for name in BROKEN)
    overlays = (out / 'overlays').rglob('*.png')
    assert {str(path.relative_to(out / 'overlays')) for path in overlays} == OVERLAYS
    predictor = inferencer(config, checkpoint, 'cpu')
    assert predictor.model.dataset_meta['palette'][1] == (40, 215, 128)
    if task == 'coco':
        coco = COCO(out / 'predictions.json')
        names = [category['name'] for category in coco.cats.values()]
        assert names == ['disc', 'square', 'triangle', 'star', 'ring']
        sizes = [(image['height'], image['width']) for image in coco.imgs.values()]
        assert sizes == [(120, 200)] * 7
        assert coco.anns
        for annotation in coco.anns.values():
            assert coco.annToMask(annotation).shape == (120, 200)
            assert 0 <= annotation['score'] <= 1
    else:
        a, b = (
            np.array(Image.open(out / 'labels' / name)) for name in ('good.png.png', 'turned.png')
        )
        assert a.shape == b.shape == (120, 200) and a.max() < 7 and (a == b).mean() > 0.9
        assert Image.open(out / 'overlays' / 'cmyk.png').height > 120  # the legend


def test_a_video_becomes_a_video(model, tmp_path, exits):
    task, config, checkpoint = model
    codec, out = cv2.VideoWriter.fourcc(*'mp4v'), tmp_path / 'out'
    writer = cv2.VideoWriter(str(tmp_path / 'clip.mp4'), codec, 10, (96, 64))
    for i in range(3):
        writer.write(np.full((64, 96, 3), 80 * i, np.uint8))
    writer.release()
    (tmp_path / 'broken.mp4').write_bytes((tmp_path / 'clip.mp4').read_bytes()[:300])
    for _ in range(2):  # what the first run leaves below the source is not predicted for
        output = exits(PREDICT, config, checkpoint, tmp_path, '--out', out)
        assert '1 done, 1 skipped' in output and 'skipped broken.mp4' in output
    shown = cv2.VideoCapture(str(out / 'overlays' / 'clip.mp4'))
    frames = [shown.read()[1] for _ in range(3)]
    assert frames[2].shape[1] == 96 and not shown.read()[0]
    if task == 'ade':
        assert len(list((out / 'labels' / 'clip').glob('*.png'))) == 3
    else:
        assert len(json.loads((out / 'predictions.json').read_text())['images']) == 3


def test_predict_says_what_is_wrong(model, tmp_path, exits):
    task, config, checkpoint = model
    (tmp_path / 'notes.txt').touch()
    output = exits(PREDICT, config, checkpoint, tmp_path / 'absent')
    assert 'no image, folder or video at' in output
    output = exits(PREDICT, config, checkpoint, tmp_path, '--out', tmp_path / 'out')
    assert 'no images or videos' in output
    other = ROOT / DEMO[dict(coco='ade', ade='coco')[task]]
    assert 'the checkpoint is not of this model' in exits(PREDICT, other, checkpoint, tmp_path)


@pytest.mark.parametrize(
    'arch', ['atto', 'v2_atto', dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))], ids=str
)
def test_features_of_a_file_beside_random_weights(arch, photo, tmp_path, capsys):
    tensors = randomise(ConvNeXt(arch)).state_dict()
    state = {f'backbone.{name}': value for name, value in tensors.items()}
    torch.save(state, tmp_path / 'weights.pth')
    out = tmp_path / 'new' / 'f.png'
    main([str(photo), str(tmp_path / 'weights.pth'), '--size', '64', '--out', str(out)])
    assert Image.open(out).width == 1200 and 'wrote' in capsys.readouterr().out


def test_components_are_the_principal_components_of_the_map():
    """Against torch's singular value decomposition."""
    maps = torch.randn(1, 16, 8, 12) * torch.linspace(3, 0.1, 16).reshape(1, -1, 1, 1)
    picture, share = features.components(maps)
    pixels = maps[0].reshape(16, -1).T
    u, s, _ = torch.linalg.svd(pixels - pixels.mean(0), full_matrices=False)
    assert share == pytest.approx(((s[:3] ** 2).sum() / (s**2).sum()).item(), rel=1e-4)
    for i in range(3):
        correlation = np.corrcoef(picture[..., i].ravel(), (u[:, i] * s[i]).numpy())[0, 1]
        assert abs(correlation) > 0.97  # 1 but for the clipped ends


def test_maps_are_those_before_and_after_the_norms():
    net = randomise(ConvNeXt('atto'))
    before, after = features.stage_maps(net, torch.randn(1, 3, 64, 64))
    for i in range(4):
        with torch.no_grad():
            normalised = getattr(net, f'norm{i}')(before[i])
        assert torch.allclose(normalised, after[i], atol=1e-5)


def test_features_say_what_they_cannot_read(photo, tmp_path, exits):
    (tmp_path / 'empty.jpg').touch()
    torch.save(ConvNeXt('atto').state_dict(), tmp_path / 'weights.pth')
    assert 'no image at' in exits(SHOW, tmp_path / 'absent.jpg', 'tiny_in22k')
    assert 'no weights at' in exits(SHOW, photo, tmp_path / 'absent.pth')
    assert 'the file is empty' in exits(SHOW, tmp_path / 'empty.jpg', tmp_path / 'weights.pth')
