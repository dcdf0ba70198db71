"""Operators that join values or cut them, which their rules do to the id arrays themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..findings import Pick, Role
from ..graph import Node
from ..ids import Ids, compact, varying
from ..protos import Edge
from ..symbols import Number, Place, as_numbers, constant
from ..tracker import Tracker
from .contraction import gather_embedding
from .elementwise import combine


def concat(node: Node, t: Tracker) -> None:
    """Along the channels the id arrays are joined; along another axis the operands' channels unite."""
    out = t.out_shape(node)
    axis = int(node.attrs["axis"]) % len(out)
    ids = [t.of(node, i) for i in range(len(node.inputs))]
    if not any(x.shape[axis] > 1 for x in ids):
        if any(varying(x) for x in ids):
            t.put(node, combine(node, t, range(len(node.inputs)), Role.SHIFT))
        else:
            t.put(node, _joined(node, t, ids, axis))
        return
    for x in ids:
        others = [a for a in varying(x) if a != axis]
        if others and not all(y.shape[a] > 1 for a in others for y in ids):
            t.lock(x, "joined with a value that has no such blocks")
    t.put(node, _joined(node, t, ids, axis))


def _joined(node: Node, t: Tracker, ids: Sequence[Ids], axis: int) -> Ids:
    rest = np.broadcast_shapes(*(np.delete(x.shape, axis) for x in ids))
    parts = []
    for i, x in enumerate(ids):
        size = t.in_shape(node, i)[axis]
        parts.append(np.broadcast_to(x, (*rest[:axis], size, *rest[axis:])))
    return compact(np.concatenate(parts, axis))


def split(node: Node, t: Tracker) -> None:
    """Split; equal parts that the graph does not spell out get sizes of their own when they need them."""
    shape = t.in_shape(node)
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    sizes = [t.out_shape(node, i)[axis] for i in range(len(node.outputs))]
    numbers = t.operand(node, 1, "split")
    if numbers is None:
        where = 1 if t.graph.opset >= 13 else "split"
        numbers = as_numbers([constant(n, Place(t.position, where, k)) for k, n in enumerate(sizes)])
    ids, start = t.of(node), 0
    for i, size in enumerate(sizes):
        t.demand(numbers[i], ids, shape[axis], axis, start, start + size)
        part = ids if ids.shape[axis] == 1 else ids.take(range(start, start + size), axis)
        t.put(node, part, i)
        start += size


def slice_(node: Node, t: Tracker) -> None:
    """Slice with known bounds; a step over channels locks them, unless it takes one of each block of so many."""
    ids, shape = t.of(node), t.in_shape(node)
    starts, ends = t.operand(node, 1, "starts"), t.operand(node, 2, "ends")
    axes, steps = t.operand(node, 3, "axes"), t.read(node, 4) if t.name(node, 4) else None
    if starts is None or ends is None or (t.name(node, 3) and axes is None):
        t.lock(ids, "Slice with computed bounds")
        t.put(node, t.fixed(len(shape)))
        return
    chosen = range(len(starts)) if axes is None else [int(n.value) % len(shape) for n in axes]
    for k, axis in enumerate(chosen):
        if ids.shape[axis] == 1:
            continue
        if not t.name(node, 4) or (steps is not None and steps[k].value == 1):
            ids = _cut(t, ids, shape, axis, starts[k], ends[k])
            continue
        strided = None if steps is None else _one_of_each(t, ids, shape[axis], axis, (starts[k], ends[k], steps[k]))
        if strided is None:
            t.lock(ids, "Slice with a step over the channels")
            ids = t.fixed(ids.ndim)
            break
        ids = strided
    t.put(node, ids)


def _one_of_each(t: Tracker, ids: Ids, size: int, axis: int, bounds: tuple[Number, Number, Number]) -> Ids | None:
    """Every second position, say, whose pairs then go together, as where neighbours are turned (rotary embedding).

    A small value has more blocks than the end needs: it counts from the end, or lies in or behind the last block.
    """
    start, end, step = (int(n.value) for n in bounds)
    taken = range(*slice(start, end, step).indices(size)) if step else range(0)
    if not 0 <= start < step or size % step or len(taken) != size // step or any(n.dims for n in bounds):
        return None
    blocks = np.moveaxis(ids, axis, -1).reshape(-1, step)
    t.unite(blocks, blocks[:, :1])
    return ids.take(taken, axis)


