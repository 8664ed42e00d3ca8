"""Weights: loaded to the bit, or refused. test_layouts.py has the names of each library, test_damage.py damaged files."""

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

from conftest import ROOT, randomise, run
from convnext_dense import PRESETS, ConfigError, ConvNeXt, WeightsError, load_weights
from convnext_dense.weights import convert, presets, save
from convnext_dense.weights.loading import match
from convnext_dense.weights.reading import read


def official_classifier(arch='atto', width=320):
    """What the official files hold: the trunk and the classifier, under ``model``."""
    trunk = ConvNeXt(arch, out_norm=False)
    state = {name: torch.randn_like(value) for name, value in trunk.state_dict().items()}
    return state, dict(
        state,
        **{
            'norm.weight': torch.ones(width),
            'norm.bias': torch.zeros(width),
            'head.weight': torch.zeros(10, width),
            'head.bias': torch.zeros(10),
        },
    )


def test_official_classifier_through_init_cfg(tmp_path):
    trunk, state = official_classifier()
    torch.save(dict(model=state), tmp_path / 'official.pth')

    class Detector(BaseModule):
        def __init__(self):
            super().__init__()
            self.backbone = ConvNeXt(
                'atto', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'official.pth'))
            )

    detector = Detector()
    before = list(detector.backbone.parameters())
    detector.init_weights()
    own = detector.backbone.state_dict()
    assert all(torch.equal(own[name], value) for name, value in trunk.items())
    assert torch.equal(own['norm3.weight'], torch.ones(320))  # the classifier's norm is not norm3
    assert all(
        a is b for a, b in zip(before, detector.backbone.parameters())
    )  # the optimiser holds these
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
    assert {name.split('.')[0] for name in report.left_as_initialised} == {
        'norm0',
        'norm1',
        'norm2',
        'norm3',
    }


@pytest.mark.parametrize('prefix', ['backbone.', 'module.backbone.'])
def test_backbone_of_a_whole_detector(prefix, tmp_path):
    source = ConvNeXt('atto')
    state = {
        f'{prefix}{name}': torch.randn_like(value) for name, value in source.state_dict().items()
    }
    torch.save(
        dict(
            state_dict=dict(state, **{'rpn_head.rpn_cls.bias': torch.zeros(3)}), meta=dict(epoch=36)
        ),
        tmp_path / 'detector.pth',
    )
    net = ConvNeXt('atto')
    report = load_weights(net, tmp_path / 'detector.pth')
    assert all(
        torch.equal(value, state[f'{prefix}{name}']) for name, value in net.state_dict().items()
    )
    assert not report.left_as_initialised and prefix in report.layout


def test_stages_after_the_last_that_is_emitted_are_dropped():
    trunk, state = official_classifier()
    net = ConvNeXt('atto', out_indices=(0, 1))
    report = load_weights(net, state)
    own = net.state_dict()
    assert all(torch.equal(own[name], trunk[name]) for name in report.loaded)
    assert {name for name in report.dropped if name in trunk} == {
        name
        for name in trunk
        if name.startswith(('stages.2', 'stages.3', 'downsample_layers.2', 'downsample_layers.3'))
    }


def test_norms_of_stages_that_are_not_emitted_are_dropped():
    report = load_weights(ConvNeXt('atto', out_indices=(1, 2, 3)), ConvNeXt('atto').state_dict())
    assert set(report.dropped) == {'norm0.weight', 'norm0.bias'}


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


def with_nan(state):
    state['stages.0.0.gamma'][3] = float('nan')
    return state


