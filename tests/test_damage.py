"""Thousands of damaged and malicious files: each is refused or loaded whole, never in part.

Nothing in them is executed. Run alone, the tests print how often which damage was refused.
"""

import hashlib
import io
import os
import pickle
import random
import signal
import string
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as safetensors_bytes

from conftest import randomise
from convnext_dense import ConvNeXt, WeightsError, load_weights
from convnext_dense.weights import reading
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


class Hang(BaseException):
    """A case takes too long. No Exception, which the reader of files turns into a WeightsError."""


class Bench:
    """Loads one case after another into the same network and counts the outcomes."""

    def __init__(self, folder, generation=1):
        self.source = randomise(ConvNeXt(dict(ARCH, generation=generation))).state_dict()
        self.net = ConvNeXt(dict(ARCH, generation=generation))
        self.before = {name: value.clone() for name, value in self.net.state_dict().items()}
        self.path, self.counts, self.random = folder / 'case.bin', Counter(), random.Random(0)

    def load(self, source):
        """'refused', 'whole' (bit for bit), or 'other values'; fails on anything else."""
        global armed
        loaded = self.net.state_dict()
        signal.alarm(TIME_LIMIT)
        armed = True
        try:
            report = load_weights(self.net, source)
        except WeightsError:
            assert same(loaded, self.before), 'refused, but changed'
            return 'refused'
        finally:
            armed = False
            signal.alarm(0)
        assert set(report.loaded) == set(loaded), 'loaded in part'
        whole = same(loaded, self.source)
        self.net.load_state_dict(self.before)
        return 'whole' if whole else 'other values'

    def check(self, kind, source, *allowed):
        """Load a file's content, a path, URL or state dict; fails if no outcome in ``allowed``."""
        if isinstance(source, (bytes, bytearray)):
            self.path.write_bytes(source)
            source = self.path
        outcome = self.load(source)
        self.counts[kind, outcome] += 1
        assert outcome in allowed, f'{kind}: {outcome}'
        assert not executed, f'{kind}: {executed}'


def same(state, expected):
    return all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


@pytest.fixture
def bench(tmp_path, capsys):
    def too_long(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, too_long)
    bench = Bench(tmp_path)
    yield bench
    signal.signal(signal.SIGALRM, before)
    with capsys.disabled():
        for (kind, outcome), count in sorted(bench.counts.items()):
            print(f'\n  {kind:<40} {outcome:<12} {count:>5}', end='')


def written(state, kind):
    """The content of a file of one of three kinds."""
    if kind == 'safetensors':
        return safetensors_bytes(state)
    file = io.BytesIO()
    torch.save(dict(model=state), file, _use_new_zipfile_serialization=kind == 'zip')
    return file.getvalue()


def payload_start(content, kind, state):
    """Where the tensors' bytes begin; names, shapes and types stand before it."""
    if kind == 'safetensors':
        return 8 + int.from_bytes(content[:8], 'little')
    sizes = [8 + 4 * tensor.numel() for tensor in state.values()]  # legacy: each after its size
    return len(content) - sum(sizes)


def flipped(content, position, rng):
    damaged = bytearray(content)
    damaged[position] ^= 1 << rng.randrange(8)
    return damaged


def test_flipped_bits(bench):
    """In a zip each is noticed. In other files those in a tensor's values are not, nor those in
    bytes that tell nothing of a tensor (the location 'cpu', metadata)."""
    for kind in ('zip', 'legacy', 'safetensors'):
        content = written(bench.source, kind)
        bench.check(f'{kind}: undamaged', content, 'whole')
        if kind == 'zip':
            for position in bench.random.sample(range(len(content)), 1500):
                damaged = flipped(content, position, bench.random)
                bench.check('zip: flipped bit anywhere', damaged, 'refused')
            continue
        start = payload_start(content, kind, bench.source)
        for _ in range(300):
            damaged = flipped(content, bench.random.randrange(start), bench.random)
            bench.check(f'{kind}: flipped bit before the tensors', damaged, 'refused', 'whole')
        for _ in range(100):
            damaged = flipped(content, bench.random.randrange(start, len(content)), bench.random)
            kind_of_damage = f'{kind}: flipped bit in a tensor, no hash'
            bench.check(kind_of_damage, damaged, 'refused', 'other values')


