"""One network with the same weights, in our code and in that of others: timm, torchvision,
transformers, mmpretrain, and the official code's form. A library is imported when it is needed."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..architectures import ARCHITECTURES, Architecture
from ..backbone import ConvNeXt
from ..errors import ConfigError
from ..folding import fuse
from ..layers import Block
from ..printing import quiet
from ..weights import convert
from .timing import Candidate, fastest, tf32

# Largest error of a map relative to float64: one that is further off is of another network.
BOUND = dict(float32=1e-4, bfloat16=0.1, float16=0.02)
OFFICIAL = 'official form'
OURS = ('convnext_dense', 'convnext_dense, fused')
MODES = ('none', 'mlp', 'block')  # of checkpointing
OURS_IN_TRAINING = {f'convnext_dense, {mode}': mode for mode in MODES}
Maps = Sequence[Tensor]
Net = TypeVar('Net', bound=nn.Module)


class Scenario(NamedTuple):
    """A call to measure."""

    arch: str  # or the path of a config
    size: str  # images x height x width
    dtype: str = 'float32'  # of weights and images; in a training step that of autocast
    train: bool = False

    def __str__(self):
        step = 'training step' if self.train else 'inference'
        return f'{self.arch}, {self.size}, {self.dtype}, {step}'


def images_of(size: str) -> Tensor:
    """(N, 3, H, W) for a ``Scenario.size``, the same in every process.

    Raises:
        ConfigError: it is no size.
    """
    try:
        count, height, width = (int(number) for number in size.split('x'))
    except ValueError:
        raise ConfigError(f'--size {size}: expected IMAGESxHEIGHTxWIDTH') from None
    torch.manual_seed(0)
    return torch.randn(count, 3, height, width)


@lru_cache(maxsize=1)
def common(scenario: Scenario) -> tuple[Tensor, ConvNeXt]:
    """The images, and the network that all rows are of: the same in every process.

    They are cached, so copy them before you change them.
    """
    return images_of(scenario.size), randomise(ConvNeXt(scenario.arch, out_norm=False))


def randomise(net: Net) -> Net:
    """In place. At the initial layer scale or GRN of 0 no map would show what a block does."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() <= 1:
                is_scale = not name.endswith('bias') and 'grn' not in name
                parameter.normal_(0, 0.1).add_(is_scale)
            else:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    net.eval()  # not chained: it returns None in distilled models of mmdet
    return net


def candidate(
    name: str, scenario: Scenario, device: str, expected: Maps, is_compiled: bool = False
) -> Candidate:
    """A backbone ready to be timed, a peer's in the memory format in which it is faster.

    Args:
        name: of ``OURS`` or ``OURS_IN_TRAINING``, ``OFFICIAL`` or of ``PEERS``.
        expected: its four maps in float64, on the CPU.

    Returns:
        It is not available where its library is not installed or has no such architecture.

    Raises:
        ConfigError: it is another network, or torch has no such precision on this device.
    """
    images, net = common(scenario)
    dtype, is_ours = getattr(torch, scenario.dtype), name.startswith('convnext_dense')
    if not supports(dtype, device, scenario.train):
        raise ConfigError(
            f'{scenario.dtype}: torch {torch.__version__} does not compute in it on '
            f'{device}{" under autocast" * scenario.train}'
        )
    try:
        with torch.device(device):  # initial values, which are replaced, cost less there
            model = build(name, net, scenario.arch)
    except (ImportError, KeyError):
        return Candidate(lambda: None, device, is_available=False)
    held = torch.float32 if scenario.train else dtype  # autocast does the rest
    context = partial(autocast, device, dtype) if scenario.train else nullcontext
    targets = [torch.randn_like(part).to(device, held) for part in expected]
    candidates = []
    for layout in (torch.contiguous_format, torch.channels_last)[: 1 if is_ours else 2]:
        ready = copy.deepcopy(model).train(scenario.train)
        # torch's types lack Module.to's memory_format
        ready.to(device, held, memory_format=layout)  # type: ignore[call-overload]
        x = images.to(device, held).contiguous(memory_format=layout)
        with torch.no_grad(), tf32(False), context():
            error = worst(ready(x), expected)
        if not error < BOUND[scenario.dtype]:
            raise ConfigError(f'{name} is another network: its maps differ by {error:.2g}')
        if is_compiled:
            ready.compile()
        function: Callable[[], object] = partial(infer, ready, x)
        if scenario.train:
            function = partial(step, ready, x, targets, context)
        candidates.append(Candidate(function, device, error))
    return fastest(candidates)