@pytest.mark.parametrize(
    'damage, message',
    [
        (without('stages.1.0.gamma'), 'missing: stages.1.0.gamma'),
        (without('norm2.bias'), 'missing: norm2.bias'),
        (lambda state: dict(state, surprise=torch.zeros(1)), 'unknown: surprise'),
        (with_nan, 'not finite'),
        (lambda state: ConvNeXt('femto').state_dict(), 'of another shape'),
        (lambda state: ConvNeXt('nano').state_dict(), 'unknown: stages.2.6'),
        (lambda state: dict(state, epoch=3), r'no tensors: epoch \(a int\)'),
        (lambda state: {0: state}, 'expected a dict of names'),
        (lambda state: {}, 'no ConvNeXt'),
        (lambda state: {'conv1.weight': torch.zeros(1)}, 'another backbone.*conv1.weight'),
        (
            lambda state: ConvNeXt('small').state_dict(),
            "is a ConvNeXt 'small', this network is 'atto'",
        ),
        (
            lambda state: ConvNeXt('v2_atto').state_dict(),
            "is a ConvNeXt 'v2_atto', this network is 'atto'",
        ),
        (lambda state: timm.create_model('convnext_atto_ols').state_dict(), 'overlapping stem'),
        (
            lambda state: timm.create_model('convnext_zepto_rms').state_dict(),
            'is a ConvNeXt V1 with depths',
        ),
        (lambda state: timm.create_model('convnext_atto_rms').state_dict(), 'norms without bias'),
        (lambda state: timm.create_model('edgenext_small').state_dict(), 'timm'),
        (
            lambda state: dict(
                state, **{f'teacher.{name}': value for name, value in state.items()}
            ),
            'more than one ConvNeXt',
        ),
        (
            lambda state: {
                name: value for name, value in state.items() if not name.startswith('norm0')
            },
            '(?s)norm0.*out_indices',
        ),
        (
            lambda state: {name: value.int() for name, value in state.items()},
            'not of a floating-point type',
        ),
        (lambda state: {name: value.to('meta') for name, value in state.items()}, 'meta device'),
        (
            lambda state: dict(
                state, **{'norms.3.weight': torch.zeros(3), 'projector.weight': torch.zeros(3)}
            ),
            '1 unknown: projector',
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(damage, message):
    net = ConvNeXt('atto')
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = {name: torch.randn_like(value) for name, value in before.items()}
    with pytest.raises(WeightsError, match=message):
        load_weights(net, damage(state))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


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
def test_what_is_no_file_of_weights(content, message, tmp_path):
    (tmp_path / 'file.pth').write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        load_weights(ConvNeXt('atto'), tmp_path / 'file.pth')


def test_files_that_cannot_be_read(tmp_path):
    net = ConvNeXt('atto')
    with pytest.raises(
        WeightsError, match='no weights at .*expected a path, a URL or a preset, such as tiny_in1k'
    ):
        load_weights(net, 'tiny_1k')
    with pytest.raises(WeightsError, match='cannot be read'):
        load_weights(net, tmp_path)
    torch.save(net.state_dict(), tmp_path / 'whole.pth')
    torch.save(net.state_dict(), tmp_path / 'legacy.pth', _use_new_zipfile_serialization=False)
    save_file(net.state_dict(), tmp_path / 'whole.safetensors')
    for name in ('whole.pth', 'legacy.pth', 'whole.safetensors'):
        load_weights(net, tmp_path / name)
        content = (tmp_path / name).read_bytes()
        for length in (len(content) - 1, len(content) // 2, 5000):
            (tmp_path / f'cut-{name}').write_bytes(content[:length])
            with pytest.raises(WeightsError, match='damaged or cut short'):
                load_weights(net, tmp_path / f'cut-{name}')
    torch.save(torch.zeros(3), tmp_path / 'tensor.pth')
    with pytest.raises(WeightsError, match='expected a dict of names and tensors'):
        load_weights(net, tmp_path / 'tensor.pth')
    with pytest.raises(WeightsError, match='such as model.backbone'):
        load_weights(torch.nn.ModuleDict(dict(backbone=net)), net.state_dict())
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / 'program.pth')
    with pytest.raises(WeightsError, match='TorchScript'):
        load_weights(net, tmp_path / 'program.pth')
    with pytest.raises(WeightsError, match='meta device'):
        load_weights(ConvNeXt('atto').to('meta'), net.state_dict())


@pytest.mark.parametrize('legacy', [False, True])
def test_training_checkpoints_with_objects_in_them(tmp_path, legacy):
    """What MMEngine's and the official scripts save beside the weights is neither built nor in the way."""
    source = randomise(ConvNeXt('v2_atto'))
    optimizer = torch.optim.AdamW(source.parameters())
    sum(m.sum() for m in source(torch.randn(1, 3, 32, 32))).backward()
    optimizer.step()
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save(
        dict(
            state_dict=source.state_dict(),
            meta=dict(cfg=ConfigDict(a=1), seed=np.int64(3), time=np.float64(0.5)),
            message_hub=dict(log_scalars={'loss': history}, runtime_info={(1, (2, 3)): history}),
            optimizer=optimizer.state_dict(),
            args=argparse.Namespace(lr=1),
            module=torch.nn.Linear(2, 2),
        ),
        tmp_path / 'epoch_1.pth',
        _use_new_zipfile_serialization=not legacy,
    )
    net = ConvNeXt('v2_atto')
    load_weights(net, tmp_path / 'epoch_1.pth')
    assert all(
        torch.equal(value, source.state_dict()[name]) for name, value in net.state_dict().items()
    )
    torch.save(dict(state_dict=dict(source.state_dict(), extra=history)), tmp_path / 'inside.pth')
    with pytest.raises(
        WeightsError, match=r'no tensors: extra \(mmengine.logging.history_buffer.HistoryBuffer\)'
    ):
        load_weights(net, tmp_path / 'inside.pth')


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'tests/files').iterdir()), ids=lambda path: path.name
)
def test_files_that_older_versions_of_torch_wrote(path):
    tensors, _ = read(path)
    assert {name: value.tolist() for name, value in tensors.items()} == {
        'a.weight': [[1, 2, 3]],
        'a.bias': [4],
    }


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_are_converted(dtype, tmp_path):
    state = {
        name: value.to(dtype) for name, value in randomise(ConvNeXt('atto')).state_dict().items()
    }
    state['stages.0.0.dwconv.weight'] = state['stages.0.0.dwconv.weight'].contiguous(
        memory_format=torch.channels_last
    )
    state['stages.1.0.pwconv1.weight'] = state['stages.1.0.pwconv1.weight'].T.contiguous().T
    torch.save(state, tmp_path / 'file.pth')
    net = ConvNeXt('atto')
    load_weights(net, tmp_path / 'file.pth')
    assert all(torch.equal(value, state[name].float()) for name, value in net.state_dict().items())


