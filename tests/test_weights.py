"""Weights: loaded to the bit, or refused; fetched, and converted to the names of other libraries.

test_layouts.py has the names of each library, test_damage.py damaged files.
"""

import argparse
import hashlib
import http.server
import re
import resource
import signal
import threading

import numpy as np
import pytest
import timm
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModule
from safetensors.torch import save_file

from conftest import ROOT, randomise
from convnext_dense import PRESETS, ConfigError, ConvNeXt, WeightsError, load_weights
from convnext_dense.commands.convert import main as convert_weights
from convnext_dense.weights import convert, downloading, loading, presets, save
from convnext_dense.weights.loading import match
from convnext_dense.weights.reading import read


def official_classifier():
    """The tensors of an atto without output norms, and the same with a classifier's norm and head,
    which is what the official files hold under ``model``."""
    trunk = ConvNeXt('atto', out_norm=False).state_dict()
    trunk = {name: torch.randn_like(tensor) for name, tensor in trunk.items()}
    classifier = {
        'norm.weight': torch.ones(320),
        'norm.bias': torch.zeros(320),
        'head.weight': torch.zeros(10, 320),
        'head.bias': torch.zeros(10),
    }
    return trunk, trunk | classifier


def same(state, expected):
    """Whether all of ``state`` is in ``expected``, to the bit."""
    return all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def prefixed(prefix, state):
    return {f'{prefix}{name}': tensor for name, tensor in state.items()}


def copies(state):
    return {name: tensor.clone() for name, tensor in state.items()}


