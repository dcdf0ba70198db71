"""Exact counts of a model (multiply-accumulates, parameters, bytes) as functions of how many channels are kept.

The extent of a channel axis is a constant plus a multiple of each family's width, and a count is a sum of products
of extents. So what any allocation costs is known before anything is merged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from .channels import ChannelGroup, Channels, Slot
from .classes import shrinking_axis
from .counts import WEIGHTS, file_bytes, mac_products
from .protos import every_constant

Vector = NDArray[np.float64]
BALANCE = 12.0
"""Multiply-accumulates that one core does in the time of reading a float32 from memory: 32 and more, to 10 GB/s."""
CACHED = 1 << 20
"""Elements of weights, 4 MB, up to which they stay in a core's cache from one run to the next."""
Widths = NDArray[np.int64]
"""(families,) units kept of each family: a group keeps channels / unit times as many channels."""


@dataclass(frozen=True)
class Extent:
    """An extent that follows the widths of families: `fixed` + Σ `per_unit[f]` · width of family f."""

    fixed: float
    per_unit: tuple[tuple[int, float], ...]


Extents = tuple[int | Extent, ...]


@dataclass(frozen=True, eq=False)
class Resource:
    """A count as a function of widths: `fixed` + Σ_m `scale[m]` · Π_d (`start` + `slope` @ widths)[`index[m, d]`].

    Attributes:
        fixed: what no width changes.
        scale: (m,) product of the extents that no width changes.
        index: (m, d) rows of the extents that follow widths; row 0 is the constant 1.
        start: (rows,) an extent's constant part.
        slope: (rows, families) an extent per unit of each family.
    """

    fixed: float
    scale: Vector
    index: NDArray[np.int64]
    start: Vector
    slope: Vector

    def __call__(self, widths: Widths) -> float:
        """The count at these widths."""
        return self.fixed + float(self.scale @ self._extents(widths)[self.index].prod(axis=1))

    def gradient(self, widths: Widths) -> Vector:
        """(families,) what one more unit of each family adds."""
        extents = self._extents(widths)[self.index]
        rows = np.zeros(len(self.start))
        for d in range(self.index.shape[1]):
            rest = self.scale * np.delete(extents, d, axis=1).prod(axis=1)
            rows += np.bincount(self.index[:, d], rest, len(rows))
        return np.asarray(rows @ self.slope)

    def _extents(self, widths: Widths) -> Vector:
        return np.asarray(self.start + self.slope @ widths)


@dataclass
class _Sum:
    """Collects products of extents."""

    families: int
    fixed: float = 0.0
    rows: dict[Extent, int] = field(default_factory=dict)
    terms: list[tuple[float, list[int]]] = field(default_factory=list)

    def add(self, extents: Sequence[int | Extent], scale: float = 1.0) -> None:
        scale *= float(np.prod([e for e in extents if not isinstance(e, Extent)]))
        rows = [self.rows.setdefault(e, len(self.rows) + 1) for e in extents if isinstance(e, Extent)]
        if rows:
            self.terms.append((scale, rows))
        else:
            self.fixed += scale

    def resource(self) -> Resource:
        start, slope = np.ones(len(self.rows) + 1), np.zeros((len(self.rows) + 1, self.families))
        for extent, row in self.rows.items():
            start[row] = extent.fixed
            for family, per_unit in extent.per_unit:
                slope[row, family] = per_unit
        index = np.zeros((len(self.terms), max((len(r) for _, r in self.terms), default=1)), np.int64)
        for m, (_, rows) in enumerate(self.terms):
            index[m, : len(rows)] = rows
        return Resource(self.fixed, np.array([scale for scale, _ in self.terms]), index, start, slope)


def _macs(channels: Channels, families: Mapping[int, int]) -> Resource:
    model, total = channels.tracker.graph.model, _Sum(len(families))
    for _, products in mac_products(model, {**_value_extents(channels, families), **_dims(channels, families)}):
        for extents in products:
            total.add(extents)
    return total.resource()


def _time(channels: Channels, families: Mapping[int, int]) -> Resource:
    """Multiply-accumulates, where a weight takes as long to fetch as `BALANCE` of them (the roofline model).

    Williams et al., CACM 2009. What a large Gemm reads from memory once for each sample is not had for its
    multiply-accumulates alone. Smaller weights are in a cache.
    """
    t, total = channels.tracker, _Sum(len(families))
    model, tensors = t.graph.model, every_constant(t.graph.model)
    dims = {name: tuple(tensor.dims) for name, tensor in tensors.items()}
    now = mac_products(model, {**t.probe.shapes, **dims})
    after = mac_products(model, {**_value_extents(channels, families), **_dims(channels, families)})
    for (node, counts), (_, products) in zip(now, after, strict=True):
        fetched = sum(math.prod(dims[name]) for name in node.input if len(dims.get(name, ())) > 1)
        done = sum(math.prod(count) for count in counts)
        for extents in products:
            total.add(extents, max(1.0, BALANCE * fetched / done) if done and fetched > CACHED else 1.0)
    return total.resource()


def _params(channels: Channels, families: Mapping[int, int]) -> Resource:
    total, tensors = _Sum(len(families)), every_constant(channels.tracker.graph.model)
    for name, extents in _dims(channels, families).items():
        if tensors[name].data_type in WEIGHTS:
            total.add(extents)
    return total.resource()


