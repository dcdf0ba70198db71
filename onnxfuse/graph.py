"""A read view of a graph: graphsurgeon parses the protos into connected nodes for the stages that only read."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, Protocol

import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto, TensorProto, numpy_helper

from .protos import (
    Edge,
    add_initializer,
    every_constant,
    free_name,
    graphs,
    nodes_of,
    opset_of,
    outer_names,
    redirect,
    subgraphs,
)  # fmt: skip
from .tensors import Array, values_of

ROUNDING = ("QuantizeLinear", "DequantizeLinear")


class Tensor(Protocol):
    """What is read of a graphsurgeon tensor."""

    name: str


class Node(Protocol):
    """What is read of a graphsurgeon node."""

    op: str
    name: str
    domain: str | None
    attrs: dict[str, Any]
    inputs: list[Tensor]
    outputs: list[Tensor]


def label(node: Node) -> str:
    """How messages name a node: its name, or its operator and first output."""
    return node.name or f"{node.op} → {next((t.name for t in node.outputs if t.name), '?')}"


class Graph:
    """A read view of a model's main graph and the branches of its If nodes: connected nodes, constants, who uses what.

    Attributes:
        model: the proto behind the view.
        nodes: graphsurgeon's nodes, in the order in which they run: those of branches before the If that holds them.
        protos: the same nodes in `model`; edits go there.
        inner: numbers of the nodes that are in branches.
        constants: name → TensorProto, initializers and Constant nodes alike.
        edges: name → its uses.
        clones: name of a copy → the constant it copies.
        held: constant → bytes of an element in the file, where that is not its own type's.
        dynamic: what nodes make that stand for a layer which quantizes what it reads as it comes.
    """

    def __init__(
        self, model: ModelProto, held: Mapping[str, int] | None = None, dynamic: Container[str] = frozenset()
    ) -> None:
        self.model, self.held, self.dynamic = model, held or {}, dynamic
        gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.ERROR
        self.nodes: list[Node] = list(_with_branches(gs.import_onnx(model)))
        self.protos = list(nodes_of(model.graph))
        homes = _homes(model.graph)
        self.inner = frozenset(i for i, home in enumerate(homes) if home)
        self.constants = every_constant(model)
        self.edges = self._uses(homes)
        self.clones: dict[str, str] = {}
        self.opset = opset_of(model) or 1

    def _uses(self, homes: Sequence[int]) -> dict[str, list[Edge]]:
        """Name → its uses. Of what one graph computes those in another one, a branch of it, count as uses elsewhere."""
        edges: dict[str, list[Edge]] = defaultdict(list)
        made = {name: home for node, home in zip(self.protos, homes, strict=True) for name in node.output}
        for i, node in enumerate(self.protos):
            for k, name in enumerate(node.input):
                if name:
                    known = name in self.constants or made.get(name, 0) == homes[i]
                    edges[name].append(Edge(i, k) if known else Edge(-1, 0))
            for inner in subgraphs(node) if node.op_type != "If" else ():
                for name in set(outer_names(inner)):
                    edges[name].append(Edge(-1, 0))
        for value in (value for graph in graphs(self.model) for value in graph.output):
            edges[value.name].append(Edge(-1, 0))
        return edges

    def array(self, name: str) -> Array:
        """The values of a constant, read-only or copied."""
        return values_of(self.constants[name])

    def own_vector(self, name: str) -> str | None:
        """The name of a constant, if it is a vector that is used once."""
        tensor = self.constants.get(name)
        return name if tensor is not None and len(tensor.dims) == 1 and len(self.edges[name]) == 1 else None

    def added(self, value: str, rounded: bool = False) -> tuple[str, str] | None:
        """(other, sum) of the Add that alone reads a value; None if something else does, or one in a branch.

        Or that reads what the value is `rounded` to, by QuantizeLinear and DequantizeLinear with one scale.
        """
        uses = self.edges.get(value, [])
        if len(uses) != 1 or uses[0].node < 0:
            return None
        node = self.protos[uses[0].node]
        if rounded and node.op_type in ROUNDING and self._is_one(node.input[1]):
            return self.added(node.output[0], rounded)
        return (node.input[1 - uses[0].slot], node.output[0]) if node.op_type == "Add" else None

    def _is_one(self, name: str) -> bool:
        return name in self.constants and math.prod(self.constants[name].dims) == 1

    def clone(self, name: str, edges: list[Edge]) -> str:
        """Give `edges` their own copy of the constant `name`; returns the copy's name."""
        new = self._register(name, self.constants[name], edges)
        self.clones[new] = name
        self.edges[name] = [e for e in self.edges[name] if e not in edges]
        for edge in edges:
            self.protos[edge.node].input[edge.slot] = new
            self.nodes[edge.node].inputs[edge.slot] = gs.Variable(new)
        return new

    def rejoin(self, clone: str, name: str) -> None:
        """Let the uses of a copy of a constant read `name`, which is equal; the copy goes."""
        redirect(self.model.graph, {clone: name})
        self.edges[name] = [*self.edges[name], *self.edges.pop(clone)]
        for values in (self.model.graph.initializer, self.model.graph.input):
            for i in reversed([i for i, value in enumerate(values) if value.name == clone]):
                del values[i]
        del self.constants[clone], self.clones[clone]
        self.clones = {copy: name if source == clone else source for copy, source in self.clones.items()}

    def add(self, values: Array, stem: str, edge: Edge) -> str:
        """A new initializer for `edge`, named after `stem`; returns its name."""
        return self._register(stem, numpy_helper.from_array(values), [edge])

    def _register(self, stem: str, tensor: TensorProto, edges: list[Edge]) -> str:
        taken = self.constants.keys() | self.edges.keys()
        name = free_name(stem, taken)
        self.constants[name] = add_initializer(self.model, tensor, name)
        self.edges[name] = list(edges)
        return name


def _with_branches(graph: gs.Graph) -> Iterator[Node]:
    """The nodes of a graph and of the branches of its If nodes, in the order of `nodes_of`."""
    for node in graph.nodes:
        for branch in node.attrs.values() if node.op == "If" else ():
            if isinstance(branch, gs.Graph):
                yield from _with_branches(branch)
        yield node


def _homes(graph: GraphProto) -> list[int]:
    """For each node of `nodes_of` the number of the graph that it is in: 0 for the main one, others for branches."""
    found, numbers = list[int](), itertools.count(1)

    def walk(graph: GraphProto, home: int) -> None:
        for node in graph.node:
            for branch in subgraphs(node) if node.op_type == "If" else ():
                walk(branch, next(numbers))
            found.append(home)

    walk(graph, 0)
    return found