def test_official_classifier_through_init_cfg(tmp_path):
    """The trunk is loaded, into the same parameters and once; the classifier's norm is not."""
    trunk, state = official_classifier()
    torch.save(dict(model=state), tmp_path / 'official.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'official.pth'))

    class Detector(BaseModule):
        def __init__(self):
            super().__init__()
            self.backbone = ConvNeXt('atto', init_cfg=init_cfg)

    detector = Detector()
    before = list(detector.backbone.parameters())
    detector.init_weights()
    loaded = detector.backbone.state_dict()
    assert same(trunk, loaded)
    assert torch.equal(loaded['norm3.weight'], torch.ones(320))
    after = list(detector.backbone.parameters())  # the optimiser may hold those from before
    assert all(a is b for a, b in zip(before, after))
    with torch.no_grad():
        detector.backbone.norm0.weight.fill_(7)
    detector.backbone.init_weights()  # a second pass does not load again
    assert detector.backbone.norm0.weight[0] == 7


def test_report_accounts_for_every_tensor():
    trunk, state = official_classifier()
    net = ConvNeXt('atto')
    report = load_weights(net, state)
    assert (report.layout, report.prefix, report.changed) == ('official', '', {})
    assert set(report.loaded) == set(trunk)
    assert set(report.dropped) == {'norm.weight', 'norm.bias', 'head.weight', 'head.bias'}
    assert set(report.loaded) | set(report.left_as_initialised) == set(net.state_dict())
    left = {name.split('.')[0] for name in report.left_as_initialised}
    assert left == {'norm0', 'norm1', 'norm2', 'norm3'}


def test_weights_that_were_never_trained_are_told(monkeypatch):
    told = []
    monkeypatch.setattr(loading, 'print_log', lambda text, **_: told.append(text))
    trunk, state = official_classifier()  # random
    load_weights(ConvNeXt('atto'), state)
    assert len(told) == 1
    load_weights(ConvNeXt('atto'), ConvNeXt('atto').state_dict())
    assert 'biases of its depthwise convolutions are 0' in told[-1]


def test_another_architecture_is_told_with_the_widths_of_its_maps():
    with pytest.raises(WeightsError, match=r'set arch .*, for maps of \[80, 160, 320, 640\]'):
        load_weights(ConvNeXt('atto'), ConvNeXt('nano').state_dict())
    with pytest.raises(WeightsError, match='set arch, or take other weights'):
        load_weights(ConvNeXt('tiny'), ConvNeXt('small').state_dict())


@pytest.mark.parametrize('prefix', ['backbone.', 'module.backbone.'])
def test_backbone_of_a_whole_detector(prefix, tmp_path):
    source = {name: torch.randn_like(t) for name, t in ConvNeXt('atto').state_dict().items()}
    detector = prefixed(prefix, source) | {'rpn_head.rpn_cls.bias': torch.zeros(3)}
    torch.save(dict(state_dict=detector, meta=dict(epoch=36)), tmp_path / 'detector.pth')
    net = ConvNeXt('atto')
    report = load_weights(net, tmp_path / 'detector.pth')
    assert same(net.state_dict(), source)
    assert not report.left_as_initialised and report.prefix == prefix and prefix in str(report)


def test_stages_after_the_last_that_is_emitted_are_dropped():
    trunk, state = official_classifier()
    net = ConvNeXt('atto', out_indices=(0, 1))
    report = load_weights(net, state)
    loaded = net.state_dict()
    assert same({name: loaded[name] for name in report.loaded}, trunk)
    later = ('stages.2', 'stages.3', 'downsample_layers.2', 'downsample_layers.3')
    assert set(report.dropped) & set(trunk) == {name for name in trunk if name.startswith(later)}


def test_norms_of_stages_that_are_not_emitted_are_dropped():
    report = load_weights(ConvNeXt('atto', out_indices=(1, 2, 3)), ConvNeXt('atto').state_dict())
    assert set(report.dropped) == {'norm0.weight', 'norm0.bias'}


def without(name):
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


def extended(**entries):
    return lambda state: state | entries


def with_nan(state):
    state['stages.0.0.gamma'][3] = float('nan')
    return state


def state_of(arch):
    return lambda state: ConvNeXt(arch).state_dict()


def state_of_timm(name):
    return lambda state: timm.create_model(name).state_dict()


@pytest.mark.parametrize(
    'change, message',
    [
        (without('stages.1.0.gamma'), 'missing: stages.1.0.gamma'),
        (without('norm2.bias'), 'missing: norm2.bias'),
        (extended(surprise=torch.zeros(1)), 'unknown: surprise'),
        (with_nan, 'not finite'),
        (state_of('femto'), r'shape: downsample_layers.0.0.weight \(48, 3, 4, 4\) where \(40, 3'),
        (state_of('nano'), 'unknown: stages.2.6'),
        (extended(epoch=3), r'no tensors: epoch \(a int\)'),
        (lambda state: {0: state}, 'expected a dict of names'),
        (lambda state: {}, 'no ConvNeXt'),
        (lambda state: {'conv1.weight': torch.zeros(1)}, 'another backbone.*conv1.weight'),
        (state_of('small'), "is a ConvNeXt 'small', this network is 'atto'"),
        (state_of('v2_atto'), "is a ConvNeXt 'v2_atto', this network is 'atto'"),
        (state_of_timm('convnext_atto_ols'), 'overlapping stem'),
        (state_of_timm('convnext_zepto_rms'), 'is a ConvNeXt V1 with depths'),
        (state_of_timm('convnext_atto_rms'), 'norms without bias'),
        (state_of_timm('edgenext_small'), 'timm'),
        (lambda state: state | prefixed('teacher.', state), 'more than one ConvNeXt'),
        (
            lambda state: {name: t for name, t in state.items() if not name.startswith('norm0')},
            '(?s)norm0.*out_indices',
        ),
        (
            lambda state: {name: tensor.int() for name, tensor in state.items()},
            r'not of a floating-point type: downsample_layers.0.0.weight \(torch.int32\)',
        ),
        (lambda state: {name: tensor.to('meta') for name, tensor in state.items()}, 'meta device'),
        (
            extended(**{'norms.3.weight': torch.zeros(3), 'projector.weight': torch.zeros(3)}),
            '1 unknown: projector',
        ),
    ],
)
def test_sources_that_do_not_fit_are_refused_and_nothing_is_changed(change, message):
    net = ConvNeXt('atto')
    before = copies(net.state_dict())
    state = {name: torch.randn_like(tensor) for name, tensor in before.items()}
    with pytest.raises(WeightsError, match=message):
        load_weights(net, change(state))
    assert same(net.state_dict(), before)


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'it is empty'),
        (b'<html>not found</html>', 'an HTML page'),
        (b'\n<!DOCTYPE html>', 'an HTML page'),
        (b'Repository not found', "text that starts 'Repository"),
        (b'version https://git-lfs.github.com/spec/v1', 'Git LFS pointer'),
        (b'\x80\x04K\x01.', 'a pickle that torch.save did not write'),
        (b'\xff\xd8\xff\xe0', 'neither safetensors nor'),
        (b'PK\x03\x04 and no more', 'damaged or cut short'),
    ],
)
def test_files_of_something_else_are_named(content, message, tmp_path):
    (tmp_path / 'file.pth').write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        load_weights(ConvNeXt('atto'), tmp_path / 'file.pth')


