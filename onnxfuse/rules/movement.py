"""Operators that move positions about: they are executed on the id array itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..graph import Node
from ..protos import Edge
from ..symbols import Number, Numbers, Place, constant
from ..tracker import Ids, Pick, Role, Tracker, as_numbers, compact, expand, varying
from .contraction import gather_embedding
from .elementwise import combine


# --- reshaping ------------------------------------------------------------------------------------------------------
def reshape(node: Node, t: Tracker) -> None:
    """Reshape: its constant target is demanded to follow the channels it spells out."""
    out = t.out_shape(node)
    ids = reshaped(t.of(node), t.in_shape(node), out)
    numbers = t.operand(node, 1, "shape")
    if numbers is None or numbers.size != len(out):
        t.lock(ids, "Reshape to a computed shape")
    else:
        for axis, number in enumerate(numbers):
            if number.dims or number.value > 0:
                t.demand(number, ids, out[axis], axis)
    t.put(node, ids)


def flatten(node: Node, t: Tracker) -> None:
    t.put(node, reshaped(t.of(node), t.in_shape(node), t.out_shape(node)))


def reshaped(ids: Ids, old: Sequence[int], new: Sequence[int]) -> Ids:
    """Row-major reshape of ids from shape `old` to `new`, broadcasting only along axes that need it."""
    source, target = list(ids.shape), [1] * len(new)
    for before, after in _aligned(old, new):
        if any(ids.shape[a] > 1 for a in before):
            for a in before:
                source[a] = old[a]
            for a in after:
                target[a] = new[a]
    return compact(np.broadcast_to(ids, source).reshape(target))


def _aligned(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes with equal products, such as (2, 3, 4) → (6, 4): ([0, 1], [0]), ([2], [1])."""
    if 0 in old or 0 in new:
        return [(list(range(len(old))), list(range(len(new))))]
    runs, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        before, after = [i] if i < len(old) else [], [j] if j < len(new) else []
        a, b = (old[i] if before else 1), (new[j] if after else 1)
        i, j = i + len(before), j + len(after)
        while a != b:
            if a < b:
                before.append(i)
                a, i = a * old[i], i + 1
            else:
                after.append(j)
                b, j = b * new[j], j + 1
        runs.append((before, after))
    return runs


def squeeze(node: Node, t: Tracker) -> None:
    """Squeeze and Unsqueeze move no position; the result's shape tells which axes they touch."""
    t.put(node, reshaped(t.of(node), t.in_shape(node), t.out_shape(node)))


def transpose(node: Node, t: Tracker) -> None:
    rank = len(t.in_shape(node))
    order = list(node.attrs.get("perm") or range(rank - 1, -1, -1))
    t.put(node, transposed(t, t.of(node), order))


def transposed(t: Tracker, ids: Ids, order: Sequence[int]) -> Ids:
    """Transpose; where it changes the order of two varying axes, the same channels must go in every block.

    Only then are the kept positions in the order in which the small graph will hold them. The longest
    varying axis stays the channel axis.
    """
    differ = varying(ids)
    if len(differ) > 1 and [a for a in order if a in differ] != differ:
        longest = max(differ, key=lambda a: ids.shape[a])
        ids = np.broadcast_to(t.collapse(ids, (longest,)), ids.shape)
    return np.transpose(ids, order)


def depth_to_space(node: Node, t: Tracker) -> None:
    """(N, C·b², H, W) → (N, C, H·b, W·b), as its definition: reshape, transpose, reshape. Whole channels of it go."""
    n, c, h, w = t.in_shape(node)
    b, crd = int(node.attrs["blocksize"]), node.attrs.get("mode", "DCR") == "CRD"
    parts = (n, c // b**2, b, b, h, w) if crd else (n, b, b, c // b**2, h, w)
    ids = reshaped(t.of(node), (n, c, h, w), parts)
    ids = transposed(t, ids, (0, 1, 4, 2, 5, 3) if crd else (0, 3, 4, 1, 5, 2))
    t.put(node, t.collapse(reshaped(ids, (n, c // b**2, h, b, w, b), t.out_shape(node)), (1,)))


def space_to_depth(node: Node, t: Tracker) -> None:
    """(N, C, H, W) → (N, b²·C, H/b, W/b)."""
    n, c, h, w = t.in_shape(node)
    b = int(node.attrs["blocksize"])
    ids = reshaped(t.of(node), (n, c, h, w), (n, c, h // b, b, w // b, b))
    ids = expand(ids, (n, c, h // b, b, w // b, b), (1, 3, 5))
    ids = np.transpose(ids, (0, 3, 5, 1, 2, 4))
    t.put(node, reshaped(ids, (n, b, b, c, h // b, w // b), t.out_shape(node)))


# --- joining and cutting --------------------------------------------------------------------------------------------
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
    """Slice with known bounds; a step over channels locks them."""
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
        if t.name(node, 4) and (steps is None or steps[k].value != 1):
            t.lock(ids, "Slice with a step over the channels")
            ids = t.fixed(ids.ndim)
            break
        ids = _cut(t, ids, shape, axis, starts[k], ends[k])
    t.put(node, ids)


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


# --- repeating ------------------------------------------------------------------------------------------------------
def expand_(node: Node, t: Tracker) -> None:
    """Expand by broadcasting: a target that spells out the channels follows them."""
    out = t.out_shape(node)
    ids = t.constant_row(node, 0) if t.is_constant(node, 0) else t.of(node)
    ids = ids.reshape((1,) * (len(out) - ids.ndim) + ids.shape)
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
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": squeeze,
    "Transpose": transpose,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "Pad": pad,
    "Expand": expand_,
    "ConstantOfShape": constant_of_shape,
    "Tile": tile,
    "Resize": resize,
    "Upsample": resize,
}
