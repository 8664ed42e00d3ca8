"""Thousands of damaged and malicious files: each is refused, or loaded whole. Never in part, and nothing is executed."""

import hashlib
import os
import pickle
import random
import signal
import string
import sys
from collections import Counter

import pytest
import torch
from safetensors.torch import save as safetensors_bytes

from conftest import randomise
from convnext_dense import ConvNeXt, WeightsError, load_weights
from convnext_dense.weights import presets, reading
from convnext_dense.weights.layouts import LAYOUTS, SPARSE, to_theirs

ARCH = dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
TIME_LIMIT = 20  # seconds; a case takes milliseconds
WATCHED = (
    'os.system',
    'os.exec',
    'os.posix_spawn',
    'os.fork',
    'subprocess.Popen',
    'socket.connect',
    'shutil.rmtree',
)
executed = []
armed = False
sys.addaudithook(lambda event, args: executed.append(event) if armed and event in WATCHED else None)


class Bench:
    """Loads one case after another into the same network and files what came of each."""

    def __init__(self, folder, generation=1):
        self.source = randomise(ConvNeXt(dict(ARCH, generation=generation))).state_dict()
        self.net = ConvNeXt(dict(ARCH, generation=generation))
        self.before = {name: value.clone() for name, value in self.net.state_dict().items()}
        self.path, self.counts, self.random = folder / 'case.bin', Counter(), random.Random(0)

    def load(self, source):
        """'refused', 'whole' (bit for bit), or 'other values'; fails on anything else."""
        global armed
        own = self.net.state_dict()
        signal.alarm(TIME_LIMIT)
        armed = True
        try:
            report = load_weights(self.net, source)
        except WeightsError:
            assert all(torch.equal(value, self.before[name]) for name, value in own.items()), (
                'refused, but changed'
            )
            return 'refused'
        finally:
            armed = False
            signal.alarm(0)
        assert set(report.loaded) == set(own), 'loaded in part'
        whole = all(torch.equal(value, self.source[name]) for name, value in own.items())
        self.net.load_state_dict(self.before)
        return 'whole' if whole else 'other values'

    def check(self, kind, source, allowed):
        if isinstance(source, (bytes, bytearray)):
            self.path.write_bytes(source)
            source = self.path
        outcome = self.load(source)
        self.counts[kind, outcome] += 1
        assert outcome in allowed, f'{kind}: {outcome}'
        assert not executed, f'{kind}: {executed}'


@pytest.fixture
def bench(tmp_path, capsys):
    def too_long(*_):
        raise TimeoutError('a case hangs')

    before = signal.signal(signal.SIGALRM, too_long)
    bench = Bench(tmp_path)
    yield bench
    signal.signal(signal.SIGALRM, before)
    with capsys.disabled():
        for (kind, outcome), count in sorted(bench.counts.items()):
            print(f'\n  {kind:<40} {outcome:<12} {count:>5}', end='')


def written(state, kind, folder):
    if kind == 'safetensors':
        return safetensors_bytes(state)
    torch.save(
        dict(model=state), folder / 'written.pth', _use_new_zipfile_serialization=kind == 'zip'
    )
    return (folder / 'written.pth').read_bytes()


def payload_start(content, kind, state):
    """Where the tensors' bytes begin; before it stand names, shapes and types."""
    if kind == 'safetensors':
        return 8 + int.from_bytes(content[:8], 'little')
    return len(content) - sum(
        8 + 4 * value.numel() for value in state.values()
    )  # legacy: each after its size


def flipped(content, position, rng):
    damaged = bytearray(content)
    damaged[position] ^= 1 << rng.randrange(8)
    return damaged


def test_flipped_bits(bench, tmp_path):
    for kind in ('zip', 'legacy', 'safetensors'):
        content = written(bench.source, kind, tmp_path)
        bench.check(f'{kind}: undamaged', content, ['whole'])
        start = 0 if kind == 'zip' else payload_start(content, kind, bench.source)
        if kind == 'zip':
            for position in bench.random.sample(range(len(content)), 1500):
                bench.check(
                    'zip: flipped bit anywhere',
                    flipped(content, position, bench.random),
                    ['refused'],
                )
            continue
        for _ in range(300):
            damaged = flipped(content, bench.random.randrange(start), bench.random)
            # what tells nothing of a tensor (the location 'cpu', metadata) may be damaged without a trace
            bench.check(f'{kind}: flipped bit before the tensors', damaged, ['refused', 'whole'])
        for _ in range(100):
            damaged = flipped(content, bench.random.randrange(start, len(content)), bench.random)
            bench.check(
                f'{kind}: flipped bit in a tensor, no hash', damaged, ['refused', 'other values']
            )