def refused(source, message, net=None):
    with pytest.raises(WeightsError, match=message):
        load_weights(net or ConvNeXt('atto'), source)


def test_files_that_cannot_be_read(tmp_path):
    """Absent, a folder, cut short, of something else, or for a network that takes none."""
    net = ConvNeXt('atto')
    refused('tiny_1k', 'no weights at .*expected a path, a URL or a preset, such as tiny_in1k')
    refused(tmp_path, 'cannot be read')
    torch.save(net.state_dict(), tmp_path / 'whole.pth')
    torch.save(net.state_dict(), tmp_path / 'legacy.pth', _use_new_zipfile_serialization=False)
    save_file(net.state_dict(), tmp_path / 'whole.safetensors')
    for name in ('whole.pth', 'legacy.pth', 'whole.safetensors'):
        load_weights(net, tmp_path / name)
        content = (tmp_path / name).read_bytes()
        for length in (len(content) - 1, len(content) // 2, 5000):
            (tmp_path / f'cut-{name}').write_bytes(content[:length])
            refused(tmp_path / f'cut-{name}', 'damaged or cut short', net)
    torch.save(torch.zeros(3), tmp_path / 'tensor.pth')
    refused(tmp_path / 'tensor.pth', 'expected a dict of names and tensors')
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / 'program.pth')
    refused(tmp_path / 'program.pth', 'TorchScript')
    detector = torch.nn.ModuleDict(dict(backbone=net))
    refused(net.state_dict(), 'such as model.backbone', detector)
    refused(net.state_dict(), 'meta device', ConvNeXt('atto').to('meta'))


@pytest.mark.parametrize('legacy', [False, True])
def test_training_checkpoints_with_objects_in_them(tmp_path, legacy):
    """Objects that MMEngine's and the official scripts save beside the weights are passed over."""
    source = randomise(ConvNeXt('v2_atto'))
    optimizer = torch.optim.AdamW(source.parameters())
    sum(m.sum() for m in source(torch.randn(1, 3, 32, 32))).backward()
    optimizer.step()
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    checkpoint = dict(
        state_dict=source.state_dict(),
        meta=dict(cfg=ConfigDict(a=1), seed=np.int64(3), time=np.float64(0.5)),
        message_hub=dict(log_scalars={'loss': history}, runtime_info={(1, (2, 3)): history}),
        optimizer=optimizer.state_dict(),
        args=argparse.Namespace(lr=1),
        module=torch.nn.Linear(2, 2),
    )
    path = tmp_path / 'epoch_1.pth'
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
    net = ConvNeXt('v2_atto')
    load_weights(net, path)
    assert same(net.state_dict(), source.state_dict())
    torch.save(dict(state_dict=source.state_dict() | dict(extra=history)), path)
    refused(path, r'no tensors: extra \(mmengine.logging.history_buffer.HistoryBuffer\)', net)


OLD_FILES = sorted((ROOT / 'tests/files').iterdir())


@pytest.mark.parametrize('path', OLD_FILES, ids=lambda path: path.name)
def test_files_that_older_versions_of_torch_wrote(path):
    tensors, _ = read(path)
    values = {name: tensor.tolist() for name, tensor in tensors.items()}
    assert values == {'a.weight': [[1, 2, 3]], 'a.bias': [4]}


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_and_orders_in_memory(dtype, tmp_path):
    state = randomise(ConvNeXt('atto')).state_dict()
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    kernel, matrix = 'stages.0.0.dwconv.weight', 'stages.1.0.pwconv1.weight'
    state[kernel] = state[kernel].contiguous(memory_format=torch.channels_last)
    state[matrix] = state[matrix].T.contiguous().T
    torch.save(state, tmp_path / 'file.pth')
    net = ConvNeXt('atto')
    load_weights(net, tmp_path / 'file.pth')
    assert same(net.state_dict(), {name: tensor.float() for name, tensor in state.items()})


