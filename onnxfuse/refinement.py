"""Classes that occur equally often everywhere get one label, by partition refinement: these may be merged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .classes import Classes, Stays, shrinking_axis
from .findings import RawSlot
from .ids import counted, spread
from .tracker import Tracker


def may_go(classes: Classes, locks: Stays, slots: Sequence[RawSlot]) -> NDArray[np.bool_]:
    """(classes,) False for those that stay: the locked ones and those that lie in no constant."""
    free = np.zeros(int(classes.max()) + 1, np.bool_)
    for s in slots:
        free[classes[s.ids]] = True
    free[list(locks)] = False
    return free


def signatures(
    t: Tracker, classes: Classes, free: NDArray[np.bool_], slots: Sequence[RawSlot], grids: Sequence[Classes]
) -> Classes:
    """class → label; classes with one label occur equally often in every slot, block, slice and selection.

    Each label keeps at least one channel, so no part of a value loses all of its own. Label 1 is for classes that stay.
    `free`: `may_go`; `grids`: the rows (`rows_of`) of all values with several axes of channels.
    """
    labels = np.where(free, 0, 1)
    refine = _Refiner(labels)
    for s in slots:
        refine(classes[s.ids])
    for rows in grids:
        for row in rows:
            refine(row)
    for d in t.demands:
        roots = classes[spread(d.ids, d.extent, d.axis)]
        refine(roots[(slice(None),) * d.axis + (slice(d.lo, d.hi),)].ravel())
    for p in t.picks:
        refine(classes[p.taken])
    return labels


class _Refiner:
    """Split labels so that classes with one label have the same count in each row it is called with."""

    def __init__(self, labels: Classes) -> None:
        self.labels = labels
        self.next = 2
        self.seen: set[tuple[bytes, bytes]] = set()

    def __call__(self, row: Classes) -> None:
        present, counts = counted(row)
        counts //= max(1, int(np.gcd.reduce(counts)))
        if (content := (present.tobytes(), counts.tobytes())) in self.seen:
            return  # a bias's channels are those of its weight: they split nothing more
        self.seen.add(content)
        pairs = self.labels[present] * (len(row) + 1) + counts  # as one number, which sorts faster than two
        _, inverse = np.unique(pairs, return_inverse=True)
        new = inverse.reshape(-1) + self.next
        self.next = int(new.max()) + 1
        self.labels[present] = np.where(self.labels[present] == 1, 1, new)


def rows_of(roots: Classes) -> Classes:
    """The rows of a value with several axes of channels: each must keep equally many. (0, 0) if they always do."""
    axis = shrinking_axis(roots)
    if axis is None:
        return np.zeros((0, 0), np.int64)
    rows = np.ascontiguousarray(np.moveaxis(roots, axis, -1)).reshape(-1, roots.shape[axis])
    rows = np.unique(np.sort(rows[_different(rows)], axis=1), axis=0)
    return rows if len(rows) > 1 else np.zeros((0, 0), np.int64)


def _different(rows: Classes) -> Classes:
    """Positions of one of each kind of row: few of a detector's 100,000 anchors'."""
    sums = rows @ np.random.default_rng(0).integers(1, 1 << 62, rows.shape[1])  # equal rows have equal ones
    _, first, kind = np.unique(sums, return_index=True, return_inverse=True)
    if (rows[first[kind.reshape(-1)]] == rows).all():
        return np.asarray(first)
    return np.unique(rows, axis=0, return_index=True)[1]
