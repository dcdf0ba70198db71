"""Which channel ids are kept or removed together, and which must stay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .components import components
from .findings import RawSlot, Role
from .ids import FIXED, Ids, counted, varying
from .tracker import Tracker

Classes = NDArray[np.int64]
Stays = dict[int, tuple[str, str]]
"""class → (reason, node) of the lock on it."""

CORNER = 64
"""Positions along each axis that are looked at before all of them: of a detector's millions few tell."""


def kept_together(t: Tracker) -> Classes:
    """id → class: the connected components of all unions, shared weights included."""
    pairs = [*t.unions, *_shared_weights(t.slots)]
    a = np.concatenate([p[0] for p in pairs]) if pairs else np.zeros(0, np.int64)
    b = np.concatenate([p[1] for p in pairs]) if pairs else np.zeros(0, np.int64)
    return components(a, b, t.count)


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


def class_locks(t: Tracker, classes: Classes) -> Stays:
    """class → (reason, node) of the first lock on it."""
    found: Stays = {int(classes[FIXED]): ("", "")}
    for lock in t.locks:
        for c in counted(classes[lock.ids])[0]:
            found.setdefault(int(c), (lock.reason, lock.node))
    for pin in t.pins:
        if shrinking_axis(classes[pin.ids]) == pin.axis:
            for c in counted(classes[pin.held])[0]:
                found.setdefault(int(c), ("they are blocks or single channels that another value counts on", pin.node))
    return found


def shrinking_axis(roots: Classes) -> int | None:
    """The last axis along which classes differ: the one that removal shortens."""
    part = roots[(slice(CORNER),) * roots.ndim]
    return next((a for a in reversed(varying(roots)) if _differ(part, a) or _differ(roots, a)), None)


def _differ(roots: Classes, axis: int) -> bool:
    return bool((roots != roots.take([0], axis)).any())
