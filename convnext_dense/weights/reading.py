"""Files of weights, read without executing anything in them.

A .pth file is a pickle, which may call any function. Here it is read by an unpickler that knows how to note down
tensors and plain containers and nothing else: every other class that the file names becomes an inert ``Placeholder``.
``torch.load`` is not used: besides weights it runs TorchScript, unpacks tar archives and writes patch files.
"""
import math
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Dict, Mapping, NamedTuple, Tuple

import torch
from torch import Tensor

from ..errors import WeightsError

WRAPPERS = ('state_dict', 'model', 'model_state_dict')  # keys under which training scripts keep the weights
LEGACY = pickle.dumps(0x1950a86a20f9469cfc6c, protocol=2)  # how files of torch before 1.6 begin
DTYPES = {
    'DoubleStorage': torch.float64, 'FloatStorage': torch.float32, 'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16, 'LongStorage': torch.int64, 'IntStorage': torch.int32,
    'ShortStorage': torch.int16, 'CharStorage': torch.int8, 'ByteStorage': torch.uint8, 'BoolStorage': torch.bool,
}


class Placeholder:
    """Stands for any class or function that a file names: takes what it is called or filled with, and does nothing."""

    origin = 'an object'

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def _ignore(self, *args):
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore


class _PlainDict(dict):
    """What an OrderedDict is read as. Attributes that a file wants to set on it are ignored."""

    def __setstate__(self, state):
        pass


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str
    numel: int


class _Tensor(NamedTuple):
    """A tensor of the file that has not been read yet: optimiser states never are."""
    storage: _Storage
    offset: int
    shape: Tuple[int, ...]
    strides: Tuple[int, ...]


def _note_tensor(storage=None, offset=None, shape=None, strides=None, *rest):
    return _Tensor(storage, offset, shape, strides) if isinstance(storage, _Storage) else Placeholder()


class _Tuple(tuple):
    """Hashed by identity: the hash of nested tuples, each twice the one before, would never end."""
    __hash__ = object.__hash__


class _Unpickler(pickle._Unpickler):  # Python's: the C one allocates whatever memo index a damaged file names
    allowed = {
        ('collections', 'OrderedDict'): _PlainDict,
        ('torch._utils', '_rebuild_tensor_v2'): _note_tensor,
        ('torch._utils', '_rebuild_parameter'): lambda data=None, *rest: data,
    }

    dispatch = dict(pickle._Unpickler.dispatch)
    del dispatch[pickle.BYTEARRAY8[0]]  # likewise; torch.save never writes it

    def __init__(self, file):
        super().__init__(file, encoding='utf-8')
        self.storages = {}

    def find_class(self, module, name):
        return self.allowed.get((module, name)) or type('Placeholder', (Placeholder,), dict(origin=f'{module}.{name}'))

    def get_extension(self, code):
        raise pickle.UnpicklingError('it names a class by number')

    def persistent_load(self, reference):
        if reference[0] != 'storage' or len(reference) > 5 and reference[5] is not None:
            return Placeholder  # the class, since modules of old files are instantiated
        kind, key, _, numel = reference[1:5]
        dtype = DTYPES.get(getattr(kind, 'origin', '').rpartition('.')[2])
        return self.storages.setdefault(str(key), _Storage(dtype, str(key), numel)) if dtype else Placeholder

    def _identity_hash(load):
        def load_tuple(self):
            load(self)
            self.stack[-1] = _Tuple(self.stack[-1])
        return load_tuple

    for code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
        dispatch[code[0]] = _identity_hash(dispatch[code[0]])


def read(path: Path) -> Tuple[Dict[str, Tensor], dict]:
    """Path of a .pth (zip, or from before torch 1.6) or safetensors file -> name and tensor of its weights, and the
    names and colours of its classes (``classes``, ``palette``) where a checkpoint of the MMEngine family has them.

    Of a training checkpoint only what is under ``state_dict``, ``model`` or ``model_state_dict`` is read.

    Raises:
        WeightsError: there is no such file, it is something else, it is damaged, or there are no weights in it.
    """
    try:
        with open(path, 'rb') as file:
            head = file.read(200)
            if head.startswith(b'PK\x03\x04'):
                return _read_zip(path, file)
            if head.startswith(LEGACY):
                return _read_legacy(path, file)
        if head[8:9] == b'{':
            return find_weights(_read_safetensors(path), str(path)), {}
        raise WeightsError(f'{path} is no file of weights: it is {_looks_like(head)}')
    except FileNotFoundError:
        raise WeightsError(f'no weights at {path.absolute()}: expected a path, a URL or a preset') from None
    except OSError as error:
        raise WeightsError(f'{path} cannot be read: {error}') from None


