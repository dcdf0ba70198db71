"""Shorten the tensors whose channels were merged, and all constants and attributes that spell out a channel count."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from .channels import ChannelGroup, Channels, Slot
from .classes import shrinking_axis
from .extents import kept_extent, shrunk_number, shrunk_shape
from .findings import Demand, Lock, Pick
from .graph import Graph
from .ids import Ids, counted
from .protos import Edge, drop_attribute, every_constant, graphs, resize_inputs, set_attribute
from .symbols import Place
from .tensors import Array, set_values
from .weights import Weights, front, in_blocks, others

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Removal:
    """The channels of one group and which of them are kept."""

    group: ChannelGroup
    kept: Ids

    @cached_property
    def gone(self) -> Ids:
        """The others, ascending."""
        return others(self.kept, self.group.channels)


def removed_mask(channels: Channels, removals: Sequence[Removal]) -> Mask:
    """(ids,) True for every id that stays."""
    return channels.mask(r.group.classes[r.gone] for r in removals)


# --- demands --------------------------------------------------------------------------------------------------------
def conflicts(channels: Channels, kept: Mask) -> list[Lock]:
    """Locks on the channels whose shape constants could not follow them.

    A number computed from shapes must come out as the count that is needed; a constant can be edited, but only
    to one value.
    """
    found: list[Lock] = []
    wanted: dict[Place, float] = {}
    needed = [_needed(channels, kept, d) for d in channels.tracker.demands]
    for d, size in zip(channels.tracker.demands, needed, strict=True):
        if d.number.place is not None:
            wanted.setdefault(d.number.place, size)
    for d, size in zip(channels.tracker.demands, needed, strict=True):
        used = _Read(wanted)
        if shrunk_number(channels, kept, d.number, used) != size:
            found += _locks(channels, d, used.places)
    return found


class _Read(dict[Place, float]):
    """Edits of constants that remember which of them were read."""

    def __init__(self, edits: Mapping[Place, float]) -> None:
        super().__init__(edits)
        self.places: set[Place] = set()

    def get(self, place: Place, default: Any = None) -> Any:
        self.places.add(place)
        return super().get(place, default)


def _needed(channels: Channels, kept: Mask, d: Demand) -> float:
    """What the number of a demand must be after removal; what it is if nothing goes that it counts."""
    extent = kept_extent(channels, kept, d)
    return d.number.value if extent == d.hi - d.lo else d.sign * extent


def _locks(channels: Channels, d: Demand, places: Container[Place]) -> list[Lock]:
    """On all that the number of a demand depends on: what it counts, sizes it is computed from, and what others want
    of the constants at these places."""
    reason = "a shape is computed from their count in a way that cannot follow"
    ids = [d.ids, *(channels.tracker.ids[name] for name, _ in d.number.dims if name in channels.tracker.ids)]
    ids += [other.ids for other in channels.tracker.demands if other.number.place in places]
    return [Lock(counted(i)[0], reason, d.node) for i in ids]


# --- rewriting ------------------------------------------------------------------------------------------------------
def rewrite(channels: Channels, weights: Weights, removals: Sequence[Removal]) -> None:
    """Make the graph of `channels` small, in place: its weights must be merged already."""
    graph, kept = channels.tracker.graph, removed_mask(channels, removals)
    shorten(graph, weights, removals, list(weights.arrays))
    for node, name, value in channels.tracker.settings:
        set_attribute(graph.protos[node], name, value)
    for place, number in _edits(channels, kept).items():
        _edit(channels, place, number)
    for pick in channels.tracker.picks:
        _renumber(channels, kept, pick)
    _drop_stale_shapes(channels, kept)
    record_constants(graph.model)


def slot_masks(removals: Sequence[Removal], arrays: Mapping[str, Array]) -> dict[str, list[tuple[Slot, Mask]]]:
    """Tensor name → for each set of its axes that holds channels, one slot there and the mask of kept positions."""
    found: dict[str, dict[tuple[tuple[int, ...], int], tuple[Slot, Mask]]] = {}
    for r in removals:
        for slot in (s for s in r.group.slots if s.tensor in arrays):
            axes = found.setdefault(slot.tensor, {})
            if (slot.axes, slot.split) not in axes:
                extents = front(arrays[slot.tensor], slot).shape[: len(slot.axes)]
                axes[slot.axes, slot.split] = (slot, np.ones(extents, bool))
            axes[slot.axes, slot.split][1].reshape(-1)[slot.positions[r.gone].ravel()] = False
    return {name: list(axes.values()) for name, axes in found.items()}


def shorten(graph: Graph, weights: Weights, removals: Sequence[Removal], names: Sequence[str]) -> None:
    """Give the constants of these names their final values: all removals that concern them are among `removals`."""
    arrays = {name: weights.arrays.pop(name) for name in names}
    masks = slot_masks(removals, arrays)
    for name in names:
        array = arrays.pop(name)
        for slot, mask in masks.get(name, ()):
            array = shrink(array, slot, mask)
        set_values(graph.constants[name], array)


def shrink(array: Array, slot: Slot, mask: Mask) -> Array:
    """`array` with only the positions of `mask` on the slot's axes; each row of several axes keeps equally many."""
    axes = len(slot.axes)
    differ = [a for a in range(axes) if (mask != mask.take([0], a)).any()]
    if not differ:
        return array
    if axes == 1:  # in the order of memory, which is faster
        small = in_blocks(array, slot).compress(mask, axis=slot.axes[0])
        return small.reshape(-1, *small.shape[2:]) if slot.split > 1 else small
    view, last = front(array, slot), axes - 1
    view, mask = np.moveaxis(view, differ[-1], last), np.moveaxis(mask, differ[-1], last)
    small = view[mask].reshape(*view.shape[:last], -1, *view.shape[axes:])
    small = np.moveaxis(np.moveaxis(small, last, differ[-1]), range(axes), slot.axes)
    return small.reshape(-1, *small.shape[2:]) if slot.split > 1 else small