def test_a_source_that_shares_memory_with_the_network():
    net = randomise(ConvNeXt('atto'))
    own = net.state_dict()
    expected = {name: value.clone() for name, value in own.items()}
    swapped = dict(
        own,
        **{
            'norm0.weight': own['norm0.bias'],
            'norm0.bias': own['norm0.weight'],
            'stages.3.0.dwconv.weight': own['stages.3.0.dwconv.weight'].transpose(2, 3),
        },
    )
    load_weights(net, swapped)
    assert torch.equal(net.norm0.weight, expected['norm0.bias']) and torch.equal(
        net.norm0.bias, expected['norm0.weight']
    )
    assert torch.equal(
        own['stages.3.0.dwconv.weight'], expected['stages.3.0.dwconv.weight'].transpose(2, 3)
    )


@pytest.mark.parametrize(
    'net, value',
    [
        (ConvNeXt('atto').half(), torch.full((40,), 1e5)),
        (ConvNeXt('atto'), torch.full((40,), 1e300, dtype=torch.float64)),
    ],
)
def test_values_that_are_infinite_in_the_networks_type(net, value):
    with pytest.raises(WeightsError, match='not finite'):
        load_weights(net, dict(ConvNeXt('atto').state_dict(), **{'stages.0.0.gamma': value}))


