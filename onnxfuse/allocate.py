"""How many channels each group keeps: the same fraction of all, or what costs least for a limit on some resource."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice

import numpy as np
from numpy.typing import NDArray

from .channels import ChannelGroup
from .errors import UsageError
from .resources import Resource, Widths

Vector = NDArray[np.float64]
ROUNDING = 1e-9
"""Guards int() against products such as 10 · (1 − 0.9) = 0.9999999999999998."""
STEPS = 64
"""A family goes from all of its channels to one in at most about this many steps; the last ones are finer."""
TRIES = 4000
"""Allocations near one that leaves too much of a budget unused are looked at."""


def kept_count(n: int, sparsity: float) -> int:
    """The paper's int(n(1 − s)), but at least one channel.

    Raises:
        UsageError: `sparsity` is not in [0, 1).
    """
    if not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:  # NaN compares false
        shown = f"{sparsity:g}" if isinstance(sparsity, (int, float)) else repr(sparsity)
        raise UsageError(f"sparsity {shown} is not a fraction of channels; give 0 ≤ sparsity < 1")
    return max(1, int(n * (1 - sparsity) + ROUNDING))


@dataclass(frozen=True, eq=False)
class Families:
    """What there is to choose: one width for each family of groups.

    Attributes:
        places: number of a family (`ChannelGroup.family`) → its place in all that follows.
        units: (families,) the width that keeps everything.
        allowed: for each family the widths it may have, ascending.
        finer: those, and more to choose from where they are too coarse for a budget.
        billed: for each family the widths that take as long as its widths 0 … unit: a part of a block as a whole one.
    """

    places: dict[int, int]
    units: Widths
    allowed: tuple[Widths, ...]
    finer: tuple[Widths, ...]
    billed: tuple[Widths, ...]

    @property
    def widest(self) -> Widths:
        """(families,) the largest allowed widths."""
        return np.array([a[-1] for a in self.allowed], np.int64)

    @property
    def narrowest(self) -> Widths:
        """(families,) the smallest allowed widths."""
        return np.array([a[0] for a in self.allowed], np.int64)

    def finest(self) -> Families:
        """The same with all of the finer widths allowed."""
        return replace(self, allowed=self.finer)

    def bill(self, widths: Widths) -> Widths:
        """The widths that take as long as these."""
        return np.array([b[w] for b, w in zip(self.billed, widths, strict=True)], np.int64)

    def near(self, place: int, width: int) -> Widths:
        """All finer widths of a family from one allowed width below `width` to one above it."""
        allowed, finer = self.allowed[place], self.finer[place]
        at = int(np.searchsorted(allowed, width))
        low, high = allowed[max(at - 1, 0)], allowed[min(at + 1, len(allowed) - 1)]
        between: Widths = finer[(low <= finer) & (finer <= high) & (finer != width)]
        return between

    def channels(self, group: ChannelGroup, widths: Widths) -> int:
        """How many channels a group keeps at these widths."""
        return group.channels // group.unit * int(widths[self.places[group.family]])

    def allow(self, widths: Widths) -> bool:
        """Whether every family may have its width."""
        return all(width in allowed for width, allowed in zip(widths, self.allowed, strict=True))

    def around(self, widths: Widths) -> Families:
        """Only the next allowed width on either side of each width."""
        pairs = []
        for allowed, width in zip(self.allowed, widths, strict=True):
            above = min(int(np.searchsorted(allowed, width)), len(allowed) - 1)
            below = max(int(np.searchsorted(allowed, width, "right")) - 1, 0)
            pairs.append(np.unique(allowed[[below, above]]))
        return replace(self, allowed=tuple(pairs))


@dataclass(frozen=True)
class Limit:
    """A resource, and how much of it may be used.

    `saved_by` counts what a step saves where that is not the resource itself: among the ways to keep a limit on
    multiply-accumulates the one that takes least time is wanted.
    """

    resource: Resource
    most: float
    saved_by: Resource | None = None

    @property
    def by(self) -> Resource:
        """What a step is valued by."""
        return self.saved_by or self.resource

    def gradient(self, widths: Widths) -> Vector:
        """(families,) what one unit less of each family saves."""
        return self.by.gradient(widths)

    def holds(self, widths: Widths) -> bool:
        """Whether these widths keep it; float rounding forgiven."""
        return self.resource(widths) <= self.most * (1 + ROUNDING)


def uniform(families: Families, sparsity: float) -> Widths:
    """The same sparsity for every family, or the nearest to it of the family's range."""
    exact = [kept_count(int(unit), sparsity) for unit in families.units]
    return np.clip(np.array(exact, np.int64), families.narrowest, families.widest)