def test_flipped_bits_of_a_file_with_a_known_hash(bench, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    for kind in ('legacy', 'safetensors'):
        content = written(bench.source, kind, tmp_path)
        url = f'http://127.0.0.1:9/weights-{hashlib.sha256(content).hexdigest()[:16]}.bin'
        with pytest.raises(WeightsError, match='put it at') as refused:
            load_weights(bench.net, url)
        cached = str(refused.value).partition('put it at ')[2].split(',')[0]
        for i in range(101):
            with open(cached, 'wb') as file:
                file.write(
                    content
                    if i == 0
                    else flipped(content, bench.random.randrange(len(content)), bench.random)
                )
            bench.check(
                f'{kind}: flipped bit, known hash' if i else f'{kind}: undamaged',
                url,
                ['refused'] if i else ['whole'],
            )
    assert presets.published_sha256(url)


def test_cut_short_or_with_something_behind(bench, tmp_path):
    for kind in ('zip', 'legacy', 'safetensors'):
        content = written(bench.source, kind, tmp_path)
        for _ in range(60):
            bench.check(
                f'{kind}: cut short', content[: bench.random.randrange(len(content))], ['refused']
            )
            bench.check(
                f'{kind}: bytes behind the end',
                content + bench.random.randbytes(bench.random.randrange(1, 40)),
                ['refused'],
            )
            start, length = bench.random.randrange(len(content)), bench.random.randrange(1, 200)
            bench.check(
                f'{kind}: a stretch missing',
                content[:start] + content[start + length :],
                ['refused'],
            )


def renamed(state, name, rng):
    position = rng.randrange(len(name))
    other = rng.choice(
        [c for c in string.ascii_letters + string.digits + '._' if c != name[position]]
    )
    changed = name[:position] + other + name[position + 1 :]
    return (
        {changed if key == name else key: value for key, value in state.items()}
        if changed not in state
        else {}
    )


def reshaped(value, rng):
    forms = [
        value.flatten()[:-1],
        torch.cat([value, value]),
        value[None, None, None, None],
        value.flatten()[:1],
    ]
    forms += [value.flatten()] if value.squeeze().dim() > 1 else []
    forms += [value.transpose(0, 1)] if value.dim() > 1 and value.shape[0] != value.shape[1] else []
    return rng.choice(forms)


def test_names_shapes_and_types(bench, tmp_path):
    rng = bench.random
    types = (torch.int64, torch.bool, torch.complex64, torch.uint8)
    for layout in LAYOUTS:
        if layout is SPARSE:  # has no way back to its names; test_layouts.py reads it
            continue
        state, without_place = to_theirs(bench.source, layout)
        assert not without_place
        bench.check('names: undamaged', state, ['whole'])
        for _ in range(25):
            name = rng.choice(list(state))
            if layout.name == 'torchvision':
                odd = {k.replace('features.3.', 'features.2.'): v for k, v in state.items()}
                bench.check('names: one changed', odd, ['refused'])
            bench.check('names: one changed', renamed(state, name, rng), ['refused'])
            bench.check(
                'names: one missing', {k: v for k, v in state.items() if k != name}, ['refused']
            )
            extra = ''.join(rng.choices(string.ascii_lowercase + '.', k=rng.randrange(1, 20)))
            bench.check('names: one too many', dict(state, **{extra: torch.zeros(3)}), ['refused'])
            bench.check(
                'shapes: one changed',
                dict(state, **{name: reshaped(state[name], rng)}),
                ['refused'],
            )
            bench.check(
                'types: one changed',
                dict(state, **{name: state[name].to(rng.choice(types))}),
                ['refused'],
            )
            other = rng.choice(
                [float('nan'), float('inf'), None, 'text', [1], {'a': torch.ones(1)}]
            )
            if isinstance(other, float):
                other = (
                    state[name]
                    .flatten()
                    .index_fill(0, torch.tensor([0]), other)
                    .reshape(state[name].shape)
                )
            bench.check(
                'values: one not finite, or no tensor', dict(state, **{name: other}), ['refused']
            )
            pieces = rng.sample(list(state), rng.randrange(1, len(state)))
            bench.check(
                'names: several missing',
                {k: v for k, v in state.items() if k in pieces},
                ['refused'],
            )


def test_wrappers(bench, tmp_path):
    rng = bench.random
    for _ in range(150):
        content, depth = dict(bench.source), rng.randrange(1, 9)
        for _ in range(depth):
            content = {
                rng.choice(
                    ['model', 'state_dict', 'model_state_dict', 'weights', 'ema', 0, None]
                ): content
            }
        bench.check('wrappers: known and unknown ones, nested', content, ['refused', 'whole'])
        torch.save(content, bench.path)
        bench.check('wrappers: the same in a file', bench.path, ['refused', 'whole'])
    loop = {}
    loop['model'] = loop
    bench.check('wrappers: a dict in itself', loop, ['refused'])


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def protocol_0(function, argument):
    return f'c{function}\n(S{argument!r}\ntR.'.encode()


def test_malicious_pickles(bench, tmp_path):
    sentinel = tmp_path / 'executed'
    command = f'touch {sentinel}'
    calls = [
        Call(os.system, command),
        Call(os.mkdir, str(sentinel)),
        Call(open, str(sentinel), 'w'),
        Call(eval, f'open({str(sentinel)!r}, "w")'),
        Call(exec, f'open({str(sentinel)!r}, "w")'),
        Call(__import__, 'antigravity'),
        Call(getattr, 'os', 'system'),
        Call(torch.load, str(sentinel)),
        Call(torch.hub.load, 'a/b', 'c'),
        Call(map, os.system, [command]),
        Call(__import__('subprocess').Popen, command),
        Call(pickle.loads, pickle.dumps(Call(os.system, command))),
    ]
    for call in calls:
        for place in (
            lambda s: dict(model=s, epoch=call),
            lambda s: dict(model=dict(s, extra=call)),
            lambda s: call,
            lambda s: dict(model=call),
            lambda s: {call: s, 'model': s},
            lambda s: dict(model=dict(s, **{'stages.0.0.gamma': call})),
            lambda s: [call, s],
        ):
            for zipped in (True, False):
                torch.save(place(bench.source), bench.path, _use_new_zipfile_serialization=zipped)
                bench.check('malicious: a call in a .pth', bench.path, ['refused', 'whole'])
        bench.check('malicious: a bare pickle', pickle.dumps(call), ['refused'])
    legacy = written(bench.source, 'legacy', tmp_path)
    magic = len(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2))
    harmful = {
        'a call before the version': protocol_0('posix\nsystem', command),
        'a memo index of four billion': b'\x80\x02Nr\xff\xff\xff\xff.',
        'a byte array of an exabyte': b'\x80\x05\x96' + (10**18).to_bytes(8, 'little') + b'.',
        'a string of an exabyte': b'\x80\x04\x8d' + (10**18).to_bytes(8, 'little') + b'.',
        'a class by number': b'\x80\x02\x82\x01.',
        'tuples doubled a hundred times as a key': b'\x80\x02}' + b')' + b'2\x86' * 100 + b'Ns.',
        'lists doubled a hundred times': b'\x80\x02]' + b'2\x862\x86' * 50 + b'.',
        'pops of nothing': b'\x80\x020000.',
        'a loop of memos': b'\x80\x02]q\x00h\x00a.',
        'a deep nest': b'\x80\x02' + b'(' * 100_000 + b't' * 100_000 + b'.',
        'attributes of a placeholder': b'\x80\x02cos\nsystem\n(tR}(X\x07\x00\x00\x00__doc__cos\nsystem\nub.',
        'an instruction that is none': b'\x80\x02\xfe.',
    }
    storage = b'(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x08tQq\x000'
    rebuild = b'ctorch._utils\n_rebuild_tensor_v2\nq\x010K\0q\x020'

    def tensors_in_tensors(depth, width):
        return (
            storage
            + rebuild
            + (b'h\x01(h\0' + b'h\x02' * width + b'tRq\x020') * depth
            + b'}h\x02Ns.'
        )

    harmful.update(
        {
            'tensors nested a hundred thousand deep as a key': b'\x80\x02'
            + tensors_in_tensors(100_000, 1),
            'tensors each thrice the one before as a key': b'\x80\x02' + tensors_in_tensors(60, 3),
            'an attribute of a doubled tuple': b'\x80\x02)'
            + b'2\x86' * 60
            + b'q\x050K\x01\x85}X\x06\0\0\0originh\x05sb.',
            'copies of a dict': b'\x80\x02ccollections\nOrderedDict\nq\x00}q\x01('
            + b''.join(b'K%cN' % i for i in range(200))
            + b'u'
            + b'0h\x00h\x01\x85R' * 1000
            + b'.',
            'defaults of a function': b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\0\0\0__defaults__K\x01\x85s\x86b.',
        }
    )
    for what, program in harmful.items():
        bench.check(
            'malicious: harmful instructions',
            legacy[:magic] + program + legacy[magic:],
            ['refused'],
        )
        torch.save(dict(model=bench.source), bench.path)
        bench.check('malicious: harmful instructions', program, ['refused'])
    assert not sentinel.exists()
    assert reading._Tensor.__init__.__defaults__ == (None,) * 4 and 'origin' not in vars(
        reading._Tuple
    )


def test_random_bytes(bench):
    starts = [
        b'',
        b'PK\x03\x04',
        b'\x80\x02',
        pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2),
        (100).to_bytes(8, 'little') + b'{"',
    ]
    for _ in range(40):
        for start in starts:
            bench.check(
                'random bytes',
                start + bench.random.randbytes(bench.random.randrange(300)),
                ['refused'],
            )
