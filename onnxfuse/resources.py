"""Exact counts of a model (multiply-accumulates, parameters, bytes) as functions of how many channels are kept.

The extent of a channel axis is a constant plus a multiple of each family's width, and a count is a sum of products
of extents. So what any allocation costs is known before anything is merged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from .channels import ChannelGroup, Channels, Slot
from .classes import shrinking_axis
from .counts import WEIGHTS, Products, file_bytes, mac_products, multiplied
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


@dataclass(frozen=True, eq=False)
class Layout:
    """The groups of a graph before anything is merged, and the place of each family in `Widths`."""

    channels: Channels
    families: Mapping[int, int]

    @property
    def model(self) -> ModelProto:
        """Of the graph."""
        return self.channels.tracker.graph.model

    @cached_property
    def constants(self) -> dict[str, TensorProto]:
        """All of the model, those of branches too."""
        return every_constant(self.model)

    @cached_property
    def dims(self) -> dict[str, Extents]:
        """The shape of every constant."""
        slotted = _slotted(self)
        return {n: _weight_extents(*slotted[n]) if n in slotted else tuple(t.dims) for n, t in self.constants.items()}

    @cached_property
    def products(self) -> list[tuple[NodeProto, Products]]:
        """Each node that multiplies, and its multiply-accumulates as a sum of products of extents."""
        return mac_products(self.model, {**_value_extents(self), **self.dims})

    def sum(self) -> _Sum:
        """Nothing, yet."""
        return _Sum(len(self.families))


def _macs(layout: Layout) -> Resource:
    total = layout.sum()
    for _, products in layout.products:
        for extents in products:
            total.add(extents)
    return total.resource()


def _time(layout: Layout) -> Resource:
    """Multiply-accumulates, where a weight takes as long to fetch as `BALANCE` of them (the roofline model).

    Williams et al., CACM 2009. What a large Gemm reads from memory once for each sample is not had for its
    multiply-accumulates alone. Smaller weights are in a cache.
    """
    total = layout.sum()
    dims = {name: tuple(tensor.dims) for name, tensor in layout.constants.items()}
    now = mac_products(layout.model, {**layout.channels.tracker.probe.shapes, **dims})
    for (node, counts), (_, products) in zip(now, layout.products, strict=True):
        fetched = sum(math.prod(dims[name]) for name in node.input if len(dims.get(name, ())) > 1)
        done = sum(math.prod(count) for count in counts)
        for extents in products:
            total.add(extents, max(1.0, BALANCE * fetched / done) if done and fetched > CACHED else 1.0)
    return total.resource()


def _params(layout: Layout) -> Resource:
    total = layout.sum()
    for name, extents in layout.dims.items():
        if layout.constants[name].data_type in WEIGHTS:
            total.add(extents)
    return total.resource()


def _size(layout: Layout) -> Resource:
    """To within the few bytes that protobuf takes to write down lengths."""
    total, held = layout.sum(), layout.channels.tracker.graph.held
    total.fixed = file_bytes(layout.model)
    for name, extents in layout.dims.items():
        tensor = layout.constants[name]
        total.fixed -= _itemsize(tensor) * float(np.prod(tensor.dims))
        total.add(extents, held.get(name, _itemsize(tensor)))
    return total.resource()


RESOURCES: Mapping[str, Callable[[Layout], Resource]] = {
    "macs": _macs,
    "time": _time,
    "params": _params,
    "size": _size,
}
"""Name → how much of it the graph uses."""


def _itemsize(tensor: TensorProto) -> int:
    return int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


# --- extents --------------------------------------------------------------------------------------------------------
class _Owners:
    """Class of channels → which family it belongs to, and what share of the family's unit each such channel is."""

    def __init__(self, layout: Layout) -> None:
        self.family = np.full(int(layout.channels.classes.max()) + 2, -1)  # the last is nobody's
        self.share = np.zeros(len(self.family))
        for g in layout.channels.groups:
            self.family[g.classes] = layout.families[g.family]
            self.share[g.classes] = 1 / g.unit
        self.count = len(layout.families)

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


def _value_extents(layout: Layout) -> dict[str, Extents]:
    """The shape of every value that a node which multiplies reads or makes."""
    t, owners = layout.channels.tracker, _Owners(layout)
    found: dict[str, Extents] = {}
    for name in multiplied(layout.model) & t.probe.shapes.keys():
        ids, shape = t.ids.get(name), t.probe.shapes[name]
        found[name] = shape
        if ids is not None and ids.any():
            roots = layout.channels.classes[ids]
            axis = shrinking_axis(roots)
            if axis is not None:
                row = np.moveaxis(roots, axis, -1).reshape(-1, roots.shape[axis])[0]
                found[name] = (*shape[:axis], owners.extent(row), *shape[axis + 1 :])
    return found


Axes = tuple[tuple[int, ...], int]
Slotted = dict[str, tuple[tuple[int, ...], dict[Axes, tuple[NDArray[np.int64], "_Owners"]]]]


def _slotted(layout: Layout) -> Slotted:
    """Constant → its dims, and for each set of axes that holds channels the classes of their positions."""
    owners = _Owners(layout)
    nobody = len(owners.family) - 1
    found: Slotted = {}
    for group, slot in ((g, s) for g in layout.channels.groups for s in g.slots):
        dims = tuple(layout.constants[slot.tensor].dims)
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
