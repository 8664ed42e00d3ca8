"""Files of weights, read without executing anything in them.

A .pth file is a pickle: a program that may call any function. Here it is run by an unpickler that
knows tensors and plain containers and nothing else: it notes down where a tensor's data are, and
every other class or function that the file names becomes an inert ``Placeholder``.
``torch.load`` is not used: besides weights it runs TorchScript, unpacks tar archives and writes
patch files.
"""

import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import WeightsError
from .zipcheck import check_zip

# Keys under which training scripts keep the weights
WRAPPERS = ('state_dict', 'model', 'model_state_dict')
LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # how files of torch before 1.6 begin
DTYPES = {
    'torch.DoubleStorage': torch.float64,
    'torch.FloatStorage': torch.float32,
    'torch.HalfStorage': torch.float16,
    'torch.BFloat16Storage': torch.bfloat16,
    'torch.LongStorage': torch.int64,
    'torch.IntStorage': torch.int32,
    'torch.ShortStorage': torch.int16,
    'torch.CharStorage': torch.int8,
    'torch.ByteStorage': torch.uint8,
    'torch.BoolStorage': torch.bool,
    'torch.ComplexFloatStorage': torch.complex64,
    'torch.ComplexDoubleStorage': torch.complex128,
}


class _Inert:
    """Accepts whatever arguments, items and state a file gives it, and does nothing with them.

    Neither instances nor the classes themselves get attributes from a file. All are hashed by
    identity: the hash of a nested structure may take for ever.
    """

    __slots__ = ()

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def _ignore(self, *args):
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore


class Placeholder(_Inert):
    """Stands for any class or function that is not known here."""

    __slots__ = ()
    origin = 'an object'


class _PlainDict(dict):
    """Stands for OrderedDict. torch fills it item by item, after it was made without arguments.

    It takes none: a file could ask for thousands of copies of a large dict in a few bytes.
    """

    __slots__ = ()

    def __init__(self):
        pass

    def __setstate__(self, state=None):
        pass


class _Storage(_Inert):
    """The elements of one or more tensors, which have not been read yet."""

    __slots__ = ('dtype', 'key', 'numel')

    def __init__(self, dtype: torch.dtype, key: str, numel: int):
        self.dtype, self.key, self.numel = dtype, key, numel

    @property
    def nbytes(self) -> int:
        return self.numel * torch.empty(0, dtype=self.dtype).element_size()


class _Tensor(_Inert):
    """A tensor of the file that has not been read yet: those of optimiser states never are."""

    __slots__ = ('storage', 'offset', 'shape', 'strides')

    def __init__(self, storage=None, offset=None, shape=None, strides=None, *rest):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def lay_over(self, elements: Tensor, dense: bool) -> Tensor:
        """The tensor, as a view of the elements (1-D) of its storage.

        Raises:
            ValueError: shape, strides and offset do not fit the elements; or, if ``dense``, some
                elements are not in the tensor, or are in it more than once.
        """
        numbers = (self.offset, *self.shape, *self.strides)
        natural = all(type(number) is int and number >= 0 for number in numbers)
        if len(self.shape) != len(self.strides) or not natural:
            raise ValueError('a tensor has a shape or strides that are not possible')
        if 0 in self.shape:
            return elements.new_empty(self.shape)
        steps = sorted((stride, n) for stride, n in zip(self.strides, self.shape) if n != 1)
        if self.offset + sum(stride * (n - 1) for stride, n in steps) >= len(elements):
            raise ValueError('a tensor does not fit its data')
        expected = 1
        for stride, n in steps:
            if dense and stride != expected:
                raise ValueError(
                    'a tensor is a view of a part of its data, or its strides are damaged'
                )
            expected *= n
        return elements.as_strided(tuple(self.shape), tuple(self.strides), self.offset)


class _Parameter(_Inert):
    """Stands for torch's functions that make a parameter of a tensor; gives the tensor itself."""

    __slots__ = ()

    def __new__(cls, data=None, *rest):
        return data


class _Tuple(tuple):
    """A tuple that is hashed by identity, as ``_Inert`` is."""

    __slots__ = ()
    __hash__ = object.__hash__


def _hashed_by_identity(load: Callable) -> Callable:
    """``load`` is an unpickler's instruction that puts a tuple onto its stack."""

    def load_tuple(self):
        load(self)
        self.stack[-1] = _Tuple(self.stack[-1])

    return load_tuple


