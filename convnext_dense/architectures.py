"""Every ConvNeXt as one row: depths, widths and what differs between generations."""

from collections.abc import Mapping
from typing import NamedTuple

from .errors import ConfigError


class Architecture(NamedTuple):
    depths: tuple[int, int, int, int]  # blocks of the four stages
    dims: tuple[int, int, int, int]  # channels of the four stages
    generation: int = 1  # 2: global response normalisation in place of layer scale
    eps: float = 1e-6  # of every LayerNorm


# V1: "A ConvNet for the 2020s", arXiv 2201.03545, section 3 (tiny ... xlarge). The smaller ones are
# timm's, and so is xxlarge, which is OpenCLIP's. V2: "ConvNeXt V2", arXiv 2301.00808, appendix A.1;
# its small is timm's. The comment is the number of parameters of the trunk and the four output
# norms; a test holds it.
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
    'xxlarge': Architecture((3, 4, 30, 3), (384, 768, 1536, 3072), eps=1e-5),  # 843,403,392
    'v2_atto': Architecture((2, 2, 6, 2), (40, 80, 160, 320), 2),  # 3,387,960
    'v2_femto': Architecture((2, 2, 6, 2), (48, 96, 192, 384), 2),  # 4,848,912
    'v2_pico': Architecture((2, 2, 6, 2), (64, 128, 256, 512), 2),  # 8,554,176
    'v2_nano': Architecture((2, 2, 8, 2), (80, 160, 320, 640), 2),  # 14,983,920
    'v2_tiny': Architecture((3, 3, 9, 3), (96, 192, 384, 768), 2),  # 27,867,840
    'v2_small': Architecture((3, 3, 27, 3), (96, 192, 384, 768), 2),  # 49,550,784
    'v2_base': Architecture((3, 3, 27, 3), (128, 256, 512, 1024), 2),  # 87,694,592
    'v2_large': Architecture((3, 3, 27, 3), (192, 384, 768, 1536), 2),  # 196,422,528
    'v2_huge': Architecture((3, 3, 27, 3), (352, 704, 1408, 2816), 2),  # 657,477,568
}


def get_architecture(arch: str | Mapping) -> Architecture:
    """The row of a name, or of a mapping.

    Args:
        arch: name in ``ARCHITECTURES``; or a mapping with ``depths`` and ``dims`` (four positive
            integers each), and where they differ from V1's ``generation`` and ``eps``.

    Raises:
        ConfigError: unknown name, other keys, or a value out of its range.
    """
    if isinstance(arch, str):
        if arch not in ARCHITECTURES:
            raise ConfigError(
                f'unknown arch {arch!r}: expected one of {", ".join(ARCHITECTURES)}, '
                'or dict(depths=(...), dims=(...))'
            )
        return ARCHITECTURES[arch]
    keys = set(arch) if isinstance(arch, Mapping) else set()
    if not {'depths', 'dims'} <= keys <= set(Architecture._fields):
        raise ConfigError(
            'arch is a name or a dict with the keys depths and dims, optionally generation and '
            f'eps, and no others, not {arch!r}'
        )
    for key in ('depths', 'dims'):
        values = arch[key] if isinstance(arch[key], (list, tuple)) else ()
        if len(values) != 4 or not all(isinstance(value, int) and value > 0 for value in values):
            raise ConfigError(
                f'arch: {key} needs four positive integers, one per stage, not {arch[key]!r}'
            )
    depths, dims = tuple(arch['depths']), tuple(arch['dims'])
    architecture = Architecture(**dict(arch, depths=depths, dims=dims))
    if architecture.generation not in (1, 2) or not 0 < architecture.eps < 1:
        raise ConfigError(
            'arch: generation is 1 or 2 and eps a small positive number, not '
            f'{architecture.generation!r} and {architecture.eps!r}'
        )
    return architecture


def parameter_shapes(
    architecture: Architecture, in_channels: int = 3
) -> dict[str, tuple[int, ...]]:
    """Every parameter of a ``ConvNeXt`` that emits all four maps: name -> shape."""
    dims = architecture.dims
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *weight: int) -> None:
        shapes[f'{name}.weight'], shapes[f'{name}.bias'] = weight, weight[:1]

    for i, (depth, dim) in enumerate(zip(architecture.depths, dims)):
        convolution, norm = (1, 0) if i else (0, 1)
        kernel = (dims[i - 1], 2, 2) if i else (in_channels, 4, 4)
        layer(f'downsample_layers.{i}.{convolution}', dim, *kernel)
        layer(f'downsample_layers.{i}.{norm}', dims[i - 1] if i else dim)
        for block in (f'stages.{i}.{j}' for j in range(depth)):
            layer(f'{block}.dwconv', dim, 1, 7, 7)
            layer(f'{block}.norm', dim)
            layer(f'{block}.pwconv1', 4 * dim, dim)
            layer(f'{block}.pwconv2', dim, 4 * dim)
            if architecture.generation == 1:
                shapes[f'{block}.gamma'] = (dim,)
            else:
                shapes[f'{block}.grn.gamma'] = shapes[f'{block}.grn.beta'] = (4 * dim,)
        layer(f'norm{i}', dim)
    return shapes


def describe(architecture: Architecture) -> str:
    """Its name in ``ARCHITECTURES``, quoted, whatever its eps; else what it is made of."""
    for name, known in ARCHITECTURES.items():
        if known._replace(eps=architecture.eps) == architecture:
            return repr(name)
    return (
        f'V{architecture.generation} with depths {architecture.depths} and dims {architecture.dims}'
    )