def test_flipped_bits_of_a_file_with_a_known_hash(bench, tmp_path, monkeypatch):
    """Each is noticed."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    for kind in ('legacy', 'safetensors'):
        content = written(bench.source, kind)
        digits = hashlib.sha256(content).hexdigest()[:16]
        url = f'http://127.0.0.1:9/weights-{digits}.bin'
        with pytest.raises(WeightsError, match='put it at') as refused:
            load_weights(bench.net, url)
        place = Path(str(refused.value).partition('put it at ')[2].split(',')[0])
        place.write_bytes(content)
        bench.check(f'{kind}: undamaged', url, 'whole')
        for _ in range(100):
            position = bench.random.randrange(len(content))
            place.write_bytes(flipped(content, position, bench.random))
            bench.check(f'{kind}: flipped bit, known hash', url, 'refused')


def test_cut_short_or_with_something_behind(bench):
    for kind in ('zip', 'legacy', 'safetensors'):
        content = written(bench.source, kind)
        for _ in range(60):
            cut = content[: bench.random.randrange(len(content))]
            bench.check(f'{kind}: cut short', cut, 'refused')
            longer = content + bench.random.randbytes(bench.random.randrange(1, 40))
            bench.check(f'{kind}: bytes behind the end', longer, 'refused')
            start, length = bench.random.randrange(len(content)), bench.random.randrange(1, 200)
            gap = content[:start] + content[start + length :]
            bench.check(f'{kind}: a stretch missing', gap, 'refused')


def renamed(state, name, rng):
    """``state`` with a letter of ``name`` changed; empty where this gives another of its names."""
    position = rng.randrange(len(name))
    letters = string.ascii_letters + string.digits + '._'
    letter = rng.choice([letter for letter in letters if letter != name[position]])
    changed = name[:position] + letter + name[position + 1 :]
    if changed in state:
        return {}
    return {changed if key == name else key: tensor for key, tensor in state.items()}


def reshaped(tensor, rng):
    forms = [
        tensor.flatten()[:-1],
        torch.cat([tensor, tensor]),
        tensor[None, None, None, None],
        tensor.flatten()[:1],
    ]
    forms += [tensor.flatten()] if tensor.squeeze().dim() > 1 else []
    square = tensor.dim() < 2 or tensor.shape[0] == tensor.shape[1]
    forms += [] if square else [tensor.transpose(0, 1)]
    return rng.choice(forms)


def broken(tensor, rng):
    """Not finite in its first value, or no tensor."""
    value = rng.choice([float('nan'), float('inf'), None, 'text', [1], {'a': torch.ones(1)}])
    if not isinstance(value, float):
        return value
    changed = tensor.clone()
    changed.view(-1)[0] = value
    return changed


def test_names_shapes_types_and_values(bench):
    rng = bench.random
    types = (torch.int64, torch.bool, torch.complex64, torch.uint8)
    for layout in LAYOUTS:
        if layout is SPARSE:  # has no way back to its names; test_layouts.py reads it
            continue
        state, without_place = to_theirs(bench.source, layout)
        state = {name: tensor.contiguous() for name, tensor in state.items()}
        assert not without_place
        bench.check('names: undamaged', state, 'whole')
        if layout.name == 'torchvision':
            odd = {name.replace('features.3.', 'features.2.'): t for name, t in state.items()}
            bench.check('names: one changed', odd, 'refused')
        for _ in range(25):
            name = rng.choice(list(state))
            tensor = state[name]
            missing = {key: other for key, other in state.items() if key != name}
            extra = ''.join(rng.choices(string.ascii_lowercase + '.', k=rng.randrange(1, 20)))
            some = rng.sample(list(state), rng.randrange(1, len(state)))
            for kind, damaged in (
                ('names: one changed', renamed(state, name, rng)),
                ('names: one missing', missing),
                ('names: one too many', state | {extra: torch.zeros(3)}),
                ('shapes: one changed', state | {name: reshaped(tensor, rng)}),
                ('types: one changed', state | {name: tensor.to(rng.choice(types))}),
                ('values: one not finite, or no tensor', state | {name: broken(tensor, rng)}),
                ('names: several missing', {key: state[key] for key in some}),
            ):
                bench.check(kind, damaged, 'refused')


def test_wrappers(bench):
    """Known keys are looked into, others are not; whatever is loaded is whole."""
    keys = ['model', 'state_dict', 'model_state_dict', 'weights', 'ema', 0, None]
    for _ in range(150):
        content = dict(bench.source)
        for _ in range(bench.random.randrange(1, 9)):
            content = {bench.random.choice(keys): content}
        bench.check('wrappers: known and unknown ones, nested', content, 'refused', 'whole')
        torch.save(content, bench.path)
        bench.check('wrappers: the same in a file', bench.path, 'refused', 'whole')
    loop = {}
    loop['model'] = loop
    bench.check('wrappers: a dict in itself', loop, 'refused')


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def calls(command, sentinel):
    """Objects that create the file ``sentinel``, or do other harm, if they are unpickled."""
    opened = f'open({str(sentinel)!r}, "w")'
    return [
        Call(os.system, command),
        Call(os.mkdir, str(sentinel)),
        Call(open, str(sentinel), 'w'),
        Call(eval, opened),
        Call(exec, opened),
        Call(__import__, 'antigravity'),
        Call(getattr, 'os', 'system'),
        Call(torch.load, str(sentinel)),
        Call(torch.hub.load, 'a/b', 'c'),
        Call(map, os.system, [command]),
        Call(subprocess.Popen, command),
        Call(pickle.loads, pickle.dumps(Call(os.system, command))),
    ]


# Where in a file a call may stand: state dict, call -> content
PLACES = (
    lambda state, call: dict(model=state, epoch=call),
    lambda state, call: dict(model=state | dict(extra=call)),
    lambda state, call: call,
    lambda state, call: dict(model=call),
    lambda state, call: {call: state, 'model': state},
    lambda state, call: dict(model=state | {'stages.0.0.gamma': call}),
    lambda state, call: [call, state],
)


def test_calls_in_pickles_are_not_executed(bench, tmp_path):
    """Files with calls beside the weights are loaded whole, all others refused."""
    sentinel = tmp_path / 'executed'
    for call in calls(f'touch {sentinel}', sentinel):
        for place in PLACES:
            for zipped in (True, False):
                content = place(bench.source, call)
                torch.save(content, bench.path, _use_new_zipfile_serialization=zipped)
                bench.check('malicious: a call in a .pth', bench.path, 'refused', 'whole')
        bench.check('malicious: a bare pickle', pickle.dumps(call), 'refused')
    assert not sentinel.exists()


EXABYTE = (10**18).to_bytes(8, 'little')
STORAGE = b'(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x08tQq\x000'
REBUILD = b'ctorch._utils\n_rebuild_tensor_v2\n'


def tensors_in_tensors(depth, width):
    """A tensor that is made of ``width`` tensors, ``depth`` times, as the key of a dict."""
    nested = b'h\x01(h\0' + b'h\x02' * width + b'tRq\x020'
    return b'\x80\x02' + STORAGE + REBUILD + b'q\x010K\0q\x020' + nested * depth + b'}h\x02Ns.'


HARMFUL = {  # pickles by hand
    'a memo index of four billion': b'\x80\x02Nr\xff\xff\xff\xff.',
    'a byte array of an exabyte': b'\x80\x05\x96' + EXABYTE + b'.',
    'a string of an exabyte': b'\x80\x04\x8d' + EXABYTE + b'.',
    'a class by number': b'\x80\x02\x82\x01.',
    'tuples doubled a hundred times as a key': b'\x80\x02}' + b')' + b'2\x86' * 100 + b'Ns.',
    'lists doubled a hundred times': b'\x80\x02]' + b'2\x862\x86' * 50 + b'.',
    'pops of nothing': b'\x80\x020000.',
    'a loop of memos': b'\x80\x02]q\x00h\x00a.',
    'a deep nest': b'\x80\x02' + b'(' * 100_000 + b't' * 100_000 + b'.',
    'attributes of a placeholder': (
        b'\x80\x02cos\nsystem\n(tR}(X\x07\x00\x00\x00__doc__cos\nsystem\nub.'
    ),
    'an instruction that is none': b'\x80\x02\xfe.',
    'tensors nested a hundred thousand deep as a key': tensors_in_tensors(100_000, 1),
    'tensors each thrice the one before as a key': tensors_in_tensors(60, 3),
    'an attribute of a doubled tuple': (
        b'\x80\x02)' + b'2\x86' * 60 + b'q\x050K\x01\x85}X\x06\0\0\0originh\x05sb.'
    ),
    'copies of a dict': (
        b'\x80\x02ccollections\nOrderedDict\nq\x00}q\x01('
        + b''.join(b'K%cN' % i for i in range(200))
        + b'u'
        + b'0h\x00h\x01\x85R' * 1000
        + b'.'
    ),
    'defaults of a function': (
        b'\x80\x02' + REBUILD + b'N}X\x0c\0\0\0__defaults__K\x01\x85s\x86b.'
    ),
}


def attributes_of_the_reader():
    """Every attribute of the reader's classes, and the defaults of their methods."""
    classes = [value for value in vars(reading).values() if isinstance(value, type)]
    attributes = {
        (cls, name): value
        for cls in classes
        if cls.__module__ == reading.__name__
        for name, value in vars(cls).items()
    }
    defaults = [getattr(value, '__defaults__', None) for value in attributes.values()]
    return attributes, defaults


def test_harmful_instructions_are_refused(bench, tmp_path):
    """They call functions, exhaust memory or time, or set attributes of the reader's classes."""
    sentinel, before = tmp_path / 'executed', attributes_of_the_reader()
    call = f"cposix\nsystem\n(S'touch {sentinel}'\ntR.".encode()
    legacy = written(bench.source, 'legacy')
    magic = len(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2))
    for program in (call, *HARMFUL.values()):
        spliced = legacy[:magic] + program + legacy[magic:]
        bench.check('malicious: harmful instructions', spliced, 'refused')
        bench.check('malicious: harmful instructions', program, 'refused')
    assert not sentinel.exists()
    assert attributes_of_the_reader() == before


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
            content = start + bench.random.randbytes(bench.random.randrange(300))
            bench.check('random bytes', content, 'refused')
