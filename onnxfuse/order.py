"""Nodes in an order in which they can run: converters append theirs where they like, and onnxruntime sorts them itself.

So does its conversion to float16: the first Cast of what it writes is among the last nodes.
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from heapq import heapify, heappop, heappush

from onnx import GraphProto, ModelProto

from .protos import copies, graphs, outer_names, subgraphs


def sort_nodes(model: ModelProto) -> None:
    """Put every node behind those that make what it reads, in place; few move. What runs in circles stays."""
    for graph in graphs(model):
        before = _before(graph)
        if any(max(others, default=-1) >= i for i, others in enumerate(before)):
            nodes = list(copies(*(graph.node[i] for i in _order(before))))
            del graph.node[:]
            graph.node.extend(nodes)


def _before(graph: GraphProto) -> list[set[int]]:
    """For each node the positions of those that make what it, or what it holds, reads."""
    made = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    held = [[name for inner in subgraphs(node) for name in outer_names(inner)] for node in graph.node]
    reads = [(*node.input, *names) for node, names in zip(graph.node, held, strict=True)]
    return [{made[name] for name in names if name in made} for names in reads]


def _order(before: list[set[int]]) -> list[int]:
    """The first node that waits for no other comes next, again and again."""
    sorter, order = TopologicalSorter(dict(enumerate(before))), list[int]()
    try:
        sorter.prepare()
    except CycleError:  # onnxruntime will say so
        return list(range(len(before)))
    ready = list(sorter.get_ready())
    heapify(ready)
    while ready:
        order.append(heappop(ready))
        sorter.done(order[-1])
        for i in sorter.get_ready():
            heappush(ready, i)
    return order
