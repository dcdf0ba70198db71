"""What nothing reads any more, once nodes were folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container

from onnx import GraphProto, ModelProto

from .protos import consumers, graphs, outer_names, subgraphs


def idle_names(model: ModelProto) -> set[str]:
    """Names of constants and of what nodes make that nothing reads, in branches of If, too."""
    return {name for graph in graphs(model) for name in _idle_in(graph)}


def _idle_in(graph: GraphProto) -> set[str]:
    used = consumers(graph)
    made = [*(t.name for t in graph.initializer), *(name for node in graph.node for name in node.output)]
    return {name for name in made if not used.get(name)}


def drop_unused(model: ModelProto, idle: Container[str]) -> None:
    """Remove the nodes and initializers whose readers were folded away; what was `idle` before that stays.

    Up to IR version 3 initializers are listed as inputs, too.
    """
    listed = {value.name for value in model.graph.input} if model.ir_version >= 4 else set()
    for graph in reversed(list(graphs(model))):  # what a branch no longer reads, nothing may
        _drop_unused_of(graph, idle, listed)


def _drop_unused_of(graph: GraphProto, idle: Container[str], listed: Container[str]) -> None:
    uses = Counter({name: len(edges) for name, edges in consumers(graph).items()})
    for i in reversed(range(len(graph.node))):
        node = graph.node[i]
        if not any(uses[name] or name in idle for name in node.output):
            uses.subtract([*node.input, *(n for inner in subgraphs(node) for n in set(outer_names(inner)))])
            del graph.node[i]
    unused = {t.name for t in graph.initializer if not (uses[t.name] or t.name in idle or t.name in listed)}
    for values in (graph.initializer, graph.input):
        for i in reversed(range(len(values))):
            if values[i].name in unused:
                del values[i]
