"""A file in fp32 -> the same with the linear layers of ConvNeXt's blocks in 8 bits."""

import contextlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..printing import quiet

PRODUCTS = '.pwconv1/MatMul', '.pwconv2/MatMul'  # in the names of operators


def quantised(path: Path, inputs: Iterable[dict[str, np.ndarray]]) -> Any:
    """The file as a protocol buffer whose blocks multiply in 8 bits.

    Weights have a scale for each output channel; activations one for each layer, between the least
    and the largest value that it takes in ``inputs``. All else stays in fp32: depthwise
    convolutions, norms, necks and heads are where 8 bits cost accuracy, and the products of the
    blocks where they save time.

    Args:
        inputs: of the graph, a batch each.

    Raises:
        ConfigError: the file has no such layers.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter(inputs)

        def get_next(self):
            return next(self.batches, None)

    nodes = onnx.load(path).graph.node
    names = [node.name for node in nodes if any(part in node.name for part in PRODUCTS)]
    if not names:
        raise ConfigError('int8: the model has no block of ConvNeXt, whose linear layers it is for')
    target = path.with_name(f'{path.name}.int8')
    try:
        with _silence():
            quantize_static(
                path,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=names,
            )
        return onnx.load(target)
    finally:
        target.unlink(missing_ok=True)


@contextlib.contextmanager
def _silence():
    """Without advice on preparing the file, which the exporter has done."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quiet():
            yield
    finally:
        logger.setLevel(level)
