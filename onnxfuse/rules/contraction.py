"""Operators that end the channels of their input and make new ones: convolutions, matrix products, embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..findings import Role
from ..graph import Node
from ..ids import Ids, expand, lead, varying
from ..symbols import Place, constant
from ..tracker import Tracker

Both = tuple[bool, bool]
"""Of each operand of a product."""
NEITHER: Both = (False, False)


def conv(node: Node, t: Tracker) -> None:
    """Conv: W (O, C/g, k…), x (N, C, …). Groups are equal blocks of channels; depthwise ones tie input to output."""
    if not _weight_is_constant(node, t):
        return
    groups = int(node.attrs.get("group", 1))
    out_channels, per_group = t.in_shape(node, 1)[:2]
    x = _channels(node, t, groups * per_group)
    if groups == 1:
        t.slot(node, 1, (1,), x, Role.CONSUMES, data=(0, 1))
        _produce(node, t, t.fresh(out_channels), (0,))
    elif per_group == 1 and (x.any() or out_channels == groups):
        _depthwise(node, t, x, out_channels // groups, (0,))
    else:  # of an input that stays each block may make fewer
        blocks = _blocks(t, x, groups)
        t.slot(node, 1, (0, 2), blocks, Role.CONSUMES, split=groups, data=(0, 1))
        made = _blocks(t, t.fresh(out_channels), groups)
        _produce(node, t, made, (0, 1), split=groups)


def conv_transpose(node: Node, t: Tracker) -> None:
    """ConvTranspose: W (C, O/g, k…)."""
    if not _weight_is_constant(node, t):
        return
    groups = int(node.attrs.get("group", 1))
    in_channels, per_group = t.in_shape(node, 1)[:2]
    x = _channels(node, t, in_channels)
    if groups == 1:
        t.slot(node, 1, (0,), x, Role.CONSUMES, data=(0, 1))
        _produce(node, t, t.fresh(per_group), (1,))
    elif in_channels == groups and per_group == 1:
        _depthwise(node, t, x, 1, (0,))
    else:
        t.slot(node, 1, (0, 1), _blocks(t, x, groups), Role.CONSUMES, split=groups, data=(0, 1))
        _produce(node, t, _blocks(t, t.fresh(groups * per_group), groups), (0, 2), split=groups)


def _weight_is_constant(node: Node, t: Tracker) -> bool:
    if t.is_constant(node, 1) and (t.is_constant(node, 2) or not t.name(node, 2)):
        return True
    reason = "the weights are computed in the graph"
    for i in range(len(node.inputs)):
        t.lock(t.of(node, i), reason)
    t.leave_alone(t.out_shape(node)[1], reason)
    t.put(node, t.fixed(len(t.out_shape(node))))
    return False


def _channels(node: Node, t: Tracker, n: int) -> Ids:
    """The n channel ids of a convolution's input: it reads whole channels, so ids that differ elsewhere unite."""
    return expand(t.collapse(t.of(node), (1,)), t.in_shape(node), (1,)).ravel()[:n]


def _blocks(t: Tracker, ids: Ids, groups: int) -> Ids:
    blocks = ids.reshape(groups, -1)
    t.grids.append(blocks)
    t.pin(blocks, 0)
    return blocks


def _produce(node: Node, t: Tracker, made: Ids, axes: tuple[int, ...], split: int = 1) -> None:
    t.slot(node, 1, axes, made, Role.PRODUCES, split)
    if t.name(node, 2):
        t.slot(node, 2, (0,), made, Role.SHIFT)
    t.put(node, made.reshape((1, -1) + (1,) * (len(t.out_shape(node)) - 2)))


def _depthwise(node: Node, t: Tracker, x: Ids, multiplier: int, axes: tuple[int, ...]) -> None:
    """Each input channel has its own kernel(s): the kernel is a factor, and `group` follows the channel count."""
    made = np.repeat(x, multiplier)
    t.slot(node, 1, axes, made, Role.SCALE)
    if t.name(node, 2):
        t.slot(node, 2, (0,), made, Role.SHIFT)
    t.demand(constant(len(x), Place(t.position, "group", 0)), x, len(x), 0)
    t.put(node, made.reshape((1, -1) + (1,) * (len(t.out_shape(node)) - 2)))


def gemm(node: Node, t: Tracker) -> None:
    """Gemm: αA′B′ + βC with B constant."""
    x, axis = t.of(node), 0 if node.attrs.get("transA", 0) else 1
    if not t.is_constant(node, 1) or (varying(x) and x.shape[axis] == 1):
        _leave_gemm(node, t)
        return
    out_axis = 0 if node.attrs.get("transB", 0) else 1
    n = t.in_shape(node, 1)[out_axis]
    t.slot(node, 1, (1 - out_axis,), summed_row(node, t, x, 0, axis), Role.CONSUMES, data=(0, axis))
    made = t.fresh(n)
    t.slot(node, 1, (out_axis,), made, Role.PRODUCES)
    result = made.reshape(1, n)
    if t.is_constant(node, 2):
        bias = t.in_shape(node, 2)
        if bias and bias[-1] == n:
            t.slot(node, 2, (len(bias) - 1,), made, Role.SHIFT)
    elif t.name(node, 2):
        other = lead(t.of(node, 2), 2)
        if t.in_shape(node, 2)[-1:] == (n,):
            t.unite(result, other)
        else:
            t.lock(other, "broadcast against another channel axis")
    t.put(node, result)


