"""mmseg's segmentor with less done to the logits; and windows over images of any size: labels are
those of mmseg's, with less memory."""

import json

import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.models.segmentors import EncoderDecoder as MMSegEncoderDecoder

from conftest import DEMO, demo_options
from convnext_dense import ConfigError, rearrange
from convnext_dense.config_names import read_config
from convnext_dense.evaluation.flops import samples
from convnext_dense.evaluation.peers import randomise
from convnext_dense.evaluation.timing import peak_memory
from convnext_dense.inference.building import build
from convnext_dense.segmentor import EncoderDecoder

FIELDS = 'pred_sem_seg', 'seg_logits'
WINDOWS = dict(crop_size=(64, 48), stride=(50, 31))


def segmentor(classes=7):
    """mmseg's own, with heads of ours."""
    cfg = read_config(DEMO['ade'])
    init_default_scope('mmseg')
    cfg.model.type = 'EncoderDecoder'
    cfg.model.decode_head.update(num_classes=classes)
    if classes == 1:
        cfg.model.decode_head.update(out_channels=1, threshold=0.4, loss_decode=dict(
            type='mmseg.CrossEntropyLoss', use_sigmoid=True))  # fmt: skip
    torch.manual_seed(0)
    model = randomise(build(cfg.model, 'cpu'))
    model.test_cfg.update(WINDOWS)
    return model


def predict(model, images, batch=None):
    with torch.no_grad():
        return model(images, batch, mode='predict')


def is_same(expected, sample):
    """Labels and logits, to the bit, and their types."""
    pairs = [(getattr(part, key).data for part in (expected, sample)) for key in FIELDS]
    return all(torch.equal(x, y) and x.dtype == y.dtype for x, y in pairs)


@pytest.mark.parametrize('classes', [7, 1])
@pytest.mark.parametrize('mode', ['slide', 'whole'])
@pytest.mark.parametrize('size', [(64, 48), (165, 141)])
@pytest.mark.parametrize(
    'meta',
    [
        {},  # the size of the file
        dict(ori_shape=(90, 131)),
        dict(flip=True, flip_direction='horizontal'),
        dict(flip=True, flip_direction='vertical', padding_size=[3, 4, 1, 2], ori_shape=(61, 41)),
        dict(img_padding_size=[0, 5, 0, 7], padding_size=[1, 1, 1, 1]),
    ],
)
def test_predictions_are_those_of_mmseg(meta, size, mode, classes):
    """With one window and with many, and as rearrange puts it into a model."""
    model, images = segmentor(classes), torch.randn(2, 3, *size)
    model.test_cfg.mode = mode
    predictions = []
    for kind in (MMSegEncoderDecoder, EncoderDecoder):
        if kind is EncoderDecoder:
            assert type(model) is MMSegEncoderDecoder
            assert 'EncoderDecoder' in rearrange(model).heads
        assert type(model) is kind
        batch = samples(model, images) + samples(model, images)
        for sample in batch:
            sample.set_metainfo(dict(dict(ori_shape=size), **meta))
        predictions.append(predict(model, images, batch))
    assert all(map(is_same, *predictions))
    assert len(predictions[1][0].pred_sem_seg.data.unique()) > 1


def test_predictions_without_samples_are_those_of_mmseg():
    model, images = segmentor(), torch.randn(2, 3, 165, 141)
    expected = predict(model, images)
    rearrange(model)
    assert all(map(is_same, expected, predict(model, images)))


# ---- strips ----


def pair(size, classes=7):
    """A segmentor in mode 'strips', two images, and what mmseg's predicts in 'slide' and ours in
    'strips'."""
    model, images = segmentor(classes), torch.randn(2, 3, *size)
    predictions = {}
    for mode, kind in (('slide', MMSegEncoderDecoder), ('strips', EncoderDecoder)):
        model.__class__, model.test_cfg.mode = kind, mode
        predictions[mode] = predict(model, images, samples(model, images) * 2)
    return model, images, predictions


@pytest.mark.parametrize('classes', [7, 1])
@pytest.mark.parametrize('size', [(64, 48), (165, 141), (40, 200), (114, 79)])
def test_labels_are_those_of_mmseg(size, classes):
    """Where windows end with the image, overlap by another stride, or are larger than it."""
    _, _, predictions = pair(size, classes=classes)
    for expected, sample in zip(*predictions.values()):
        labels = sample.pred_sem_seg.data
        assert labels.shape == (1, *size) and labels.dtype == torch.uint8
        assert len(labels.unique()) > 1
        assert (labels == expected.pred_sem_seg.data).all()


def test_memory_does_not_grow_with_the_height():
    model, _, _ = pair((64, 64))
    peaks = {}
    for mode in ('slide', 'strips'):
        model.test_cfg.mode = mode
        for height in (256, 1024):
            image = torch.randn(1, 3, height, 256)

            def predict(image=image):
                with torch.no_grad():
                    model(image, samples(model, image), mode='predict')

            peaks[mode, height] = peak_memory(predict, 'cpu')
    grown = 768 * 256  # bytes: the label map
    assert peaks['strips', 1024] - peaks['strips', 256] < 3 * grown
    assert peaks['slide', 1024] - peaks['slide', 256] > 20 * grown


def test_an_image_of_another_size_than_its_labels_is_refused():
    model, images, _ = pair((64, 64))
    batch = samples(model, images)
    batch[0].set_metainfo(dict(ori_shape=(128, 128)))
    with pytest.raises(ConfigError, match=r'\(64, 64\) .* for an image of \(128, 128\): take Resi'):
        model(images[:1], batch, mode='predict')


def test_the_test_command_takes_it(scenes, tmp_path):
    """With what the preprocessor pads left out; and the score is that of 'slide'."""
    from convnext_dense.commands import test as command

    cfg = read_config(DEMO['ade'])
    cfg.model.type = 'convnext_dense.EncoderDecoder'
    torch.manual_seed(0)
    model = randomise(build(cfg.model, 'cpu'))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    figures = []
    for mode in ('slide', 'strips'):
        changes = {
            'model.type': 'convnext_dense.EncoderDecoder',
            'model.test_cfg.mode': mode,
            'model.test_cfg.crop_size': (64, 64),
            'model.test_cfg.stride': (40, 40),
            'model.data_preprocessor.test_cfg.size_divisor': 100,
            'visualizer.name': mode,
        }
        work_dir = tmp_path / mode
        options = demo_options('ade', scenes, **changes)
        command.main(
            list(map(str, [DEMO['ade'], tmp_path / 'model.pth', '--work-dir', work_dir, *options]))
        )
        (log,) = work_dir.glob('*/*.json')
        figures.append(json.loads(log.read_text())['mIoU'])
    assert figures[0] == figures[1] > 0
