"""What an activation cuts off: below zero one value is as good to a ReLU as any other.

Where every node that reads the outputs t of a convolution cuts off what is below `low` or above `high`, the refitted
ones f need not hit t there, only stay on its side. What is left,

    Σ (f − z)²,    z = min(f, low) where t ≤ low,  max(f, high) where t ≥ high,  t elsewhere,

is convex in the weights, and gets smaller with every round of solving for them with z fixed, which leaves the system's
matrix as it is, and taking z anew (the nonlinear, asymmetric reconstruction of Zhang, Zou, He and Sun, TPAMI 2016,
section 3.2, with a loss on the wrong side only).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import reduce

import numpy as np
from onnx import NodeProto

from .protos import attribute, input_name
from .tensors import Array, values_of
from .walk import Walk

ROUNDS = 8

Limits = tuple[Array, Array]
"""low and high: numbers, or of each (places, outputs) its own; infinite where nothing is cut off on that side."""
Clamp = Callable[[Array, Array], Array]
NONE: Limits = (np.array(-np.inf, np.float32), np.array(np.inf, np.float32))


def limits(walk: Walk, value: str) -> Limits:
    """What all readers of a value cut off; infinite if there is one that does not, or if it leaves the graph."""
    found = [CUTS.get(n.op_type, _nothing)(n, walk) for n in walk.readers(value)]
    if not found or value in walk.returned:
        return NONE
    lows, highs = zip(*found, strict=True)
    return np.array(min(lows), np.float32), np.array(max(highs), np.float32)


def is_cut(cut: Limits) -> bool:
    """Whether anything is cut off."""
    low, high = cut
    return bool(np.isfinite(low).all() or np.isfinite(high).all())


def less(cut: Limits, known: Array) -> Limits:
    """What is cut off of the one operand of a sum, of which the other is known, (places, outputs)."""
    return (cut[0] - known, cut[1] - known) if is_cut(cut) else cut


@dataclass(frozen=True, eq=False)
class Goal:
    """What weights should make of what they read, where some of it is cut off.

    Attributes:
        seen: (places, p) what is read, less its mean if there is a bias.
        wanted: (places, outputs).
        cut: what is cut off of that.
        centred: whether there is a bias.
    """

    seen: Array
    wanted: Array
    cut: Limits
    centred: bool

    def pursued(
        self, weights: Array, known: Array, solve: Callable[[Array], Array], pool: Executor
    ) -> tuple[Array, Array]:
        """(p, outputs) weights after all rounds, and (places, outputs) z; half of the outputs by another thread.

        Outputs that are to be nothing at all stay so.

        Args:
            weights: those closest to what is wanted, `solve` of `known`.
            known: (p, outputs) covariances of what is read with what is wanted, and what the ridge adds to them.
            solve: weights, given such covariances with what should be made.
            pool: of the other thread.
        """
        live = np.flatnonzero(self.wanted.any(axis=0) | weights.any(axis=0))
        new, aim = weights.copy(), self.wanted.copy()

        def pursue(outputs: Array) -> None:
            new[:, outputs], moved = self._rounds(outputs, weights[:, outputs], known[:, outputs], solve)
            aim[:, outputs] += moved

        halves = [half for half in np.array_split(live, 2) if len(half)]
        others = [pool.submit(pursue, half) for half in halves[1:]]
        for half in halves[:1]:
            pursue(half)
        for other in others:
            other.result()
        return new, aim

    def _rounds(
        self, outputs: Array, weights: Array, known: Array, solve: Callable[[Array], Array]
    ) -> tuple[Array, Array]:
        """Weights, and z − t, of some outputs.

        The mean of z matters to nothing but the bias: what is read has none, so products with it are the covariances.
        """
        nearest = Nearest(self.wanted[:, outputs], _columns(self.cut, outputs))
        mean = wanted = nearest.wanted.mean(axis=0)
        for _ in range(ROUNDS):
            found = self.seen @ weights
            moved = nearest(found + mean if self.centred else found)
            mean = wanted + moved.mean(axis=0)
            weights = solve(known + self.seen.T @ moved / len(moved))
        return weights, moved


class Nearest:
    """Of the values as good as those wanted the ones nearest to those found."""

    def __init__(self, wanted: Array, cut: Limits) -> None:
        low, high = cut
        self.wanted, self.sides = wanted, list[tuple[Clamp, Array, Array]]()
        below = wanted <= low
        if np.isfinite(low).all():
            self.sides.append((np.minimum, low, below))
        if np.isfinite(high).all():
            self.sides.append((np.maximum, high, (wanted >= high) & ~below))

    def __call__(self, found: Array) -> Array:
        """(places, outputs) z − t; factors of 0 and 1 are ten times as fast as `where`."""
        first, *others = [(clamp(found, limit) - self.wanted) * mine for clamp, limit, mine in self.sides]
        return reduce(np.add, others, first)


def _columns(cut: Limits, columns: Array) -> Limits:
    low, high = (side[:, columns] if side.ndim else side for side in cut)
    return low, high


Bounds = tuple[float, float]


def _nothing(node: NodeProto, walk: Walk) -> Bounds:
    return -math.inf, math.inf


def _clip(node: NodeProto, walk: Walk) -> Bounds:
    """Its bounds are inputs, before opset 11 attributes; one that is computed cuts off nothing that is known."""
    return _bound(node, walk, 1, "min", -math.inf), _bound(node, walk, 2, "max", math.inf)


def _bound(node: NodeProto, walk: Walk, slot: int, name: str, none: float) -> float:
    if not (given := input_name(node, slot)):
        return float(attribute(node, name, none))
    return float(values_of(walk.constants[given]).item()) if given in walk.constants else none


CUTS: Mapping[str, Callable[[NodeProto, Walk], Bounds]] = {
    "Relu": lambda node, walk: (0, math.inf),
    "Clip": _clip,
    "HardSwish": lambda node, walk: (-3, math.inf),
}
"""Operator → below what, and above what, its result is the same."""
