"""LSTM, GRU and RNN: the hidden units are channels, each with one row in every gate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..findings import Role
from ..graph import Node
from ..ids import Ids, expand
from ..symbols import Place, constant
from ..tracker import Tracker

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""Operator → gates, which is how many rows of W and R belong to one hidden unit."""
SEQUENCE_LENGTHS, INITIAL_H, INITIAL_C, PEEPHOLES = 4, 5, 6, 7


def recurrent(node: Node, t: Tracker) -> None:
    """W (D, gH, I), R (D, gH, H), B (D, 2gH), P (D, 3H) for D directions, g gates, H hidden units.

    Both directions keep equally many units. A state that comes from outside ties the units to it.
    """
    if not all(t.is_constant(node, i) for i in (1, 2, 3, PEEPHOLES) if t.name(node, i)):
        _lock_all(node, t, f"{node.op} with computed weights")
        return
    x, shape = t.of(node), t.in_shape(node)
    t.slot(node, 1, (2,), expand(t.collapse(x, (2,)), shape, (2,)).ravel(), Role.CONSUMES, data=(0, 2))
    directions, _, hidden = t.in_shape(node, 2)
    made = t.fresh(directions * hidden).reshape(directions, hidden)
    t.grids.append(made)
    gates = GATES[node.op]
    for i in (1, 2):
        t.slot(node, i, (0, 1), np.tile(made, gates), Role.PRODUCES)
    t.slot(node, 2, (0, 2), made, Role.CONSUMES)
    if t.name(node, 3):
        t.slot(node, 3, (0, 1), np.tile(made, 2 * gates), Role.SHIFT)
    if t.name(node, PEEPHOLES):
        t.slot(node, PEEPHOLES, (0, 1), np.tile(made, 3), Role.SCALE)
    t.demand(constant(hidden, Place(t.position, "hidden_size", 0)), made, hidden, 1)
    _states(node, t, made)


def _states(node: Node, t: Tracker, made: Ids) -> None:
    """Ids of the initial states and of Y, Y_h and Y_c; `layout` 1 has the batch first."""
    d, h = made.shape
    batch_first = bool(node.attrs.get("layout", 0))
    state = made.reshape((1, d, h) if batch_first else (d, 1, h))
    axes = (1, 2) if batch_first else (0, 2)
    for i in (INITIAL_H, INITIAL_C):
        if t.is_constant(node, i):
            t.slot(node, i, axes, made, Role.SHIFT)
        elif t.name(node, i):
            t.unite(state, t.of(node, i))
    t.put(node, made.reshape((1, 1, d, h) if batch_first else (1, d, 1, h)), 0)
    for i in range(1, len(node.outputs)):
        t.put(node, state, i)


def _lock_all(node: Node, t: Tracker, reason: str) -> None:
    for i in range(len(node.inputs)):
        t.lock(t.of(node, i), reason)
    for i in range(len(node.outputs)):
        t.put(node, t.fixed(len(t.out_shape(node, i))), i)


RULES: dict[str, Callable[[Node, Tracker], None]] = dict.fromkeys(GATES, recurrent)
