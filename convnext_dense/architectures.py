"""Every ConvNeXt as one row: depths, widths and what differs between generations."""
from typing import Mapping, NamedTuple, Tuple, Union

from .errors import ConfigError


class Architecture(NamedTuple):
    depths: Tuple[int, int, int, int]  # blocks of the four stages
    dims: Tuple[int, int, int, int]  # channels of the four stages


# V1: "A ConvNet for the 2020s", arXiv 2201.03545, section 3 (tiny ... xlarge); the smaller ones are timm's.
# The comment is the number of parameters of the trunk and the four output norms; a test holds it.
ARCHITECTURES = {
    'atto': Architecture((2, 2, 6, 2), (40, 80, 160, 320)),  # 3,375,080
    'femto': Architecture((2, 2, 6, 2), (48, 96, 192, 384)),  # 4,833,456
    'pico': Architecture((2, 2, 6, 2), (64, 128, 256, 512)),  # 8,533,568
    'nano': Architecture((2, 2, 8, 2), (80, 160, 320, 640)),  # 14,953,680
    'tiny': Architecture((3, 3, 9, 3), (96, 192, 384, 768)),  # 27,821,472
    'small': Architecture((3, 3, 27, 3), (96, 192, 384, 768)),  # 49,456,032
    'base': Architecture((3, 3, 27, 3), (128, 256, 512, 1024)),  # 87,568,256
    'large': Architecture((3, 3, 27, 3), (192, 384, 768, 1536)),  # 196,233,024
    'xlarge': Architecture((3, 3, 27, 3), (256, 512, 1024, 2048)),  # 348,151,552
}


def get_architecture(arch: Union[str, Mapping]) -> Architecture:
    """A name of ``ARCHITECTURES``, or a mapping with ``depths`` and ``dims`` (four positive integers each).

    Raises:
        ConfigError: unknown name, other keys, or not four positive integers.
    """
    if isinstance(arch, str):
        if arch not in ARCHITECTURES:
            raise ConfigError(f'unknown arch {arch!r}: expected one of {", ".join(ARCHITECTURES)}, '
                             'or dict(depths=(...), dims=(...))')
        return ARCHITECTURES[arch]
    if not isinstance(arch, Mapping) or set(arch) != {'depths', 'dims'}:
        raise ConfigError(f'arch is a name or a dict with the keys depths and dims and no others, not {arch!r}')
    for key, value in arch.items():
        if not isinstance(value, (list, tuple)) or len(value) != 4 or not all(isinstance(v, int) and v > 0 for v in value):
            raise ConfigError(f'arch: {key} needs four positive integers, one per stage, not {value!r}')
    return Architecture(tuple(arch['depths']), tuple(arch['dims']))
