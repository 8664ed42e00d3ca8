"""rearrange(): heads of mmseg and mmdet in a model compute the same in less time."""

import sys
from typing import NamedTuple

from torch import nn

from .layers import is_watched

EXTRACTORS = 'mmdet.models.roi_heads.roi_extractors'


class Rearranged(NamedTuple):
    """What ``rearrange`` did, by the names of modules in the model."""

    heads: list[str]  # they are rearranged; mmseg's segmentor and parts of mmdet's, too
    left_alone: dict[str, str]  # they, or a convolution in them, are not: name -> why

    def __str__(self) -> str:
        lines = [f'rearranged: {", ".join(self.heads) or "nothing"}']
        return '\n'.join(lines + [f'left alone: {n} {why}' for n, why in self.left_alone.items()])


def rearrange(model: nn.Module) -> Rearranged:
    """Let the host's heads in ``model``, trained or to be trained, compute the same with less.

    Where a convolution reads maps that have just been upsampled, it is computed before that, and
    only its result is upsampled. That is exact but for rounding, in training as well. Heads that
    gain: UPerHead, PSPHead, ASPPHead, DepthwiseSeparableASPPHead, SegformerHead, FPNHead and,
    with ``resize_concat``, FCNHead, alone or in others such as K-Net's. A training step keeps less
    of their losses, where these are plain cross entropies. Parameters, their names, losses and
    optimisers stay: only the class of a head changes, to one that is derived from it.
    Likewise mmseg's EncoderDecoder, which makes fewer maps as large as the image of its logits at
    inference, and mmdet's SingleRoIExtractor, for inference on CPUs.

    Left alone are other classes, derived ones too, and what has hooks or has been replaced.
    """
    report = Rearranged([], {})
    # A model that has such a head has imported its library; others need not have it.
    if EXTRACTORS in sys.modules:
        from .roi_extractor import MMDetSingleRoIExtractor, SingleRoIExtractor

        for name, module in model.named_modules():
            if type(module) is MMDetSingleRoIExtractor and not is_watched(module):
                module.__class__ = SingleRoIExtractor
                report.heads.append(name)
    if 'mmseg.models.decode_heads' not in sys.modules:
        return report
    from .heads import REARRANGED
    from .resized_convolution import why_plain
    from .segmentor import EncoderDecoder, MMSegEncoderDecoder

    names = {module: name for name, module in model.named_modules()}
    for head, name in names.items():
        if type(head) in (MMSegEncoderDecoder, EncoderDecoder) and not is_watched(head):
            head.__class__ = EncoderDecoder
            report.heads.append(name or EncoderDecoder.__name__)
        base = next((kind for kind in type(head).__mro__ if kind in REARRANGED), None)
        if base is None:
            continue
        convolutions = REARRANGED[base].resized_convolutions(head)
        reasons = {names[conv]: why_plain(conv) for conv in convolutions}
        left_alone = {conv: why for conv, why in reasons.items() if why}
        if is_watched(head):
            left_alone = {name: 'has hooks, is compiled or has another forward'}
        elif type(head) not in (base, REARRANGED[base]):
            left_alone = {name: f"is a {type(head).__name__}, not mmseg's {base.__name__}"}
        elif not convolutions or len(left_alone) < len(convolutions):
            head.__class__ = REARRANGED[base]
            report.heads.append(name)
        report.left_alone.update(left_alone if convolutions else {})
    return report
