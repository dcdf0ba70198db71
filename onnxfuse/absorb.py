"""A constant that a weight reads is a constant that it makes: its bias can take it up."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from .findings import RawSlot
from .graph import Graph
from .protos import attribute
from .tensors import Array
from .weights import front


def bias_of(graph: Graph, reader: RawSlot) -> str | None:
    """The constant vector that is added to what a reader makes, if it is added everywhere alike and only there."""
    node = graph.model.graph.node[reader.edge.node]
    if node.op_type == "Conv" and len(node.input) > 2 and _unpadded(node):
        return _own_vector(graph, node.input[2])
    if node.op_type == "Gemm" and len(node.input) > 2:
        plain = (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)) == (1.0, 1.0)
        return _own_vector(graph, node.input[2]) if plain else None
    uses = graph.edges.get(node.output[0], [])
    after = graph.model.graph.node[uses[0].node] if len(uses) == 1 else None
    if node.op_type == "MatMul" and reader.edge.slot == 1 and after is not None and after.op_type == "Add":
        return _own_vector(graph, after.input[1 - uses[0].slot])
    return None


def _unpadded(node: NodeProto) -> bool:
    """At a padded border a convolution sees zeros in place of the constant."""
    return not any(attribute(node, "pads", [])) and attribute(node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")


def _own_vector(graph: Graph, name: str) -> str | None:
    tensor = graph.constants.get(name)
    return name if tensor is not None and len(tensor.dims) == 1 and len(graph.edges[name]) == 1 else None


def columns(graph: Graph, reader: RawSlot) -> Array:
    """(d, outputs of a block, …) what the weight does with each of the d channels that it reads."""
    view = front(graph.array(reader.tensor), reader)
    return np.asarray(view.reshape(len(reader.ids), *view.shape[len(reader.axes) :]), np.float64)


def makes(read: Array, position: int, value: float, blocks: int) -> Array:
    """(outputs,) what a weight of these `columns` makes of one constant channel; each block has outputs of its own."""
    column = value * read[position]
    made = column.reshape(len(column), -1).sum(axis=1)
    result = np.zeros((blocks, len(made)))
    result[position * blocks // len(read)] = made
    return result.ravel()
