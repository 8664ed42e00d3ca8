"""What the graphs of all families share."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .preprocessing import Preprocessing


class Graph(nn.Module):
    """A model from pictures to results.

    Attributes:
        inputs, outputs: names, in the order of ``forward``.
        thresholds: that the results were or are to be cut at, by name.
        least: height and width of the picture that is traced, at least.
    """

    inputs: tuple[str, ...] = ('image',)
    outputs: tuple[str, ...]
    thresholds: dict[str, float]
    # A side of 1 is taken for a constant, and RetinaNet has maps at a stride of 128. A multiple of
    # 32, since some models take no other.
    least: tuple[int, int] = (288, 288)

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.preprocessing = Preprocessing(model.data_preprocessor)

    def operators(self) -> dict:
        """Operators of torch that its exporter does not know -> what they are in ONNX."""
        return {}


def refuse_overridden(module: Any, base: type, names: Iterable[str]) -> None:
    """Raise ConfigError where the module's class does not predict as ``base`` does."""
    kind = type(module)
    for name in names:
        if getattr(kind, name, None) is not getattr(base, name):
            raise ConfigError(
                f'{kind.__name__} cannot be exported: it predicts in a way of its own, by '
                f'{method_of(kind, name)}; known is that of {base.__name__}'
            )


def method_of(kind: type, name: str) -> str:
    """A method, the class that defines it and that one's module, as ``Head.predict (a.b)``."""
    owner = next((parent for parent in kind.__mro__ if name in vars(parent)), kind)
    return f'{owner.__name__}.{name} ({owner.__module__})'


def sides(size: Tensor) -> list:
    """Height and width of an output, of the tensor (2,) that a graph takes for it."""
    # they are symbols, of which torch knows nothing
    lengths = [size[0].item(), size[1].item()]
    for length in lengths:
        torch._check(length > 0)
    return lengths
