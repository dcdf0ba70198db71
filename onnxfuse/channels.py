"""Run a graph on channel ids and collect what must shrink together into channel groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .graph import Graph, label
from .probe import Probe
from .protos import Edge
from .symbols import Dim, Number, Place
from .track import track
from .tracker import FIXED, Demand, Ids, Lock, Permit, RawSlot, Role, Tracker, varying

Classes = NDArray[np.int64]
Stays = dict[int, tuple[str, str]]
"""class → (reason, node) of the lock on it."""


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a group's channels lie in one constant.

    Attributes:
        tensor: the initializer's name.
        node: label of the node that uses it.
        axes: the axes, of the tensor viewed with axis 0 split into (`split`, −1) when `split` > 1.
        split: number of blocks in axis 0 (a grouped convolution's groups), or 1.
        role: what a merge does to these axes.
        positions: (n, q) flat positions over `axes` of each of the n channels' q places.
    """

    tensor: str
    node: str
    axes: tuple[int, ...]
    split: int
    role: Role
    positions: Ids


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that are made and read by the same weights, so that any of them may be merged into any other.

    Attributes:
        name: the first node that makes them.
        channels: n, how many there are.
        slots: where they lie.
        classes: (n,) their class numbers, which `Channels` uses.
        family: groups of one family keep the same fraction of their channels (the blocks of grouped convolutions).
        unit: the family shrinks by multiples of channels / unit.
        order: position in the graph of the first node that makes them.
        nodes: labels of all nodes that make or read them.
        select: why channels of it may be dropped but not mixed; '' if they may.
    """

    name: str
    channels: int
    slots: tuple[Slot, ...]
    classes: Classes
    family: int
    unit: int
    order: int
    nodes: tuple[str, ...]
    select: str = ""

    def __str__(self) -> str:
        head = f"{self.name}: {self.channels} channels"
        rows = [f"  {s.role.value:<9} {s.tensor} axis {','.join(map(str, s.axes))} ({s.node})" for s in self.slots]
        return "\n".join([head, *rows])


Placed = dict[int, list[Slot]]


@dataclass(frozen=True)
class Locked:
    """Channels left alone."""

    name: str
    channels: int
    reason: str
    node: str


@dataclass(frozen=True, eq=False)
class Channels:
    """What `find_channels` knows of a graph.

    Attributes:
        tracker: ids of every value, and demands on shape constants.
        classes: id → class; ids of one class are kept or removed together.
        groups: what may shrink, in graph order.
        locked: what may not, with the reason.
        slots: every use of a constant, with the constant's final name.
    """

    tracker: Tracker
    classes: Classes
    groups: tuple[ChannelGroup, ...]
    locked: tuple[Locked, ...]
    slots: tuple[RawSlot, ...]

    def mask(self, removed: Iterable[Classes]) -> NDArray[np.bool_]:
        """(ids,) True for every id that stays when these classes go."""
        kept = np.ones(int(self.classes.max()) + 1, bool)
        for gone in removed:
            kept[gone] = False
        return kept[self.classes]


def find_channels(
    graph: Graph,
    probe: Probe,
    exclude: Sequence[str] = (),
    locks: Sequence[Lock] = (),
    permit: Permit | None = None,
) -> Channels:
    """The channel groups of `graph`. Constants whose uses disagree are cloned, so `graph.model` may change.

    Args:
        graph: a prepared model (`prepare.prepare`).
        probe: shapes of all its values.
        exclude: regular expressions; nodes whose label matches keep their input and output channels.
        locks: ids of an earlier call on the same graph that must stay, too.
        permit: what may change beyond that.
    """
    t = track(graph, probe, exclude, permit)
    t.locks.extend(locks)
    classes = _classes(t)
    stays = _class_locks(t, classes)
    slots = _unshare(t, classes, stays)
    labels = _signatures(t, classes, stays, slots)
    placed = _placed_slots(t, classes, labels, slots)
    groups, impossible = _groups(t, classes, labels, placed, _families(t, classes, labels, placed))
    locked = [*_locked(t, classes, stays), *impossible]
    return Channels(t, classes, tuple(groups), tuple(locked), tuple(slots))


def _classes(t: Tracker) -> Classes:
    """id → class: the connected components of all unions, shared weights included."""
    pairs = [*t.unions, *_shared_weights(t.slots)]
    a = np.concatenate([p[0] for p in pairs]) if pairs else np.zeros(0, np.int64)
    b = np.concatenate([p[1] for p in pairs]) if pairs else np.zeros(0, np.int64)
    links = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(t.count, t.count))
    return np.asarray(connected_components(links, directed=False)[1], dtype=np.int64)


def _shared_weights(slots: Sequence[RawSlot]) -> list[tuple[Ids, Ids]]:
    """Several nodes with one weight tensor stay one: their channels unite (vectors are cloned instead)."""
    first: dict[tuple[str, tuple[int, ...], int], Ids] = {}
    unions = []
    for s in slots:
        if s.role in (Role.PRODUCES, Role.CONSUMES):
            other = first.setdefault((s.tensor, s.axes, s.split), s.ids)
            if other is not s.ids and (other > 0).all() and (s.ids > 0).all():
                unions.append((other, s.ids))
    return unions


def _class_locks(t: Tracker, classes: Classes) -> Stays:
    """class → (reason, node) of the first lock on it."""
    found: Stays = {int(classes[FIXED]): ("", "")}
    for lock in t.locks:
        for c in np.unique(classes[lock.ids]):
            found.setdefault(int(c), (lock.reason, lock.node))
    for pin in t.pins:
        if shrinking_axis(classes[pin.ids]) == pin.axis:
            for c in np.unique(classes[pin.held]):
                found.setdefault(int(c), ("they are blocks or single channels that another value counts on", pin.node))
    return found


def shrinking_axis(roots: Classes) -> int | None:
    """The last axis along which classes differ: the one that removal shortens."""
    axes = [a for a in varying(roots) if (roots != roots.take([0], a)).any()]
    return axes[-1] if axes else None


def _unshare(t: Tracker, classes: Classes, locks: Stays) -> list[RawSlot]:
    """Clone constants whose uses want different edits; returns the slots with their final tensor names."""
    by_tensor: dict[str, dict[Edge, list[RawSlot]]] = {}
    for s in t.slots:
        by_tensor.setdefault(s.tensor, {}).setdefault(s.edge, []).append(s)
    result = []
    for tensor, by_edge in by_tensor.items():
        wishes: dict[tuple[object, ...], list[Edge]] = {}
        for edge in t.graph.edges[tensor]:
            wishes.setdefault(_wish(by_edge.get(edge, []), classes, locks), []).append(edge)
        owner = () if () in wishes else next(iter(wishes))
        for wish, edges in wishes.items():
            name = tensor if wish == owner else t.graph.clone(tensor, edges)
            result += [replace(s, tensor=name) for s in by_edge.get(edges[0], [])]
    return result


def _wish(slots: Sequence[RawSlot], classes: Classes, locks: Stays) -> tuple[object, ...]:
    """A hashable summary of the edit that a use of a constant wants; () for none."""
    wish = []
    for s in slots:
        roots = classes[s.ids]
        free = np.array([c not in locks for c in roots.tolist()])
        if free.any():
            wish.append((s.axes, s.split, s.role, np.where(free, roots, -1).tobytes()))
    return tuple(sorted(wish, key=str))


def _signatures(t: Tracker, classes: Classes, locks: Stays, slots: Sequence[RawSlot]) -> Classes:
    """class → label; classes with one label occur equally often in every slot, block, slice and selection.

    Each label keeps at least one channel, so no part of a value loses all of its own.
    Label 1 is for classes that stay: the locked ones and those that lie in no constant.
    """
    labels = np.ones(int(classes.max()) + 1, np.int64)
    for s in slots:
        labels[classes[s.ids]] = 0
    labels[list(locks)] = 1
    refine = _Refiner(labels)
    for s in slots:
        refine(classes[s.ids])
    for grid in t.grids:
        for row in _rows(classes[grid]):
            refine(row)
    for d in t.demands:
        roots = classes[_spread(d.ids, d.extent, d.axis)]
        refine(roots.take(range(d.lo, d.hi), d.axis).ravel())
    for p in t.picks:
        refine(classes[p.taken])
    return labels


class _Refiner:
    """Split labels so that classes with one label have the same count in each row it is called with."""

    def __init__(self, labels: Classes) -> None:
        self.labels = labels
        self.next = 2

    def __call__(self, row: Classes) -> None:
        present, counts = np.unique(row, return_counts=True)
        pairs = self.labels[present] * (len(row) + 1) + counts  # as one number, which sorts faster than two
        _, inverse = np.unique(pairs, return_inverse=True)
        new = inverse.reshape(-1) + self.next
        self.next = int(new.max()) + 1
        self.labels[present] = np.where(self.labels[present] == 1, 1, new)


def _rows(roots: Classes) -> Classes:
    """The rows of a value with several axes of channels: each must keep equally many. (0, 0) if they always do."""
    axis = shrinking_axis(roots)
    if axis is None:
        return np.zeros((0, 0), np.int64)
    rows = np.moveaxis(roots, axis, -1).reshape(-1, roots.shape[axis])
    rows = np.unique(np.sort(rows, axis=1), axis=0)
    return rows if len(rows) > 1 else np.zeros((0, 0), np.int64)


def _spread(ids: Ids, extent: int, axis: int) -> Ids:
    shape = list(ids.shape)
    shape[axis] = extent
    return np.broadcast_to(ids, shape)


def _families(t: Tracker, classes: Classes, labels: Classes, placed: Placed) -> dict[int, int]:
    """label → family: labels that share a set of rows.

    Family −1 cannot shrink: a row has more fixed positions than another, or no weight makes some of its channels.
    """
    links, stuck = [], [x for x, slots in placed.items() if not _is_made(slots)]
    for grid in t.grids:
        rows = _rows(classes[grid])
        members = [int(x) for x in np.unique(labels[rows]) if x != 1]
        links += [(members[0], m) for m in members]
        fixed = (labels[rows] == 1).sum(axis=1)
        if members and (fixed != fixed[0]).any():
            stuck.append(members[0])
    a, b = np.array([*links, *((x, x) for x in placed)], np.int64).reshape(-1, 2).T
    pairs = coo_array((np.ones(len(a)), (a, b)), shape=(labels.max() + 1,) * 2)
    family = connected_components(pairs, directed=False)[1]
    bad = {int(family[x]) for x in stuck}
    return {x: -1 if int(family[x]) in bad else int(family[x]) for x in placed}


def _is_made(slots: Sequence[Slot]) -> bool:
    return any(s.role is Role.PRODUCES for s in slots)


def _groups(
    t: Tracker, classes: Classes, labels: Classes, placed: Placed, families: dict[int, int]
) -> tuple[list[ChannelGroup], list[Locked]]:
    """The groups in graph order, and the channels that no lock holds but that cannot shrink."""
    sizes = dict(zip(*(v.tolist() for v in np.unique(labels, return_counts=True)), strict=True))
    units = _units({x: sizes[x] for x in placed}, families)
    names, select = _names(t, classes, labels), _selections(t, classes, labels)
    groups, impossible = [], []
    for x, slots in placed.items():
        name, order = names.get(x, (slots[0].node, len(t.graph.nodes)))
        if families[x] == -1 or (units[x] == 1 and sizes[x] > 1):
            reason = "their blocks cannot shrink equally" if _is_made(slots) else "no weight makes them"
            impossible.append(Locked(name, sizes[x], reason, name))
        else:
            nodes = tuple(dict.fromkeys(s.node for s in slots))
            numbers = np.flatnonzero(labels == x)
            shrink = (families[x], units[x], order, nodes, select.get(x, ""))
            groups.append(ChannelGroup(name, sizes[x], tuple(slots), numbers, *shrink))
    return sorted(groups, key=lambda g: (g.order, int(g.classes[0]))), impossible


def _units(sizes: dict[int, int], families: dict[int, int]) -> dict[int, int]:
    """label → greatest common divisor of its family's sizes."""
    common: dict[int, int] = {}
    for x, n in sizes.items():
        common[families[x]] = int(np.gcd(common.get(families[x], 0), n))
    return {x: common[families[x]] for x in sizes}