def test_empty_sliced_and_expanded_tensors_beside_and_in_the_backbone(tmp_path):
    state = randomise(ConvNeXt('atto')).state_dict()
    wide = torch.randn(40, 80)
    state['stages.0.0.gamma'] = wide[
        :, 3
    ]  # as weight surgery leaves it: a view of something larger
    others = dict(
        empty=torch.empty(0),
        flat=torch.empty(4, 0),
        expanded=torch.ones(1).expand(5),
        sliced=wide[:, :32],
    )
    torch.save({f'backbone.{k}': v for k, v in state.items()} | others, tmp_path / 'file.pth')
    net = ConvNeXt('atto')
    load_weights(net, tmp_path / 'file.pth')
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    del others['expanded'], others['sliced']
    state['stages.0.0.gamma'] = state['stages.0.0.gamma'].contiguous()
    torch.save(
        {f'backbone.{k}': v for k, v in state.items()} | {'head.empty': torch.empty(4, 0)},
        tmp_path / 'legacy.pth',
        _use_new_zipfile_serialization=False,
    )
    load_weights(net, tmp_path / 'legacy.pth')
    torch.save(
        {f'backbone.{k}': v for k, v in state.items()} | {'head.sliced': wide[:, :32]},
        tmp_path / 'legacy.pth',
        _use_new_zipfile_serialization=False,
    )
    with pytest.raises(
        WeightsError, match='head.sliced: a tensor is a view'
    ):  # strides are not told from damaged ones
        load_weights(net, tmp_path / 'legacy.pth')


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
def test_sources_that_are_none(source):
    with pytest.raises(WeightsError):
        load_weights(ConvNeXt('atto'), source)


def test_networks_that_are_none_of_ours_and_compiled_ones():
    with pytest.raises(WeightsError, match='not a timm'):
        load_weights(timm.create_model('convnext_atto'), {})
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
def test_numbers_that_are_none_in_names(name):
    state = ConvNeXt('atto').state_dict()
    state[name] = state.pop('stages.0.0.gamma')
    with pytest.raises(WeightsError, match='1 unknown'):
        load_weights(ConvNeXt('atto'), state)


def test_norm3_alone():
    """Beside a classifier's head it is the classifier's; alone, of a backbone that emits nothing else, it is loaded."""
    deepest = randomise(ConvNeXt('atto', out_indices=(3,))).state_dict()
    assert 'norm3.weight' in load_weights(ConvNeXt('atto', out_indices=(3,)), deepest).loaded
    for net in (ConvNeXt('atto'), ConvNeXt('atto', out_indices=(2, 3))):
        report = load_weights(net, deepest)
        assert set(report.dropped) == {'norm3.weight', 'norm3.bias'} and torch.equal(
            net.norm3.weight, torch.ones(320)
        )
    for above in ('', 'module.'):
        classifier = {f'{above}backbone.{name}': value for name, value in deepest.items()}
        classifier[f'{above}head.fc.weight'] = torch.zeros(5, 320)
        net = ConvNeXt('atto', out_indices=(3,))
        report = load_weights(net, classifier)
        assert f'{above}backbone.norm3.weight' in report.dropped and torch.equal(
            net.norm3.weight, torch.ones(320)
        )


@pytest.mark.parametrize('in_channels', [1, 4, 10])
def test_stem_is_inflated_to_other_numbers_of_bands(in_channels):
    source = randomise(ConvNeXt('atto'))
    net = ConvNeXt('atto', in_channels=in_channels).eval()
    report = load_weights(net, source.state_dict())
    assert f'inflated from 3 to {in_channels} bands (mean)' in str(report)
    grey = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        expected, maps = source(grey.expand(1, 3, 64, 64)), net(grey.expand(1, in_channels, 64, 64))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(maps, expected))
    if in_channels < 3:
        with pytest.raises(WeightsError, match='keeps the 3 bands'):
            load_weights(net, source.state_dict(), inflate='zero')
        return
    net.init_cfg = dict(type='Pretrained', checkpoint=source.state_dict(), inflate='zero')
    net.init_weights()
    image = torch.randn(1, in_channels, 64, 64)
    with torch.no_grad():
        assert all(
            torch.allclose(a, b, atol=1e-4) for a, b in zip(net(image), source(image[:, :3]))
        )
    with pytest.raises(WeightsError, match="inflate is 'mean' or 'zero'"):
        load_weights(net, source.state_dict(), inflate='repeat')