def kept_along(removals: Sequence[Removal], name: str, shape: Sequence[int], axis: int) -> Mask | None:
    """(shape[axis],) which positions of constant `name` stay along an axis; None if it depends on another axis."""
    kept = np.ones(shape[axis], bool)
    for slot, mask in slot_masks(removals, {name: np.broadcast_to(np.int8(0), shape)}).get(name, ()):
        differ = [a for a in range(mask.ndim) if (mask != mask.take([0], a)).any()]
        along = ((0, 1) if axis == 0 else (axis + 1,)) if slot.split > 1 else (axis,)
        if differ and slot.axes[differ[-1]] in along:
            if slot.axes != along:
                return None
            kept &= mask.ravel()
    return kept


def _edits(channels: Channels, kept: Mask) -> dict[Place, int]:
    """Every constant number that must change, and its new value."""
    edits = {}
    for d in channels.tracker.demands:
        needed = _needed(channels, kept, d)
        if d.number.place is not None and needed != d.number.value:
            edits[d.number.place] = int(needed)
    return edits


def _edit(channels: Channels, place: Place, number: int) -> None:
    graph = channels.tracker.graph
    node = graph.protos[place.node]
    if isinstance(place.where, int):
        name = _own_constant(channels, node, place.node, place.where)
        values = np.array(graph.array(name))
        values.reshape(-1)[place.index] = number
        set_values(graph.constants[name], values)
        return
    old = next((a for a in node.attribute if a.name == place.where), None)
    if old is None:
        set_attribute(node, place.where, _split_sizes(channels, place.node))
        old = node.attribute[-1]
    if old.ints:
        old.ints[place.index] = number
    else:
        old.i = number


def _own_constant(channels: Channels, node: NodeProto, position: int, slot: int) -> str:
    """The constant at input `slot`, made the node's own; a Split of equal parts gets one."""
    graph, edge = channels.tracker.graph, Edge(position, slot)
    if len(node.input) <= slot or not node.input[slot]:
        sizes = np.array(_split_sizes(channels, position), np.int64)
        node.input[slot:] = [graph.add(sizes, f"{node.output[0]}_split", edge)]
        drop_attribute(node, "num_outputs")
    name = node.input[slot]
    return graph.clone(name, [edge]) if len(graph.edges[name]) > 1 else name


def _split_sizes(channels: Channels, position: int) -> list[int]:
    """The sizes that a Split without sizes had."""
    t = channels.tracker
    node = t.graph.nodes[position]
    axis = int(node.attrs.get("axis", 0))
    return [t.shape(o.name)[axis] for o in node.outputs]


def _renumber(channels: Channels, kept: Mask, pick: Pick) -> None:
    """Gather's indices count kept positions only, and those of removed positions go."""
    graph, classes = channels.tracker.graph, channels.classes
    node = graph.protos[pick.edge.node]
    row = np.moveaxis(kept[pick.ids], pick.axis, -1).reshape(-1, pick.extent)[0]
    if row.all() or shrinking_axis(classes[pick.ids]) != pick.axis:
        return
    name = node.input[pick.edge.slot]
    name = graph.clone(name, [pick.edge]) if len(graph.edges[name]) > 1 else name
    old = graph.array(name)
    index = old % pick.extent
    new = (np.cumsum(row) - 1)[index]
    stay, long = row[index], [-1 if size > 1 else 1 for size in new.shape]
    set_values(graph.constants[name], new if stay.all() else new[stay].reshape(long))


def _drop_stale_shapes(channels: Channels, kept: Mask) -> None:
    """Drop recorded shapes of values that have another one now; what branches return keeps one, brought up to date."""
    for graph in graphs(channels.tracker.graph.model):
        for i in reversed(range(len(graph.value_info))):
            name = graph.value_info[i].name
            if shrunk_shape(channels, kept, name) != channels.tracker.shape(name):
                del graph.value_info[i]
        for value in graph.output:
            sizes = zip(shrunk_shape(channels, kept, value.name), channels.tracker.shape(value.name), strict=True)
            for dim, (new, old) in zip(value.type.tensor_type.shape.dim, sizes, strict=False):
                if new != old:
                    dim.dim_value = new


def record_constants(model: ModelProto) -> None:
    """Drop recorded shapes of constants that have another one now, or are gone; resize those that are listed as inputs.

    What is a constant only while weights are real numbers counts, too: see `quantized.lower`.
    """
    constants = {name: tuple(t.dims) for name, t in every_constant(model).items()}
    for graph in graphs(model):
        made = {name for node in graph.node for name in node.output} - constants.keys()
        for i in reversed(range(len(graph.value_info))):
            value = graph.value_info[i]
            dims = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
            if value.name not in made and constants.get(value.name) != dims:
                del graph.value_info[i]
    resize_inputs(model, constants)
