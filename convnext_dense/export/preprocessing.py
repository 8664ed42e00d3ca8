"""A picture as people have it -> what a network of mmdet or mmseg is given."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError


class Preprocessing(nn.Module):
    """The normalisation and padding of a model's data preprocessor.

    Raises:
        ConfigError: the preprocessor does something else, or the images have no three bands.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessor: Any):
        super().__init__()
        kind = type(preprocessor)
        if kind.__name__ not in ('SegDataPreProcessor', 'DetDataPreprocessor'):
            raise ConfigError(
                f'the images are prepared by {kind.__module__}.{kind.__name__}, which is not known '
                'here: expected SegDataPreProcessor or DetDataPreprocessor'
            )
        mean, std = torch.zeros(3), torch.ones(3)
        if preprocessor._enable_normalize:
            mean, std = preprocessor.mean.flatten(), preprocessor.std.flatten()
        if len(mean) == 1:
            mean, std = mean.expand(3), std.expand(3)
        if len(mean) != 3:
            raise ConfigError(f'the model takes images of {len(mean)} bands; RGB has three')
        self.register_buffer('mean', mean.clone(), persistent=False)
        self.register_buffer('std', std.clone(), persistent=False)
        # images are read as BGR; either of its flags makes RGB of that
        self.is_rgb = bool(preprocessor._channel_conversion)
        self.pad_value = float(preprocessor.pad_value)
        self.size: tuple[int, int] | None = None  # to which it is padded, or a divisor of that
        self.divisor: int | None = preprocessor.pad_size_divisor
        if kind.__name__ == 'SegDataPreProcessor':  # its other options are for training
            at_test = preprocessor.test_cfg or {}
            self.size, self.divisor = at_test.get('size'), at_test.get('size_divisor')
            self.pad_value = float(preprocessor.pad_val)

    def forward(self, image: Tensor) -> Tensor:
        """RGB (N, H, W, 3) uint8 -> (N, 3, H', W') normalised, padded on the right and below."""
        height, width = image.shape[1:3]
        if not self.is_rgb:
            image = image.flip(-1)
        x = ((image.float() - self.mean) / self.std).permute(0, 3, 1, 2)
        if self.size:
            padded = [torch.sym_max(a, b) for a, b in zip((height, width), self.size)]
        elif self.divisor and self.divisor > 1:
            padded = [
                (side + self.divisor - 1) // self.divisor * self.divisor for side in (height, width)
            ]
        else:
            return x
        return F.pad(x, (0, padded[1] - width, 0, padded[0] - height), value=self.pad_value)