def find_weights(content: object, where: str) -> Dict[str, Tensor]:
    """The dict of names and tensors inside whatever a training script has wrapped around it."""
    path = []
    while isinstance(content, Mapping) and len(path) < 5:
        inside = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inside:
            break
        path += inside[:1]
        content = content[inside[0]]
    inside = f'{where}, under {".".join(path)},' if path else where
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise WeightsError(f'{inside} holds {_kind(content)}, expected a dict of names and tensors')
    others = [f'{name} ({_kind(value)})' for name, value in content.items() if not isinstance(value, (Tensor, _Tensor))]
    if others:
        raise WeightsError(f'{inside} holds entries that are no tensors: {", ".join(others[:3])}. Weights are looked for '
                           f'at the top level and under {", ".join(WRAPPERS)}')
    return dict(content)


def _classes(content):
    """MMEngine keeps them in ``meta.dataset_meta``, its predecessors in capitals in ``meta``."""
    meta = content.get('meta') if isinstance(content, dict) else None
    meta = meta.get('dataset_meta', meta) if isinstance(meta, dict) else None
    classes, palette = ([value for name, value in meta.items() if str(name).lower() == wanted
                         and isinstance(value, (list, tuple))] if isinstance(meta, dict) else []
                        for wanted in ('classes', 'palette'))
    found = {}
    if classes and all(type(name) is str for name in classes[0]):
        found['classes'] = tuple(classes[0])
    if palette and all(isinstance(row, (list, tuple)) and all(type(value) is int for value in row) for row in palette[0]):
        found['palette'] = [list(row) for row in palette[0]]
    return found


def _read_zip(path, file):
    try:
        with zipfile.ZipFile(file) as archive:
            if any(name.endswith('constants.pkl') for name in archive.namelist()):
                raise WeightsError(f'{path} is a TorchScript program, which is not run here: save its state_dict')
            places = _check_zip(file, archive)
            pickles = [name for name in places if name.rpartition('/')[2] == 'data.pkl']
            if len(pickles) != 1:
                raise WeightsError(f'{path} is a zip archive, but not one of torch.save')
            root = pickles[0][:-len('data.pkl')]
            if f'{root}byteorder' in places and archive.read(f'{root}byteorder') != b'little':
                raise WeightsError(f'{path} was written on a big-endian machine; save it again on another')
            with archive.open(pickles[0]) as pickled:
                content = _Unpickler(pickled).load()
            weights = find_weights(content, str(path))
        return _tensors(weights, file, lambda storage: places[f'{root}data/{storage.key}']), _classes(content)
    except (WeightsError, OSError):
        raise
    except Exception as error:  # there is no end to what damage turns instructions into
        raise _damaged(path, error) from None


def _read_legacy(path, file):
    """Four pickles (magic number, version, machine, content), the keys of the storages as a fifth, then their data."""
    file.seek(0)
    try:
        unpicklers = [_Unpickler(file) for _ in range(5)]
        _, version, machine, content, keys = (unpickler.load() for unpickler in unpicklers)
        if version != 1001 or machine['little_endian'] is not True:
            raise ValueError('it is of an unknown version or machine')
        weights = find_weights(content, str(path))
        storages, places = unpicklers[3].storages, {}
        for key in keys:
            numel, = struct.unpack('<q', file.read(8))
            storage = storages[str(key)]
            if numel != storage.numel or str(key) in places:
                raise ValueError(f'storage {key} has another size than announced')
            places[str(key)] = file.tell(), numel * _itemsize(storage.dtype)
            file.seek(places[str(key)][1], 1)
        if file.tell() != path.stat().st_size:
            raise EOFError('its end is missing')
        return _tensors(weights, file, lambda storage: places[storage.key]), _classes(content)
    except (WeightsError, OSError):
        raise
    except Exception as error:
        raise _damaged(path, error) from None


def _read_safetensors(path):
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise WeightsError(f'{path} needs a package: pip install safetensors') from None
    try:
        return load_file(path)
    except OSError:
        raise
    except Exception as error:
        raise _damaged(path, error) from None


def _tensors(weights, file, place):
    """Read the storages that ``weights`` refer to, each once, and lay the tensors over them.

    ``place(storage)`` is where its data begin in ``file``, and their length in bytes.
    """
    storages, tensors = {}, {}
    for name, noted in weights.items():
        storage, offset, shape, strides = noted
        if storage not in storages:
            start, length = place(storage)
            if length != storage.numel * _itemsize(storage.dtype):
                raise ValueError(f'the data of {name} have another size than announced')
            content = bytearray(length)
            file.seek(start)
            if file.readinto(content) != length:
                raise EOFError(f'the data of {name} end early')
            storages[storage] = (torch.frombuffer(content, dtype=storage.dtype) if content
                                 else torch.empty(0, dtype=storage.dtype))
        # Each element once: a damaged stride would read the wrong ones, within bounds and unseen.
        expected = 1
        for stride, size in sorted((stride, size) for stride, size in zip(strides, shape) if size != 1):
            if stride != expected or size < 0:
                raise ValueError(f'{name} has strides that make no sense')
            expected *= size
        if len(strides) != len(shape) or offset + math.prod(shape) > storage.numel:
            raise ValueError(f'{name} does not fit its data')
        tensors[name] = storages[storage].as_strided(shape, strides, offset)
    return tensors


