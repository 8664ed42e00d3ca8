"""A file in fp32 -> the same with the layers of the network in fp16, and a proof of it on a CPU."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LARGEST = 65504 / 4  # values of a tensor in fp16, with room for images that were not seen
# Operators that are in fp16 within a layer of the network. Of these norms, torch's exporter makes
# one operator each, whose statistics engines compute in fp32.
OF_LAYERS = {
    *('Conv', 'ConvTranspose', 'MatMul', 'Gemm', 'Add', 'Sub', 'Mul', 'Relu', 'Gelu', 'Sigmoid'),
    *('LayerNormalization', 'BatchNormalization', 'InstanceNormalization', 'Transpose', 'Reshape'),
    *('Concat', 'Resize', 'MaxPool', 'AveragePool', 'Squeeze', 'Unsqueeze', 'Slice', 'Clip'),
}
# Between layers, where they lie between such operators: in heads that call their layers.
BETWEEN = {'Concat', 'Resize', 'Add', 'Relu', 'Transpose'}
STATISTICS = '.grn/'  # sums of squares over a whole map, which overflow in fp16
# What these compute themselves, and not in their layers, are coordinates of boxes and of places
# that are looked at.
OF_COORDINATES = re.compile(r'(bbox_head|decoder|.*_attn)/[^/]*')


class Halved(NamedTuple):
    """What became of a graph.

    Args:
        file: the graph with fp16 in it, inputs and outputs as before.
        simulation: the graph in fp32, in which all that is fp16 in ``file`` is rounded to fp16.
        names: of the operators in fp16.
        ranges: of these and others that might be, the largest absolute value that goes in or comes
            out in fp32, on real images.
    """

    file: Any
    simulation: Any
    names: set[str]
    ranges: dict[str, float]

    def report(self, lines: int = 5) -> list[str]:
        """What is in fp16, what is left in fp32 by its values, and the largest values."""
        left = [name for name in self.ranges if name not in self.names]
        text = [f'{len(self.names)} operators in fp16; left in fp32 by their values: {len(left)}']
        largest = sorted(self.ranges, key=lambda name: -self.ranges[name])[:lines]
        return text + [
            f'{name}: up to {self.ranges[name]:.3g}' + ', stays in fp32' * (name in left)
            for name in largest
        ]


def halved(path: Path, inputs: Sequence[dict[str, np.ndarray]]) -> Halved:
    """
    Args:
        path: of the graph in fp32, whose operators are named ``LAYER/...`` where they are of one.
        inputs: of the graph, real images; they tell which values do not fit.
    """
    import onnx

    proto = onnx.shape_inference.infer_shapes(onnx.load(path))
    chosen = _chosen(proto.graph)
    ranges = _ranges(proto, chosen, inputs)
    names = {name for name in chosen if ranges.get(name, 0) <= LARGEST}
    return Halved(_converted(proto, names), _simulated(proto, names), names, ranges)


def _chosen(graph) -> set[str]:
    """Names of operators in layers, and of those between them."""
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    floats = _floats(graph)
    chosen = {
        node.name
        for node in graph.node
        if node.op_type in OF_LAYERS
        and '/' in node.name
        and not _is_exact(node)
        and any(name in floats for name in node.output)
    }
    between = {
        node.name: node
        for node in graph.node
        if node.op_type in BETWEEN
        and node.name not in chosen
        and not _is_exact(node)
        and node.output[0] in floats
    }
    # Those on all sides of which there is fp16; the others drop out one after the other.
    while True:
        inside = chosen | set(between)
        outside = [
            name
            for name, node in between.items()
            if any(
                producers[part].name not in inside
                for part in node.input
                if part in floats and part in producers
            )
            or any(reader.name not in inside for reader in readers.get(node.output[0], ()))
            or not readers.get(node.output[0])
        ]
        if not outside:
            return inside
        for name in outside:
            del between[name]


def _is_exact(node) -> bool:
    return STATISTICS in node.name or bool(OF_COORDINATES.fullmatch(node.name))


def _floats(graph) -> set[str]:
    """Names of the tensors in fp32."""
    import onnx

    fp32 = onnx.TensorProto.FLOAT
    values = [*graph.value_info, *graph.input, *graph.output]
    names = {value.name for value in values if value.type.tensor_type.elem_type == fp32}
    return names | {part.name for part in graph.initializer if part.data_type == fp32}


def _ranges(proto, chosen: set[str], inputs: Iterable[dict]) -> dict[str, float]:
    """Name of an operator -> the largest absolute value that goes into it or comes out of it."""
    import onnx
    import onnxruntime

    measured, floats = _copy(proto), _floats(proto.graph)
    graph = measured.graph
    weights = {part.name: part for part in graph.initializer}
    largest: dict[str, float] = {}  # by tensor
    tensors = {}  # of operators
    for node in [node for node in graph.node if node.name in chosen]:
        names = [node.input[i] for i in _values(node, floats)] + list(node.output)
        tensors[node.name] = names
        for name in names:
            if name in largest:
                continue
            largest[name] = 0.0
            if name in weights:
                value = onnx.numpy_helper.to_array(weights[name])
                largest[name] = float(np.abs(value).max(initial=0))
                continue
            graph.node.append(onnx.helper.make_node('Abs', [name], [f'{name}/size']))
            maximum = onnx.helper.make_node('ReduceMax', [f'{name}/size'], [f'{name}/largest'])
            maximum.attribute.append(onnx.helper.make_attribute('keepdims', 0))
            graph.node.append(maximum)
    computed = [name for name in largest if name not in weights]
    del graph.output[:]
    graph.output.extend(
        onnx.helper.make_tensor_value_info(f'{name}/largest', onnx.TensorProto.FLOAT, [])
        for name in computed
    )
    session = onnxruntime.InferenceSession(
        measured.SerializeToString(), providers=['CPUExecutionProvider']
    )
    for feed in inputs:
        for name, value in zip(computed, session.run(None, feed)):
            largest[name] = max(largest[name], float(value))
    return {name: max(largest[part] for part in parts) for name, parts in tensors.items()}


def _converted(proto, names: set[str]):
    """The operators of these names take and give fp16, and no other does: of all that lies between
    others, nothing is rounded."""
    import onnx

    fp16, fp32 = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    file, floats = _copy(proto), _floats(proto.graph)
    weights = {part.name: part for part in file.graph.initializer}
    halves: set[str] = set()  # tensors that are there in fp16, as NAME/fp16
    nodes = []

    def cast(source, target, kind):
        nodes.append(onnx.helper.make_node('Cast', [source], [target], to=kind))

    for node in file.graph.node:
        if node.name not in names:
            nodes.append(node)
            continue
        for i in _values(node, floats):
            name = node.input[i]
            if name not in halves:
                halves.add(name)
                if name in weights:
                    value = onnx.numpy_helper.to_array(weights[name]).astype(np.float16)
                    file.graph.initializer.append(
                        onnx.numpy_helper.from_array(value, f'{name}/fp16')
                    )
                else:
                    cast(name, f'{name}/fp16', fp16)
            node.input[i] = f'{name}/fp16'
        nodes.append(node)
        for i, name in enumerate(node.output):
            node.output[i] = f'{name}/fp16'
            halves.add(name)
            cast(f'{name}/fp16', name, fp32)  # for those that take fp32, if there are any
    return _with_nodes(file, nodes)


def _simulated(proto, names: set[str]):
    """What goes into and out of the operators of these names is rounded to fp16.

    onnxruntime's CPU operators compute in fp32 whatever the type, and leave out the rounding
    between them. Sums within an operator stay in fp32 here, as they do in matrix units.
    """
    import onnx

    simulation, floats = _copy(proto), _floats(proto.graph)
    rounded: set[str] = set()
    nodes = []

    def round_to(source, target):
        for value, result, kind in (
            (source, f'{target}/fp16', onnx.TensorProto.FLOAT16),
            (f'{target}/fp16', target, onnx.TensorProto.FLOAT),
        ):
            nodes.append(onnx.helper.make_node('Cast', [value], [result], to=kind))

    for node in simulation.graph.node:
        if node.name not in names:
            nodes.append(node)
            continue
        for i in _values(node, floats):
            name = node.input[i]
            if name not in rounded:
                rounded.add(name)
                round_to(name, f'{name}/rounded')
            node.input[i] = f'{name}/rounded'
        results = list(node.output)
        node.output[:] = [f'{name}/exact' for name in results]
        nodes.append(node)
        for name in results:
            round_to(f'{name}/exact', name)
    return _with_nodes(simulation, nodes)


def _values(node, floats: set[str]) -> list[int]:
    """Indices of the inputs that are computed with. Resize has regions and scales beside them."""
    count = 1 if node.op_type == 'Resize' else len(node.input)
    return [i for i in range(count) if node.input[i] in floats]


def _copy(proto):
    return type(proto).FromString(proto.SerializeToString())


def _with_nodes(proto, nodes):
    """The graph with these operators, and without those and weights that nothing reads."""
    graph = proto.graph
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed([_copy(node) for node in nodes]):
        if needed & set(node.output):
            kept.append(node)
            needed.update(node.input)
    weights = [_copy(part) for part in graph.initializer if part.name in needed]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(weights)
    return proto
