"""Sizes of values, and numbers computed from them, after channels were removed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .channels import Channels
from .classes import shrinking_axis
from .findings import Demand
from .ids import spread
from .symbols import Dim, Number, Place


def kept_extent(channels: Channels, kept: NDArray[np.bool_], d: Demand) -> int:
    """How many of the positions that a demand counts are kept."""
    ids = spread(d.ids, d.extent, d.axis)
    if shrinking_axis(channels.classes[ids]) != d.axis:
        return d.hi - d.lo
    part = kept[ids].take(range(d.lo, d.hi), d.axis)
    return int(np.moveaxis(part, d.axis, -1).reshape(-1, d.hi - d.lo)[0].sum())


def shrunk_shape(channels: Channels, kept: NDArray[np.bool_], name: str) -> tuple[int, ...]:
    """The shape of a value after removal."""
    shape, ids = channels.tracker.shape(name), channels.tracker.ids.get(name)
    if ids is None or not ids.any():
        return shape
    axis = shrinking_axis(channels.classes[ids])
    if axis is None:
        return shape
    rows = np.moveaxis(kept[ids], axis, -1).reshape(-1, ids.shape[axis])
    return (*shape[:axis], int(rows[0].sum()), *shape[axis + 1 :])


def shrunk_number(channels: Channels, kept: NDArray[np.bool_], number: Number, edits: Mapping[Place, float]) -> float:
    """A symbolic number's value after removal and these edits of constants."""

    def lookup(key: Dim | Place) -> float | None:
        return edits.get(key) if isinstance(key, Place) else shrunk_shape(channels, kept, key[0])[key[1]]

    return number.compute(lookup)