# Python's, not the C one, which allocates as much memory as any memo index in a damaged file says.
class _Unpickler(pickle._Unpickler):
    dispatch = dict(pickle._Unpickler.dispatch)
    del dispatch[pickle.BYTEARRAY8[0]]  # allocates what it says too; torch.save never writes it
    for instruction in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
        dispatch[instruction[0]] = _hashed_by_identity(dispatch[instruction[0]])

    def __init__(self, file):
        super().__init__(file, encoding='utf-8')
        self.storages: dict[str, _Storage] = {}
        self.known: dict[tuple[str, str], type] = {
            ('collections', 'OrderedDict'): _PlainDict,
            ('torch._utils', '_rebuild_tensor_v2'): _Tensor,
            ('torch._utils', '_rebuild_parameter'): _Parameter,
            ('torch._utils', '_rebuild_parameter_with_state'): _Parameter,
        }

    def find_class(self, module, name):
        """Gives no class or function of Python's: ours for those known, else a placeholder."""
        if (module, name) not in self.known:
            attributes = dict(__slots__=(), origin=f'{module}.{name}')
            self.known[module, name] = type('Placeholder', (Placeholder,), attributes)
        return self.known[module, name]

    def get_extension(self, code):
        raise pickle.UnpicklingError('it names a class by number')

    def persistent_load(self, reference):
        """A storage: ('storage', class, key, device, number of elements, view). No other object."""
        if reference[0] != 'storage' or len(reference) > 5 and reference[5] is not None:
            return Placeholder  # the class, since modules of old files are instantiated
        kind, key, _, numel = reference[1:5]
        known = isinstance(kind, type) and issubclass(kind, Placeholder) and kind.origin in DTYPES
        if not known or type(key) not in (str, int) or type(numel) is not int or numel < 0:
            return Placeholder
        return self.storages.setdefault(str(key), _Storage(DTYPES[kind.origin], str(key), numel))


