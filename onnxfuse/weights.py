"""The weights of a graph while channels are merged, at their full size with zeros where channels went.

Zeros change no importance, norm or distance, so groups that share a tensor never disturb each other's positions,
and the tensors are shortened once, at the end.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from .channels import Channels, Slot
from .errors import ModelError
from .findings import RawSlot, Role
from .graph import Graph
from .ids import Ids
from .merge import Merge, per_row
from .sparse import turned
from .tensors import FLOATS, Array

Index = tuple[Any, ...]
ALL: Index = (slice(None), slice(None))
"""All channels and their places, in the (n, q, …) values of a slot."""
ACROSS, STRIP = 1 << 20, 16
"""Elements of an array that is read and written in strips, and how many rows of memory one has: a line of the cache."""
SMALL = 1 << 12
"""Elements of a matrix up to which it multiplies faster as a dense one than SciPy prepares a sparse one."""


class Weights:
    """Arrays of constants, fetched from the graph when first touched.

    Without `keep` the graph's own values are let go then, so that no weight is held twice.
    """

    def __init__(self, graph: Graph, other: Mapping[str, Array] | None = None, keep: bool = False) -> None:
        """Args:
        graph: has the constants.
        other: values that take precedence over the graph's.
        keep: the graph's values will be needed again.
        """
        self.graph, self.other, self.keep = graph, other or {}, keep
        self.arrays: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self.arrays:
            own = self.graph.array(name)
            exact = own.dtype in (np.float32, np.float64)
            values = self.other.get(name, own)
            self.arrays[name] = np.array(values, dtype=own.dtype if exact else np.float32, order="C")
            if not self.keep:
                self.graph.constants[name].ClearField("raw_data")
        return self.arrays[name]

    def __setitem__(self, name: str, values: Array) -> None:
        self.arrays[name] = values

    def gather(self, slot: Slot) -> Array:
        """(n, q·rest) what each channel of the group has in this slot."""
        return gather(self[slot.tensor], slot)

    def scatter(self, slot: Slot, kept: Ids, gone: Ids, values: Array) -> None:
        """Write (k, q·rest) `values` to the positions of the channels `kept`, and zeros to those of the others."""
        view, index = _view(self[slot.tensor], slot)
        left, lost = (tuple(i[own] for i in index) for own in (kept, gone))
        values = values.reshape((*left[0].shape, *view.shape[len(index) :]))
        for strip in _strips(view, len(index)):
            view[lost + strip] = 0
            view[left + strip] = values[ALL + strip]

    def apply(self, slots: Sequence[Slot], merge: Merge, rows: Mapping[Slot, Array]) -> None:
        """Merge the channels of a group in these slots; `rows` has what was gathered of some of them already."""
        uses = Counter(slot.tensor for slot in slots)
        factor = functools.cache(functools.partial(matrix, merge))  # a dense block's channels have many readers
        gone = others(merge.kept, merge.compress.shape[1])
        for slot in slots:
            fresh = uses[slot.tensor] > 1 or slot not in rows  # another slot's merge changes a shared tensor
            values = self.gather(slot) if fresh else rows[slot]
            self.scatter(slot, merge.kept, gone, factor(slot.role, values.dtype) @ values)


def check_finite(channels: Channels) -> None:
    """Everything that groups have, biases and factors too, must be numbers to merge or to measure with.

    Raises:
        ModelError: a constant has others.
    """
    graph = channels.tracker.graph
    for name, slot in {s.tensor: s for group in channels.groups for s in group.slots}.items():
        if graph.constants[name].data_type in FLOATS and not np.isfinite(graph.array(name)).all():
            raise ModelError(f"weight {name!r} of {slot.node} has values that are not finite; repair the model first")


def side_by_side(rows: Sequence[Array]) -> Array:
    """(n, d) the rows of all slots, without columns of zeros.

    These belong to channels that went with an earlier group: they change no norm and no distance.
    """
    used = [np.flatnonzero(r.any(axis=0)) for r in rows]
    full = [r if len(u) == r.shape[1] else r.take(u, axis=1) for r, u in zip(rows, used, strict=True)]
    return np.concatenate(full, axis=1)  # a copy even of one


def others(kept: Ids, n: int) -> Ids:
    """Which of 0…n−1 are not among `kept`, ascending."""
    mask = np.ones(n, bool)
    mask[kept] = False
    return np.flatnonzero(mask)


def gather(array: Array, slot: Slot) -> Array:
    """(n, q·rest) what each channel of a group has in this slot of a tensor."""
    view, index = _view(array, slot)
    strips = _strips(view, len(index))
    if len(strips) == 1:
        return np.ascontiguousarray(view[index]).reshape(len(slot.positions), -1)
    found = np.empty((*slot.positions.shape, *view.shape[len(index) :]), view.dtype)
    for strip in strips:
        found[ALL + strip] = view[index + strip]
    return found.reshape(len(slot.positions), -1)


def _strips(view: Array, axes: int) -> list[Index]:
    """Parts of the axis behind the first `axes`, one at a time: if channels lie closer in a large array than what each
    has, whole columns would go through the cache again and again."""
    size = view.shape[axes] if view.ndim > axes else 0
    if view.size < ACROSS or size <= STRIP or view.strides[0] > view.strides[axes]:
        return [()]
    return [(slice(i, i + STRIP),) for i in range(0, size, STRIP)]


def _view(array: Array, slot: Slot) -> tuple[Array, Index]:
    """The tensor with the slot's axes in front, and the (n, q) index of its channels there."""
    moved = front(array, slot)
    if len(slot.axes) == 1:
        return moved, (slot.positions,)
    return moved, np.unravel_index(slot.positions, moved.shape[: len(slot.axes)])


def front(array: Array, slot: Slot | RawSlot) -> Array:
    """A view of `array`, axis 0 split into (split, −1), with the slot's axes moved to the front."""
    split = in_blocks(array, slot)
    return split.transpose(_to_front(slot.axes, split.ndim))


def in_blocks(array: Array, slot: Slot | RawSlot) -> Array:
    """A view of `array` that has the slot's axes, axis 0 split into (split, −1)."""
    return array.reshape(slot.split, -1, *array.shape[1:]) if slot.split > 1 else array


@functools.cache
def _to_front(axes: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The order of `count` axes that has these first: what `np.moveaxis` finds, which a dense block asks often."""
    return *axes, *(a for a in range(count) if a not in axes)


def matrix(merge: Merge, role: Role, dtype: np.dtype[Any]) -> csr_array | Array:
    """(k, n) what multiplies a slot of this role from the left, its channels in front; dense if it is small."""
    small = math.prod(merge.compress.shape) <= SMALL
    if role is Role.CONSUMES:
        return _dense(merge.expand, dtype).T if small else turned(merge.expand).astype(dtype)
    factor = per_row(merge.compress) if role is Role.SCALE else merge.compress
    return _dense(factor, dtype) if small else factor.astype(dtype)


def _dense(factor: csr_array, dtype: np.dtype[Any]) -> Array:
    return np.asarray(factor.toarray(), dtype)
