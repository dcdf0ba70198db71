"""Collect what must shrink together into channel groups, and say why the rest is left alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from .channels import ChannelGroup, Channels, Locked, Slot
from .classes import Classes, Stays, class_locks, kept_together, shrinking_axis
from .components import components
from .findings import Lock, RawSlot, Role
from .graph import Graph, label
from .ids import counted, spread
from .probe import Probe
from .refinement import may_go, rows_of, signatures
from .symbols import Place
from .track import track
from .tracker import Permit, Tracker
from .unshare import unshare

Placed = dict[int, list[Slot]]


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
    classes = kept_together(t)
    stays = class_locks(t, classes)
    slots = unshare(t, classes, stays)
    free = may_go(classes, stays, slots)
    t.keep_only(free[classes])
    grids = [rows_of(classes[grid]) for grid in t.grids]
    labels = signatures(t, classes, free, slots, grids)
    placed = _placed_slots(t, classes, labels, slots)
    families = _families(labels, placed, grids, _one_number(t, classes, labels))
    groups, impossible = _groups(t, classes, labels, placed, families)
    locked = [*_locked(t, classes, stays), *impossible]
    return Channels(t, classes, tuple(groups), tuple(locked), tuple(slots))


def _one_number(t: Tracker, classes: Classes, labels: Classes) -> list[list[int]]:
    """Labels that the same constant counts in several values, as a head's size in both query and value.

    Left out are values that have the same labels: these keep equally many anyhow.
    """
    counts: dict[Place, dict[bytes, Classes]] = defaultdict(dict)
    uses = Counter(d.number.place for d in t.demands)
    for d in (d for d in t.demands if uses[d.number.place] > 1):
        roots = classes[spread(d.ids, d.extent, d.axis)]
        if d.number.place is not None and shrinking_axis(roots) == d.axis:
            row = np.moveaxis(roots, d.axis, -1).reshape(-1, d.extent)[0, d.lo : d.hi]
            mine = np.sort(labels[row])
            counts[d.number.place][mine.tobytes()] = mine
    rows = [np.concatenate(list(c.values())) for c in counts.values() if len(c) > 1]
    return [[int(x) for x in counted(row)[0] if x != 1] for row in rows]


def _families(
    labels: Classes, placed: Placed, grids: Sequence[Classes], together: Sequence[Sequence[int]]
) -> dict[int, int]:
    """label → family: labels that share a set of rows, or are `together`.

    Family −1 cannot shrink: a row has more fixed positions than another, or no weight makes some of its channels.
    """
    links = [(members[0], m) for members in together for m in members]
    stuck = [x for x, slots in placed.items() if not _is_made(slots)]
    for rows in grids:
        members = [int(x) for x in counted(labels[rows])[0] if x != 1]
        links += [(members[0], m) for m in members]
        fixed = (labels[rows] == 1).sum(axis=1)
        if members and (fixed != fixed[0]).any():
            stuck.append(members[0])
    a, b = np.array([*links, *((x, x) for x in placed)], np.int64).reshape(-1, 2).T
    family = components(a, b, int(labels.max()) + 1)
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
        order = np.argsort(marks * (int(classes.max()) + 1) + roots, kind="stable")
        cuts = np.flatnonzero(np.diff(marks[order])) + 1
        for run in np.split(order, cuts):
            x = int(marks[run[0]])
            if x != 1:
                n = 1 + np.count_nonzero(np.diff(roots[run]))
                node = label(t.graph.nodes[s.edge.node])
                placed.setdefault(x, []).append(Slot(s.tensor, node, s.axes, s.split, s.role, run.reshape(n, -1)))
    return placed


def _names(t: Tracker, classes: Classes, labels: Classes) -> dict[int, tuple[str, int]]:
    """label → (label of the first node that makes such channels, its position)."""
    position = {label(node): i for i, node in enumerate(t.graph.nodes)}
    found: dict[int, tuple[str, int]] = {}
    for ids, name in t.producers:
        for x in counted(labels[classes[ids]])[0]:
            found.setdefault(int(x), (name, position.get(name, 0)))
    return found


def _selections(t: Tracker, classes: Classes, labels: Classes) -> dict[int, str]:
    """label → why its channels may not be mixed."""
    found: dict[int, str] = {}
    for lock in t.selections:
        for x in counted(labels[classes[lock.ids]])[0].tolist():
            found.setdefault(x, lock.reason)
    return found


def _locked(t: Tracker, classes: Classes, locks: Stays) -> list[Locked]:
    """One row for each (maker, reason): channels that some weight makes but that must stay."""
    rows: dict[tuple[str, str, str], set[int]] = {}
    seen: set[int] = set()
    for ids, name in t.producers:
        for c in counted(classes[ids])[0].tolist():
            if c in locks and c not in seen:
                seen.add(c)
                rows.setdefault((name, *locks[c]), set()).add(c)
    return [Locked(name, len(cs), reason, node) for (name, reason, node), cs in rows.items()]
