"""Operators that pick, and order, by value: behind them a rounding, or a merge, can change what is there at all."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import GraphProto, ModelProto, NodeProto, helper

from .model import outer_names, subgraphs

PICKING = frozenset(("Compress", "NonMaxSuppression", "NonZero", "TopK", "Unique"))
"""Operators whose result's size or order depends on values."""
COMPARING = frozenset(("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Xor"))
"""What stands between real numbers and the truth values that are picked by."""


def reads(node: NodeProto) -> set[str]:
    """Names of all values that a node reads, its subgraphs included."""
    inner = {name for graph in subgraphs(node) for name in outer_names(graph)}
    return {name for name in node.input if name} | inner


def behind_picks(graph: GraphProto) -> set[str]:
    """Values that depend on what such an operator makes."""
    found: set[str] = set()
    for node in graph.node:
        if node.op_type in PICKING or not found.isdisjoint(reads(node)):
            found.update(name for name in node.output if name)
    return found


def before_picks(model: ModelProto) -> ModelProto | None:
    """The part of a model up to the first picks: its outputs are what they read, and the outputs that none is behind.

    None if the model has no such operator.
    """
    graph, picked = model.graph, behind_picks(model.graph)
    if not picked:
        return None
    part = ModelProto()
    part.CopyFrom(model)
    wanted = [name for name in dict.fromkeys(_read_by_picks(graph)) if name not in picked]
    outputs = [o for o in graph.output if o.name not in picked]
    have = {o.name for o in outputs}
    del part.graph.output[:]
    part.graph.output.extend([*outputs, *(helper.make_empty_tensor_value_info(n) for n in wanted if n not in have)])
    _drop_unread(part.graph)
    return part


def _read_by_picks(graph: GraphProto) -> Iterator[str]:
    """What the operators read that some node makes; what is compared, in place of a comparison."""
    makers = {name: node for node in graph.node for name in node.output}
    queue = [name for node in graph.node if node.op_type in PICKING for name in node.input]
    while queue:
        maker = makers.get(name := queue.pop(0))
        if maker is not None and maker.op_type in COMPARING:
            queue += maker.input
        elif maker is not None:
            yield name


def _drop_unread(graph: GraphProto) -> None:
    needed = {o.name for o in graph.output}
    for i in reversed(range(len(graph.node))):
        if needed.isdisjoint(graph.node[i].output):
            del graph.node[i]
        else:
            needed |= reads(graph.node[i])