def read(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Read a .pth (a zip, or from before torch 1.6) or safetensors file.

    Of a training checkpoint only what is under ``state_dict``, ``model`` or ``model_state_dict`` is
    read.

    Returns:
        Names and tensors of the weights; and the names and colours of the classes (``classes``,
        ``palette``), where a checkpoint of the MMEngine family has them.

    Raises:
        WeightsError: there is no such file, it is something else, it is damaged, or there are no
            weights in it.
    """
    try:
        if path.exists() and not path.is_file():
            raise WeightsError(
                f'{path} cannot be read: it is no file; of a folder name the file in it, '
                'model.safetensors or so'
            )
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
        raise WeightsError(
            f'no weights at {path.absolute()}: expected a path, a URL or a preset'
        ) from None
    except OSError as error:
        raise WeightsError(f'{path} cannot be read: {error}') from None
    except WeightsError:
        raise
    except Exception as error:  # whatever the instructions of a damaged file may raise
        line = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise WeightsError(
            f'{path} is damaged or cut short ({line}): it has {os.path.getsize(path):,} bytes. '
            'Copy or fetch it again and compare the sizes, or take an earlier checkpoint. If it '
            'was not written by torch.save or safetensors, write it with one of them'
        ) from None


def find_weights(content: object, where: str) -> dict[str, Any]:
    """The dict of names and tensors inside whatever a training script has wrapped around it.

    Args:
        where: name of the source in messages.

    Raises:
        WeightsError: there is none.
    """
    keys: list[str] = []
    while isinstance(content, Mapping) and len(keys) < 5:
        wrappers = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not wrappers:
            break
        keys.append(wrappers[0])
        content = content[wrappers[0]]
    place = f'{where}, under {".".join(keys)},' if keys else where
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise WeightsError(
            f'{place} holds {_kind(content)}, expected a dict of names and tensors. '
            'Of a module that was saved whole save state_dict() instead'
        )
    others = [
        f'{name} ({_kind(value)})' for name, value in content.items() if not _is_plain_tensor(value)
    ]
    if others:
        raise WeightsError(
            f'{place} holds entries that are no tensors: {", ".join(others[:3])}. '
            f'Weights are looked for at the top level and under {", ".join(WRAPPERS)}'
        )
    return dict(content)


def _read_classes(content: object) -> dict:
    """MMEngine keeps them in ``meta.dataset_meta``, its predecessors in capitals in ``meta``."""
    for key in ('meta', 'dataset_meta'):
        content = content.get(key, content) if isinstance(content, dict) else {}
    lists = {
        name.lower(): value
        for name, value in (content.items() if isinstance(content, dict) else ())
        if isinstance(name, str) and isinstance(value, (list, tuple))
    }
    names, colours = lists.get('classes', ()), lists.get('palette', ())
    classes: dict[str, Any] = {}
    if names and all(type(name) is str for name in names):
        classes['classes'] = tuple(names)
    if colours and all(
        isinstance(colour, (list, tuple)) and all(type(value) is int for value in colour)
        for colour in colours
    ):
        classes['palette'] = [list(colour) for colour in colours]
    return classes


def _read_zip(path: Path, file: BufferedReader) -> tuple[dict[str, Tensor], dict]:
    """A record ``data.pkl`` with the content, and one for the data of each storage."""
    with zipfile.ZipFile(file) as archive:
        if any(name.endswith('constants.pkl') for name in archive.namelist()):
            raise WeightsError(
                f'{path} is a TorchScript program, which is not run here: save its state_dict'
            )
        places = check_zip(file, archive)
        pickles = [name for name in places if name.rpartition('/')[2] == 'data.pkl']
        if len(pickles) != 1:
            raise WeightsError(f'{path} is a zip archive, but not one of torch.save')
        root = pickles[0].removesuffix('data.pkl')
        if f'{root}byteorder' in places and archive.read(f'{root}byteorder') != b'little':
            raise WeightsError(
                f'{path} was written on a big-endian machine; save it again on another'
            )
        with archive.open(pickles[0]) as pickled:
            content = _Unpickler(pickled).load()
    weights = find_weights(content, str(path))
    # Sliced and expanded tensors are allowed: a checksum vouches for their strides.
    tensors = _tensors(weights, file, lambda key: places[f'{root}data/{key}'], dense=False)
    return tensors, _read_classes(content)


def _read_legacy(path: Path, file: BufferedReader) -> tuple[dict[str, Tensor], dict]:
    """Five pickles (magic number, version, machine, content, keys of storages), then the data."""
    file.seek(0)
    unpicklers = [_Unpickler(file) for _ in range(5)]
    _, version, machine, content, keys = (unpickler.load() for unpickler in unpicklers)
    if version != 1001 or machine['little_endian'] is not True:
        raise ValueError('it is of an unknown version or machine')
    weights = find_weights(content, str(path))
    storages = unpicklers[3].storages
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        (numel,) = struct.unpack('<q', file.read(8))
        if type(key) not in (str, int) or str(key) in places:
            raise ValueError('the keys of its storages are damaged')
        storage = storages[str(key)]
        if numel != storage.numel:
            raise ValueError(f'storage {storage.key} has another size than announced')
        places[storage.key] = file.tell(), storage.nbytes
        file.seek(storage.nbytes, 1)
    if file.tell() != path.stat().st_size:
        raise EOFError('its end is missing')
    return _tensors(weights, file, places.__getitem__, dense=True), _read_classes(content)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _tensors(
    weights: Mapping[str, _Tensor],
    file: BufferedReader,
    place: Callable[[str], tuple[int, int]],
    dense: bool,
) -> dict[str, Tensor]:
    """Read the storages that ``weights`` refer to, each once, and lay the tensors over them.

    Args:
        place: key of a storage -> where its data begin in ``file``, and their length in bytes.
        dense: as ``_Tensor.lay_over``.
    """
    elements: dict[_Storage, Tensor] = {}
    tensors = {}
    for name, tensor in weights.items():
        storage, short = tensor.storage, name[:200]
        if storage not in elements:
            start, length = place(storage.key)
            if length != storage.nbytes:
                raise ValueError(f'the data of {short} have another size than announced')
            content = bytearray(length)
            file.seek(start)
            if file.readinto(content) != length:
                raise EOFError(f'the data of {short} end early')
            empty = torch.empty(0, dtype=storage.dtype)  # frombuffer refuses an empty buffer
            elements[storage] = torch.frombuffer(content, dtype=storage.dtype) if length else empty
        try:
            tensors[name] = tensor.lay_over(elements[storage], dense)
        except ValueError as error:
            raise ValueError(f'{short}: {error}') from None
    return tensors


def _is_plain_tensor(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.layout is torch.strided and not value.is_quantized and not value.is_nested
    return (
        isinstance(value, _Tensor)
        and isinstance(value.storage, _Storage)
        and isinstance(value.shape, tuple)
        and isinstance(value.strides, tuple)
    )


def _kind(value: object) -> str:
    return value.origin if isinstance(value, Placeholder) else f'a {type(value).__name__}'


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
