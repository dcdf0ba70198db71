"""Operators that make more or fewer positions of a value: by repeating, filling or interpolating."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..graph import Node
from ..ids import Ids, varying
from ..symbols import Numbers
from ..tracker import Tracker


def expand_(node: Node, t: Tracker) -> None:
    """Expand by broadcasting: a target that spells out the channels follows them."""
    out = t.out_shape(node)
    ids = t.constant_row(node, 0) if t.is_constant(node, 0) else t.of(node)
    ids = ids.reshape((1,) * (len(out) - ids.ndim) + ids.shape)
    if ids.size == 1 and t.in_shape(node) != out:  # one channel, which is none of those that it is spread over
        t.lock(ids, "spread over other channels")
        ids = t.fixed(len(out))
    numbers = t.read(node, 1)
    if numbers is None:
        t.lock(ids, "Expand to a computed shape")
    elif not ids.any() and (t.in_shape(node)[-1:] in ((), (1,)) or t.in_shape(node)[1:] == (1,) * (len(out) - 1)):
        ids = _filled(t, numbers, out)
    else:
        _trailing_demands(t, numbers, ids, out)
    t.put(node, ids)


def constant_of_shape(node: Node, t: Tracker) -> None:
    numbers, out = t.read(node, 0), t.out_shape(node)
    t.put(node, t.fixed(len(out)) if numbers is None else _filled(t, numbers, out))


def _filled(t: Tracker, numbers: Numbers, out: Sequence[int]) -> Ids:
    """A tensor of equal values may have as many positions as the channels it is combined with.

    They lie on axis 1 of an image, or on the last axis. A size that is computed from an open dimension counts none.
    """
    axis = 1 if len(out) > 3 and out[1] > 1 else len(out) - 1
    number = numbers[axis - len(out)] if len(numbers) >= len(out) - axis else None
    if len(out) < 2 or out[axis] < 2 or number is None or number.place is None:
        return t.fixed(len(out))
    ids = t.unmade(out[axis]).reshape([-1 if a == axis else 1 for a in range(len(out))])
    t.demand(number, ids, out[axis], axis)
    return ids


def _trailing_demands(t: Tracker, numbers: Numbers, ids: Ids, out: Sequence[int]) -> None:
    offset = len(out) - len(numbers)
    for k, number in enumerate(numbers):
        if number.value == 1:  # whatever the size is, it stays
            t.lock_dims(number.dims, "a shape is computed from their count in a way that cannot follow")
        else:
            t.demand(number, ids, out[offset + k], offset + k)


def tile(node: Node, t: Tracker) -> None:
    """Tile repeats the ids along with the positions."""
    ids, shape = t.of(node), t.in_shape(node)
    repeats = t.read(node, 1)
    if repeats is None:
        t.lock(ids, "Tile by computed repeats")
        t.put(node, t.fixed(len(shape)))
        return
    counts = [int(n.value) if ids.shape[a] > 1 else 1 for a, n in enumerate(repeats)]
    t.put(node, np.tile(ids, counts))


def resize(node: Node, t: Tracker) -> None:
    """Resize and Upsample interpolate over positions: ids that differ on a resized axis unite."""
    out, shape = t.out_shape(node), t.in_shape(node)
    ids = t.of(node)
    resized = [a for a in varying(ids) if out[a] != shape[a]]
    ids = t.collapse(ids, [a for a in range(len(out)) if a not in resized])
    sizes = t.read(node, 3) if t.name(node, 3) else None
    if sizes is not None:
        axes = node.attrs.get("axes") or range(len(out))
        for axis, number in zip(axes, sizes, strict=True):
            t.demand(number, ids, out[axis], axis % len(out))
    elif t.name(node, 3):
        t.lock(ids, "Resize to a computed size")
    t.put(node, ids)


RULES: dict[str, Callable[[Node, Tracker], None]] = {
    "Expand": expand_,
    "ConstantOfShape": constant_of_shape,
    "Tile": tile,
    "Resize": resize,
    "Upsample": resize,
}
