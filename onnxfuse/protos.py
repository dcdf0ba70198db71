"""Nodes, branches and constants of a model, as protos.

The `ModelProto` is the one source of truth and the only thing that is ever edited, by tensor name and node
position, so nothing that an edit does not touch can be lost: metadata, doc strings, opsets, node attributes
of any type.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

HOLDING = frozenset(("If", "Loop", "Scan", "SequenceMap"))
"""Operators of the standard that hold graphs."""


@dataclass(frozen=True)
class Edge:
    """One use of a tensor: input `slot` of the main graph's node number `node`; −1 for any use elsewhere."""

    node: int
    slot: int


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of one attribute of a NodeProto, or `default`."""
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def set_attribute(node: NodeProto, name: str, value: Any) -> None:
    """Replace or add one attribute of a NodeProto."""
    drop_attribute(node, name)
    node.attribute.append(onnx.helper.make_attribute(name, value))


def drop_attribute(node: NodeProto, name: str) -> None:
    """Remove one attribute of a NodeProto, if it is there."""
    for i in reversed(range(len(node.attribute))):
        if node.attribute[i].name == name:
            del node.attribute[i]


def proto_label(node: NodeProto) -> str:
    """`label` of a node that is still a proto."""
    return node.name or f"{node.op_type} → {next(iter(node.output), '?')}"


def input_name(node: NodeProto, i: int) -> str:
    """The name of input `i`, or '' if there is none."""
    return node.input[i] if 0 <= i < len(node.input) else ""


def copies(*nodes: NodeProto) -> tuple[NodeProto, ...]:
    """Copies of nodes."""
    new = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        new.append(copy)
    return tuple(new)


def subgraphs(node: NodeProto) -> Iterable[GraphProto]:
    """The graphs a control-flow node holds."""
    if node.op_type not in HOLDING and not node.domain:
        return ()  # to look at the attributes of every node takes as long as all that is done with the rest of it
    return [graph for a in node.attribute for graph in _graphs_in(a)]


def _graphs_in(a: onnx.AttributeProto) -> Sequence[GraphProto]:
    if a.type == onnx.AttributeProto.GRAPH:
        return [a.g]
    return a.graphs if a.type == onnx.AttributeProto.GRAPHS else ()


def branches(graph: GraphProto) -> Iterator[GraphProto]:
    """The branches of every If, those within a branch after the one that holds them. Bodies of loops are none."""
    for node in graph.node:
        if node.op_type == "If":
            for branch in subgraphs(node):
                yield branch
                yield from branches(branch)


def graphs(model: ModelProto) -> Iterator[GraphProto]:
    """The main graph, and the branches of every If."""
    yield model.graph
    yield from branches(model.graph)


def nodes_of(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes of a graph, and of the branches of its If nodes, in the order in which they run: a branch's before the
    If that holds it."""
    for node in graph.node:
        for branch in subgraphs(node) if node.op_type == "If" else ():
            yield from nodes_of(branch)
        yield node


def opset_of(model: ModelProto) -> int:
    """Of the standard's operators; 0 if the model imports none."""
    return next((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def outer_names(graph: GraphProto) -> Iterator[str]:
    """Names that `graph` may take from the graph around it (all it reads; a superset does no harm)."""
    for node in graph.node:
        yield from node.input
        for inner in subgraphs(node):
            yield from outer_names(inner)
    for value in graph.output:
        yield value.name


def redirect(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Let all that reads a value in `names`, in a graph and what its nodes hold, read the one it is mapped to."""
    if not names:
        return
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
        for inner in subgraphs(node):
            redirect(inner, names)
            for value in inner.output:
                value.name = names.get(value.name, value.name)


def constant_tensors(graph: GraphProto) -> dict[str, TensorProto]:
    """Name → tensor of every constant: initializers and the `value` of Constant nodes."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            for a in node.attribute:
                if a.name == "value":
                    found[node.output[0]] = a.t
    return found


def every_constant(model: ModelProto) -> dict[str, TensorProto]:
    """`constant_tensors` of the main graph and of the branches of every If."""
    return {name: tensor for graph in graphs(model) for name, tensor in constant_tensors(graph).items()}


def consumers(graph: GraphProto) -> dict[str, list[Edge]]:
    """Name → every use of that tensor, with one `Edge(-1, 0)` for each use by a subgraph or as a graph output."""
    edges: dict[str, list[Edge]] = defaultdict(list)
    for i, node in enumerate(graph.node):
        for k, name in enumerate(node.input):
            if name:
                edges[name].append(Edge(i, k))
        for inner in subgraphs(node):
            for name in set(outer_names(inner)):
                edges[name].append(Edge(-1, 0))
    for value in graph.output:
        edges[value.name].append(Edge(-1, 0))
    return edges


def add_initializer(model: ModelProto, tensor: TensorProto, name: str) -> TensorProto:
    """Add a copy of `tensor`; up to IR version 3 an initializer must be listed as an input, too."""
    new: TensorProto = model.graph.initializer.add()
    new.CopyFrom(tensor)
    new.name = name
    if model.ir_version < 4:
        model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    return new


def resize_inputs(model: ModelProto, sizes: Mapping[str, Sequence[int]]) -> None:
    """Give inputs of these names, which list initializers, their new sizes."""
    for value in (v for v in model.graph.input if v.name in sizes):
        dims = value.type.tensor_type.shape.dim
        del dims[:]
        for size in sizes[value.name]:
            dims.add(dim_value=size)


def set_nodes(model: ModelProto, nodes: Sequence[NodeProto]) -> None:
    """Give the main graph these nodes."""
    new = copies(*nodes)
    del model.graph.node[:]
    model.graph.node.extend(new)


def free_name(stem: str, taken: Container[str]) -> str:
    """A name like `stem` that is not among `taken`."""
    return first_free((f"{stem}_fuse{i}" for i in itertools.count(1)), taken)


def first_free(names: Iterable[str], taken: Container[str]) -> str:
    """The first of `names` that is not among `taken`."""
    return next(name for name in names if name not in taken)
