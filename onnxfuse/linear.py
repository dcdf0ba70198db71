"""Groups that nothing but sums and copies lies on: their channels are coordinates, and any basis serves as well.

So is a residual stream between linear bottlenecks (MobileNetV2, EfficientNet): weights make it, sums add to it, weights
read it. Other channels are kept or merged as they are, for a function of each of them stands in between.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from .channels import ChannelGroup, Channels
from .findings import Role
from .graph import Graph

LINEAR = frozenset(
    """Add AveragePool Cast Concat Dropout Flatten GlobalAveragePool Identity Reshape Slice Split Squeeze Sub Sum
    Transpose Unsqueeze""".split()
)
"""Operators that do one linear thing to every channel."""
SUMS = frozenset(("Add", "Sub", "Sum"))
"""Of these, what a constant that is not a bias of the group would shift every channel by."""
ENDS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
"""What makes and reads channels, by a constant."""


def linear(channels: Channels) -> set[ChannelGroup]:
    """The groups whose channels may be replaced by any linear mixtures of them."""
    t = channels.tracker
    biases = {s.tensor for g in channels.groups for s in g.slots if s.role is Role.SHIFT}
    bent: set[int] = set()
    for node in t.graph.protos:
        if not _is_linear(t.graph, node, biases):
            values = [t.ids[name] for name in (*node.input, *node.output) if name in t.ids]
            bent.update(c for ids in values for c in np.unique(channels.classes[ids]).tolist())
    return {g for g in channels.groups if _mixes(g) and bent.isdisjoint(g.classes.tolist())}


def _is_linear(graph: Graph, node: NodeProto, biases: set[str]) -> bool:
    constants = {name for name in node.input if name in graph.constants}
    if node.op_type in ENDS:
        return bool(constants)  # a product of two values is none of either
    return node.op_type in LINEAR and (node.op_type not in SUMS or constants <= biases)


def _mixes(group: ChannelGroup) -> bool:
    """Whether its slots are whole rows and columns of weights, and biases."""
    roles = {Role.PRODUCES, Role.CONSUMES, Role.SHIFT}
    return not group.select and all(s.role in roles and s.split == 1 for s in group.slots)
