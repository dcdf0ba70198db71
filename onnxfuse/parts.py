"""What a layer makes, as a share of the sum it is added to: what is lost of a small part is a small loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from .graph import Graph
from .moments import statistics
from .producers import is_matmul
from .readers import Reader
from .walk import Walk

TINY = 1e-30


class Parts:
    """Variances of what readers make and of the sums that alone read it, taken while a walk goes on."""

    def __init__(self, graph: Graph, readers: Sequence[Reader]) -> None:
        self.sums = {r.made: added[1] for r in readers if r.made and (added := graph.added(r.made)) is not None}
        axes = {r.made: made_axis(graph.protos[r.slot.edge.node]) for r in readers if r.made in self.sums}
        self.axes = axes | {self.sums[name]: axis for name, axis in axes.items()}
        self.varies: dict[str, float] = {}

    def see(self, walk: Walk, node: NodeProto) -> None:
        """Take what a node made, if it is asked for."""
        for name in (o for o in node.output if o in self.axes):
            self.varies[name] = float(np.square(statistics(walk.value(name), self.axes[name])[1]).sum())

    def of(self, reader: Reader) -> float:
        """0 to 1; 1 if what the reader makes is not added to anything, or nothing was seen."""
        if reader.made not in self.varies:
            return 1
        return min(self.varies[reader.made] / max(self.varies[self.sums[reader.made]], TINY), 1)


def made_axis(node: NodeProto) -> int:
    """The axis of the channels in what a layer makes."""
    return -1 if is_matmul(node) else 1