def _size(channels: Channels, families: Mapping[int, int]) -> Resource:
    """To within the few bytes that protobuf takes to write down lengths."""
    graph, total = channels.tracker.graph, _Sum(len(families))
    tensors = every_constant(graph.model)
    total.fixed = file_bytes(graph.model)
    for name, extents in _dims(channels, families).items():
        total.fixed -= _itemsize(tensors[name]) * float(np.prod(tensors[name].dims))
        total.add(extents, graph.held.get(name, _itemsize(tensors[name])))
    return total.resource()


RESOURCES: Mapping[str, Callable[[Channels, Mapping[int, int]], Resource]] = {
    "macs": _macs,
    "time": _time,
    "params": _params,
    "size": _size,
}
"""Name → how much of it the graph uses, before anything is merged, given the place of each family in `Widths`."""


def _dims(channels: Channels, families: Mapping[int, int]) -> dict[str, Extents]:
    """The shape of every constant."""
    slotted = _slotted(channels, families)
    tensors = every_constant(channels.tracker.graph.model)
    return {n: _weight_extents(*slotted[n]) if n in slotted else tuple(t.dims) for n, t in tensors.items()}


def _itemsize(tensor: TensorProto) -> int:
    return int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


# --- extents --------------------------------------------------------------------------------------------------------
class _Owners:
    """Class of channels → which family it belongs to, and what share of the family's unit each such channel is."""

    def __init__(self, channels: Channels, families: Mapping[int, int]) -> None:
        self.family = np.full(int(channels.classes.max()) + 2, -1)  # the last is nobody's
        self.share = np.zeros(len(self.family))
        for g in channels.groups:
            self.family[g.classes] = families[g.family]
            self.share[g.classes] = 1 / g.unit
        self.count = len(families)

    def extent(self, row: NDArray[np.int64]) -> int | Extent:
        """Of an axis whose positions have these classes."""
        family = self.family[row]
        owned = family >= 0
        if not owned.any():
            return len(row)
        per_unit = np.bincount(family[owned], self.share[row[owned]], self.count)
        return Extent(
            float((~owned).sum()), tuple((int(f), round(float(per_unit[f]), 9)) for f in np.flatnonzero(per_unit))
        )


def _value_extents(channels: Channels, families: Mapping[int, int]) -> dict[str, Extents]:
    """The shape of every value of the graph."""
    t, owners = channels.tracker, _Owners(channels, families)
    found: dict[str, Extents] = {}
    for name, shape in t.probe.shapes.items():
        ids = t.ids.get(name)
        found[name] = shape
        if ids is not None and ids.any():
            roots = channels.classes[ids]
            axis = shrinking_axis(roots)
            if axis is not None:
                row = np.moveaxis(roots, axis, -1).reshape(-1, roots.shape[axis])[0]
                found[name] = (*shape[:axis], owners.extent(row), *shape[axis + 1 :])
    return found


Axes = tuple[tuple[int, ...], int]
Slotted = dict[str, tuple[tuple[int, ...], dict[Axes, tuple[NDArray[np.int64], "_Owners"]]]]


def _slotted(channels: Channels, families: Mapping[int, int]) -> Slotted:
    """Constant → its dims, and for each set of axes that holds channels the classes of their positions."""
    owners, tensors = _Owners(channels, families), every_constant(channels.tracker.graph.model)
    nobody = len(owners.family) - 1
    found: Slotted = {}
    for group, slot in ((g, s) for g in channels.groups for s in g.slots):
        dims = tuple(tensors[slot.tensor].dims)
        axes = found.setdefault(slot.tensor, (dims, {}))[1]
        place = (slot.axes, slot.split)
        if place not in axes:
            axes[place] = (np.full(_front_shape(dims, slot), nobody), owners)
        axes[place][0].reshape(-1)[slot.positions] = group.classes[:, None]
    return found


def _front_shape(dims: tuple[int, ...], slot: Slot) -> tuple[int, ...]:
    view = (slot.split, dims[0] // slot.split, *dims[1:]) if slot.split > 1 else dims
    return tuple(view[a] for a in slot.axes)


def _weight_extents(dims: tuple[int, ...], axes: Mapping[Axes, tuple[NDArray[np.int64], _Owners]]) -> Extents:
    """The shape of a constant that holds channels on some of its axes."""
    result: list[int | Extent] = list(dims)
    for (places, split), (roots, owners) in axes.items():
        axis = shrinking_axis(roots)
        if axis is None:
            continue
        extent = owners.extent(np.moveaxis(roots, axis, -1).reshape(-1, roots.shape[axis])[0])
        place = places[axis]
        if split > 1:
            extent = _times(extent, split) if place == 1 else extent
            place = max(place - 1, 0)
        result[place] = extent
    return tuple(result)


def _times(extent: int | Extent, n: int) -> int | Extent:
    if isinstance(extent, int):
        return extent * n
    return Extent(extent.fixed * n, tuple((f, per * n) for f, per in extent.per_unit))


def family_places(groups: Sequence[ChannelGroup]) -> dict[int, int]:
    """Number of each family → its place in `Widths`, in graph order."""
    return {family: i for i, family in enumerate(dict.fromkeys(g.family for g in groups))}
