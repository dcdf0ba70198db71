"""Where what a convolution makes is added to what comes along a shortcut: it can make up for what that has lost.

So it is refitted to bring the sum, not what it made itself, to what it was: its t (see `refit`) is the sum in the
original network less what the shortcut brings in the small one. Errors of a residual stream then do not add up from
block to block. Not where what it makes is rounded before it is added: its scale has no room for what others have lost
(PP-OCR in QDQ format at 40% less: 74.5% where it keeps 86.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .channels import Channels
from .graph import Graph
from .readers import Reader


@dataclass(frozen=True)
class Join:
    """Values' names.

    Attributes:
        other: what is added.
        total: the sum.
    """

    other: str
    total: str


def joins(channels: Channels, order: Sequence[Reader]) -> dict[Reader, Join]:
    """Of each reader whose sum can be repaired: a convolution with a bias, when all that it is added to is done.

    Args:
        channels: of the graph.
        order: all readers whose weights change, in the order in which they do.
    """
    graph, shapes = channels.tracker.graph, channels.tracker.probe.shapes
    changing, found = {r.slot.edge.node for r in order}, dict[Reader, Join]()
    makers = {name: i for i, node in enumerate(graph.protos) for name in node.output}
    for reader in order:
        added, node = graph.added(reader.made), graph.protos[reader.slot.edge.node]
        if added is None or node.op_type != "Conv" or not reader.bias or added[0] in graph.constants:
            continue
        same = shapes.get(added[0]) == shapes.get(reader.made)
        if same and changing.isdisjoint(_behind(graph, makers, added[0], reader.slot.edge.node)):
            found[reader] = Join(*added)
    return found


def _behind(graph: Graph, makers: Mapping[str, int], value: str, position: int) -> set[int]:
    """The nodes behind `position` that make a value and what it is made of."""
    found, stack = set[int](), [value]
    while stack:
        at = makers.get(stack.pop(), -1)
        if at > position and at not in found:
            found.add(at)
            stack += graph.protos[at].input
    return found
