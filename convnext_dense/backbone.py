"""ConvNeXt as a backbone: image in, one normalised feature map per stage out."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from numbers import Integral

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from . import fast_path
from .architectures import get_architecture
from .errors import ConfigError
from .layers import Block, LayerNorm2d
from .registry import MODELS
from .weights import load_weights

NUM_STAGES = 4


@MODELS.register_module()
class ConvNeXt(BaseModule):
    """ConvNeXt V1 (arXiv 2201.03545) and V2 (arXiv 2301.00808) for dense prediction.

    (N, in_channels, H, W) -> tuple of (N, C_i, H / s_i, W / s_i), shallow to deep, with strides
    s = 4, 8, 16, 32. Sides that do not divide are rounded down at each reduction. The maps are
    NCHW-contiguous: mmcv's RoIAlign and modulated deformable convolution read channels-last maps
    wrongly and do not say so.

    Args:
        arch: name in ``ARCHITECTURES`` (``'tiny'``, ``'v2_tiny'``, ...), or a dict
            with ``depths`` and ``dims``, and where they differ from V1's ``generation`` and
            ``eps``.
        in_channels: channels of the image.
        out_indices: stages to emit, 0 to 3; negative ones count from the end. Maps leave shallow
            to deep whatever the order here.
        out_norm: a LayerNorm on each emitted map (``norm0`` ... ``norm3``), as all published dense
            models have, V2's too. Without it the maps are the sums that the stages end in, whose
            scale grows with depth: for heads that normalise by themselves, or to compare with
            implementations that have no norms there.
        drop_path_rate: stochastic depth of the last block. The rates of the blocks before it rise
            linearly from 0.
        layer_scale_init_value: initial ``gamma`` of every V1 block; weights that are loaded
            replace it. V2 has none.
        frozen_stages: -1 nothing, 0 the stem, k the stem and stages 0 ... k-1 with their
            downsampling. Output norms stay trainable.
        output_stride: 32, or 16 or 8 for DeepLab-style heads: reductions past it keep their
            kernel, run at stride 1 with 'same' padding, and every later convolution is dilated
            instead, as in timm.
        checkpointing: recompute activations in backward: ``'none'``, ``'mlp'`` (all of a block
            but its convolution) or ``'block'``.
        init_cfg: ``dict(type='Pretrained', checkpoint=PATH_OR_URL_OR_PRESET)`` loads through
            ``load_weights``, which raises where a tensor does not fit; ``inflate`` may be given
            beside ``checkpoint``.

    Attributes:
        out_channels, out_strides: tuples with one entry per emitted map.

    Raises:
        ConfigError: an argument is unknown or out of its range; an image is no floating-point
            tensor, has other channels than ``in_channels`` or a side shorter than 32 pixels.
    """

    is_init: bool  # of MMEngine: whether init_weights has run
    emits_channels_last = False  # as fuse sets it, in models that can read such maps

    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        out_norm: bool = True,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1.0,
        frozen_stages: int = -1,
        output_stride: int = 32,
        checkpointing: str = 'none',
        init_cfg: dict | None = None,
        **unknown,
    ):
        if unknown:
            raise ConfigError(_explain(unknown))
        super().__init__(init_cfg=init_cfg)
        self.architecture = get_architecture(arch)
        self.depths, dims, generation, eps = self.architecture
        self.in_channels = in_channels
        self.out_indices = check_out_indices(out_indices)
        if generation == 2 and layer_scale_init_value != 1:
            raise ConfigError(
                f'layer_scale_init_value={layer_scale_init_value}: V2 has no layer scale; '
                'leave it out'
            )
        if not layer_scale_init_value > 0:
            raise ConfigError(
                f'layer_scale_init_value={layer_scale_init_value}: at 0 a block would '
                'pass on no gradient to its other parameters. Give a positive number '
                "(the paper has 1e-6); without layer scale is V2: arch='v2_...'"
            )
        if not 0 <= drop_path_rate < 1:
            raise ConfigError(f'drop_path_rate lies in [0, 1), not {drop_path_rate}')
        if frozen_stages not in range(-1, NUM_STAGES + 1):
            raise ConfigError(
                f'frozen_stages is -1 (nothing), 0 (stem) ... {NUM_STAGES}, not {frozen_stages!r}'
            )
        if output_stride not in (8, 16, 32):
            raise ConfigError(f'output_stride is 8, 16 or 32, not {output_stride!r}')
        if checkpointing not in ('none', 'mlp', 'block'):
            raise ConfigError(f"checkpointing is 'none', 'mlp' or 'block', not {checkpointing!r}")
        self.frozen_stages = frozen_stages
        # 0 freezes the stem without its stage.
        self._frozen_downsamplings = {-1: 0, 0: 1}.get(frozen_stages, frozen_stages)
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.out_strides = tuple(min(4 * 2**i, output_stride) for i in self.out_indices)

        stem = nn.Conv2d(in_channels, dims[0], 4, stride=4), LayerNorm2d(dims[0], eps)
        self.downsample_layers = nn.ModuleList([nn.Sequential(*stem)])
        self.stages = nn.ModuleList()
        # Rates rise over all stages of the architecture, so that leaving one out changes none.
        rates = iter(torch.linspace(0, drop_path_rate, sum(self.depths), device='cpu').tolist())
        # Stages past the last that is emitted would get no gradient, so they are not built.
        for i in range(self.out_indices[-1] + 1):
            dilation = max(1, 4 * 2**i // output_stride)
            if i:
                same = dict(padding='same', dilation=dilation // 2)
                reduction = dict(stride=2) if dilation == 1 else same
                conv = nn.Conv2d(dims[i - 1], dims[i], 2, **reduction)
                self.downsample_layers.append(nn.Sequential(LayerNorm2d(dims[i - 1], eps), conv))
            shared = layer_scale_init_value, dilation, checkpointing, generation, eps
            blocks = [Block(dims[i], next(rates), *shared) for _ in range(self.depths[i])]
            self.stages.append(nn.Sequential(*blocks))
        for i in self.out_indices:
            self.add_module(f'norm{i}', LayerNorm2d(dims[i], eps) if out_norm else nn.Identity())
        self.apply(initialise)
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, in_channels, H, W) -> tuple of (N, C_i, H / s_i, W / s_i)."""
        x = checked_images(x, self.in_channels)
        maps = []
        for i, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages)):
            # No graph through the frozen prefix, even if the image itself asks for gradients.
            with torch.no_grad() if i < self._frozen_downsamplings else nullcontext():
                x = downsample(x)
            with torch.no_grad() if i < self.frozen_stages else nullcontext():
                for step in fast_path.steps(stage, x):
                    x = step(x)
            if i in self.out_indices:
                norm = getattr(self, f'norm{i}')
                maps.append(fast_path.emit(norm, x, self.emits_channels_last))
        return tuple(maps)

    def init_weights(self) -> None:
        """Load ``init_cfg``'s checkpoint. All else was initialised when the module was built."""
        if self.is_init or not self.init_cfg:
            return
        options = dict(self.init_cfg) if isinstance(self.init_cfg, Mapping) else {}
        is_pretrained = options.pop('type', None) == 'Pretrained'
        if not is_pretrained or not {'checkpoint'} <= set(options) <= {'checkpoint', 'inflate'}:
            raise ConfigError(
                "init_cfg is None or dict(type='Pretrained', checkpoint=PATH_OR_URL_OR_PRESET), "
                'optionally with inflate: the prefix of the backbone inside a larger file is found '
                f'by itself. Got {self.init_cfg}'
            )
        load_weights(self, options.pop('checkpoint'), **options)
        self.is_init = True

    def train(self, mode: bool = True) -> 'ConvNeXt':
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        frozen = [*self.downsample_layers[: self._frozen_downsamplings]]
        frozen += self.stages[: max(self.frozen_stages, 0)]
        for module in frozen:
            module.eval()  # drop path off
            module.requires_grad_(False)