def uniform_within(families: Families, limits: Sequence[Limit]) -> Widths:
    """The smallest sparsity at which every limit holds; the narrowest widths if none does."""
    switches = {1 - k / unit for unit in np.unique(families.units).tolist() for k in range(1, unit + 1)}
    candidates = sorted(switches)  # every sparsity at which some width changes
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        widths = uniform(families, candidates[middle])
        low, high = (low, middle) if all(x.holds(widths) for x in limits) else (middle + 1, high)
    return uniform(families, candidates[low])


def cheapest(families: Families, costs: Sequence[Vector], limits: Sequence[Limit]) -> Widths:
    """Widths within the limits at a low total cost; the narrowest ones if none are within.

    Channels are taken away where that costs least for what it saves, a step at a time. Costs are convex, so this
    follows the best trade-off, up to the size of a step; then what room is left is given back channel by channel.

    Args:
        families: what to choose from.
        costs: for each family the convex costs of its widths 0 … unit.
        limits: on any number of resources.
    """
    position = np.array([len(a) - 1 for a in families.allowed])
    strides = np.array([max(1, len(a) // STEPS) for a in families.allowed])
    start, widths = families.widest, families.widest
    while unmet := [x for x in limits if not x.holds(widths)]:
        after = np.maximum(position - strides, 0)
        saved = sum(x.gradient(widths) / max(x.resource(start) - x.most, 1) for x in unmet)
        found = _least(families, costs, position, after, np.asarray(saved))
        if found is None:
            break
        position[found] = after[found]
        widths = _widths(families, position)
    return _give_back(families, costs, limits, position)


def _least(
    families: Families, costs: Sequence[Vector], now: NDArray[np.int64], after: NDArray[np.int64], saved: Vector
) -> int | None:
    """The family whose step from `now` to `after` costs least for what it saves; None if no step saves anything."""
    old, new = _widths(families, now), _widths(families, after)
    gain = saved * (old - new)
    if not (gain > 0).any():
        return None
    cost = np.array([c[b] - c[a] for c, a, b in zip(costs, old, new, strict=True)])
    return int(np.argmin(np.divide(cost, gain, out=np.full(len(gain), np.inf), where=gain > 0)))


def _widths(families: Families, position: NDArray[np.int64]) -> Widths:
    return np.array([a[i] for a, i in zip(families.allowed, position, strict=True)], np.int64)


def use_up(
    families: Families, costs: Sequence[Vector], limits: Sequence[Limit], widths: Widths, least: float
) -> Widths:
    """Those that use `least` of some limit, with a few families a little wider or narrower, at the least cost for what
    they save; a part of a block saves nothing until the block is gone.

    Where there are none, those that come nearest, but none that would take longer than to keep everything.
    """
    most = [limit.by(families.widest) for limit in limits]

    def rank(trial: Widths) -> tuple[bool, float, float]:
        used = max(limit.resource(trial) / limit.most for limit in limits)
        cost, billed = float(sum(c[w] for c, w in zip(costs, trial, strict=True))), families.bill(trial)
        saved = sum(1 - limit.by(billed) / m for limit, m in zip(limits, most, strict=True))
        return saved < -ROUNDING, max(0.0, least - used), cost / max(saved, ROUNDING)

    found = [w for w in islice(_near(families, widths), TRIES) if all(limit.holds(w) for limit in limits)]
    return min([widths, *found], key=rank)


def _near(families: Families, widths: Widths) -> Iterator[Widths]:
    """`widths` with one family changed by up to a block, finer widths too; then with two changed, and so on."""
    changes = [(i, other) for i, width in enumerate(widths) for other in families.near(i, int(width)).tolist()]
    for number in range(1, len(widths) + 1):
        for change in (c for c in combinations(changes, number) if len({place for place, _ in c}) == number):
            trial = widths.copy()
            for place, width in change:
                trial[place] = width
            yield trial


def _give_back(
    families: Families, costs: Sequence[Vector], limits: Sequence[Limit], position: NDArray[np.int64]
) -> Widths:
    """Widen what the limits leave room for, one step at a time, where that lowers the cost most."""
    last = np.array([len(a) - 1 for a in families.allowed])
    full = position >= last
    while not full.all():
        widths = _widths(families, position)
        wider = _widths(families, np.minimum(position + 1, last))
        gain = np.array([c[a] - c[b] for c, a, b in zip(costs, widths, wider, strict=True)])
        best = int(np.argmax(np.where(full, -np.inf, gain)))
        trial = widths.copy()
        trial[best] = wider[best]
        if all(x.holds(trial) for x in limits):
            position[best] += 1
            full[best] = position[best] == last[best]
        else:
            full[best] = True
    return _widths(families, position)
