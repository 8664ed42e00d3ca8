"""The roadmap from ResNet-50 to ConvNeXt-T: figure 2 and table 10 of arXiv 2201.03545."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from . import fast_path
from .backbone import NUM_STAGES, check_out_indices, checked_images, initialise
from .errors import ConfigError
from .layers import Block, LayerNorm2d, drop_path
from .registry import MODELS

# Step -> what it changes of the step before. The first has the defaults of ``Settings``. The
# comments are table 10's multiply-adds of the classifier at 224 x 224, which convolutions and
# linear layers make up alone; a test holds them.
ROADMAP: dict[str, Mapping] = {
    'resnet50': dict(),  # 4.09 G
    'stage_ratio': dict(depths=(3, 3, 9, 3)),  # 4.53 G
    'patchify_stem': dict(patchify=True),  # 4.42 G
    'depthwise_conv': dict(depthwise=True),  # 2.35 G
    'increase_width': dict(width=96),  # 5.27 G
    'inverting_dimensions': dict(inverted=True),  # 4.64 G
    'move_up_depthwise_conv': dict(moved_up=True),  # 4.07 G
    'kernel_size_5': dict(kernel_size=5),  # 4.10 G
    'kernel_size_7': dict(kernel_size=7),  # 4.15 G
    'kernel_size_9': dict(kernel_size=9),  # 4.21 G
    'kernel_size_11': dict(kernel_size=11),  # 4.29 G
    'gelu': dict(kernel_size=7, activation=nn.GELU),  # 4.15 G
    'fewer_activations': dict(activations=(2,)),  # 4.15 G
    'fewer_norms': dict(norms=(1,)),  # 4.15 G
    # Here the table does not follow from the architecture: a norm in place of another does not cost
    # 0.31 G. The convolutions that separate downsampling brings do, as in its table 11.
    'layer_norm': dict(norm=LayerNorm2d),  # 4.46 G; counted 4.15 G, and 4.16 G with the norms
    'separate_downsampling': dict(separate_downsampling=True),  # 4.49 G; counted 4.46 G
}
NORM_EPS = 1e-6  # of every LayerNorm, as ConvNeXt has it


class Settings(NamedTuple):
    """A step; the defaults are ResNet-50."""

    depths: Sequence[int] = (3, 4, 6, 3)
    width: int = 64  # of the stem; stage i is 2**i times as wide, or four times that
    patchify: bool = False  # stem: 4x4 convolution of stride 4; else 7x7 of stride 2, then pooling
    depthwise: bool = False  # the spatial convolution of a block
    inverted: bool = False  # blocks are wide inside and narrow outside; else the reverse
    moved_up: bool = False  # the spatial convolution comes first of a block's three; else second
    kernel_size: int = 3  # of the spatial convolution
    activation: type[nn.Module] = nn.ReLU
    activations: Sequence[int] = (1, 2, 3)  # after which convolutions; the last is after the sum
    norm: type[nn.Module] = nn.BatchNorm2d
    norms: Sequence[int] = (1, 2, 3)  # after which convolutions
    separate_downsampling: bool = False  # norm and 2x2 convolution of stride 2 between stages

    def out_channels(self) -> list[int]:
        """Of the four stages."""
        return [self.width * (1 if self.inverted else 4) * 2**i for i in range(NUM_STAGES)]

    def convolution(self, inputs: int, outputs: int, has_norm: bool, **place) -> nn.Conv2d:
        """With a bias, unless a batch norm follows, which would take it away again."""
        bias = not (has_norm and self.norm is nn.BatchNorm2d)
        return nn.Conv2d(inputs, outputs, bias=bias, **place)

    def new_norm(self, channels: int) -> nn.Module:
        return self.norm(channels, **(dict(eps=NORM_EPS) if self.norm is LayerNorm2d else {}))


def settings_of(
    step: str, depths: Sequence[int] | None = None, width: int | None = None
) -> Settings:
    """All that holds at a step, with other depths and another width where they are given.

    Raises:
        ConfigError: the step is unknown, or the depths or the width are out of range.
    """
    if step not in ROADMAP:
        raise ConfigError(f'unknown step {step!r}: expected one of {", ".join(ROADMAP)}')
    settings = Settings()
    for name, changes in ROADMAP.items():
        settings = settings._replace(**changes)
        if name == step:
            break
    settings = settings._replace(
        depths=settings.depths if depths is None else depths,
        width=settings.width if width is None else width,
    )
    numbers = settings.depths if isinstance(settings.depths, (list, tuple)) else ()
    if len(numbers) != NUM_STAGES or not all(
        isinstance(number, int) and number > 0 for number in (*numbers, settings.width)
    ):
        raise ConfigError(
            'depths are four positive integers, one per stage, and width is one; got '
            f'depths={settings.depths!r} and width={settings.width!r}'
        )
    return settings


@MODELS.register_module()
class Roadmap(BaseModule):
    """A network on the way from ResNet-50 to ConvNeXt-T, for dense prediction.

    (N, in_channels, H, W) -> tuple of (N, C_i, H / s_i, W / s_i), shallow to deep, with strides
    s = 4, 8, 16, 32, NCHW-contiguous. C_i is 4 * width * 2**i up to ``increase_width``, and
    width * 2**i from ``inverting_dimensions`` on.

    Source: section 2, figure 2 and table 10 of arXiv 2201.03545. The code of the steps was not
    published; the first is torchvision's ``resnet50``, and the last ``ConvNeXt('tiny')``, with its
    names and its outputs. What the paper leaves open is decided here once:

    - Reduction: until ``separate_downsampling`` the spatial convolution of a stage's first block
      has stride 2, the second of the three, from ``move_up_depthwise_conv`` on the first. The skip
      connection has a 1x1 convolution of the same stride there, and in the first stage where the
      widths differ. The multiply-adds of table 10 come out so.
    - Width: 96 is that of the stem. Blocks are 96 wide inside and 384 outside, inverted the
      reverse.
    - Stem: the patches are followed by norm and activation, as the convolution before was, and by
      no pooling. The activation goes with ``fewer_activations``, the norm stays.
    - Activations: all three are exchanged by ``gelu``, also the one after the sum; the one between
      the two 1x1 convolutions is left by ``fewer_activations``.
    - Norms: one after each convolution, also that of the skip connection, until ``fewer_norms``
      leaves the one after the depthwise convolution.
    - Biases: every convolution has one that no batch norm follows.
    - Layer scale: the paper's recipe has it, and its figures of blocks do not. Here only the last
      step has it, the one with published code; ``layer_scale_init_value`` of ``ConvNeXt`` is 1, at
      which it changes nothing at first.
    - Kernel size: 9 and 11 were tried only; ``gelu`` goes on with 7.
    - Initial weights: those of ``ConvNeXt`` at each step, a truncated normal of std 0.02.

    Weights of the steps were not published either, so that all train from random ones. Layer-wise
    learning-rate decay knows no such layers and refuses: train with plain AdamW.

    Args:
        step: name in ``ROADMAP``.
        depths: blocks of the four stages; default: the step's.
        width: channels of the stem; default: the step's, 64 and from ``increase_width`` on 96.
            In smaller networks keep this ratio, 2 to 3, or the steps are not comparable.
        in_channels: channels of the image.
        out_indices: stages to emit, 0 to 3; negative ones count from the end.
        out_norm: a LayerNorm on each emitted map, at every step, as ``ConvNeXt`` has it.
        drop_path_rate: stochastic depth of the last block. The rates of the blocks before it rise
            linearly from 0.

    Attributes:
        out_channels, out_strides: tuples with one entry per emitted map.

    Raises:
        ConfigError: an argument is unknown or out of its range; an image is no floating-point
            tensor, has other channels than ``in_channels`` or a side shorter than 32 pixels.
    """

    def __init__(
        self,
        step: str,
        depths: Sequence[int] | None = None,
        width: int | None = None,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        out_norm: bool = True,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        settings = settings_of(step, depths, width)
        if not 0 <= drop_path_rate < 1:
            raise ConfigError(f'drop_path_rate lies in [0, 1), not {drop_path_rate}')
        self.step, self.in_channels = step, in_channels
        self.out_indices = check_out_indices(out_indices)
        dims = settings.out_channels()
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2**i for i in self.out_indices)

        self.downsample_layers = nn.ModuleList([_stem(settings, in_channels)])
        self.stages, entering = nn.ModuleList(), settings.width
        rates = iter(torch.linspace(0, drop_path_rate, sum(settings.depths), device='cpu').tolist())
        for i in range(self.out_indices[-1] + 1):
            stage = nn.Sequential()
            if i and settings.separate_downsampling:
                conv = nn.Conv2d(dims[i - 1], dims[i], 2, stride=2)
                between = LayerNorm2d(dims[i - 1], NORM_EPS), conv
                self.downsample_layers.append(nn.Sequential(*between))
            elif i:
                self.downsample_layers.append(nn.Identity())
            for j in range(settings.depths[i]):
                rate = next(rates)
                if settings.separate_downsampling:
                    stage.append(Block(dims[i], rate, eps=NORM_EPS))
                else:
                    stage.append(ResidualBlock(settings, i, entering, j == 0, rate))
                entering = dims[i]
            self.stages.append(stage)
        for i in self.out_indices:
            norm = LayerNorm2d(dims[i], NORM_EPS) if out_norm else nn.Identity()
            self.add_module(f'norm{i}', norm)
        self.apply(initialise)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, in_channels, H, W) -> tuple of (N, C_i, H / s_i, W / s_i)."""
        x = checked_images(x, self.in_channels)
        maps = []
        for i, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages)):
            x = downsample(x)
            for step in fast_path.steps(stage, x):
                x = step(x)
            if i in self.out_indices:
                maps.append(fast_path.emit(getattr(self, f'norm{i}'), x))
        return tuple(maps)