def _placed_slots(t: Tracker, classes: Classes, labels: Classes, slots: Sequence[RawSlot]) -> Placed:
    """label → its slots, each with the (n, q) positions of its channels, channels in order of class."""
    placed: Placed = {}
    seen: set[tuple[str, tuple[int, ...], int]] = set()
    for s in slots:
        if (s.tensor, s.axes, s.split) in seen:
            continue  # a shared weight has one slot for all its uses
        seen.add((s.tensor, s.axes, s.split))
        roots = classes[s.ids]
        marks = labels[roots]
        order = np.lexsort((np.arange(len(roots)), roots, marks))
        cuts = np.flatnonzero(np.diff(marks[order])) + 1
        for run in np.split(order, cuts):
            x = int(marks[run[0]])
            if x != 1:
                n = len(np.unique(roots[run]))
                node = label(t.graph.nodes[s.edge.node])
                placed.setdefault(x, []).append(Slot(s.tensor, node, s.axes, s.split, s.role, run.reshape(n, -1)))
    return placed


def _names(t: Tracker, classes: Classes, labels: Classes) -> dict[int, tuple[str, int]]:
    """label → (label of the first node that makes such channels, its position)."""
    position = {label(node): i for i, node in enumerate(t.graph.nodes)}
    found: dict[int, tuple[str, int]] = {}
    for ids, name in t.producers:
        for x in np.unique(labels[classes[ids]]):
            found.setdefault(int(x), (name, position.get(name, 0)))
    return found


def _selections(t: Tracker, classes: Classes, labels: Classes) -> dict[int, str]:
    """label → why its channels may not be mixed."""
    found: dict[int, str] = {}
    for lock in t.selections:
        for x in np.unique(labels[classes[lock.ids]]).tolist():
            found.setdefault(x, lock.reason)
    return found


def _locked(t: Tracker, classes: Classes, locks: Stays) -> list[Locked]:
    """One row for each (maker, reason): channels that some weight makes but that must stay."""
    rows: dict[tuple[str, str, str], set[int]] = {}
    seen: set[int] = set()
    for ids, name in t.producers:
        for c in np.unique(classes[ids]).tolist():
            if c in locks and c not in seen:
                seen.add(c)
                rows.setdefault((name, *locks[c]), set()).add(c)
    return [Locked(name, len(cs), reason, node) for (name, reason, node), cs in rows.items()]


def kept_extent(channels: Channels, kept: NDArray[np.bool_], d: Demand) -> int:
    """How many of the positions that a demand counts are kept."""
    ids = _spread(d.ids, d.extent, d.axis)
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
