"""Cost curves: what it is estimated to cost a group's readers if only some of its channels are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .channels import ChannelGroup, Slot
from .findings import Role
from .graph import Graph
from .paired import sides
from .surgeon import View, losses, mixture_losses
from .tensors import Array
from .trust import Source
from .weights import front, gather

Vector = NDArray[np.float64]
MOST = 1 - 1e-9
"""Of the signal may be lost: beyond, the cost would be infinite."""


class Squares:
    """Σ w² at each position of a slot's axes, computed once for all groups that have channels there."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._found: dict[tuple[str, tuple[int, ...], int], Vector] = {}

    def __call__(self, slot: Slot) -> Vector:
        """(n,) Σ w² of each of the group's channels, without gathering its weights."""
        key = (slot.tensor, slot.axes, slot.split)
        if key not in self._found:
            weights = front(_floats(self.graph.array(slot.tensor)), slot)
            axes = "abcdefgh"[: weights.ndim]
            square = np.einsum(f"{axes},{axes}->{axes[: len(slot.axes)]}", weights, weights, dtype=np.float64)
            self._found[key] = square.reshape(-1)
        return np.asarray(self._found[key][slot.positions].sum(axis=1))


@dataclass(frozen=True, eq=False)
class GroupWeights:
    """One group, the weights it has before anything is merged, and how its consumers read it, as far as measured.

    `mixes`: its channels may become mixtures of all of them. `source`: what the views were measured on. `paired`: as in
    `paired`.
    """

    graph: Graph
    group: ChannelGroup
    energy: Squares
    views: Sequence[View] = ()
    mixes: bool = False
    source: Source = Source.DATA
    paired: bool = False

    def rows(self, slot: Slot) -> Array:
        """(n, d) what each channel has in a slot."""
        return gather(_floats(self.graph.array(slot.tensor)), slot)

    def squares(self, role: Role) -> Vector:
        """(n,) mean over the slots of a role of each channel's Σ w², in units of the slot's mean; 1 without slots."""
        found = [self.energy(s) for s in self.group.slots if s.role is role]
        scaled = [e / (e.mean() or 1) for e in found] or [np.ones(self.group.channels)]
        return np.asarray(np.mean(scaled, axis=0))


def _floats(array: Array) -> Array:
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


Curve = Callable[[GroupWeights], Vector]
"""(n + 1,) the share of a group's signal, 0 to 1, that its readers lose if k = 0 … n channels are kept."""


def energy(weights: GroupWeights) -> Vector:
    """A channel's signal: the square of what makes it times the square of what reads it; the least ones go first.

    A product of two values reads each as often as the other's square says.
    """
    two = sides(weights.group) if weights.paired else ()
    made = np.prod([weights.energy(s) for s in two], axis=0) if two else weights.squares(Role.PRODUCES)
    channels = made * weights.squares(Role.CONSUMES)
    total = np.concatenate([[0.0], np.cumsum(np.sort(channels))])
    return np.asarray(total[::-1] / (total[-1] or 1))


def measured(weights: GroupWeights) -> Vector:
    """What the best channels cannot make up of what consumers make, in measured covariances; `energy` without any."""
    if not weights.views:
        return energy(weights)
    lost = (mixture_losses if weights.mixes else losses)(weights.views)
    doubt = weights.source.value.doubt
    return lost + doubt * (energy(weights) - lost) if doubt else lost


CURVES: Mapping[str, Curve] = {"energy": energy, "measured": measured}
"""Ways to estimate, by name."""


def cost_curve(curve: Curve, weights: GroupWeights) -> Vector:
    """(n + 1,) convex cost of keeping k channels: for each reader −log of the share of the signal that is left.

    Layers follow each other, so shares multiply and their logarithms add: the sum over groups is the cost of a
    whole allocation, and no group is emptied before the others. Channels of a residual stage, which many layers
    read, cost what they cost each of them: without that, whole stages go first.
    """
    readers = sum(slot.role is Role.CONSUMES for slot in weights.group.slots)
    lost = np.minimum(curve(weights), MOST)
    return _convex(-np.log1p(-lost) * max(1, readers))


def _convex(costs: Vector) -> Vector:
    """The lower convex hull: a search step by step then finds what is cheapest in the long run."""
    hull: list[int] = []
    for k in range(len(costs)):
        while len(hull) > 1 and not _below(costs, hull[-2], hull[-1], k):
            hull.pop()
        hull.append(k)
    return np.asarray(np.interp(np.arange(len(costs)), hull, costs[hull]))


def _below(costs: Vector, a: int, b: int, c: int) -> bool:
    """Whether point b lies below the line from a to c."""
    return bool((costs[b] - costs[a]) * (c - a) < (costs[c] - costs[a]) * (b - a))
