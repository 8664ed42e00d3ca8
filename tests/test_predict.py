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
from convnext_dense import ConvNeXt
from convnext_dense.commands.show_features import main
from convnext_dense.inference import features as show_features
from convnext_dense.inference import prediction as predict


@pytest.fixture(scope='module', params=['coco', 'ade'])
def model(request, tmp_path_factory):
    """(task, config, checkpoint)"""
    cfg = Config.fromfile(ROOT / DEMO[request.param])
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    built = MODELS.build(cfg.model)
    path = tmp_path_factory.mktemp(request.param) / 'model.pth'
    names = cfg.test_dataloader.dataset.metainfo.classes
    meta = dict(
        dataset_meta=dict(
            classes=names, palette=[[40 * i, 255 - 40 * i, 128] for i in range(len(names))]
        )
    )
    torch.save(dict(state_dict=built.state_dict(), meta=meta), path)
    return request.param, str(ROOT / DEMO[request.param]), str(path)


@pytest.fixture
def pictures(tmp_path):
    """Good, odd and broken ones of the same scene, 120 x 200; where they are turned, the file is 200 x 120."""
    folder = tmp_path / 'pictures'
    (folder / 'below').mkdir(parents=True)
    y, x = np.mgrid[:120, :200]
    scene = Image.fromarray(np.stack([x, y * 2, 255 - x], -1).astype(np.uint8))
    scene.save(folder / 'good.png')
    scene.save(folder / 'good.jpg', quality=98)
    scene.save(folder / 'below' / 'good.webp', quality=98)
    scene.convert('CMYK').save(folder / 'cmyk.jpg', quality=98)
    Image.fromarray(np.asarray(scene.convert('L')).astype(np.uint16) * 257).save(
        folder / 'deep.png'
    )
    transparent = scene.convert('RGBA')
    transparent.putalpha(99)
    transparent.save(folder / 'alpha.png')
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was turned: show it rotated by 270 degrees
    scene.rotate(90, expand=True).save(folder / 'turned.JPG', exif=exif, quality=98)
    (folder / 'empty.jpg').touch()
    for name in ('good.jpg', 'good.png'):
        content = (folder / name).read_bytes()
        (folder / f'cut_{name}').write_bytes(content[: len(content) // 2])
    (folder / 'text.png').write_text('no picture')
    (folder / 'notes.txt').touch()
    return folder


GOOD = ('good.png', 'good.jpg', 'below/good.webp', 'cmyk.jpg', 'alpha.png', 'turned.JPG')


def test_pictures_are_read_as_people_see_them(pictures):
    expected = predict.read(pictures / 'good.png')[0].astype(int)
    assert expected.shape == (120, 200, 3)
    for name in GOOD:
        assert np.abs(predict.read(pictures / name)[0] - expected).mean() < 3, name
    grey, note = predict.read(pictures / 'deep.png')
    assert (
        np.abs(
            grey - np.asarray(Image.open(pictures / 'good.png').convert('L'))[..., None].astype(int)
        ).max()
        <= 1
        and '16 bits' in note
    )


def test_a_folder_with_everything_in_it(model, pictures, tmp_path, exits):
    task, config, checkpoint = model
    output = exits(
        ROOT / 'tools/predict.py',
        config,
        checkpoint,
        pictures,
        '--out',
        tmp_path / 'out',
        '--score',
        0,
    )
    assert '7 done, 4 skipped, 1 files are no pictures' in output
    assert all(
        f'skipped {name}' in output
        for name in ('empty.jpg', 'cut_good.jpg', 'cut_good.png', 'text.png')
    )
    names = {
        str(path.relative_to(tmp_path / 'out' / 'overlays'))
        for path in (tmp_path / 'out' / 'overlays').rglob('*.png')
    }
    assert names == {
        'good.png.png',
        'good.jpg.png',
        'below/good.png',
        'cmyk.png',
        'deep.png',
        'alpha.png',
        'turned.png',
    }
    predictor = predict.make_predictor(Config.fromfile(config), checkpoint, 'cpu')
    assert predictor.model.dataset_meta['palette'][1] == (40, 215, 128)
    if task == 'coco':
        coco = COCO(tmp_path / 'out' / 'predictions.json')
        assert len(coco.imgs) == 7 and [cat['name'] for cat in coco.cats.values()] == [
            'disc',
            'square',
            'triangle',
            'star',
            'ring',
        ]
        assert all((one['height'], one['width']) == (120, 200) for one in coco.imgs.values())
        assert coco.anns and all(
            coco.annToMask(one).shape == (120, 200) and 0 <= one['score'] <= 1
            for one in coco.anns.values()
        )
    else:
        a, b = (
            np.array(Image.open(tmp_path / 'out' / 'labels' / name))
            for name in ('good.png.png', 'turned.png')
        )
        assert a.shape == b.shape == (120, 200) and a.max() < 7 and (a == b).mean() > 0.9
        assert Image.open(tmp_path / 'out' / 'overlays' / 'cmyk.png').height > 120  # the legend


def test_a_video(model, tmp_path, exits):
    task, config, checkpoint = model
    writer = cv2.VideoWriter(
        str(tmp_path / 'clip.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 10, (96, 64)
    )
    for i in range(3):
        writer.write(np.full((64, 96, 3), 80 * i, np.uint8))
    writer.release()
    (tmp_path / 'broken.mp4').write_bytes((tmp_path / 'clip.mp4').read_bytes()[:300])
    output = exits(
        ROOT / 'tools/predict.py', config, checkpoint, tmp_path, '--out', tmp_path / 'out'
    )
    assert '1 done, 1 skipped' in output and 'skipped broken.mp4' in output
    shown = cv2.VideoCapture(str(tmp_path / 'out' / 'overlays' / 'clip.mp4'))
    frames = [shown.read()[1] for _ in range(3)]
    assert frames[2].shape[1] == 96 and not shown.read()[0]
    if task == 'ade':
        assert len(list((tmp_path / 'out' / 'labels' / 'clip').glob('*.png'))) == 3
    else:
        assert len(json.loads((tmp_path / 'out' / 'predictions.json').read_text())['images']) == 3


def test_what_is_wrong_is_said(model, tmp_path, exits):
    task, config, checkpoint = model
    tool = ROOT / 'tools/predict.py'
    (tmp_path / 'notes.txt').touch()
    assert 'no image, folder or video at' in exits(tool, config, checkpoint, tmp_path / 'absent')
    assert 'no images or videos' in exits(
        tool, config, checkpoint, tmp_path, '--out', tmp_path / 'out'
    )
    other = ROOT / DEMO[dict(coco='ade', ade='coco')[task]]
    assert 'the checkpoint is not of this model' in exits(tool, other, checkpoint, tmp_path)


@pytest.mark.parametrize(
    'arch', ['atto', 'v2_atto', dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))], ids=str
)
def test_features_of_a_file_beside_random_ones(arch, photo, tmp_path, capsys):
    state = {
        f'backbone.{name}': value for name, value in randomise(ConvNeXt(arch)).state_dict().items()
    }
    torch.save(state, tmp_path / 'weights.pth')
    out = tmp_path / 'new' / 'f.png'
    main([str(photo), str(tmp_path / 'weights.pth'), '--size', '64', '--out', str(out)])
    assert Image.open(out).width == 1200 and 'wrote' in capsys.readouterr().out


def test_components_are_those_of_the_map():
    """Against torch's own decomposition; and before LayerNorm is before it."""
    one = torch.randn(1, 16, 8, 12) * torch.linspace(3, 0.1, 16).reshape(1, -1, 1, 1)
    picture, share = show_features.components(one)
    pixels = one[0].reshape(16, -1).T
    u, s, _ = torch.linalg.svd(pixels - pixels.mean(0), full_matrices=False)
    assert share == pytest.approx(((s[:3] ** 2).sum() / (s**2).sum()).item(), rel=1e-4)
    for i in range(3):
        correlation = np.corrcoef(picture[..., i].ravel(), (u[:, i] * s[i]).numpy())[0, 1]
        assert abs(correlation) > 0.97  # but for the clipped ends
    net = randomise(ConvNeXt('atto'))
    before, after = show_features.maps(net, torch.randn(1, 3, 64, 64))
    with torch.no_grad():
        assert all(
            torch.allclose(getattr(net, f'norm{i}')(before[i]), after[i], atol=1e-5)
            for i in range(4)
        )


def test_features_say_what_they_cannot_read(photo, tmp_path, exits):
    tool = ROOT / 'tools/show_features.py'
    (tmp_path / 'empty.jpg').touch()
    torch.save(ConvNeXt('atto').state_dict(), tmp_path / 'weights.pth')
    assert 'no image at' in exits(tool, tmp_path / 'absent.jpg', 'tiny_in22k')
    assert 'no weights at' in exits(tool, photo, tmp_path / 'absent.pth')
    assert 'the file is empty' in exits(tool, tmp_path / 'empty.jpg', tmp_path / 'weights.pth')
