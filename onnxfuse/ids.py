"""Arrays of channel ids: they broadcast to the shape of the value whose channels they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
SPARSE = 0.1
"""Numbers for each that could be, from which on they are counted."""
FIXED = 0
"""The id of a position that can never be removed."""


def varying(ids: Ids) -> list[int]:
    """Axes along which the ids differ."""
    return [axis for axis, size in enumerate(ids.shape) if size > 1]


def compact(ids: Ids) -> Ids:
    """The same ids with size 1 along every axis on which they are constant."""
    for axis in varying(ids):
        first = ids.take([0], axis)
        if (ids == first).all():
            ids = first
    return ids


def expand(ids: Ids, shape: Sequence[int], axes: Sequence[int]) -> Ids:
    """Broadcast ids to the full `shape` along `axes` only."""
    return np.broadcast_to(ids, [shape[a] if a in axes else ids.shape[a] for a in range(ids.ndim)])


def spread(ids: Ids, extent: int, axis: int) -> Ids:
    """Broadcast ids to the size `extent` along one axis."""
    shape = list(ids.shape)
    shape[axis] = extent
    return np.broadcast_to(ids, shape)


def lead(ids: Ids, rank: int) -> Ids:
    """Prepend axes of size 1 up to `rank`, as NumPy broadcasting does."""
    return ids.reshape((1,) * (rank - ids.ndim) + ids.shape)


def counted(ids: Ids) -> tuple[Ids, Ids]:
    """The non-negative numbers that occur, ascending, and how often; many of few are counted sooner than sorted."""
    flat = ids.ravel()
    if flat.size < SPARSE * int(flat.max(initial=0)):
        present, counts = np.unique(flat, return_counts=True)
        return present, counts
    counts = np.bincount(flat)
    present = np.flatnonzero(counts)
    return present, counts[present]