def supports(dtype: torch.dtype, device: str, is_autocast: bool) -> bool:
    """Whether torch convolves in a precision there, and forms the gradient."""
    if dtype.itemsize > 2:  # never left out: an error in fp32 has to show
        return True
    x = torch.ones(1, 1, 3, 3, device=device, requires_grad=True)
    try:
        with autocast(device, dtype) if is_autocast else nullcontext():
            part = x if is_autocast else x.to(dtype)
            y = F.conv2d(part, part)
        y.sum().backward()
    except RuntimeError:
        return False
    return y.dtype == dtype  # autocast is off in a precision that it does not know


def autocast(device: str, dtype: torch.dtype) -> AbstractContextManager:
    """Off for fp32 and fp64, which not all versions of torch take."""
    is_half = dtype.itemsize == 2
    return torch.autocast(device, dtype if is_half else None, enabled=is_half)


def worst(maps: Maps, expected: Maps) -> float:
    """Relative error of the map that differs most; not a number where a map holds one."""
    errors = [(a.to(b).sub(b).norm() / b.norm()).item() for a, b in zip(maps, expected)]
    return max(errors, key=lambda error: (error != error, error))


def infer(model: Callable[[Tensor], Maps], images: Tensor) -> Maps:
    with torch.no_grad():
        return model(images)


def step(model: nn.Module, images: Tensor, targets: Maps, context: Callable) -> None:
    """Forward and backward."""
    model.zero_grad(set_to_none=False)  # so that gradients are not counted as activations
    with context():
        maps = model(images)
    torch.stack([(part * target).sum() for part, target in zip(maps, targets)]).sum().backward()


def build(name: str, net: ConvNeXt, arch: str) -> nn.Module:
    """``net`` under another name: see ``candidate``."""
    if name == 'convnext_dense, fused':
        return fuse(net)
    if name == OFFICIAL:
        return official(net)
    if name.startswith('convnext_dense'):
        return in_mode(net, OURS_IN_TRAINING.get(name, 'none'))
    return peer(name, net, arch)


def in_mode(net: ConvNeXt, checkpointing: str) -> ConvNeXt:
    """A copy."""
    copied = copy.deepcopy(net)
    for module in copied.modules():
        if isinstance(module, Block):
            module.recompute = checkpointing
    return copied


class Features(nn.Module):
    """A peer that returns its four maps, as ``maps(model, images)`` takes them from it."""

    def __init__(self, model: nn.Module, maps: Callable):
        super().__init__()
        self.model, self.maps = model, maps

    def forward(self, images: Tensor) -> Maps:
        return self.maps(self.model, images)


def peer(name: str, net: ConvNeXt, arch: str) -> Features:
    """With the weights of ``net``, which has no output norms.

    Raises:
        ConfigError: its parameters have other names than the layout ``name`` gives them.
        ImportError: the library is not installed.
        KeyError: it has no such architecture.
    """
    model, maps = PEERS[name](arch)
    tensors = convert(net.state_dict(), name).tensors
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or any('classifier' not in key and 'head' not in key for key in missing):
        raise ConfigError(f'{name} has other weights than its layout says: {missing}, {unexpected}')
    return Features(model, maps).eval()


def chain(layers: nn.Sequential, x: Tensor, period: int = 1) -> Maps:
    """Run the layers one after the other; keep what every ``period``-th returns."""
    maps = []
    for i, layer in enumerate(layers, 1):
        x = layer(x)
        maps += [x] if i % period == 0 else []
    return maps


def timm_peer(arch: str) -> tuple[nn.Module, Callable]:
    import timm

    model = timm.create_model(f'convnext{arch}' if arch.startswith('v2') else f'convnext_{arch}')
    model.head = nn.Identity()
    return model, lambda model, images: chain(model.stages, model.stem(images))


def torchvision_peer(arch: str) -> tuple[nn.Module, Callable]:
    import torchvision

    names = {size: f'convnext_{size}' for size in ('tiny', 'small', 'base', 'large')}
    model = getattr(torchvision.models, names[arch])(stochastic_depth_prob=0.0)
    return model, lambda model, images: chain(model.features, images, period=2)