def _stem(settings: Settings, in_channels: int) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, width, H / 4, W / 4)."""
    place = dict(kernel_size=7, stride=2, padding=3)
    if settings.patchify:
        place = dict(kernel_size=4, stride=4)
    conv = settings.convolution(in_channels, settings.width, True, **place)
    stem = nn.Sequential(conv, settings.new_norm(settings.width))
    if 3 in settings.activations:
        stem.append(settings.activation())
    if not settings.patchify:
        stem.append(nn.MaxPool2d(3, stride=2, padding=1))
    return stem


class ResidualBlock(nn.Module):
    """Three convolutions beside a skip connection: (N, entering, H, W) -> (N, C, H / s, W / s).

    Figures 3 and 4 of arXiv 2201.03545. With batch norms, a 3x3 convolution in the middle and
    narrow inside it is torchvision's ``Bottleneck``.

    Args:
        settings: the step.
        stage: 0 to 3; the first block of each but 0 has s = 2, else s = 1.
        entering: channels in.
        is_first: whether it is the first block of its stage.
        drop_path_rate: the probability that a sample skips this block in training.
    """

    def __init__(
        self, settings: Settings, stage: int, entering: int, is_first: bool, drop_path_rate: float
    ):
        super().__init__()
        outside = settings.out_channels()[stage]
        inside = outside * 4 if settings.inverted else outside // 4
        stride = 2 if stage and is_first else 1
        spatial, before = (1, entering) if settings.moved_up else (2, inside)
        channels = entering, before, inside, outside
        self.branch = nn.Sequential()
        for i in (1, 2, 3):
            place: dict[str, int] = dict(kernel_size=1)
            if i == spatial:
                size, groups = settings.kernel_size, before if settings.depthwise else 1
                place = dict(kernel_size=size, stride=stride, padding=size // 2, groups=groups)
            has_norm = i in settings.norms
            conv = settings.convolution(channels[i - 1], channels[i], has_norm, **place)
            self.branch.add_module(f'conv{i}', conv)
            if has_norm:
                self.branch.add_module(f'norm{i}', settings.new_norm(channels[i]))
            if i in settings.activations and i < 3:
                self.branch.add_module(f'act{i}', settings.activation())
        self.projection = nn.Sequential()
        if stride > 1 or entering != outside:
            has_norm = 3 in settings.norms  # as at the end of the branch, to which it is added
            place = dict(kernel_size=1, stride=stride)
            conv = settings.convolution(entering, outside, has_norm, **place)
            self.projection.append(conv)
            if has_norm:
                self.projection.append(settings.new_norm(outside))
        self.activation = settings.activation() if 3 in settings.activations else nn.Identity()
        self.drop_path_rate = drop_path_rate

    def forward(self, x: Tensor) -> Tensor:
        """(N, entering, H, W) -> (N, C, H / s, W / s)."""
        branch = self.branch(x)
        if self.training and self.drop_path_rate:
            branch = drop_path(branch, self.drop_path_rate)
        return self.activation(self.projection(x) + branch)