def _check_zip(file, archive):
    """Every byte of a zip that torch.save wrote, so that no flipped bit passes and no two readers disagree on it.
    Returns for each record where its data begin, and their length.

    Checksums cover what the records hold. Of the headers around them each field either follows from the others or is
    the same in all records, and padding is made of the letter Z.
    """
    def check(holds, what):
        if not holds:
            raise zipfile.BadZipFile(f'{what}; not as torch.save writes it')

    records = archive.infolist()
    check(len({record.filename for record in records}) == len(records), 'two records have one name')
    check(not any(record.compress_type or record.compress_size != record.file_size for record in records),
          'a record is compressed')
    broken = archive.testzip()
    check(broken is None, f'the checksum of {broken} is wrong')
    position, shared, places = 0, set(), {}
    for record in records:
        file.seek(position)
        magic, version, flags, method, time, date, crc, packed, size, name_size, extra_size = struct.unpack(
            '<4s5H3I2H', file.read(30))
        name, extra = file.read(name_size), file.read(extra_size)
        check(magic == b'PK\x03\x04' and record.header_offset == position, 'records do not follow one another')
        check(name == record.orig_filename.encode() and _is_padding(extra) and _is_padding(record.extra),
              f'the headers of {record.filename} differ')
        places[record.filename] = position + 30 + name_size + extra_size, record.file_size
        position = sum(places[record.filename])
        sizes = (record.CRC, record.file_size, record.file_size)
        if flags & 8:  # checksum and sizes stand behind the data, in 32 or 64 bit
            check((crc, packed, size) == (0, 0, 0), f'the header of {record.filename} is wrong')
            file.seek(position)
            behind, expected = file.read(24), struct.pack('<4sIQQ', b'PK\x07\x08', *sizes)
            if behind != expected:
                expected = struct.pack('<4s3I', b'PK\x07\x08', *(size & 0xffffffff for size in sizes))
            check(behind.startswith(expected), f'the checksum behind {record.filename} is wrong')
            position += len(expected)
        else:
            check(crc == record.CRC and packed == size == min(record.file_size, 0xffffffff),
                  f'the header of {record.filename} is wrong')
        check((version, flags, method) == (record.extract_version, record.flag_bits, 0),
              f'the headers of {record.filename} differ')
        shared.add((version, flags, time, date, record.create_version, record.create_system, record.internal_attr,
                    record.external_attr, record.volume, record.reserved))
    check(len(shared) == 1, 'headers differ where all should agree')

    directory = b''.join(
        struct.pack('<4s4B4H3I5H2I', b'PK\x01\x02', record.create_version, record.create_system, record.extract_version,
                    record.reserved, record.flag_bits, 0, time, date, record.CRC, *[min(record.file_size, 0xffffffff)] * 2,
                    len(record.orig_filename.encode()), len(record.extra), 0, record.volume, record.internal_attr,
                    record.external_attr, min(record.header_offset, 0xffffffff))
        + record.orig_filename.encode() + record.extra for record in records)
    length = len(directory)
    count = len(records)
    end = struct.pack('<4s4H2IH', b'PK\x05\x06', 0, 0, min(count, 0xffff), min(count, 0xffff),
                      min(length, 0xffffffff), min(position, 0xffffffff), 0)
    wide = (struct.pack('<4sQ2H2I4Q', b'PK\x06\x06', 44, 0x31e, 0x2d, 0, 0, count, count, length, position)
            + struct.pack('<4sIQI', b'PK\x06\x07', 0, position + length, 1))
    file.seek(position)
    check(file.read(length + 200) in (directory + end, directory + wide + end), 'its directory is wrong')
    return places


def _is_padding(extra):
    """Extra fields of a header: torch's padding to an alignment (FB), and zip's own for sizes beyond 4 GiB (1)."""
    while extra:
        kind, size = struct.unpack('<2sH', extra[:4])
        field, extra = extra[4:4 + size], extra[4 + size:]
        if len(field) < size or not (kind == b'FB' and not field.strip(b'Z') or kind == b'\x01\x00'):
            return False
    return True


def _itemsize(dtype):
    return torch.empty(0, dtype=dtype).element_size()


def _damaged(path, error):
    line = (str(error) or type(error).__name__).splitlines()[0][:200]
    return WeightsError(f'{path} is damaged or cut short ({line}). If it was fetched, fetch it again; if it was not '
                        'written by torch.save or safetensors, write it with one of them')


def _kind(value):
    return getattr(value, 'origin', None) or f'a {type(value).__name__}'


def _looks_like(head: bytes) -> str:
    if not head:
        return 'empty'
    if head.startswith(b'version https://git-lfs'):
        return 'a Git LFS pointer: the file itself has to be fetched with git lfs pull'
    if head.lstrip().startswith(b'<'):
        return 'an HTML page, such as a server sends in place of a file that it does not have'
    if head.startswith(b'\x80'):
        return 'a pickle that torch.save did not write'
    if head.isascii():
        return f'text that starts {head[:40].decode()!r}'
    return 'neither safetensors nor a zip or legacy file of torch.save'
