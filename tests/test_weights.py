"""Weights in the official layout: loaded to the bit, or refused."""
import re

import pytest
import torch
from mmengine.model import BaseModule

from convnext_dense import ConfigError, ConvNeXt, WeightsError, load_weights


def official_classifier(arch='atto', width=320):
    """What the official files hold: the trunk and the classifier, under ``model``."""
    trunk = ConvNeXt(arch, out_norm=False)
    state = {name: torch.randn_like(value) for name, value in trunk.state_dict().items()}
    return state, dict(state, **{'norm.weight': torch.ones(width), 'norm.bias': torch.zeros(width),
                                 'head.weight': torch.zeros(10, width), 'head.bias': torch.zeros(10)})


def test_official_classifier_through_init_cfg(tmp_path):
    trunk, state = official_classifier()
    torch.save(dict(model=state), tmp_path / 'official.pth')

    class Detector(BaseModule):
        def __init__(self):
            super().__init__()
            self.backbone = ConvNeXt('atto', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'official.pth')))

    detector = Detector()
    before = list(detector.backbone.parameters())
    detector.init_weights()
    own = detector.backbone.state_dict()
    assert all(torch.equal(own[name], value) for name, value in trunk.items())
    assert torch.equal(own['norm3.weight'], torch.ones(320))  # the classifier's norm is not norm3
    assert all(a is b for a, b in zip(before, detector.backbone.parameters()))  # the optimiser holds these
    with torch.no_grad():
        detector.backbone.norm0.weight.fill_(7)
    detector.backbone.init_weights()  # a second pass does not load again
    assert detector.backbone.norm0.weight[0] == 7


def test_report_accounts_for_every_tensor():
    trunk, state = official_classifier()
    net = ConvNeXt('atto')
    report = load_weights(net, state)
    assert set(report.loaded) == set(trunk)
    assert set(report.dropped) == {'norm.weight', 'norm.bias', 'head.weight', 'head.bias'}
    assert set(report.loaded) | set(report.left_as_initialised) == set(net.state_dict())
    assert {name.split('.')[0] for name in report.left_as_initialised} == {'norm0', 'norm1', 'norm2', 'norm3'}


@pytest.mark.parametrize('prefix', ['backbone.', 'module.backbone.'])
def test_backbone_of_a_whole_detector(prefix, tmp_path):
    source = ConvNeXt('atto')
    state = {f'{prefix}{name}': torch.randn_like(value) for name, value in source.state_dict().items()}
    torch.save(dict(state_dict=dict(state, **{'rpn_head.rpn_cls.bias': torch.zeros(3)}), meta=dict(epoch=36)),
               tmp_path / 'detector.pth')
    net = ConvNeXt('atto')
    report = load_weights(net, tmp_path / 'detector.pth')
    assert all(torch.equal(value, state[f'{prefix}{name}']) for name, value in net.state_dict().items())
    assert not report.left_as_initialised and prefix in report.layout


def test_stages_after_the_last_that_is_emitted_are_dropped():
    trunk, state = official_classifier()
    net = ConvNeXt('atto', out_indices=(0, 1))
    report = load_weights(net, state)
    own = net.state_dict()
    assert all(torch.equal(own[name], trunk[name]) for name in report.loaded)
    assert {name for name in report.dropped if name in trunk} == {
        name for name in trunk if name.startswith(('stages.2', 'stages.3', 'downsample_layers.2', 'downsample_layers.3'))}


def test_norms_of_stages_that_are_not_emitted_are_dropped():
    report = load_weights(ConvNeXt('atto', out_indices=(1, 2, 3)), ConvNeXt('atto').state_dict())
    assert set(report.dropped) == {'norm0.weight', 'norm0.bias'}


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


def with_nan(state):
    state['stages.0.0.gamma'][3] = float('nan')
    return state


@pytest.mark.parametrize('damage, message', [
    (without('stages.1.0.gamma'), 'missing: stages.1.0.gamma'), (without('norm2.bias'), 'missing: norm2.bias'),
    (lambda state: dict(state, surprise=torch.zeros(1)), 'unknown: surprise'), (with_nan, 'not finite'),
    (lambda state: ConvNeXt('femto').state_dict(), 'of another shape'),
    (lambda state: ConvNeXt('nano').state_dict(), 'unknown: stages.2.6'),
    (lambda state: dict(state, epoch=3), 'no tensors: epoch'), (lambda state: {0: state}, 'expected a dict of names'),
    (lambda state: {}, '0 ConvNeXt stems'), (lambda state: {'conv1.weight': torch.zeros(1)}, 'conv1.weight'),
])
def test_what_does_not_fit_is_refused_and_nothing_is_changed(damage, message):
    net = ConvNeXt('atto')
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = {name: torch.randn_like(value) for name, value in before.items()}
    with pytest.raises(WeightsError, match=message):
        load_weights(net, damage(state))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_files_that_cannot_be_read(tmp_path):
    net = ConvNeXt('atto')
    with pytest.raises(WeightsError, match='no weights at'):
        load_weights(net, tmp_path / 'absent.pth')
    torch.save(net.state_dict(), tmp_path / 'whole.pth')
    (tmp_path / 'cut.pth').write_bytes((tmp_path / 'whole.pth').read_bytes()[:5000])
    (tmp_path / 'empty.pth').touch()
    pages = ('<html>not found</html>', 'Repository not found', 'error code: 1015', 'hello world')
    for i, text in enumerate(pages):
        (tmp_path / f'page{i}.pth').write_text(text)
    for name in ('cut', 'empty', *(f'page{i}' for i in range(len(pages)))):
        with pytest.raises(WeightsError, match='cannot be read'):
            load_weights(net, tmp_path / f'{name}.pth')
    torch.save(torch.zeros(3), tmp_path / 'tensor.pth')
    with pytest.raises(WeightsError, match='holds a Tensor'):
        load_weights(net, tmp_path / 'tensor.pth')
    with pytest.raises(WeightsError, match='such as model.backbone'):
        load_weights(torch.nn.ModuleDict(dict(backbone=net)), net.state_dict())


def test_nothing_in_a_file_is_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / 'executed'), 'w'))
    torch.save(dict(model=Bomb()), tmp_path / 'bomb.pth')
    with pytest.raises(WeightsError, match='plain tensors'):
        load_weights(ConvNeXt('atto'), tmp_path / 'bomb.pth')
    assert not (tmp_path / 'executed').exists()


def test_url_that_cannot_be_fetched_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    url = 'http://127.0.0.1:9/convnext_atto.pth'
    with pytest.raises(WeightsError, match='put it at .*checkpoints/.*convnext_atto.pth') as refused:
        load_weights(ConvNeXt('atto'), url)
    asked_for = re.search(r'put it at (\S+),', str(refused.value))[1]
    torch.save(dict(model=ConvNeXt('atto').state_dict()), asked_for)  # what the message asks for
    load_weights(ConvNeXt('atto'), url)
    with pytest.raises(WeightsError, match='could not fetch'):  # another host's file of the same name is another file
        load_weights(ConvNeXt('atto'), url.replace('127.0.0.1', 'localhost'))


@pytest.mark.parametrize('init_cfg', [dict(type='TruncNormal'), dict(type='Pretrained', checkpoint='x', prefix='y'),
                                      [dict(type='Pretrained', checkpoint='x')]])
def test_init_cfg_that_would_be_ignored_is_refused(init_cfg):
    with pytest.raises(ConfigError, match='init_cfg is None or'):
        ConvNeXt('atto', init_cfg=init_cfg).init_weights()