def _leave_gemm(node: Node, t: Tracker) -> None:
    left, right = t.is_constant(node, 0), t.is_constant(node, 1)
    reason = "Gemm of two activations"
    if left or right:
        reason = "Gemm with its weight on the left" if left else "Gemm over another axis than the channels'"
        t.leave_alone(t.out_shape(node)[0 if left else 1], reason)
    for i in range(3):
        t.lock(t.of(node, i), reason)
    t.put(node, t.fixed(2))


def summed_row(node: Node, t: Tracker, x: Ids, i: int, axis: int) -> Ids:
    """The ids along the axis of input `i` that is summed over, as a full vector."""
    return expand(t.collapse(x, (axis,)), t.in_shape(node, i), (axis,)).ravel()


def matmul(node: Node, t: Tracker) -> None:
    """MatMul with a constant vector, matrix or batch of them on either side, or of two activations."""
    left, right = t.is_constant(node, 0), t.is_constant(node, 1)
    constant_side = 0 if left and not right else 1
    if not (left or right):
        of_activations(node, t)
    elif len(t.in_shape(node, constant_side)) == 1:
        _times_vector(node, t, 1 - constant_side)
    elif right:
        times_matrix(node, t)
    else:
        _matrix_times(node, t)


def times_matrix(node: Node, t: Tracker, turned: Both = NEITHER) -> None:
    """x (…, K) · W (…, K, N), or x (…, K, M) or W (…, N, K) transposed. A batch of matrices has the same channels in
    each."""
    x, shape, weight, rank = t.of(node), t.in_shape(node), t.in_shape(node, 1), len(t.out_shape(node))
    axis = len(shape) - (2 if turned[0] else 1)
    if varying(x) and x.shape[axis] == 1:  # mixes positions, not channels
        _each_by_itself(node, t, np.swapaxes(x, -1, -2) if turned[0] else x, weight)
        return
    rows, columns = (len(weight) - 1 - k for k in ((0, 1) if turned[1] else (1, 0)))
    measured = (0, axis) if len(weight) == 2 else None
    t.slot(node, 1, (rows,), summed_row(node, t, x, 0, axis), Role.CONSUMES, data=measured)
    made = t.fresh(weight[columns])
    t.slot(node, 1, (columns,), made, Role.PRODUCES)
    t.put(node, made.reshape((1,) * (rank - 1) + (-1,)))


def _matrix_times(node: Node, t: Tracker) -> None:
    """W (…, M, K) · x (…, K, N): channels lie on the second last axis."""
    x, shape, weight, rank = t.of(node, 1), t.in_shape(node, 1), t.in_shape(node, 0), len(t.out_shape(node))
    axis = max(len(shape) - 2, 0)
    if varying(x) and x.shape[axis] == 1:  # mixes positions, not channels
        _each_by_itself(node, t, x, weight)
        return
    measured = (1, axis) if len(weight) == 2 else None
    t.slot(node, 0, (len(weight) - 1,), summed_row(node, t, x, 1, axis), Role.CONSUMES, data=measured)
    made = t.fresh(weight[-2])
    t.slot(node, 0, (len(weight) - 2,), made, Role.PRODUCES)
    columns = len(shape) - 1 - axis
    t.put(node, made.reshape((1,) * (rank - 1 - columns) + (-1,) + (1,) * columns))


def _each_by_itself(node: Node, t: Tracker, x: Ids, weight: Sequence[int]) -> None:
    """Every channel meets the same matrix, or with a batch of them one that may be its own."""
    if any(size > 1 for size in weight[:-2]):
        t.lock(x, "MatMul with a matrix for each channel")
        x = t.fixed(1)
    t.put(node, lead(x, len(t.out_shape(node))))


def _times_vector(node: Node, t: Tracker, side: int) -> None:
    """x (…, K) · v (K), or v (K) · x (…, K, N): it reads channels and makes none. `side` is where x stands."""
    x, shape = t.of(node, side), t.in_shape(node, side)
    axis = max(len(shape) - 1 - side, 0)
    if varying(x) and x.shape[axis] == 1:  # mixes positions, not channels
        t.put(node, x.squeeze(axis))
        return
    row = expand(t.collapse(x, (axis,)), shape, (axis,)).ravel()
    t.slot(node, 1 - side, (0,), row, Role.CONSUMES, data=(side, axis))
    t.put(node, t.fixed(len(t.out_shape(node))))