def _cut(t: Tracker, ids: Ids, shape: Sequence[int], axis: int, start: Number, end: Number) -> Ids:
    size = shape[axis]
    lo, hi, _ = slice(int(start.value), int(end.value)).indices(size)
    for number, bound in ((start, lo), (end, hi)):
        if number.value < 0 and number.value >= -size:
            t.demand(number, ids, size, axis, bound, size, sign=-1)
        elif 0 < number.value < size or number.dims:
            t.demand(number, ids, size, axis, 0, bound)
    return ids.take(range(lo, hi), axis)


def gather(node: Node, t: Tracker) -> None:
    """Gather of channels by constant indices, which are renumbered; or of an embedding's rows."""
    made = gather_embedding(node, t)
    if made is not None:
        t.put(node, made)
        return
    ids, shape = t.of(node), t.in_shape(node)
    axis = int(node.attrs.get("axis", 0)) % max(len(shape), 1)
    rank = len(t.in_shape(node, 1))
    if ids.shape[axis] == 1:
        t.put(node, ids.reshape(ids.shape[:axis] + (1,) * rank + ids.shape[axis + 1 :]))
        return
    indices = t.read(node, 1)
    if indices is None or any(n.place is None for n in indices.reshape(-1)):
        t.lock(ids, "Gather of channels by computed indices")
        t.put(node, t.fixed(len(t.out_shape(node))))
        return
    index = np.array([int(n.value) for n in indices.reshape(-1)]).reshape(indices.shape)
    taken = np.take(ids, index, axis)
    if max(index.shape, default=1) < index.size or index.ndim == 0:  # one channel, or a table, cannot become fewer
        t.pin(ids, axis, taken)
    t.picks.append(Pick(Edge(t.position, 1), ids, shape[axis], axis, taken.ravel()))
    t.put(node, compact(taken))


def pad(node: Node, t: Tracker) -> None:
    """Pad: positions added on the channel axis are channels of their own, which any merge of zeros leaves zero."""
    ids, shape = t.of(node), t.in_shape(node)
    pads = t.operand(node, 1, "pads")
    axes = [int(n.value) % len(shape) for n in a] if (a := t.read(node, 3)) is not None else list(range(len(shape)))
    if pads is None:
        t.lock(ids, "Pad by a computed amount")
        t.put(node, t.fixed(len(shape)))
        return
    for k, axis in enumerate(axes):
        before, after = pads[k], pads[len(axes) + k]
        if ids.shape[axis] > 1 and (before.value or after.value):
            ids = _padded(node, t, ids, shape, axis, (before, after))
    t.put(node, ids)


def _padded(node: Node, t: Tracker, ids: Ids, shape: Sequence[int], axis: int, ends: tuple[Number, Number]) -> Ids:
    zero = node.attrs.get("mode", "constant") == "constant" and not node.attrs.get("value", 0)
    fill = t.read(node, 2) if t.name(node, 2) else None
    if not zero or (t.name(node, 2) and (fill is None or any(n.value for n in fill.reshape(-1)))):
        t.lock(ids, "Pad of the channels by something else than zeros")
    if varying(ids) != [axis] or min(ends[0].value, ends[1].value) < 0:
        t.lock(ids, "Pad of one of several channel axes, or by less than nothing")
        return t.fixed(ids.ndim)
    before, after = int(ends[0].value), int(ends[1].value)
    form = [1] * ids.ndim
    form[axis] = -1
    parts = [t.fresh(before).reshape(form), ids, t.fresh(after).reshape(form)]
    for number, part, size in ((ends[0], parts[0], before), (ends[1], parts[2], after)):
        t.demand(number, part, size, axis) if size else None
    return np.concatenate(parts, axis)


RULES: dict[str, Callable[[Node, Tracker], None]] = {
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "Pad": pad,
}
