"""Whether a swapped config is right, judged from outside: by the tensors that flow through it.

Neither the plan of the swap nor its text is looked at, but for what it told the user to be another
matter. Compared are the images that reach the network with what the weights were trained on; the
strides that heads were told with those of the maps that they read; and what is trained, with what
was trained before.
"""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from ..swap import Swap
from ..swap.editing import KeyPath, at
from ..swap.noise import Size, pack_noise, pipeline_steps, same_random_numbers
from ..swap.old_backbone import find_owners
from ..swap.proof import (
    ORIGINAL_FAILS,
    first_reason,
    make_shallow,
    part,
    random_model,
    run_step,
    without_log_messages,
)

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
SIZE: Size = (64, 96)  # of the image whose values are compared
# The steps of a pipeline that decide on the values of an image. Those that augment them do not
# count, since an image is compared pixel by pixel.
STEPS_OF_VALUES = re.compile('Load|Normalize|Concat|Pack|Format|ImageToTensor|Collect')
# What a swap says of images that it cannot bring to what the weights expect.
TOLD = re.compile('left as it is|as the pipelines leave them|are not normalised|not reordered')


class Verdict(NamedTuple):
    faults: list[str]
    not_judged: list[str]  # what could not be compared, and why


def judge_images(swap: Swap, mean: Sequence[float], std: Sequence[float]) -> Verdict:
    """Whether the images of each loader reach the network as ``(RGB - mean) / std``.

    Args:
        swap: planned with pretrained weights.
        mean, std: of the images that these weights were trained on, RGB, 0 to 255.
    """
    init_default_scope(swap.cfg.get('default_scope') or 'mmdet')
    told = [text for text in swap.warnings if TOLD.search(text)]
    verdict = Verdict([], [])
    for loader in LOADERS:
        steps = pipeline_steps((swap.cfg.get(loader) or {}).get('dataset') or {})
        steps = [step for step in steps if STEPS_OF_VALUES.search(str(step.get('type')))]
        if not steps:
            continue
        try:
            picture, image = _image_of_network(steps, swap)
        except Exception as error:  # of the pipeline or the preprocessor, whichever they are
            verdict.not_judged.append(f'{loader}: {type(error).__name__}: {error}')
            continue
        expected = (torch.from_numpy(picture).double() - torch.tensor(mean)) / torch.tensor(std)
        image = image[:, : SIZE[0], : SIZE[1]].permute(1, 2, 0).double()
        images = image.split(3, dim=2)  # change detection stacks two
        if all(_is_equal(values, expected) for values in images):
            continue
        if told:
            verdict.not_judged.append(f'{loader}: the swap tells: {told[0]}')
            continue
        means = ', '.join(f'{value:.2f}' for value in image.mean((0, 1)))
        wanted = ', '.join(f'{value:.2f}' for value in expected.mean((0, 1)))
        fault = f'{loader}: images have the means {means}, the weights expect {wanted}'
        verdict.faults.append(fault)
    return verdict


def _image_of_network(steps: list[dict], swap: Swap) -> tuple[np.ndarray, torch.Tensor]:
    """A picture (H, W, 3) as RGB, and what the network is given of it, (C, H or more, W or more)"""
    preprocessor = _preprocessor(swap.cfg, swap.owners[0])
    with TemporaryDirectory() as folder, same_random_numbers():
        sample = pack_noise(Path(folder), SIZE, steps)
        picture = np.array(Image.open(Path(folder, 'image.png')))
    batch = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
    if preprocessor is not None:
        batch = preprocessor(batch, False)
    return picture, batch['inputs'][0]


def _is_equal(image: torch.Tensor, expected: torch.Tensor) -> bool:
    return image.shape == expected.shape and torch.allclose(image, expected, 0, 0.01)


def _preprocessor(cfg, owner: KeyPath) -> Any:
    """Built, of the nearest dict to the backbone that has one; None if there is none.

    Runner gives the model that of the config itself.
    """
    above = [at(cfg, owner[:k]).get('data_preprocessor') for k in range(len(owner), -1, -1)]
    nearest = next(filter(None, above), None)
    return MODELS.build(nearest) if nearest else None


