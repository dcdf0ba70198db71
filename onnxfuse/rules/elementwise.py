"""Operators that act position by position, with broadcasting."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..findings import Role
from ..graph import Node
from ..ids import Ids, lead, varying
from ..tensors import FLOATS, Array
from ..tracker import Tracker

UNARY = """Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cosh Elu Erf Exp Floor Gelu HardSigmoid
HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sinh
Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Clip Dropout CastLike""".split()

SHIFTS = """Add Sub Max Min Mean Sum Where Equal Greater GreaterOrEqual Less LessOrEqual And Or Xor BitShift BitwiseAnd
BitwiseOr BitwiseXor""".split()
SCALES = "Mul Div Pow PRelu Mod".split()
BINARY: dict[str, Role] = {**dict.fromkeys(SHIFTS, Role.SHIFT), **dict.fromkeys(SCALES, Role.SCALE)}
"""Operator → the role of a constant operand: SHIFT if it has the unit of an activation, SCALE if it is a factor."""


def unary(node: Node, t: Tracker) -> None:
    """One data input; all outputs (Dropout's mask too) have its ids."""
    for i in range(len(node.outputs)):
        t.put(node, t.of(node), i)


ANGLES = "each turns by angles of its own (rotary embedding)"


def periodic(node: Node, t: Tracker) -> None:
    """Sin and Cos. Of angles that a table of frequencies makes, a mixture belongs to no frequency."""
    unary(node, t)
    ids = t.of(node)
    if t.tables and np.isin(ids, np.concatenate(t.tables)).any():
        t.select(ids, ANGLES)


def broadcast(role: Role) -> Callable[[Node, Tracker], None]:
    """The rule of a broadcasting operator whose constant operands have this role."""

    def rule(node: Node, t: Tracker) -> None:
        t.put(node, combine(node, t, range(len(node.inputs)), role))

    return rule


def combine(node: Node, t: Tracker, inputs: range, role: Role) -> Ids:
    """Unite the ids of broadcast operands, tie the constant ones, and return the ids of the result.

    An operand of true size 1 along an axis on which another one's ids differ is stretched: it has no channels
    of its own there. If it has channels on all the other axes, they unite with every block of the whole operands;
    else what channels it has are locked, and these axes pinned. Of an outer product, where all are stretched, the
    operand with most channels keeps them: a position has one id.
    """
    out = t.out_shape(node)
    data = [i for i in inputs if t.name(node, i) and not t.is_constant(node, i)]
    shapes = [(1,) * (len(out) - len(t.in_shape(node, i))) + t.in_shape(node, i) for i in data]
    ids = [lead(t.of(node, i), len(out)) for i in data]
    differ = [a for a in range(len(out)) if any(x.shape[a] > 1 for x in ids)]
    pinned: set[int] = set()
    stretched = [any(shape[a] == 1 < out[a] for a in differ) for shape in shapes]
    if data and all(stretched):
        stretched[max(range(len(ids)), key=lambda k: ids[k].size)] = False
    whole = [x for x, part in zip(ids, stretched, strict=True) if not part]
    result = _united(t, whole) if whole else t.fixed(len(out))
    for x, shape, part in zip(ids, shapes, stretched, strict=True):
        own = [a for a in differ if shape[a] > 1]
        if part and own and varying(x) == own and varying(result) == differ:
            t.unite(result, x)
        elif part:
            t.lock(x, "broadcast against another channel axis")
            pinned |= set(own)
    for axis in sorted(pinned):
        if result.shape[axis] > 1:
            t.pin(result, axis)
    for i in inputs:
        if t.is_constant(node, i) and role is Role.SCALE and data and not result.any():
            result = _table(node, t, i, shapes, out)
        if t.is_constant(node, i):
            tie(node, t, i, result, out, role)
    return result


def _united(t: Tracker, operands: list[Ids]) -> Ids:
    shape = np.broadcast_shapes(*(x.shape for x in operands))
    result = np.broadcast_to(operands[0], shape)
    for x in operands[1:]:
        t.unite(result, x)
        result = np.where(result == 0, x, result)
    return result


def _table(node: Node, t: Tracker, i: int, data: list[tuple[int, ...]], out: tuple[int, ...]) -> Ids:
    """Ids of the positions that a constant factor makes where what it multiplies has one: positions × frequencies, say.

    No weight makes them, but they may follow the channels that they multiply later.
    """
    shape = (1,) * (len(out) - len(t.in_shape(node, i))) + t.in_shape(node, i)
    axes = [a for a in range(len(out)) if shape[a] > 1 and all(s[a] == 1 for s in data)]
    if len(axes) != 1 or t.graph.constants[t.name(node, i)].data_type not in FLOATS:
        return t.fixed(len(out))
    ids = t.unmade(out[axes[0]])
    t.tables.append(ids)
    return ids.reshape([-1 if a in axes else 1 for a in range(len(out))])


def tie(node: Node, t: Tracker, i: int, ids: Ids, out: tuple[int, ...], role: Role) -> None:
    """Constant operand `i` of a broadcasting operator gets a slot on the axes that follow the channels.

    If the constant follows only some of the varying axes, the others are united when it has the last one
    (the channels within a block: the same must go in every block), unless whole blocks (heads) go; else its axes
    are pinned.
    """
    shape = t.in_shape(node, i)
    offset = len(out) - len(shape)
    differ = varying(ids)
    covered = [a for a in differ if a >= offset and shape[a - offset] > 1]
    if not covered:
        return
    if covered != differ:
        if differ[-1] not in covered or t.permit.heads:
            for axis in covered:
                t.pin(ids, axis)
            return
        ids = t.collapse(ids, covered)
    axes = [a - offset for a in covered]
    t.slot(node, i, axes, ids.reshape([ids.shape[a] for a in covered]), role)
    if node.op in ("Mul", "Div") and _turns(t.graph.array(t.name(node, i)), axes):
        t.select(ids, ANGLES)


def _turns(factor: Array, axes: list[int]) -> bool:
    """Whether a factor differs from channel to channel, which lie on `axes`, and from position to position."""
    moved = np.moveaxis(factor, axes, range(len(axes)))
    rows = moved.reshape(int(np.prod(moved.shape[: len(axes)])), -1)
    return bool((rows != rows[:1]).any() and (rows != rows[:, :1]).any())


RULES: dict[str, Callable[[Node, Tracker], None]] = {
    **dict.fromkeys(UNARY, unary),
    **dict.fromkeys(("Sin", "Cos"), periodic),
    **{op: broadcast(role) for op, role in BINARY.items()},
}