def test_a_source_that_shares_memory_with_the_network():
    net = randomise(ConvNeXt('atto'))
    state = net.state_dict()
    kernel = 'stages.3.0.dwconv.weight'
    swapped = {
        **state,
        'norm0.weight': state['norm0.bias'],
        'norm0.bias': state['norm0.weight'],
        kernel: state[kernel].transpose(2, 3),
    }
    expected = copies(swapped)
    load_weights(net, swapped)
    assert same(net.state_dict(), expected)


@pytest.mark.parametrize(
    'net, value',
    [
        (ConvNeXt('atto').half(), torch.full((40,), 1e5)),
        (ConvNeXt('atto'), torch.full((40,), 1e300, dtype=torch.float64)),
    ],
)
def test_values_that_are_infinite_in_the_networks_type(net, value):
    refused(ConvNeXt('atto').state_dict() | {'stages.0.0.gamma': value}, 'not finite', net)


def test_empty_sliced_and_expanded_tensors_beside_and_in_the_backbone(tmp_path):
    """In a file with checksums. In a file without, views are not told from damaged tensors."""
    state = randomise(ConvNeXt('atto')).state_dict()
    wide = torch.randn(40, 80)
    others = dict(none=torch.empty(0), expanded=torch.ones(1).expand(5), sliced=wide[:, :32])
    views = state | {'stages.0.0.gamma': wide[:, 3]}  # as code that cuts channels leaves it
    net = ConvNeXt('atto')
    others['empty'] = torch.empty(4, 0)
    torch.save(prefixed('backbone.', views) | others, tmp_path / 'file.pth')
    load_weights(net, tmp_path / 'file.pth')
    assert same(net.state_dict(), views)

    def save_legacy(**others):
        content = prefixed('backbone.', state) | prefixed('head.', others)
        torch.save(content, tmp_path / 'legacy.pth', _use_new_zipfile_serialization=False)

    save_legacy(empty=torch.empty(4, 0), none=torch.empty(0))
    load_weights(net, tmp_path / 'legacy.pth')
    assert same(net.state_dict(), state)
    save_legacy(sliced=wide[:, :32])
    refused(tmp_path / 'legacy.pth', 'head.sliced: a tensor is a view', net)


@pytest.mark.parametrize(
    'source',
    [
        None,
        5,
        [1],
        b'x.pth',
        ConvNeXt('atto'),
        iter(()),
        'a' * 300,
        'a\0b',
        dict(a=torch.ones(2, 2).to_sparse()),
    ],
)
def test_objects_that_are_no_source_are_refused(source):
    refused(source, '.')


def test_networks_of_other_libraries_are_refused():
    refused({}, 'not a timm', timm.create_model('convnext_atto'))


def test_compiled_networks_are_loaded():
    net = ConvNeXt('atto')
    state = randomise(ConvNeXt('atto')).state_dict()
    load_weights(torch.compile(net), state)
    assert torch.equal(net.norm0.weight, state['norm0.weight'])


@pytest.mark.parametrize(
    'name',
    [
        'stages.\u0660.0.gamma',
        'stages.00.0.gamma',
        f'stages.{"9" * 5000}.0.gamma',
        'stages.4.0.gamma',
    ],
)
def test_names_with_numbers_that_no_library_writes(name):
    state = ConvNeXt('atto').state_dict()
    state[name] = state.pop('stages.0.0.gamma')
    refused(state, '1 unknown')


def test_norm3_without_the_others():
    """Of a backbone that emits nothing else it is loaded. It is dropped beside a classifier's head,
    or if the network emits other maps too."""
    deepest = randomise(ConvNeXt('atto', out_indices=(3,))).state_dict()
    assert 'norm3.weight' in load_weights(ConvNeXt('atto', out_indices=(3,)), deepest).loaded
    for net in (ConvNeXt('atto'), ConvNeXt('atto', out_indices=(2, 3))):
        report = load_weights(net, deepest)
        assert set(report.dropped) == {'norm3.weight', 'norm3.bias'}
        assert torch.equal(net.norm3.weight, torch.ones(320))
    for parent in ('', 'module.'):
        classifier = prefixed(f'{parent}backbone.', deepest)
        classifier[f'{parent}head.fc.weight'] = torch.zeros(5, 320)
        net = ConvNeXt('atto', out_indices=(3,))
        report = load_weights(net, classifier)
        assert f'{parent}backbone.norm3.weight' in report.dropped
        assert torch.equal(net.norm3.weight, torch.ones(320))


