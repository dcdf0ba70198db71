"""Run a graph on channel ids: one pass over its nodes, each handed to the rule of its operator."""

from __future__ import annotations

import re
from collections.abc import Sequence

from onnx import GraphProto

from .graph import Graph, Node, label
from .probe import Probe
from .protos import branches, outer_names, subgraphs
from .rules import rule_for, unknown, unseen
from .symbols import Dim, Numbers, dims_of, evaluate
from .tracker import Permit, Tracker


def track(graph: Graph, probe: Probe, exclude: Sequence[str] = (), permit: Permit | None = None) -> Tracker:
    """Execute every node of `graph` on channel ids, those in branches of If before it."""
    t = Tracker(graph, probe, permit or Permit())
    patterns = [re.compile(p) for p in exclude]
    for name, value in probe.inputs.items():
        t.ids[name] = t.fixed(value.ndim)
    for position, node in enumerate(graph.nodes):
        t.position, t.node_label = position, label(node)
        _run_node(t, node)
        _lock_captured(t, position)
        if any(p.search(label(node)) for p in patterns):
            _lock_node(t, node, "excluded")
    t.node_label = "the graph's outputs"
    _lock_outputs(t, graph.model.graph, "a graph output")
    for branch in branches(graph.model.graph):
        _lock_counts(t, branch, "an output of If")
    return t


def _lock_outputs(t: Tracker, graph: GraphProto, what: str) -> None:
    for output in graph.output:
        if output.name in t.ids:
            t.lock(t.ids[output.name], f"feeds {what}")
    _lock_counts(t, graph, what)


def _lock_counts(t: Tracker, graph: GraphProto, what: str) -> None:
    for output in graph.output:
        if output.name in t.numbers:
            t.lock_dims(dims_of(t.numbers[output.name]), f"their count is {what}")


def _run_node(t: Tracker, node: Node) -> None:
    if node.op == "Constant" and node.domain in (None, "", "ai.onnx"):
        return
    if node.op == "Shape" and (node.inputs[0].name in t.probe.shapes or t.is_constant(node, 0)):
        t.numbers[node.outputs[0].name] = _shape_numbers(t, node)
    elif not _run_symbolic(t, node):
        _run_rule(t, node)
    for output in node.outputs:
        if output.name and output.name not in t.ids:
            t.ids[output.name] = t.fixed(len(t.shape(output.name)))


def _shape_numbers(t: Tracker, node: Node) -> Numbers:
    numbers = t.shape_numbers(t.name(node, 0))
    return numbers[node.attrs.get("start", 0) : node.attrs.get("end", len(numbers))]


def _run_symbolic(t: Tracker, node: Node) -> bool:
    """Follow a node of shape arithmetic; False if the node is not one."""
    if not any(i.name in t.numbers for i in node.inputs):
        return False
    inputs = [t.read(node, k) for k, i in enumerate(node.inputs) if i.name]
    known = [i for i in inputs if i is not None]
    if len(known) < len(inputs):
        for i in node.inputs:
            t.used_numbers.discard(i.name)
        return False
    made = evaluate(node, known)
    if made is None:
        dims = frozenset[Dim]().union(*(dims_of(a) for a in known))
        opaque = [t.opaque_numbers(o.name, dims) for o in node.outputs if o.name]
        made = [numbers for numbers in opaque if numbers is not None]
    names = [o.name for o in node.outputs]
    if len(made) < len(names):
        return False
    t.numbers.update((name, numbers) for name, numbers in zip(names, made, strict=True) if name)
    return True


def _run_rule(t: Tracker, node: Node) -> None:
    t.used_numbers.clear()
    known = all(i.name in t.graph.constants or i.name in t.probe.shapes for i in node.inputs if i.name)
    known &= all(o.name in t.probe.shapes for o in node.outputs if o.name)
    rule = rule_for(node)
    (rule if known or rule is unknown or node.op == "If" else unseen)(node, t)
    for i in node.inputs:
        if i.name in t.numbers and i.name not in t.used_numbers:
            t.lock_dims(dims_of(t.numbers[i.name]), f"their count enters {node.op} as a number")


def _lock_captured(t: Tracker, position: int) -> None:
    """Values that a subgraph takes from outside stay as they are, but for those of If, whose nodes are tracked."""
    proto = t.graph.protos[position]
    for inner in subgraphs(proto) if proto.op_type != "If" else ():
        for name in set(outer_names(inner)) & t.ids.keys():
            t.lock(t.ids[name], f"enters the body of {proto.op_type}")
        for name in set(outer_names(inner)) & t.numbers.keys():
            t.lock_dims(dims_of(t.numbers[name]), f"their count enters the body of {proto.op_type}")


def _lock_node(t: Tracker, node: Node, reason: str) -> None:
    for value in [*node.inputs, *node.outputs]:
        if value.name in t.ids:
            t.lock(t.ids[value.name], reason)
