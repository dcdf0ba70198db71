"""Sizes that never change: what a Shape node tells of them is a constant of the model.

An exporter that traces `x.shape[1] // heads`, `chunk(2)` or `1 / sqrt(d)` writes a chain of nodes that starts with
Shape. Where shape inference proves the size, whatever the inputs' open dimensions are, the chain is a number that the
trained model holds; only as such can it be edited (a Reshape's target) or stay (an attention's scale).

    Shape                      → initializer, if all sizes are known
    Shape → Gather or Slice    → initializer, if those it selects are
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from .protos import add_initializer, attribute, constant_tensors
from .sessions import skeleton_of
from .tensors import Array

Sizes = NDArray[Any]
"""Object array of sizes, of one value's axes or what was selected of them; None for an open one."""


def asks_for_sizes(model: ModelProto) -> bool:
    """Whether a Shape node does."""
    return any(node.op_type == "Shape" for node in model.graph.node)


def fold_sizes(model: ModelProto, known: Mapping[str, Sizes]) -> bool:
    """Make initializers of all that Shape nodes tell of known sizes; whether there was anything."""
    if not known:
        return False
    graph = model.graph
    outputs = {o.name for o in graph.output}
    constants = {name: tensor for name, tensor in constant_tensors(graph).items() if len(tensor.dims) < 2}
    vectors: dict[str, Sizes] = {}
    gone = []
    for i, node in enumerate(graph.node):
        sizes = _sizes(node, known, vectors, constants)
        if sizes is None:
            continue
        if None in sizes.ravel() or node.output[0] in outputs:
            vectors[node.output[0]] = sizes
        else:
            add_initializer(model, numpy_helper.from_array(np.asarray(sizes, np.int64)), node.output[0])
            gone.append(i)
    for i in reversed(gone):
        del graph.node[i]
    return bool(gone)


def known_sizes(model: ModelProto) -> Mapping[str, Sizes]:
    """Every value's sizes as far as inference proves them; shapes recorded in the file prove nothing."""
    skeleton = skeleton_of(model)[0]
    forget(skeleton.graph)
    return inferred_sizes(onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph)


def inferred_sizes(graph: GraphProto) -> Mapping[str, Sizes]:
    """The sizes of values in a graph that shape inference made, but for the graph's outputs."""
    kinds = {v.name: v.type.tensor_type for v in [*graph.input, *graph.value_info]}
    known = {n: [d.dim_value or None for d in k.shape.dim] for n, k in kinds.items() if k.HasField("shape")}
    return {name: np.array(sizes, dtype=object) for name, sizes in known.items()}


def forget(graph: GraphProto) -> bool:
    """Forget recorded shapes, and sizes of inputs below 1, by which exporters mean that they are open; whether any."""
    dims = [dim for value in graph.input for dim in value.type.tensor_type.shape.dim]
    wrong = [dim for dim in dims if dim.HasField("dim_value") and dim.dim_value < 1]
    for dim in wrong:
        dim.Clear()
    recorded = bool(graph.value_info or wrong)
    graph.ClearField("value_info")
    return recorded


def _sizes(
    node: NodeProto, known: Mapping[str, Sizes], vectors: Mapping[str, Sizes], constants: Mapping[str, TensorProto]
) -> Sizes | None:
    """What a node makes of sizes, None in place of open ones; None if it is no Shape, nor reads one's result."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Shape" and node.input[0] in known:
        sizes = known[node.input[0]]
        return sizes[attribute(node, "start", 0) : attribute(node, "end", len(sizes))]
    if node.op_type in ("Gather", "Slice") and node.input[0] in vectors:
        operands = [name for name in node.input[1:] if name]
        if all(name in constants for name in operands):
            return _selected(node, vectors[node.input[0]], [numpy_helper.to_array(constants[n]) for n in operands])
    return None


def _selected(node: NodeProto, sizes: Sizes, operands: Sequence[Array]) -> Sizes | None:
    if sizes.ndim != 1:
        return None
    if node.op_type == "Gather":
        return np.asarray(sizes[operands[0]], dtype=object)
    start, end = (int(v.ravel()[0]) for v in _bounds(node, operands))
    step = int(operands[3].ravel()[0]) if len(operands) > 3 else 1
    return sizes[start:end:step] if step > 0 else None


def _bounds(node: NodeProto, operands: Sequence[Array]) -> Iterator[Array]:
    """Start and end of a Slice: inputs, or attributes up to opset 9."""
    for i, name in enumerate(("starts", "ends")):
        yield operands[i] if i < len(operands) else np.array(attribute(node, name))
