"""Files of weights, read without executing anything in them.

A .pth file is a pickle, which may call any function. Here it is read by an unpickler that knows how to note down
tensors and plain containers and nothing else: every other class that the file names becomes an inert ``Placeholder``.
``torch.load`` is not used: besides weights it runs TorchScript, unpacks tar archives and writes patch files.
"""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import WeightsError
from .zipcheck import check_zip

WRAPPERS = (
    'state_dict',
    'model',
    'model_state_dict',
)  # keys under which training scripts keep the weights
LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # how files of torch before 1.6 begin
DTYPES = {
    f'torch.{name}Storage': dtype
    for name, dtype in (
        ('Double', torch.float64),
        ('Float', torch.float32),
        ('Half', torch.float16),
        ('BFloat16', torch.bfloat16),
        ('Long', torch.int64),
        ('Int', torch.int32),
        ('Short', torch.int16),
        ('Char', torch.int8),
        ('Byte', torch.uint8),
        ('Bool', torch.bool),
        ('ComplexFloat', torch.complex64),
        ('ComplexDouble', torch.complex128),
    )
}


class _Inert:
    """Takes what a file calls it with or fills it with, and does nothing. Neither instances nor the classes themselves
    get attributes from a file, and all are hashed by identity: the hash of a structure may take for ever."""

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
    """What an OrderedDict is read as."""

    __slots__ = ()

    def __init__(
        self,
    ):  # torch fills it item by item; a copy of a large one costs a file next to nothing
        pass

    def __setstate__(self, state=None):
        pass


class _Storage(_Inert):
    __slots__ = ('dtype', 'key', 'numel')

    def __init__(self, dtype, key, numel):
        self.dtype, self.key, self.numel = dtype, key, numel

    @property
    def nbytes(self):
        return self.numel * torch.empty(0, dtype=self.dtype).element_size()


class _Tensor(_Inert):
    """A tensor of the file that has not been read yet: optimiser states never are."""

    __slots__ = ('storage', 'offset', 'shape', 'strides')

    def __init__(self, storage=None, offset=None, shape=None, strides=None, *rest):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def lay_over(self, elements: Tensor, dense: bool) -> Tensor:
        """The tensor over its storage's elements. Raises ValueError where it does not fit them, or is not ``dense``:
        each element once, in whatever order."""
        numbers = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or not all(
            type(n) is int and n >= 0 for n in numbers
        ):
            raise ValueError('a tensor has a shape that is none')
        steps = sorted(
            (stride, size) for stride, size in zip(self.strides, self.shape) if size != 1
        )
        if 0 in self.shape:
            return elements.new_empty(self.shape)
        if self.offset + sum(stride * (size - 1) for stride, size in steps) >= len(elements):
            raise ValueError('a tensor does not fit its data')
        expected = 1
        for stride, size in steps:
            if dense and stride != expected:
                raise ValueError(
                    'a tensor is a view of a part of its data, or its strides are damaged'
                )
            expected *= size
        return elements.as_strided(tuple(self.shape), tuple(self.strides), self.offset)


class _Parameter(_Inert):
    """Gives the tensor that it is called with."""

    __slots__ = ()

    def __new__(cls, data=None, *rest):
        return data


class _Tuple(tuple):
    __slots__ = ()
    __hash__ = object.__hash__


class _Unpickler(
    pickle._Unpickler
):  # Python's: the C one allocates whatever memo index a damaged file names
    dispatch = dict(pickle._Unpickler.dispatch)
    del dispatch[pickle.BYTEARRAY8[0]]  # likewise; torch.save never writes it

    def __init__(self, file):
        super().__init__(file, encoding='utf-8')
        self.storages = {}
        self.known = {
            ('collections', 'OrderedDict'): _PlainDict,
            ('torch._utils', '_rebuild_tensor_v2'): _Tensor,
            ('torch._utils', '_rebuild_parameter'): _Parameter,
            ('torch._utils', '_rebuild_parameter_with_state'): _Parameter,
        }

    def find_class(self, module, name):
        if (module, name) not in self.known:
            self.known[module, name] = type(
                'Placeholder', (Placeholder,), dict(__slots__=(), origin=f'{module}.{name}')
            )
        return self.known[module, name]

    def get_extension(self, code):
        raise pickle.UnpicklingError('it names a class by number')

    def persistent_load(self, reference):
        if reference[0] != 'storage' or len(reference) > 5 and reference[5] is not None:
            return Placeholder  # the class, since modules of old files are instantiated
        kind, key, _, numel = reference[1:5]
        known = isinstance(kind, type) and issubclass(kind, Placeholder) and kind.origin in DTYPES
        if not known or type(key) not in (str, int) or type(numel) is not int or numel < 0:
            return Placeholder
        return self.storages.setdefault(str(key), _Storage(DTYPES[kind.origin], str(key), numel))

    def _identity_hash(load):
        def load_tuple(self):
            load(self)
            self.stack[-1] = _Tuple(self.stack[-1])

        return load_tuple

    for code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
        dispatch[code[0]] = _identity_hash(dispatch[code[0]])


