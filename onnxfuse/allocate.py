"""How many channels each group keeps: the same fraction of all, or what costs least for a limit on some resource."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, islice

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .families import ROUNDING, Families, Limit, Vector
from .resources import Widths

Places = NDArray[np.int64]
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
    ladder = _Ladder(families, costs)
    at = ladder.top
    while unmet := [x for x in limits if not x.holds(ladder.width[at])]:
        steps = [ladder.nearer[at], ladder.quicker[at]]
        saved = [sum(ladder.saved(at, after, x) for x in unmet) for after in steps]
        dearer = [ladder.cost[after] - ladder.cost[at] for after in steps]
        found = _least(np.concatenate(dearer), np.concatenate(saved))
        if found is None:
            break
        at = _moved(at, found % len(at), np.concatenate(steps)[found])
    return _give_back(ladder, limits, at)


class _Ladder:
    """The widths of all families, one after the other, so that those of one choice are looked up at once.

    Attributes:
        bottom, top: (families,) places of the narrowest and the widest width of each.
        width, cost: of each place.
        billed: of each place the width that takes as long.
        nearer: of each place the one a step down.
        quicker: of each place the next one down, but no nearer than that, whose kernels have less to do.
        wider: of each place the next one up; where that needs another block, the last one that needs no more.
    """

    def __init__(self, families: Families, costs: Sequence[Vector]) -> None:
        sizes = np.array([len(a) for a in families.allowed])
        self.top = np.cumsum(sizes) - 1
        self.bottom = self.top - sizes + 1
        self.width = np.concatenate(families.allowed)
        self.cost = np.concatenate([c[a] for c, a in zip(costs, families.allowed, strict=True)])
        billed = [b[a] for b, a in zip(families.billed, families.allowed, strict=True)]
        self.billed = np.concatenate(billed)
        each, bottom = np.arange(len(self.width)), np.repeat(self.bottom, sizes)
        self.nearer = np.maximum(each - np.repeat(np.maximum(1, sizes // STEPS), sizes), bottom)
        least = [np.minimum.accumulate(b[::-1])[::-1] for b in billed]  # a wider one may take less
        less = np.concatenate([np.searchsorted(m, m) - 1 for m in least])
        self.quicker = np.clip(less + bottom, bottom, self.nearer)
        last = np.concatenate([np.searchsorted(m, np.append(m[1:], m[-1]), "right") - 1 for m in least])
        paid = np.concatenate([np.append(m[1:] == m[:-1], True) for m in least])
        self.wider = np.where(paid, np.minimum(each + 1, np.repeat(self.top, sizes)), last + bottom)

    def saved(self, wide: Places, narrow: Places, limit: Limit) -> Vector:
        """(families,) what each family saves if it alone goes from one place to the other, in shares of what the limit
        asks of the original. Never nothing: if all else is gone, parts of blocks that take longer must do."""
        less, billed = (a[wide] - a[narrow] for a in (self.width, self.billed))
        done = (1 - limit.in_blocks) * less + limit.in_blocks * np.maximum(billed, 0)
        gained: Vector = limit.gradient(self.width[wide]) * done
        return gained / max(limit.resource(self.width[self.top]) - limit.most, 1)


def _least(cost: Vector, saved: Vector) -> int | None:
    """The step that costs least for what it saves; None if none saves anything."""
    useful = saved > 0
    if not useful.any():
        return None
    return int(np.argmin(np.divide(cost, saved, out=np.full(len(saved), np.inf), where=useful)))


def _moved(at: Places, family: int, to: int) -> Places:
    moved = at.copy()
    moved[family] = to
    return moved


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


def _give_back(ladder: _Ladder, limits: Sequence[Limit], at: Places) -> Widths:
    """Widen what the limits leave room for, one step at a time, where that lowers the cost most; for the time it takes,
    where blocks count."""
    full, whole = at >= ladder.top, any(limit.in_blocks for limit in limits)
    while not full.all():
        wider = ladder.wider[at] if whole else np.minimum(at + 1, ladder.top)
        gain = ladder.cost[at] - ladder.cost[wider]
        if whole:
            spent = np.sum([ladder.saved(wider, at, x) for x in limits], axis=0)
            gain = np.divide(gain, spent, out=np.full(len(at), np.inf), where=spent > 0)
        best = int(np.argmax(np.where(full, -np.inf, gain)))
        trial = _moved(at, best, int(wider[best]))
        if all(x.holds(ladder.width[trial]) for x in limits):
            at = trial
            full[best] = at[best] == ladder.top[best]
        else:
            full[best] = True
    return ladder.width[at]
