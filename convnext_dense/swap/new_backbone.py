"""The dict of ConvNeXt that takes the place of the old backbone's."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..architectures import get_architecture
from ..errors import ConfigError
from ..roadmap import settings_of
from .editing import Edits
from .measuring import STRIDES, Map

OURS = 'convnext_dense.ConvNeXt'
ON_ROADMAP = 'convnext_dense.Roadmap'
# As in docs/own-data.md; smaller sizes have 0. The official recipes have more, since they train
# three to eight times as long as most configs.
DROP_PATH = dict(tiny=0.1, small=0.2, base=0.3, large=0.4, xlarge=0.4, xxlarge=0.4, huge=0.4)
# Options of old backbones that add layers of a method. These layers are lost, which is told.
METHODS = ('dcn', 'plugins', 'stage_with_dcn', 'sac', 'gen_attention', 'stage_with_gen_attention')
# Options of ours that a user chose and that stay if the architecture changes.
KEPT = ('in_channels', 'out_norm', 'frozen_stages', 'checkpointing')

OF_ROADMAP = ('in_channels', 'out_norm')  # of these, the ones that a step has as well


class Target(NamedTuple):
    """The ConvNeXt, or the step of the roadmap, that was asked for."""

    arch: str  # empty for a step of the roadmap
    checkpoint: str | None
    output_stride: int | None  # None: that of the old backbone
    roadmap: str | None = None

    def maps(self, stages: Sequence[int], output_stride: int) -> list[Map]:
        dims: Sequence[int] = (
            settings_of(self.roadmap).out_channels()
            if self.roadmap
            else get_architecture(self.arch).dims
        )
        return [Map(dims[stage], min(STRIDES[stage], output_stride)) for stage in stages]


def is_there(backbone: dict, target: Target) -> bool:
    """Whether the backbone is this one already."""
    if target.roadmap:
        return (backbone.get('type'), backbone.get('step')) == (ON_ROADMAP, target.roadmap)
    if backbone.get('type') != OURS:
        return False
    checkpoint = (backbone.get('init_cfg') or {}).get('checkpoint')
    return (
        backbone.get('arch', 'tiny') == target.arch
        and target.checkpoint in (None, checkpoint)
        and target.output_stride in (None, backbone.get('output_stride', 32))
    )


def set_backbone(
    edits: Edits, target: Target, stages: Sequence[int], output_stride: int, frozen: bool
) -> None:
    """Replace the backbone of a part of a model.

    Args:
        stages: whose maps it emits.
        frozen: whether the old backbone was frozen as a whole.

    Raises:
        ConfigError: it was, and a step of the roadmap is to take its place.
    """
    if target.roadmap:
        _set_roadmap(edits, target.roadmap, stages, frozen)
        return
    old, arch = edits.cfg['backbone'], target.arch
    drop_path = DROP_PATH.get(arch.rpartition('_')[2], 0.0)
    new: dict[str, Any] = dict(type=OURS, arch=arch, drop_path_rate=drop_path)
    if old.get('type') == OURS:
        kept = [*KEPT]
        if old.get('arch', 'tiny') == arch:
            kept.append('drop_path_rate')
        if get_architecture(arch).generation == 1:
            kept.append('layer_scale_init_value')
        new.update({key: old[key] for key in kept if key in old})
    else:
        if old.get('in_channels', 3) != 3:
            new['in_channels'] = old['in_channels']
        if old.get('with_cp'):
            new['checkpointing'] = 'block'
        if frozen:
            new['frozen_stages'] = len(STRIDES)
        _tell_lost_layers(edits, old)
    if tuple(stages) != (0, 1, 2, 3):
        new['out_indices'] = tuple(stages)
    if output_stride != STRIDES[-1]:
        new['output_stride'] = output_stride
        edits.adapters.append(f'output_stride={output_stride}')
        edits.warn(
            f'the deepest map is at stride {output_stride}, where the last stages cost more than '
            'at 32: --output-stride 32 is the ordinary ConvNeXt'
        )
    if target.checkpoint:
        new['init_cfg'] = dict(type='Pretrained', checkpoint=target.checkpoint)
    else:
        and_frozen = ', and is frozen' if new.get('frozen_stages') == len(STRIDES) else ''
        edits.warn(
            f'the backbone starts from random weights{and_frozen}, and images keep their '
            'normalisation: name pretrained weights with checkpoint (--checkpoint)'
        )
    why = 'this drop path is for short schedules, the official recipes have more'
    if old.get('frozen_stages', -1) >= 0 and 'frozen_stages' not in new:
        why += f'; frozen_stages={old["frozen_stages"]} is not kept, ConvNeXt is fine-tuned whole'
    edits.set(('backbone',), new, why)


def _set_roadmap(edits: Edits, step: str, stages: Sequence[int], frozen: bool) -> None:
    old = edits.cfg['backbone']
    if frozen:
        raise ConfigError(
            f'{old["type"]} is frozen, and {step} of the roadmap has no pretrained weights: it has '
            'to be trained. Take the freezing out of the config'
        )
    # The last step is tiny.
    new: dict[str, Any] = dict(type=ON_ROADMAP, step=step, drop_path_rate=DROP_PATH['tiny'])
    new.update({key: old[key] for key in OF_ROADMAP if key in old})
    if tuple(stages) != (0, 1, 2, 3):
        new['out_indices'] = tuple(stages)
    _tell_lost_layers(edits, old)
    edits.warn('the backbone starts from random weights: the roadmap has no pretrained ones')
    edits.set(
        ('backbone',), new, 'a step of the roadmap from ResNet-50 to ConvNeXt-T, trained whole'
    )


def _tell_lost_layers(edits: Edits, old: dict) -> None:
    lost = [key for key in METHODS if old.get(key)]
    if lost:
        edits.warn(f'{", ".join(lost)} were layers within {old["type"]}: they are gone with it')