def transformers_peer(arch: str) -> tuple[nn.Module, Callable]:
    import transformers

    name = 'ConvNextV2' if arch.startswith('v2') else 'ConvNext'
    depths, dims = ARCHITECTURES[arch][:2]
    config = getattr(transformers, f'{name}Config')(
        depths=list(depths), hidden_sizes=list(dims), out_indices=[1, 2, 3, 4], drop_path_rate=0.0
    )
    model = getattr(transformers, f'{name}Backbone')(config)
    for key in model.hidden_states_norms:
        model.hidden_states_norms[key] = nn.Identity()
    return model, lambda model, images: model(images).feature_maps


def mmpretrain_backbone(architecture: Architecture, out_indices: Sequence[int]) -> nn.Module:
    """mmpretrain's ConvNeXt, with a norm on each map, as the zoos have it."""
    with quiet():  # it says which optional packages it lacks
        from mmpretrain.models import ConvNeXt as Theirs
    depths, dims, generation, _ = architecture
    v2 = dict(use_grn=True, layer_scale_init_value=0.0) if generation == 2 else {}
    theirs = dict(depths=list(depths), channels=list(dims))
    return Theirs(theirs, out_indices=out_indices, gap_before_final_norm=False, **v2)


def mmpretrain_peer(arch: str) -> tuple[nn.Module, Callable]:
    model = mmpretrain_backbone(ARCHITECTURES[arch], (0, 1, 2, 3))
    for i in range(4):
        setattr(model, f'norm{i}', nn.Identity())
    return model, lambda model, images: model(images)


PEERS = dict(
    timm=timm_peer,
    torchvision=torchvision_peer,
    transformers=transformers_peer,
    mmpretrain=mmpretrain_peer,
)


def official(net: ConvNeXt) -> nn.Module:
    """``net`` in the official code's form, in the precision of its weights."""
    model = Official(net)
    model.load_state_dict(convert(net.state_dict(), 'official').tensors)
    return model.eval()


class Official(nn.Module):
    """(N, 3, H, W) -> four maps: whole maps at a time, in NCHW memory between the blocks.

    The form of facebookresearch/ConvNeXt and ConvNeXt-V2 (object_detection/mmdet/models/backbones/
    convnext.py, models/convnextv2.py), written anew. Nothing of ours is in it.
    """

    def __init__(self, net: ConvNeXt):
        super().__init__()
        depths, dims, generation, eps = net.architecture
        self.downsample_layers = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), OfficialNorm(dims[0], eps))]
        )
        self.downsample_layers.extend(
            nn.Sequential(OfficialNorm(dims[i], eps), nn.Conv2d(dims[i], dims[i + 1], 2, 2))
            for i in range(3)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(OfficialBlock(dim, generation, eps) for _ in range(depth)))
            for dim, depth in zip(dims, depths)
        )
        for i, dim in enumerate(dims):
            has_norm = not isinstance(net.norm0, nn.Identity)
            self.add_module(f'norm{i}', OfficialNorm(dim, eps) if has_norm else nn.Identity())

    def forward(self, x):
        maps = []
        for i, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages)):
            x = stage(downsample(x))
            maps.append(getattr(self, f'norm{i}')(x))
        return maps


class OfficialNorm(nn.LayerNorm):
    """Over the channels of (N, C, H, W)."""

    def forward(self, x):
        centred = x - x.mean(1, keepdim=True)
        normed = centred / (centred.pow(2).mean(1, keepdim=True) + self.eps).sqrt()
        return self.weight[:, None, None] * normed + self.bias[:, None, None]


class OfficialBlock(nn.Module):
    def __init__(self, dim, generation, eps):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.grn = OfficialGRN(4 * dim) if generation == 2 else nn.Identity()
        self.gamma = nn.Parameter(torch.ones(dim)) if generation == 1 else None

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.pwconv2(self.grn(F.gelu(self.pwconv1(y))))
        y = y if self.gamma is None else self.gamma * y
        return x + y.permute(0, 3, 1, 2)


class OfficialGRN(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x):
        energy = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (energy / (energy.mean(-1, keepdim=True) + 1e-6))) + self.beta + x