def judge_model(swap: Swap) -> Verdict:
    """Whether maps are read at the strides that were told, and all is trained that was before.

    The same step of training is run on the original and on the swapped model.

    Raises:
        ConfigError: the swapped model does not run.
    """
    init_default_scope(swap.cfg.get('default_scope') or 'mmdet')
    owner = swap.owners[0]
    whole = len(owner) == 1
    swapped = part(swap.cfg, owner)
    make_shallow(swapped.backbone)
    with without_log_messages(), torch.random.fork_rng(devices=[]):
        after = Observed(swapped, swap.cfg if whole else None)
        try:
            before = Observed(part(swap.original, owner), swap.original if whole else None)
        except Exception as error:  # of whatever network it is
            return Verdict([], [f'{ORIGINAL_FAILS}{first_reason(error)}'])
    faults = [
        f'{name} was told the strides {told} and reads maps at {read}'
        for name, (told, read) in after.strides.items()
        if told != read and name not in before.wrong_strides()
    ]
    lost = [name for name in sorted(before.reached) if name in after.parameters - after.reached]
    if lost:
        faults.append(f'without a gradient, which they had before: {_first(lost)}')
    frozen = [name for name in sorted(after.frozen) if name in before.parameters - before.frozen]
    if not before.backbone_is_frozen:
        frozen += [name for name in after.frozen if name.startswith('backbone.')]
    if frozen:
        faults.append(f'frozen, which were trained before: {_first(frozen)}')
    return Verdict(faults, [])


def why_it_does_not_run(cfg: Config) -> str:
    """What a step of training raises, '' if nothing: of the model that holds the backbone."""
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    owner = find_owners(cfg)[0]
    with without_log_messages(), torch.random.fork_rng(devices=[]):
        try:
            run_step(random_model(part(cfg, owner)), cfg if len(owner) == 1 else None, False)
        except Exception as error:
            return first_reason(error)
    return ''


class Observed:
    """What a step of training shows of a model.

    Attributes:
        strides: module -> the strides that it was told, and those of the maps that it was given.
        parameters: names of those outside the backbone.
        reached: of these, those that got a gradient.
        frozen: of all, those that are not trained.
    """

    def __init__(self, cfg: dict, whole: Config | None):
        self.strides: dict[str, tuple[list[int], list[int]]] = {}
        model = random_model(cfg)
        model.backbone.register_forward_pre_hook(self._remember_side)
        for name, module in model.named_modules():
            told = told_strides(module)
            if told and not name.startswith('backbone'):
                module.register_forward_pre_hook(self._compare(name, told), with_kwargs=True)
        run_step(model, whole, reach_stem=False)
        named = dict(model.named_parameters())
        self.frozen = {name for name, value in named.items() if not value.requires_grad}
        self.parameters = {name for name in named if not name.startswith('backbone.')}
        self.reached = {name for name in self.parameters if named[name].grad is not None}
        of_backbone = model.backbone.parameters()
        self.backbone_is_frozen = not any(value.requires_grad for value in of_backbone)

    def wrong_strides(self) -> list[str]:
        return [name for name, (told, read) in self.strides.items() if told != read]

    def _remember_side(self, backbone, args):
        self.side = args[0].shape[-2]

    def _compare(self, name: str, told: list[int]) -> Callable:
        def look(module, args, kwargs):
            for value in (*args, *kwargs.values()):
                if isinstance(value, (list, tuple)) and all(map(_is_map, value)):
                    sizes = [level.shape[-2] for level in value]
                    pairs = list(zip(told, sizes))  # an extractor leaves coarse maps out
                    read = [self._stride(stride, size) for stride, size in pairs]
                    self.strides[name] = told[: len(pairs)], read
                    return

        return look

    def _stride(self, told: int, size: int) -> int:
        """Of a map of ``size`` rows; ``told`` if an image of this side has as many at that."""
        rows = math.floor(self.side / told), math.ceil(self.side / told)
        return told if size in rows else round(self.side / size)


def told_strides(module) -> list[int]:
    """The strides that a head, or what extracts features for it, was told; [] if none."""
    for source in (getattr(module, 'prior_generator', None), module):
        for key in ('strides', 'featmap_strides'):
            values = getattr(source, key, None)
            if isinstance(values, (list, tuple)) and values:
                return [value[0] if isinstance(value, tuple) else value for value in values]
    return []


def _is_map(value) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 4


def _first(names: Sequence[str]) -> str:
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