def checked_images(x: Tensor, in_channels: int) -> Tensor:
    """Images in channels-last memory: (N, in_channels, H, W) -> (N, in_channels, H, W).

    Raises:
        ConfigError: they are no such floating-point tensor, or a side is shorter than 32 pixels.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ConfigError(
            'expected images as a tensor of floating-point numbers, got '
            f'{type(x).__name__} of {getattr(x, "dtype", "no dtype")}; a NumPy '
            'image (H, W, C) becomes such a batch by '
            'torch.from_numpy(image).permute(2, 0, 1)[None].float()'
        )
    if x.dim() != 4 or x.shape[1] != in_channels or min(x.shape[2:]) < 32:
        raise ConfigError(
            f'expected images (N, {in_channels}, H, W) with sides of 32 pixels or more, '
            f'got {tuple(x.shape)}; images with other channels need in_channels to say so'
        )
    # Into channels-last memory, by a way that torch.vmap knows.
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def check_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    """Sorted, with negative ones counted from the end."""
    allowed = range(-NUM_STAGES, NUM_STAGES)
    chosen = tuple(out_indices) if isinstance(out_indices, Iterable) else ()
    if not chosen or not all(isinstance(i, Integral) and i in allowed for i in chosen):
        raise ConfigError(
            f'out_indices, a tuple or list, names one or more of the stages 0 ... {NUM_STAGES - 1} '
            f'(or -{NUM_STAGES} ... -1), got {out_indices!r}'
        )
    stages = sorted({int(i) % NUM_STAGES for i in chosen})
    if len(stages) < len(chosen):
        raise ConfigError(f'out_indices {chosen} names a stage twice')
    return tuple(stages)


# How to say here what the official code, timm, mmpretrain and mmseg say by these arguments.
NO_SUCH_CHOICE = 'nothing: leave it out, this backbone has no such choice'
OTHER_NAMES = {
    'depths dims channels': 'arch=dict(depths=..., dims=...), or the name of an architecture',
    'in_chans num_channels': 'in_channels',
    'with_cp use_checkpoint grad_checkpointing': "checkpointing='mlp' or 'block'",
    'ls_init_value layer_scale': 'layer_scale_init_value',
    'drop_path stochastic_depth_prob': 'drop_path_rate',
    'pretrained checkpoint': "init_cfg=dict(type='Pretrained', checkpoint=...)",
    'use_grn': "arch='v2_...'",
    'norm_out': 'out_norm',
    'norm_cfg': 'nothing, or eps in arch=dict(...)',
    'gap_before_final_norm features_only num_classes': NO_SUCH_CHOICE,
    'head_init_scale stem_patch_size linear_pw_conv act_cfg': NO_SUCH_CHOICE,
}


def _explain(unknown: Mapping) -> str:
    here = {name: text for names, text in OTHER_NAMES.items() for name in names.split()}
    known = ', '.join(list(inspect.signature(ConvNeXt).parameters)[:-1])
    lines = [
        f'  {name}: ' + (f'here it is {here[name]}' if name in here else f'expected one of {known}')
        for name in unknown
    ]
    return '\n'.join(['ConvNeXt has no such argument:', *lines])


def initialise(module: nn.Module) -> None:
    """Weights from a truncated normal of std 0.02, biases 0, as the official code has it.

    The paper's table 5 prints 0.2.
    """
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