@pytest.mark.parametrize('in_channels', [1, 4, 10])
def test_stem_is_inflated_to_other_numbers_of_bands(in_channels):
    """'mean' gives the map of a grey image; 'zero' does not look at the further bands."""
    source = randomise(ConvNeXt('atto'))
    net = ConvNeXt('atto', in_channels=in_channels).eval()
    report = load_weights(net, source.state_dict())
    assert report.changed == {'downsample_layers.0.0.weight': (in_channels, 'mean')}
    assert f'inflated from 3 to {in_channels} bands (mean)' in str(report)
    grey = torch.randn(1, 1, 64, 64)
    image = torch.randn(1, in_channels, 64, 64)

    def close(maps, expected):
        return all(torch.allclose(a, b, atol=1e-4) for a, b in zip(maps, expected))

    with torch.no_grad():
        assert close(net(grey.expand(1, in_channels, 64, 64)), source(grey.expand(1, 3, 64, 64)))
    if in_channels < 3:
        with pytest.raises(WeightsError, match='keeps the 3 bands'):
            load_weights(net, source.state_dict(), inflate='zero')
        return
    net.init_cfg = dict(type='Pretrained', checkpoint=source.state_dict(), inflate='zero')
    net.init_weights()
    with torch.no_grad():
        assert close(net(image), source(image[:, :3]))
    with pytest.raises(WeightsError, match="inflate is 'mean' or 'zero'"):
        load_weights(net, source.state_dict(), inflate='repeat')


def test_a_stem_of_other_than_three_bands_is_not_inflated():
    twelve = ConvNeXt('atto', in_channels=12).state_dict()
    message = 'of another shape: downsample_layers.0.0.weight'
    refused(twelve, message, ConvNeXt('atto', in_channels=4))


def test_details_name_every_tensor():
    _, state = official_classifier()
    report = load_weights(ConvNeXt('atto'), state)
    assert len(str(report).splitlines()) == 1
    lines = report.details().splitlines()[1:]
    assert len(lines) == len(report.loaded) + len(report.dropped) + len(report.left_as_initialised)
    assert "dropped  head.weight  (classifier's head)" in lines
    assert 'left     norm0.bias  (as initialised)' in lines


@pytest.fixture
def server(tmp_path):
    """A web server; gives its address and the folder that it serves."""
    (tmp_path / 'served').mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path / 'served')

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield f'http://127.0.0.1:{httpd.server_port}', tmp_path / 'served'
        httpd.shutdown()