def of_activations(node: Node, t: Tracker, turned: Both = NEITHER, rows_first: Both = NEITHER) -> None:
    """x (…, M, K) · y (…, K, N): the K axes unite block by block; M and N pass on; batch axes may not shrink.

    Args:
        node: the product.
        t: the tracker.
        turned: which of the two is transposed.
        rows_first: which has its second last axis before those of the batch.
    """
    x, y, out = t.of(node, 0), t.of(node, 1), t.out_shape(node)
    if min(x.ndim, y.ndim) < 2:
        t.lock(x, "MatMul of two activations, one a vector")
        t.lock(y, "MatMul of two activations, one a vector")
        t.put(node, t.fixed(len(out)))
        return
    rank = len(out)
    x, y = (np.moveaxis(v, 0, -2) if first else v for v, first in zip((x, y), rows_first, strict=True))
    x, y = (
        np.swapaxes(lead(v, rank), -1, -2) if swap else lead(v, rank) for v, swap in zip((x, y), turned, strict=True)
    )
    blocks = [a for a in range(rank - 2) if x.shape[a] > 1 or y.shape[a] > 1]
    if blocks and t.permit.heads:
        batches = [t.in_shape(node, i)[first : -2 + first] for i, first in enumerate(rows_first)]
        t.put(node, _whole_blocks(t, x, y, blocks, batches))
        return
    x, y = (_matrices(t, ids) for ids in (x, y))
    columns, rows = x.shape[-1] > 1, y.shape[-2] > 1
    if columns or rows:
        summed = x.take([0], -2) if columns else t.fixed(rank)  # what has channels elsewhere only stays along K
        t.unite(np.swapaxes(summed, -1, -2), y.take([0], -1) if rows else t.fixed(rank))
        t.unite(x, x.take([0], -2)) if columns else None
        t.unite(y, y.take([0], -1)) if rows else None
        t.pair(x, y)
    for ids in (x, y):
        for axis in varying(ids):
            if axis < rank - 2:
                t.pin(ids, axis)
    t.put(node, _outer(node, t, t.fixed(rank) if columns else x, t.fixed(rank) if rows else y))


def _matrices(t: Tracker, ids: Ids) -> Ids:
    """Ids of a batch of matrices; where only the batch axes have channels, these stay."""
    if varying(ids) and max(varying(ids)) < ids.ndim - 2:
        t.lock(ids, "each is a whole head or another matrix of a batch")
        return t.fixed(ids.ndim)
    return ids


def _whole_blocks(t: Tracker, x: Ids, y: Ids, axes: list[int], batches: Sequence[Sequence[int]]) -> Ids:
    """A batch of products whose matrices (heads) go as a whole: both operands' and the result's together."""
    full = [(1,) * (x.ndim - 2 - len(batch)) + tuple(batch) for batch in batches]
    x, y = t.collapse(x, axes), t.collapse(y, axes)
    stretched = [all(sizes[a] == 1 for a in axes) for sizes in full]
    if not any(stretched):
        t.unite(x, y)
    return x if x.any() else y


def _outer(node: Node, t: Tracker, x: Ids, y: Ids) -> Ids:
    """The ids of a product whose rows come from `x` and columns from `y`.

    A position has one id, so of channels of both the fewer stay; of equally many those along a Softmax, or the rows.
    """
    if x.any() and y.any():
        rows, columns = t.out_shape(node)[-2:]
        x_passes = rows > columns or (rows == columns and _scored(t, node.outputs[0].name))
        t.lock(y if x_passes else x, "MatMul of two activations that both keep channels")
        return x if x_passes else y
    return y if y.any() else x


def _scored(t: Tracker, name: str) -> bool:
    """Whether what reads a value is a Softmax over its last axis, which scales and masks may precede."""
    while len(uses := t.graph.edges.get(name, [])) == 1 and uses[0].node >= 0:
        node = t.graph.nodes[uses[0].node]
        if node.op not in ("Add", "Div", "Mul"):
            return node.op == "Softmax" and node.attrs.get("axis", -1) in (-1, len(t.in_shape(node)) - 1)
        name = node.outputs[0].name
    return False


def gather_embedding(node: Node, t: Tracker) -> Ids | None:
    """Gather of constant rows (V, D) by computed indices makes D channels; None if it is no such thing."""
    shape = t.in_shape(node)
    if not t.is_constant(node, 0) or len(shape) != 2 or node.attrs.get("axis", 0) not in (0, -2):
        return None
    if t.graph.constants[t.name(node, 0)].data_type not in (1, 10, 11, 16):
        return None
    made = t.fresh(shape[1])
    t.slot(node, 0, (1,), made, Role.PRODUCES)
    return made.reshape((1,) * (len(t.out_shape(node)) - 1) + (-1,))


RULES: dict[str, Callable[[Node, Tracker], None]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
}
