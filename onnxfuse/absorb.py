"""A constant that a weight reads is a constant that it makes: its bias can take it up."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from .findings import RawSlot
from .graph import Graph
from .producers import is_matmul, is_scaled
from .protos import attribute
from .tensors import Array
from .weights import front


def bias_of(graph: Graph, reader: RawSlot) -> str | None:
    """The constant vector that is added to what a reader makes, if it is added everywhere alike and only there."""
    node = graph.protos[reader.edge.node]
    if node.op_type == "Conv" and len(node.input) > 2 and _unpadded(node):
        return graph.own_vector(node.input[2])
    if node.op_type == "Gemm" and len(node.input) > 2:
        return None if is_scaled(node) else graph.own_vector(node.input[2])
    added = graph.added(node.output[0])
    matrix = len(graph.constants[reader.tensor].dims) > 1  # what a vector makes has no axis of its own
    if is_matmul(node) and reader.edge.slot == 1 and matrix and added is not None:
        return graph.own_vector(added[0])
    return None


def _unpadded(node: NodeProto) -> bool:
    """At a padded border a convolution sees zeros in place of the constant."""
    return not any(attribute(node, "pads", [])) and attribute(node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")


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
