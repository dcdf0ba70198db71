"""Permitted norms in the oracle: in the padded graph they, too, must run over the channels that are left.

ReduceMean(x)      → n/k · ReduceMean(m·x)       with the mask m of the k positions of n that are left
ReduceL2(x)        → ReduceL2(m·x)
LayerNormalization, RMSNormalization, InstanceNormalization of groups             → spelled out with such means
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from .channels import Channels
from .findings import Norm
from .protos import add_initializer, attribute, graphs
from .tensors import Array

CENTRED = ("LayerNormalization", "InstanceNormalization")
"""Norms that subtract the mean first."""


def mask_norms(channels: Channels, kept: NDArray[np.bool_]) -> None:
    """Edit the padded graph of `channels`, in place: its weights are set already."""
    norms = {channels.tracker.graph.nodes[norm.node].outputs[0].name: norm for norm in channels.tracker.norms}
    for graph in [*graphs(channels.tracker.graph.model)][::-1]:  # a branch before the graph whose nodes are copied
        nodes: list[NodeProto] = []
        for node in graph.node:
            norm = norms.get(next(iter(node.output), ""))
            nodes += [node] if norm is None else _masked(channels, node, norm, kept[norm.ids])
        del graph.node[:]
        graph.node.extend(nodes)


class _Builder:
    """Nodes that take the place of one, with names of their own."""

    def __init__(self, channels: Channels, stem: str, mask: Array) -> None:
        self.model, self.opset = channels.tracker.graph.model, channels.tracker.graph.opset
        self.stem, self.nodes, self.count = stem, list[NodeProto](), 0
        self.mask = self.constant(mask)

    def constant(self, values: Array) -> str:
        self.count += 1
        name = f"{self.stem}_oracle{self.count}"
        add_initializer(self.model, numpy_helper.from_array(values), name)
        return name

    def add(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        self.count += 1
        name = output or f"{self.stem}_oracle{self.count}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def rows(self, vector: str, rank: int) -> str:
        """A vector of one element for each row of axis 1."""
        return self.add("Reshape", vector, self.constant(np.array([-1] + [1] * (rank - 2), np.int64)))

    def mean(self, x: str, axes: Sequence[int], factor: str) -> str:
        if self.opset >= 18:
            mean = self.add("ReduceMean", x, self.constant(np.array(axes, np.int64)))
        else:
            mean = self.add("ReduceMean", x, axes=list(axes))
        return self.add("Mul", mean, factor)


def _masked(channels: Channels, old: NodeProto, norm: Norm, left: NDArray[np.bool_]) -> list[NodeProto]:
    node = NodeProto()
    node.CopyFrom(old)
    data = channels.tracker.graph.constants.get(next(iter(node.input[1:2]), ""))
    dtype = np.dtype(np.float32) if data is None else helper.tensor_dtype_to_np_dtype(data.data_type)
    if dtype.kind != "f":
        dtype = np.dtype(np.float32)
    share = left.mean(axis=tuple(a for a in norm.axes if left.shape[a] > 1), dtype=np.float64).ravel()[0]
    b = _Builder(channels, node.output[0], left.astype(dtype))
    x, factor = b.add("Mul", node.input[0], b.mask), b.constant(np.array(1 / share, dtype))
    if node.op_type in ("ReduceMean", "ReduceL2"):
        node.input[0] = x
        if node.op_type == "ReduceMean":
            name, node.output[0] = node.output[0], f"{node.output[0]}_oracle"
            return [*b.nodes, node, helper.make_node("Mul", [node.output[0], factor], [name])]
        return [*b.nodes, node]
    if node.op_type in CENTRED:
        x = b.add("Mul", b.add("Sub", x, b.mean(x, norm.axes, factor)), b.mask)
    epsilon = b.constant(np.array(attribute(node, "epsilon", 1e-5), dtype))
    deviation = b.add("Sqrt", b.add("Add", b.mean(b.add("Mul", x, x), norm.axes, factor), epsilon))
    y = b.add("Div", x, deviation)
    for op, name in zip(("Mul", "Add"), [n for n in node.input[1:3] if n], strict=False):
        y = b.add(op, y, b.rows(name, left.ndim) if node.op_type == "InstanceNormalization" else name)
    b.add("Identity", y, output=node.output[0])
    return b.nodes