def read(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Path of a .pth (zip, or from before torch 1.6) or safetensors file -> name and tensor of its weights, and the
    names and colours of its classes (``classes``, ``palette``) where a checkpoint of the MMEngine family has them.

    Of a training checkpoint only what is under ``state_dict``, ``model`` or ``model_state_dict`` is read.

    Raises:
        WeightsError: there is no such file, it is something else, it is damaged, or there are no weights in it.
    """
    try:
        if path.exists() and not path.is_file():
            raise WeightsError(
                f'{path} cannot be read: it is no file; of a folder name the file in it, model.safetensors or so'
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


def find_weights(content: object, where: str) -> dict[str, Tensor]:
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
        raise WeightsError(
            f'{inside} holds {_kind(content)}, expected a dict of names and tensors. Of a '
            'module that was saved whole save state_dict() instead'
        )
    others = [
        f'{name} ({_kind(value)})' for name, value in content.items() if not _is_plain_tensor(value)
    ]
    if others:
        raise WeightsError(
            f'{inside} holds entries that are no tensors: {", ".join(others[:3])}. Weights are looked for '
            f'at the top level and under {", ".join(WRAPPERS)}'
        )
    return dict(content)


def _classes(content):
    """MMEngine keeps them in ``meta.dataset_meta``, its predecessors in capitals in ``meta``."""
    for key in ('meta', 'dataset_meta'):
        content = content.get(key, content) if isinstance(content, dict) else {}
    found = {
        name.lower(): value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, (list, tuple))
    }
    classes, palette = found.get('classes', ()), found.get('palette', ())
    plain = {}
    if classes and all(type(name) is str for name in classes):
        plain['classes'] = tuple(classes)
    if palette and all(
        isinstance(row, (list, tuple)) and all(type(value) is int for value in row)
        for row in palette
    ):
        plain['palette'] = [list(row) for row in palette]
    return plain


def _read_zip(path, file):
    try:
        with zipfile.ZipFile(file) as archive:
            if any(name.endswith('constants.pkl') for name in archive.namelist()):
                raise WeightsError(
                    f'{path} is a TorchScript program, which is not run here: save its state_dict'
                )
            places = check_zip(file, archive)
            pickles = [name for name in places if name.rpartition('/')[2] == 'data.pkl']
            if len(pickles) != 1:
                raise WeightsError(f'{path} is a zip archive, but not one of torch.save')
            root = pickles[0][: -len('data.pkl')]
            if f'{root}byteorder' in places and archive.read(f'{root}byteorder') != b'little':
                raise WeightsError(
                    f'{path} was written on a big-endian machine; save it again on another'
                )
            with archive.open(pickles[0]) as pickled:
                content = _Unpickler(pickled).load()
            weights = find_weights(content, str(path))
        # Sliced and expanded tensors are as good as others where a checksum vouches for their strides.
        return _tensors(
            weights, file, lambda storage: places[f'{root}data/{storage.key}'], dense=False
        ), _classes(content)
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
            (numel,) = struct.unpack('<q', file.read(8))
            storage = storages[str(key) if type(key) in (str, int) else None]
            if numel != storage.numel or storage.key in places:
                raise ValueError(f'storage {storage.key} has another size than announced')
            places[storage.key] = file.tell(), storage.nbytes
            file.seek(places[storage.key][1], 1)
        if file.tell() != path.stat().st_size:
            raise EOFError('its end is missing')
        return _tensors(weights, file, lambda storage: places[storage.key], dense=True), _classes(
            content
        )
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


def _tensors(weights, file, place, dense):
    """Read the storages that ``weights`` refer to, each once, and lay the tensors over them.

    ``place(storage)`` is where its data begin in ``file``, and their length in bytes.
    """
    elements, tensors = {}, {}
    for name, tensor in weights.items():
        storage = tensor.storage
        if storage not in elements:
            start, length = place(storage)
            if length != storage.nbytes:
                raise ValueError(f'the data of {name[:200]} have another size than announced')
            content = bytearray(length)
            file.seek(start)
            if file.readinto(content) != length:
                raise EOFError(f'the data of {name[:200]} end early')
            elements[storage] = (
                torch.frombuffer(content, dtype=storage.dtype)
                if content
                else torch.empty(0, dtype=storage.dtype)
            )
        try:
            tensors[name] = tensor.lay_over(elements[storage], dense)
        except ValueError as error:
            raise ValueError(f'{name[:200]}: {error}') from None
    return tensors


def _is_plain_tensor(value):
    if isinstance(value, Tensor):
        return value.layout is torch.strided and not value.is_quantized and not value.is_nested
    return (
        isinstance(value, _Tensor)
        and isinstance(value.storage, _Storage)
        and isinstance(value.shape, tuple)
        and isinstance(value.strides, tuple)
    )


def _damaged(path, error):
    line = (str(error) or type(error).__name__).splitlines()[0][:200]
    return WeightsError(
        f'{path} is damaged or cut short ({line}). If it was fetched, fetch it again; if it was not '
        'written by torch.save or safetensors, write it with one of them'
    )


def _kind(value):
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