def test_a_stem_of_other_than_three_bands_is_not_inflated():
    with pytest.raises(WeightsError, match='of another shape: downsample_layers.0.0.weight'):
        load_weights(ConvNeXt('atto', in_channels=4), ConvNeXt('atto', in_channels=12).state_dict())


def test_details_name_every_tensor():
    _, state = official_classifier()
    report = load_weights(ConvNeXt('atto'), state)
    assert len(str(report).splitlines()) == 1
    lines = report.details().splitlines()[1:]
    assert len(lines) == len(report.loaded) + len(report.dropped) + len(report.left_as_initialised)
    assert (
        "dropped  head.weight  (classifier's head)" in lines
        and 'left     norm0.bias  (as initialised)' in lines
    )


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
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{httpd.server_port}', tmp_path / 'served'
        httpd.shutdown()


def test_urls_are_fetched_once_and_checked_against_the_hash_in_their_name(
    server, tmp_path, monkeypatch
):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    address, folder = server
    _, state = official_classifier()
    torch.save(dict(model=state), folder / 'file.pth')
    sha256 = hashlib.sha256((folder / 'file.pth').read_bytes()).hexdigest()
    named = (folder / 'file.pth').rename(folder / f'convnext-{sha256[:8]}.pth')
    url = f'{address}/{named.name}'
    monkeypatch.setitem(PRESETS, 'mine', presets.Preset('atto', url, 'official', 'my licence'))
    assert 'norm3' in str(load_weights(ConvNeXt('atto'), 'mine'))
    named.unlink()
    load_weights(ConvNeXt('atto'), url)  # from torch.hub's folder
    cached = next((tmp_path / 'hub').rglob(f'*{named.name}'))
    content = bytearray(cached.read_bytes())
    content[len(content) // 2] ^= 1
    cached.write_bytes(content)
    with pytest.raises(WeightsError, match='published is'):
        load_weights(ConvNeXt('atto'), url)
    cached.unlink()
    (folder / named.name).write_bytes(content)  # what the server now has is not what was published
    with pytest.raises(WeightsError, match='invalid hash value'):
        load_weights(ConvNeXt('atto'), url)
    assert not cached.exists()
    with pytest.raises(WeightsError, match='404'):
        load_weights(ConvNeXt('atto'), f'{address}/absent.pth')


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
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{httpd.server_port}/weights.pth?signature={"x" * 400}'
        with pytest.raises(WeightsError, match='could not fetch.*damaged or cut short'):
            load_weights(ConvNeXt('atto'), url)
        load_weights(ConvNeXt('atto'), url)
        httpd.shutdown()
    assert len(requests) == 2


def test_dates_in_names_are_no_hashes():
    assert presets.published_sha256('https://x/convnext-20240115.pth') == ''
    assert presets.published_sha256('https://x/convnext-983f1562.pth?download=true') == '983f1562'


def test_hub_that_cannot_be_reached_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(
        WeightsError, match='huggingface.co/timm/convnext_tiny.dinov3_lvd1689m'
    ) as refused:
        load_weights(ConvNeXt('tiny'), 'tiny_dinov3')
    asked_for = re.search(r'put it at (\S+),', str(refused.value))[1]
    save_file(timm.create_model('convnext_tiny', num_classes=0).state_dict(), asked_for)
    load_weights(ConvNeXt('tiny'), 'timm/convnext_tiny.dinov3_lvd1689m')  # as --list shows it
    report = load_weights(ConvNeXt('tiny'), 'tiny_dinov3')
    assert set(report.dropped) == {'head.norm.weight', 'head.norm.bias'}


def test_presets_are_those_of_timm():
    """Every preset that timm has too has its repository or URL, licence, resolution, mean and std there."""
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
        assert np.allclose(np.array(cfg.mean) * 255, preset.mean) and np.allclose(
            np.array(cfg.std) * 255, preset.std
        )
        assert cfg.input_size[1] == preset.resolution, name
        if (
            not preset.licence == 'MIT'
        ):  # timm names its own licence for the copies of the official V1 files
            assert cfg.license.lower().replace(' ', '-') == preset.licence.lower().replace(
                ' ', '-'
            ), name
        if cfg.architecture not in matched:
            with torch.device('meta'):
                match(
                    ConvNeXt(preset.arch),
                    timm.create_model(cfg.architecture, num_classes=0).state_dict(),
                )
            matched.add(cfg.architecture)
    assert compared > 50 and len(matched) >= 18


def test_url_that_cannot_be_fetched_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    url = 'http://127.0.0.1:9/convnext_atto.pth'
    with pytest.raises(
        WeightsError, match='put it at .*checkpoints/.*convnext_atto.pth'
    ) as refused:
        load_weights(ConvNeXt('atto'), url)
    asked_for = re.search(r'put it at (\S+),', str(refused.value))[1]
    torch.save(dict(model=ConvNeXt('atto').state_dict()), asked_for)  # what the message asks for
    load_weights(ConvNeXt('atto'), url)
    with pytest.raises(
        WeightsError, match='could not fetch'
    ):  # another host's file of the same name is another file
        load_weights(ConvNeXt('atto'), url.replace('127.0.0.1', 'localhost'))


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
    return {f'{prefix}{name}': value for name, value in backbone.items()} | {
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
    assert set(back) == set(model) and all(
        torch.equal(value, back[name]) for name, value in model.items()
    )
    if suffix == '.pth':  # as MMEngine and mmdet read it
        assert set(torch.load(tmp_path / 'back.pth', weights_only=True)) == {'state_dict', 'meta'}


def test_conversion_keeps_a_classifiers_head_and_names_what_it_drops(tmp_path):
    _, state = official_classifier()
    as_timm = convert(dict(model=state), 'timm')
    peer = timm.create_model('convnext_atto', num_classes=10)
    peer.load_state_dict(as_timm.tensors)  # strict
    clip = {f'visual.trunk.{name}': value for name, value in peer.state_dict().items()} | dict(
        logit_scale=torch.ones(())
    )
    assert convert(clip).dropped == {'logit_scale': 'outside of visual.trunk'}
    assert convert(whole_model(state, 'module.backbone.')).tensors.keys() == {
        f'backbone.{name}' for name in state
    }


@pytest.mark.parametrize(
    'meta',
    [
        dict(dataset_meta=dict(classes=('cat', 'dog'), palette=[(1, 2, 3), (4, 5, 6)])),
        dict(CLASSES=['cat', 'dog'], PALETTE=[[1, 2, 3], [4, 5, 6]], config='model = ...'),
    ],
)
def test_conversion_keeps_the_names_of_the_classes(meta, tmp_path):
    torch.save(
        dict(
            state_dict=whole_model(ConvNeXt('atto').state_dict()),
            meta=dict(meta, hooks=ConfigDict(a=1)),
        ),
        tmp_path / 'theirs.pth',
    )
    save(convert(tmp_path / 'theirs.pth'), tmp_path / 'ours.pth')
    assert torch.load(tmp_path / 'ours.pth', weights_only=True)['meta'] == dict(
        dataset_meta=dict(classes=('cat', 'dog'), palette=[[1, 2, 3], [4, 5, 6]])
    )


def test_conversion_refuses(tmp_path):
    state = ConvNeXt('atto').state_dict()
    stem, first = 'downsample_layers.0.0.weight', 'stages.0.0.dwconv.weight'
    for damaged, message in (
        (without('stages.1.0.gamma')(state), 'missing: stages.1.0.gamma'),
        (dict(state, surprise=torch.zeros(1)), 'surprise'),
        (without('norm2.bias')(state), 'norm2.bias'),
        ({'layer1.0.conv1.weight': torch.zeros(1)}, 'no ConvNeXt'),
        (without(stem)(state), 'stem and four stages'),
        (dict(state, **{stem: torch.ones(8)}), 'stem and four stages'),
        (dict(state, **{stem: torch.ones(40, 0, 4, 4)}), 'stem and four stages'),
        (dict(state, **{first: torch.ones(0, 1, 7, 7)}), 'stem and four stages'),
        (dict(state, **{first: torch.ones(1).expand(2**50, 1, 7, 7)}), 'which are none'),
        (dict(state, **{'stages.3.0.gamma': torch.arange(320)}), 'not of a floating-point type'),
        (ConvNeXt('atto', out_indices=(0, 1)).state_dict(), 'stem and four stages'),
    ):
        with pytest.raises(WeightsError, match=message):
            convert(damaged)
    with pytest.raises(WeightsError, match='could not be written'):
        save(convert(state), tmp_path / ('a' * 300 + '.pth'))
    with pytest.raises(WeightsError, match='could not be written'):
        save(
            convert(
                {f'backbone.{k}': v for k, v in state.items()} | {'__metadata__': torch.ones(1)}
            ),
            tmp_path / 'm.safetensors',
        )
    with pytest.raises(WeightsError, match="unknown layout 'tensorflow'"):
        convert(state, 'tensorflow')
    conversion = convert(state)
    with pytest.raises(WeightsError, match='ends in .pth or .safetensors'):
        save(conversion, tmp_path / 'out.bin')
    with pytest.raises(WeightsError, match='could not be written'):
        save(conversion, tmp_path / 'no folder' / 'out.pth')
    save(conversion, tmp_path / 'out.pth')
    with pytest.raises(WeightsError, match='not overwritten'):
        save(conversion, tmp_path / 'out.pth')


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


def test_convert_weights_tool(tmp_path, exits):
    torch.save(
        dict(state_dict=whole_model(randomise(ConvNeXt('v2_atto')).state_dict())),
        tmp_path / 'mine.pth',
    )
    output = run(
        'tools/convert_weights.py',
        tmp_path / 'mine.pth',
        tmp_path / 'theirs.safetensors',
        '--to',
        'timm',
    )
    assert (
        "official, ConvNeXt 'v2_atto': 144 tensors of the backbone, 2 of neck and heads" in output
    )
    assert (
        'backbone.stages.0.blocks.0.conv_dw.weight'
        in convert(tmp_path / 'theirs.safetensors', 'timm').tensors
    )
    alone = convert(tmp_path / 'mine.pth', 'timm', backbone_only=True)
    timm.create_model('convnextv2_atto', num_classes=0).load_state_dict(
        {name: value for name, value in alone.tensors.items() if not name.startswith('norm')},
        strict=False,
    )
    assert {name for name in alone.tensors if not name.startswith('norm')} == {
        name
        for name in timm.create_model('convnextv2_atto', num_classes=0).state_dict()
        if not name.startswith('head')
    }
    assert {why for why in alone.dropped.values()} == {'outside of backbone'}
    listed = run('tools/convert_weights.py', '--list')
    assert all(
        name in listed and preset.licence in listed and preset.source in listed
        for name, preset in PRESETS.items()
    )
    assert 'WeightsError' in exits('tools/convert_weights.py', tmp_path / 'absent.pth')
    assert 'SOURCE is missing' in exits('tools/convert_weights.py')
    assert 'ends in .pth or .safetensors' in exits(
        'tools/convert_weights.py', 'tiny_in1k', 'out.bin'
    )


def test_a_preset_of_another_architecture_is_not_fetched(monkeypatch):
    monkeypatch.setattr(presets, 'fetch', lambda source: pytest.fail('it was fetched'))
    for checkpoint in ('tiny_in1k', PRESETS['tiny_in1k'].source):
        net = ConvNeXt('atto', init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
        with pytest.raises(
            WeightsError, match="tiny_in1k was not fetched: .*'tiny', this network is 'atto'"
        ):
            net.init_weights()
