"""Layer-wise learning-rate decay: parameter name -> layer id -> scale -> parameter group.

The rules are those of the official ConvNeXt code for COCO (``layer_wise``) and ADE20K
(``stage_wise``).
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import Tensor, distributed, nn

from .backbone import ConvNeXt
from .errors import ConfigError
from .registry import OPTIM_WRAPPER_CONSTRUCTORS

FSDP: tuple[type, ...] = ()  # empty where torch is built without torch.distributed
if distributed.is_available():
    from torch.distributed.fsdp import FullyShardedDataParallel

    FSDP = (FullyShardedDataParallel,)

DECAY_TYPES = ('layer_wise', 'stage_wise')
# what torch puts into names
WRAPPER = re.compile(r'_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_orig_mod\.')
PART = re.compile(r'(downsample_layers\.|stages\.|norm)([0-3])\.(?:(\d+)\.)?')
BLOCKS_PER_LAYER = 3  # the blocks of the third stage are grouped in threes


def default_num_layers(depths: Sequence[int]) -> int:
    """Layers of the backbone past the stem: 6 for depths (3, 3, 9, 3), 12 for (3, 3, 27, 3)."""
    return 3 + -(-depths[2] // BLOCKS_PER_LAYER)


def layer_id(
    name: str, depths: Sequence[int], decay_type: str, num_layers: int | None = None
) -> int:
    """Layer of a backbone's parameter, 0 (stem) ... num_layers + 1 (output norms, as the heads).

    What is added to a block, a stage or a downsampling has the rate of the layer that it sits in.
    Added to the third stage itself it follows the blocks, and so has the rate of the last of them.

    Args:
        name: within the backbone, such as ``stages.2.4.pwconv1.weight``.
        depths: blocks per stage.
        decay_type: ``layer_wise``: the stem is 0, each stage is one layer together with its
            downsampling, the third one layer per three blocks (its downsampling shares the
            first). ``stage_wise``: all downsamplings are 0, stage k is k + 1.
        num_layers: defaults to what the depths imply.

    Raises:
        ConfigError: the parameter is in no stage, downsampling or output norm.
    """
    num_layers = num_layers or default_num_layers(depths)
    match = PART.match(name)
    if not match:
        raise ConfigError(
            f'parameter {name!r} of the backbone has no layer, and so no learning rate: expected '
            'downsample_layers.K.*, stages.K.* or normK.*, K from 0 to 3. Add it to a stage or to '
            "a block, whose rate it then has, or outside of the backbone for the heads' rate"
        )
    part, stage = match[1], int(match[2])
    if part == 'norm':
        return num_layers + 1
    if decay_type == 'stage_wise':
        return stage + 1 if part == 'stages.' else 0
    if part == 'downsample_layers.' and stage == 0:
        return 0
    last = depths[2] - 1
    block = min(int(match[3] or last), last) if part == 'stages.' else 0
    return (1, 2, 3 + block // BLOCKS_PER_LAYER, num_layers)[stage]


def lr_scale(layer: int, decay_rate: float, num_layers: int) -> float:
    """Factor on the base learning rate: 1 for the heads, times ``decay_rate`` per layer below."""
    return decay_rate ** (num_layers + 1 - layer)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Optimiser with two parameter groups per layer, with and without weight decay.

    Biases and 1-D tensors have none, as in the official code. What counts is the shape of the whole
    parameter: FSDP has cut them all into flat pieces before the optimiser is built.

    Used as ``optim_wrapper=dict(constructor='convnext_dense.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.95, decay_type='layer_wise'))``. Groups are named
    ``layer_{id}_{decay|no_decay}`` and carry ``lr``, ``lr_scale``, ``weight_decay`` and
    ``param_names``. Backbones are known by their type, wherever they sit in the model; several
    (teacher and student) have to be of the same depths. All outside of them is the heads' layer.

    paramwise_cfg:
        decay_rate: factor per layer, in (0, 1].
        decay_type: ``layer_wise`` (official on COCO) or ``stage_wise`` (official on ADE20K).
        num_layers: defaults to what the depths imply; it may not be smaller, since layers would
            then share a rate or exceed the heads'.
        custom_keys: as in MMEngine, part of a name -> ``dict(lr_mult=..., decay_mult=...)``, on
            top of the layer's values; of several that fit the longest counts.

    Raises:
        ConfigError: a key is missing, unknown or out of range, or a custom key fits no parameter;
            the model has no ConvNeXt, or several that differ; a parameter that is trained sits
            nowhere in its backbone; FSDP hides shapes, as it does with ``use_orig_params=False``.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        # Before MMEngine unwraps the model: FSDP's root knows what is in no inner unit.
        self._shapes = unsharded_shapes(model)
        return super().__call__(model)

    def _validate_cfg(self) -> None:
        cfg = self.paramwise_cfg
        needed, optional = {'decay_rate', 'decay_type'}, {'num_layers', 'custom_keys'}
        # Also covers an empty paramwise_cfg, with which MMEngine would build one flat group
        # without a word.
        if not needed <= set(cfg) <= needed | optional:
            raise ConfigError(
                'paramwise_cfg needs decay_rate and decay_type, may have num_layers '
                f'and custom_keys, and takes nothing else; got {dict(cfg)}'
            )
        if cfg['decay_type'] not in DECAY_TYPES:
            raise ConfigError(f'decay_type is one of {DECAY_TYPES}, not {cfg["decay_type"]!r}')
        if not 0 < cfg['decay_rate'] <= 1:
            raise ConfigError(f'decay_rate lies in (0, 1], not {cfg["decay_rate"]}')
        for key, change in cfg.get('custom_keys', {}).items():
            if not set(change) <= {'lr_mult', 'decay_mult'}:
                raise ConfigError(
                    f'custom_keys: {key!r} takes lr_mult and decay_mult, not {dict(change)}'
                )
        if self.base_lr is None or self.base_wd is None:
            raise ConfigError('the optimizer of a layer-decay recipe needs lr and weight_decay')

    def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
        """Fill ``params`` with the groups, in the order of ``module.named_parameters()``."""
        prefixes, depths = _find_backbones(module)
        implied = default_num_layers(depths)
        num_layers = self.paramwise_cfg.get('num_layers', implied)
        if not isinstance(num_layers, int) or num_layers < implied:
            raise ConfigError(
                f'num_layers={num_layers} is too small, or no integer, for depths {depths}, which '
                f'make {implied} layers: some would share a rate or exceed that of the heads. '
                'Leave it out'
            )
        decay_rate, decay_type = self.paramwise_cfg['decay_rate'], self.paramwise_cfg['decay_type']
        custom_keys = self.paramwise_cfg.get('custom_keys', {})

        groups: dict[GroupKey, dict] = {}
        unused = set(custom_keys)
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            clean = WRAPPER.sub('', name)
            prefix = next((prefix for prefix in prefixes if clean.startswith(prefix)), None)
            layer = num_layers + 1  # the heads
            if prefix is not None:
                layer = layer_id(clean[len(prefix) :], depths, decay_type, num_layers)
            decays = len(self._shapes[parameter]) != 1 and not name.endswith('.bias')
            custom = max((key for key in custom_keys if key in clean), key=len, default='')
            unused.discard(custom)
            key = GroupKey(layer, custom, decays)
            if key not in groups:
                change = custom_keys.get(custom, {})
                scale = lr_scale(layer, decay_rate, num_layers) * change.get('lr_mult', 1.0)
                decay = self.base_wd * change.get('decay_mult', 1.0) if decays else 0.0
                groups[key] = dict(params=[], param_names=[], group_name=str(key), lr_scale=scale)
                groups[key].update(lr=self.base_lr * scale, weight_decay=decay)
            groups[key]['params'].append(parameter)
            groups[key]['param_names'].append(name)
        if unused:
            raise ConfigError(
                'custom_keys: no parameter that is trained has '
                f'{", ".join(map(repr, sorted(unused)))} in its name, or a longer key fits all '
                'that have'
            )
        params.extend(groups.values())
        title = f'{decay_type} learning-rate decay {decay_rate}, {num_layers} layers'
        print_log(f'{title}\n{_format(groups)}', logger='current')


class GroupKey(NamedTuple):
    """What the parameters of a group have in common."""

    layer: int
    custom: str  # key of custom_keys, or ''
    decays: bool

    def __str__(self) -> str:
        name = f'layer_{self.layer}_{"decay" if self.decays else "no_decay"}'
        return f'{name}_{self.custom}' if self.custom else name


def _format(groups: Mapping[GroupKey, dict]) -> str:
    """One line per layer: learning rate, scale, and how many tensors are decayed or not."""
    lines = [
        '(tensors with and without weight decay; layer 0 is the stem, the last the heads)',
        f'{"layer":>6} {"lr":>10} {"scale":>8} {"decayed":>8} {"not":>5}',
    ]
    for layer, custom in sorted({(key.layer, key.custom) for key in groups}):
        pair = [groups.get(GroupKey(layer, custom, decays)) for decays in (True, False)]
        decayed, undecayed = (len(group['params']) if group else 0 for group in pair)
        group = pair[0] or pair[1] or {}
        row = f'{layer:>6} {group["lr"]:>10.3g} {group["lr_scale"]:>8.4f} {decayed:>8}'
        lines.append(f'{row} {undecayed:>5}  {custom}'.rstrip())
    return '\n'.join(lines)


def unsharded_shapes(model: nn.Module) -> dict[Tensor, torch.Size]:
    """Parameter -> its shape when it is whole.

    FSDP's shards are flat or empty; the shapes stand in torch's FlatParameter, in 2.1 as today.
    ``summon_full_params`` would show them as well, but it gathers every parameter, and in torch 2.1
    it leaves inner units out without a word and needs a GPU. DTensors, as FSDP2's, are no matter:
    their shape is the whole parameter's.

    Raises:
        ConfigError: FSDP hides a shape.
    """
    shapes: dict[Tensor, torch.Size] = {}
    for unit in model.modules():
        flat = getattr(unit, '_flat_param', None) if isinstance(unit, FSDP) else None
        if flat is not None:
            shapes.update(zip(flat._params or (), flat._shapes))
    for name, parameter in model.named_parameters():
        if getattr(parameter, '_fsdp_flattened', False) and parameter not in shapes:
            raise ConfigError(
                f'the whole shape of {name} is needed, and FSDP hides it: wrap with '
                'use_orig_params=True, and build the optimizer from the outermost module'
            )
        shapes.setdefault(parameter, parameter.shape)
    return shapes


def _find_backbones(model: nn.Module) -> tuple[list[str], Sequence[int]]:
    """Prefixes with a trailing dot, and the depths that all have."""
    backbones = {
        WRAPPER.sub('', f'{name}.' if name else ''): module.depths
        for name, module in model.named_modules()
        if isinstance(module, ConvNeXt)
    }
    if len(set(backbones.values())) != 1:
        raise ConfigError(
            'layer-wise decay needs a convnext_dense.ConvNeXt in the model, or several of the '
            f'same depths; got {backbones or "none"} in {type(model).__name__}. Other backbones, '
            "Roadmap's steps among them, are trained without this constructor"
        )
    return list(backbones), next(iter(backbones.values()))
