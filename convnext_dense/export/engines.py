"""Programs that run an exported file on the CPU."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

Run = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]
NAMES = dict(onnxruntime='onnxruntime', openvino='OpenVINO')  # module -> as people write it
ENGINES = tuple(NAMES)  # the first is the one that a file is made for


def opened(path: str | Path, engine: str) -> Run:
    """A file of ONNX in an engine, in as many threads as torch has.

    Args:
        engine: of ``ENGINES``.

    Returns:
        A function: inputs by name -> outputs in the file's order. It and this one raise whatever
        the engine does.
    """
    return {'onnxruntime': _onnxruntime, 'openvino': _openvino}[engine](path)


def _onnxruntime(path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    return lambda inputs: session.run(None, dict(inputs))


def _openvino(path) -> Run:
    import openvino

    # on some processors it computes in 16 bits otherwise
    options: Any = dict(
        INFERENCE_PRECISION_HINT='f32', INFERENCE_NUM_THREADS=torch.get_num_threads()
    )
    compiled = openvino.Core().compile_model(Path(path), 'CPU', options)

    def run(inputs):
        results = compiled(dict(inputs))
        return [results[output] for output in compiled.outputs]

    return run