def test_urls_are_fetched_once_and_checked_at_each_load(server, tmp_path, monkeypatch):
    """Against the hash in the file's name, and against that of a preset's row."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    address, folder = server
    _, state = official_classifier()
    torch.save(dict(model=state), folder / 'file.pth')
    sha256 = hashlib.sha256((folder / 'file.pth').read_bytes()).hexdigest()
    named = (folder / 'file.pth').rename(folder / f'convnext-{sha256[:8]}.pth')
    url = f'{address}/{named.name}'
    preset = presets.Preset('atto', url, 'official', 'my licence')
    monkeypatch.setitem(PRESETS, 'mine', preset)
    assert 'norm3' in str(load_weights(ConvNeXt('atto'), 'mine'))
    monkeypatch.setitem(PRESETS, 'mine', preset._replace(sha256='0' * 8))
    refused('mine', 'published is 00000000')
    monkeypatch.delitem(PRESETS, 'mine')
    named.unlink()
    load_weights(ConvNeXt('atto'), url)  # from torch.hub's folder
    cached = next((tmp_path / 'hub').rglob(f'*{named.name}'))
    content = bytearray(cached.read_bytes())
    content[len(content) // 2] ^= 1
    cached.write_bytes(content)
    refused(url, f'published is {sha256[:8]}')
    cached.unlink()
    (folder / named.name).write_bytes(content)  # what the server now has is not what was published
    refused(url, 'invalid hash value')
    assert not cached.exists()
    refused(f'{address}/absent.pth', '404')


def test_a_download_that_was_cut_short_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    torch.save(dict(model=ConvNeXt('atto').state_dict()), tmp_path / 'file.pth')
    content, requests = (tmp_path / 'file.pth').read_bytes(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.send_header('Content-Length', len(content))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if len(requests) == 1 else content)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        url = f'http://127.0.0.1:{httpd.server_port}/weights.pth?signature={"x" * 400}'
        refused(url, 'could not fetch.*damaged or cut short')
        load_weights(ConvNeXt('atto'), url)
        httpd.shutdown()
    assert len(requests) == 2


def test_dates_in_names_are_no_hashes():
    digits = downloading.sha256_in_name
    assert digits('https://x/convnext-20240115.pth') == ''
    assert digits('https://x/convnext-983f1562.pth?download=true') == '983f1562'


def test_hashes_in_the_names_of_presets_are_in_their_rows():
    rows = {name: preset.sha256 for name, preset in PRESETS.items()}
    names = {n: downloading.sha256_in_name(preset.source) for n, preset in PRESETS.items()}
    assert rows == names and sum(map(bool, rows.values())) == 8


def place_to_put_it(net, source, message):
    """The path that the refusal to load ``source`` tells."""
    with pytest.raises(WeightsError, match=message) as refusal:
        load_weights(net, source)
    return re.search(r'put it at (\S+),', str(refusal.value))[1]


def test_hub_that_cannot_be_reached_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    net = ConvNeXt('nano')
    place = place_to_put_it(net, 'nano_in12k', 'huggingface.co/timm/convnext_nano.in12k')
    save_file(timm.create_model('convnext_nano', num_classes=0).state_dict(), place)
    load_weights(net, 'timm/convnext_nano.in12k')  # as --list shows it
    report = load_weights(net, 'nano_in12k')
    assert set(report.dropped) == {'head.norm.weight', 'head.norm.bias'}


def test_url_that_cannot_be_fetched_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    net, url = ConvNeXt('atto'), 'http://127.0.0.1:9/convnext_atto.pth'
    place = place_to_put_it(net, url, 'put it at .*checkpoints/.*convnext_atto.pth')
    torch.save(dict(model=net.state_dict()), place)
    load_weights(net, url)
    # another host's file of the same name is another file
    refused(url.replace('127.0.0.1', 'localhost'), 'could not fetch')


def test_presets_are_those_of_timm():
    """Every preset that timm has too has its repository or URL, licence, resolution, mean and std
    there, and fits the network that timm builds for it."""
    known = {}
    for name in timm.list_pretrained('convnext*'):
        cfg = timm.get_pretrained_cfg(name)
        known |= {cfg.hf_hub_id: cfg, cfg.url: cfg}
    compared, matched = 0, set()
    for name, preset in PRESETS.items():
        cfg = known.get(preset.source)
        if cfg is None:
            assert preset.layout == 'torchvision' or re.fullmatch(r'\w+_in1k(_384)?', name), name
            continue
        compared += 1
        assert np.allclose(np.array(cfg.mean) * 255, preset.mean), name
        assert np.allclose(np.array(cfg.std) * 255, preset.std), name
        assert cfg.input_size[1] == preset.resolution, name
        if preset.licence != 'MIT':  # timm names its own licence for copies of official V1 files
            licences = [text.lower().replace(' ', '-') for text in (cfg.license, preset.licence)]
            assert licences[0] == licences[1], name
        if cfg.architecture not in matched:
            with torch.device('meta'):
                peer = timm.create_model(cfg.architecture, num_classes=0)
                match(ConvNeXt(preset.arch), peer.state_dict())
            matched.add(cfg.architecture)
    assert compared > 50 and len(matched) >= 18


@pytest.mark.parametrize(
    'init_cfg',
    [
        dict(type='TruncNormal'),
        dict(type='Pretrained', checkpoint='x', prefix='y'),
        dict(type='Pretrained'),
        [dict(type='Pretrained', checkpoint='x')],
    ],
)
def test_init_cfg_that_would_be_ignored_is_refused(init_cfg):
    with pytest.raises(ConfigError, match='init_cfg is None or'):
        ConvNeXt('atto', init_cfg=init_cfg).init_weights()


def whole_model(backbone, prefix='backbone.'):
    return prefixed(prefix, backbone) | {
        'neck.lateral_convs.0.conv.weight': torch.randn(8, 40, 1, 1),
        'bbox_head.fc_cls.bias': torch.randn(81),
    }


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('arch', ['atto', 'v2_atto'])
@pytest.mark.parametrize('to', ['official', 'timm', 'torchvision', 'transformers', 'mmpretrain'])
def test_whole_models_there_and_back_to_the_bit(arch, to, suffix, tmp_path):
    if to == 'torchvision' and arch == 'v2_atto':
        with pytest.raises(WeightsError, match='torchvision has no place for stages.0.0.grn.gamma'):
            convert(ConvNeXt(arch).state_dict(), to)
        return
    model = whole_model(randomise(ConvNeXt(arch)).state_dict())
    save(convert(model, to), tmp_path / f'theirs{suffix}')
    there = convert(tmp_path / f'theirs{suffix}', to)
    assert there.layout == to and len(there.kept) == 2 and not there.dropped
    save(convert(tmp_path / f'theirs{suffix}'), tmp_path / f'back{suffix}')
    back = convert(tmp_path / f'back{suffix}').tensors
    assert set(back) == set(model) and same(back, model)
    if suffix == '.pth':  # as MMEngine and mmdet read it
        assert set(torch.load(tmp_path / 'back.pth', weights_only=True)) == {'state_dict', 'meta'}


def test_conversion_keeps_a_classifiers_head_and_names_the_tensors_that_it_drops():
    _, state = official_classifier()
    as_timm = convert(dict(model=state), 'timm')
    peer = timm.create_model('convnext_atto', num_classes=10)
    peer.load_state_dict(as_timm.tensors)  # strict
    clip = prefixed('visual.trunk.', peer.state_dict()) | dict(logit_scale=torch.ones(()))
    assert convert(clip).dropped == {'logit_scale': 'outside of visual.trunk'}
    tensors = convert(whole_model(state, 'module.backbone.')).tensors
    assert tensors.keys() == prefixed('backbone.', state).keys()


@pytest.mark.parametrize(
    'meta',
    [
        dict(dataset_meta=dict(classes=('cat', 'dog'), palette=[(1, 2, 3), (4, 5, 6)])),
        dict(CLASSES=['cat', 'dog'], PALETTE=[[1, 2, 3], [4, 5, 6]], config='model = ...'),
    ],
)
def test_conversion_keeps_the_names_of_the_classes(meta, tmp_path):
    model = whole_model(ConvNeXt('atto').state_dict())
    checkpoint = dict(state_dict=model, meta=meta | dict(hooks=ConfigDict(a=1)))
    torch.save(checkpoint, tmp_path / 'theirs.pth')
    save(convert(tmp_path / 'theirs.pth'), tmp_path / 'ours.pth')
    written = torch.load(tmp_path / 'ours.pth', weights_only=True)['meta']
    classes = dict(classes=('cat', 'dog'), palette=[[1, 2, 3], [4, 5, 6]])
    assert written == dict(dataset_meta=classes)


STEM, FIRST = 'downsample_layers.0.0.weight', 'stages.0.0.dwconv.weight'


@pytest.mark.parametrize(
    'change, message',
    [
        (without('stages.1.0.gamma'), 'missing: stages.1.0.gamma'),
        (extended(surprise=torch.zeros(1)), 'surprise'),
        (without('norm2.bias'), 'norm2.bias'),
        (lambda state: {'layer1.0.conv1.weight': torch.zeros(1)}, 'no ConvNeXt'),
        (without(STEM), 'stem and four stages'),
        (extended(**{STEM: torch.ones(8)}), 'stem and four stages'),
        (extended(**{STEM: torch.ones(40, 0, 4, 4)}), 'stem and four stages'),
        (extended(**{FIRST: torch.ones(0, 1, 7, 7)}), 'stem and four stages'),
        (extended(**{FIRST: torch.ones(1).expand(2**50, 1, 7, 7)}), 'expected 65536 or fewer'),
        (extended(**{'stages.3.0.gamma': torch.arange(320)}), 'not of a floating-point type'),
        (lambda state: ConvNeXt('atto', out_indices=(0, 1)).state_dict(), 'stem and four stages'),
    ],
)
def test_conversion_refuses_sources_that_are_no_whole_convnext(change, message):
    with pytest.raises(WeightsError, match=message):
        convert(change(ConvNeXt('atto').state_dict()))


def test_conversion_refuses_targets_that_cannot_be_written(tmp_path):
    state = ConvNeXt('atto').state_dict()
    conversion = convert(state)
    with pytest.raises(WeightsError, match="unknown layout 'tensorflow'"):
        convert(state, 'tensorflow')
    reserved = convert(prefixed('backbone.', state) | {'__metadata__': torch.ones(1)})
    save(conversion, tmp_path / 'exists.pth')
    for refused_conversion, name, message in (
        (conversion, 'a' * 300 + '.pth', 'could not be written'),
        (reserved, 'reserved.safetensors', 'could not be written'),
        (conversion, 'no folder/out.pth', 'could not be written'),
        (conversion, 'out.bin', 'ends in .pth or .safetensors'),
        (conversion, 'exists.pth', 'not overwritten'),
    ):
        with pytest.raises(WeightsError, match=message):
            save(refused_conversion, tmp_path / name)


def test_full_disk_leaves_no_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        for name in ('out.pth', 'out.safetensors'):
            with pytest.raises(WeightsError, match='could not be written'):
                save(convert(ConvNeXt('atto').state_dict()), tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_convert_weights_command(tmp_path, capsys):
    """It converts a file, describes one, or lists every preset."""
    source, target = tmp_path / 'mine.pth', tmp_path / 'theirs.safetensors'
    torch.save(dict(state_dict=whole_model(ConvNeXt('v2_atto').state_dict())), source)
    convert_weights([str(source), str(target), '--to', 'timm'])
    printed = capsys.readouterr().out
    maps = "official, ConvNeXt 'v2_atto', whose maps have 40, 80, 160, 320 channels"
    assert f'{maps}: 144 tensors of the backbone, 2 of neck' in printed
    assert 'backbone.stages.0.blocks.0.conv_dw.weight' in convert(target, 'timm').tensors
    convert_weights([str(target)])
    printed = capsys.readouterr().out
    assert printed.startswith("timm, ConvNeXt 'v2_atto'")
    assert 'backbone.stages.0.0.dwconv.weight (40, 1, 7, 7) float32' in printed
    convert_weights(['--list'])
    rows = capsys.readouterr().out.splitlines()[1:]
    assert len(rows) == len(PRESETS)
    for row, (name, preset) in zip(rows, PRESETS.items()):
        assert row.split()[0] == name and preset.licence in row and preset.source in row


def test_a_backbone_alone_is_one_for_timm():
    """Without prefix, neck and heads; timm's names but for the output norms."""
    model = whole_model(ConvNeXt('v2_atto').state_dict())
    alone = convert(model, 'timm', backbone_only=True)
    assert set(alone.dropped.values()) == {'outside of backbone'}
    tensors = {name: t for name, t in alone.tensors.items() if not name.startswith('norm')}
    peer = timm.create_model('convnextv2_atto', num_classes=0)
    result = peer.load_state_dict(tensors, strict=False)
    assert result.missing_keys == ['head.norm.weight', 'head.norm.bias']
    assert not result.unexpected_keys


def test_mistakes_in_the_convert_weights_command_are_said(tmp_path, exits):
    tool = ROOT / 'tools/convert_weights.py'
    assert 'WeightsError: no weights at' in exits(tool, tmp_path / 'absent.pth')
    assert 'SOURCE is missing' in exits(tool)
    assert 'ends in .pth or .safetensors' in exits(tool, 'tiny_in1k', 'out.bin')


def test_a_preset_of_another_architecture_is_not_fetched(monkeypatch):
    monkeypatch.setattr(downloading, 'fetch', lambda *_: pytest.fail('it was fetched'))
    for checkpoint in ('tiny_in1k', PRESETS['tiny_in1k'].source):
        net = ConvNeXt('atto', init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
        message = "tiny_in1k was not fetched: .*'tiny', this network is 'atto'"
        with pytest.raises(WeightsError, match=message):
            net.init_weights()
