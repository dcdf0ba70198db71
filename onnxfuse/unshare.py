"""Constants whose uses want different edits are cloned, one for each; what no edit came to is one constant again."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .classes import Classes, Stays
from .findings import RawSlot
from .graph import Graph
from .protos import Edge
from .tracker import Tracker


def unshare(t: Tracker, classes: Classes, locks: Stays) -> list[RawSlot]:
    """Clone constants whose uses want different edits; returns the slots with their final tensor names."""
    by_tensor: dict[str, dict[Edge, list[RawSlot]]] = {}
    for s in t.slots:
        by_tensor.setdefault(s.tensor, {}).setdefault(s.edge, []).append(s)
    held = np.zeros(int(classes.max()) + 1, bool)
    held[list(locks)] = True
    result = []
    for tensor, by_edge in by_tensor.items():
        if len(t.graph.edges[tensor]) == 1:
            result += [s for slots in by_edge.values() for s in slots]
            continue
        wishes: dict[tuple[object, ...], list[Edge]] = {}
        for edge in t.graph.edges[tensor]:
            wishes.setdefault(_wish(by_edge.get(edge, []), classes, held), []).append(edge)
        owner = () if () in wishes else next(iter(wishes))
        for wish, edges in wishes.items():
            name = tensor if wish == owner else t.graph.clone(tensor, edges)
            result += [replace(s, tensor=name) for s in by_edge.get(edges[0], [])]
    return result


def rejoin(graph: Graph, changed: Set[str]) -> None:
    """Make copies one constant again that nothing came to differ in; those `changed` by a plan keep their names."""
    same: dict[str, list[str]] = {}
    for clone, source in list(graph.clones.items()):
        known = same.setdefault(source, [source])
        same[clone] = known
        twin = next((n for n in known if not {n, clone} & changed and _equal(graph, n, clone)), None)
        if twin is None:
            known.append(clone)
        else:
            graph.rejoin(clone, twin)


def _equal(graph: Graph, a: str, b: str) -> bool:
    return np.array_equal(graph.array(a), graph.array(b))


def _wish(slots: Sequence[RawSlot], classes: Classes, held: NDArray[np.bool_]) -> tuple[object, ...]:
    """A hashable summary of the edit that a use of a constant wants, () for none; (classes,) `held` must stay."""
    wish = []
    for s in slots:
        roots = classes[s.ids]
        free = ~held[roots]
        if free.any():
            wish.append((s.axes, s.split, s.role, np.where(free, roots, -1).tobytes()))
    return tuple(sorted(wish, key=str))
