"""Small integer tensors as arrays of symbolic numbers, so that shape arithmetic can be followed and repaired.

A `Number` knows its value in the probed run, the tensor dimensions it was computed from, how to compute it anew
when these dimensions change, and, for a plain constant, the place where it can be edited.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import Node

Dim = tuple[str, int]
"""A value's name and one of its axes."""
Numbers = NDArray[np.object_]
"""Array of `Number`."""


@dataclass(frozen=True)
class Place:
    """Where a constant number stands: flat element `index` of input `where` (int) or attribute `where` (str)."""

    node: int
    where: int | str
    index: int


Lookup = Callable[[Dim | Place], float | None]
"""The new size of a dimension, or what a constant is edited to; None for what stays."""


@dataclass(frozen=True)
class Number:
    """One element of a small tensor.

    Attributes:
        value: what it was in the probed run.
        compute: what it becomes, given the new size of any dimension and all edits of constants.
        dims: the dimensions it depends on.
        place: where it can be edited, if it is a constant or one that was picked; None if it was computed.
    """

    value: float
    compute: Callable[[Lookup], float]
    dims: frozenset[Dim] = frozenset()
    place: Place | None = None


def constant(value: float, place: Place | None = None) -> Number:
    """A number that stays as it is unless it is edited at `place`."""
    return Number(value, lambda lookup: value if place is None else _now(lookup, place, value), place=place)


def dimension(name: str, axis: int, size: int) -> Number:
    """The size of one axis of a value, as a Shape node gives it."""
    return Number(size, lambda lookup: _now(lookup, (name, axis), size), frozenset({(name, axis)}))


def _now(lookup: Lookup, key: Dim | Place, value: float) -> float:
    new = lookup(key)
    return value if new is None else new


def opaque(value: float, sizes: Mapping[Dim, int]) -> Number:
    """A number computed in an unknown way from dimensions of these `sizes`: NaN as soon as one of them changes."""

    def compute(lookup: Lookup) -> float:
        return value if all(_now(lookup, dim, size) == size for dim, size in sizes.items()) else math.nan

    return Number(value, compute, frozenset(sizes))


def as_numbers(items: Sequence[Number]) -> Numbers:
    """A 1-D object array of Numbers."""
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def dims_of(numbers: Numbers) -> frozenset[Dim]:
    """All dimensions that any of the numbers depends on."""
    return frozenset[Dim]().union(*(n.dims for n in numbers.reshape(-1)))


def _lift(function: Callable[..., float]) -> Callable[..., Any]:
    """An elementwise function on Numbers, as a broadcasting NumPy function."""

    def apply(*args: Number) -> Number:
        dims = frozenset[Dim]().union(*(a.dims for a in args))
        value = function(*(a.value for a in args))
        return Number(value, lambda lookup: function(*(a.compute(lookup) for a in args)), dims)

    return _broadcasting(apply)


def _broadcasting(apply: Callable[..., Number]) -> Callable[..., Any]:
    """A function of Numbers for arrays of them."""

    def broadcast(*arrays: Numbers) -> Numbers:
        result = np.frompyfunc(apply, len(arrays), 1)(*arrays)
        return np.asarray(result, dtype=object)

    return broadcast


def _picked(condition: Number, a: Number, b: Number) -> Number:
    """What Where takes; a constant can still be edited where it stands, as long as the condition holds then, too."""

    def compute(lookup: Lookup) -> float:
        return (a if condition.compute(lookup) else b).compute(lookup)

    taken = a if condition.value else b
    return Number(taken.value, compute, condition.dims | a.dims | b.dims, taken.place)


def _divide(a: float, b: float) -> float:
    whole = isinstance(a, int) and isinstance(b, int)
    return (int(a / b) if whole else a / b) if b else math.nan


ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Add": _lift(lambda a, b: a + b),
    "Sub": _lift(lambda a, b: a - b),
    "Mul": _lift(lambda a, b: a * b),
    "Div": _lift(_divide),
    "Mod": _lift(lambda a, b: a % b if b else math.nan),
    "Min": _lift(min),
    "Max": _lift(max),
    "Neg": _lift(lambda a: -a),
    "Abs": _lift(abs),
    "Floor": _lift(lambda a: a if math.isnan(a) else float(math.floor(a))),
    "Ceil": _lift(lambda a: a if math.isnan(a) else float(math.ceil(a))),
    "Sqrt": _lift(lambda a: math.sqrt(a) if a >= 0 else math.nan),
    "Equal": _lift(lambda a, b: int(a == b)),
    "Less": _lift(lambda a, b: int(a < b)),
    "Greater": _lift(lambda a, b: int(a > b)),
    "Not": _lift(lambda a: int(not a)),
    "And": _lift(lambda a, b: int(bool(a) and bool(b))),
    "Or": _lift(lambda a, b: int(bool(a) or bool(b))),
    "Where": _broadcasting(_picked),
}
LARGEST = 1024
"""Elements above which a tensor is no shape."""
INTEGER_TYPES = (2, 3, 4, 5, 6, 7, 9, 12, 13)
"""TensorProto's integer and boolean element types."""


def _plain(numbers: Numbers | None) -> list[int]:
    return [] if numbers is None else [int(n.value) for n in numbers.reshape(-1)]


def _cast(node: Node, data: Numbers) -> Numbers:
    to = node.attrs.get("to")
    code = to if isinstance(to, int) else None
    whole = code in INTEGER_TYPES or (code is None and np.dtype(to).kind in "iub")
    return np.asarray((_TO_INT if whole else _TO_FLOAT)(data), dtype=object)


def _to_int(number: Number) -> Number:
    """A whole number stays what it is, and editable where it stands."""
    return number if isinstance(number.value, int) else _truncated(np.asarray(number, dtype=object)).item()


_truncated = _lift(lambda a: a if math.isnan(a) else int(a))
_TO_INT = np.frompyfunc(_to_int, 1, 1)
_TO_FLOAT = _lift(float)


def _gather(node: Node, data: Numbers, indices: Numbers) -> Numbers:
    index = np.array(_plain(indices), dtype=np.int64).reshape(indices.shape)
    return np.asarray(np.take(data, index, axis=node.attrs.get("axis", 0)), dtype=object)


def _slice(node: Node, data: Numbers, *bounds: Numbers) -> Numbers:
    starts = _plain(bounds[0]) if bounds else node.attrs["starts"]
    ends = _plain(bounds[1]) if len(bounds) > 1 else node.attrs["ends"]
    axes = (_plain(bounds[2]) if len(bounds) > 2 else node.attrs.get("axes")) or list(range(len(starts)))
    steps = (_plain(bounds[3]) if len(bounds) > 3 else None) or [1] * len(starts)
    index: list[slice] = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, None if step < 0 and end < -data.shape[axis] else end, step)
    return data[tuple(index)]


def _concat(node: Node, *parts: Numbers) -> Numbers:
    return np.concatenate(parts, axis=node.attrs["axis"])


def _unsqueeze(node: Node, data: Numbers, axes: Numbers | None = None) -> Numbers:
    return np.expand_dims(data, tuple(_plain(axes) or node.attrs["axes"]))


def _squeeze(node: Node, data: Numbers, axes: Numbers | None = None) -> Numbers:
    chosen = _plain(axes) or node.attrs.get("axes")
    return np.squeeze(data, tuple(chosen) if chosen else None)


def _reshape(node: Node, data: Numbers, shape: Numbers) -> Numbers:
    target = [data.shape[i] if n == 0 else n for i, n in enumerate(_plain(shape))]
    return data.reshape(target)


def _product(node: Node, data: Numbers, axes: Numbers | None = None) -> Numbers:
    total = constant(1)
    for number in data.reshape(-1):
        total = ELEMENTWISE["Mul"](total, number).item()
    return np.array([total] if node.attrs.get("keepdims", 1) else total, dtype=object)


def _count(node: Node, data: Numbers) -> Numbers:
    """Of sizes the rank, which no removal changes."""
    return np.array(constant(data.size), dtype=object)


def _same(node: Node, data: Numbers, *_: Numbers) -> Numbers:
    return data


def _split(node: Node, data: Numbers, sizes: Numbers | None = None) -> list[Numbers]:
    parts = len(node.outputs)
    given = _plain(sizes) or node.attrs.get("split") or [-(-len(data) // parts)] * parts
    return np.split(data, np.cumsum(given)[:-1].clip(max=len(data)))


TABLE: Mapping[str, Callable[..., Numbers | list[Numbers]]] = {
    "Gather": _gather,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "ReduceProd": _product,
    "Cast": _cast,
    "Identity": _same,
    "Size": _count,
}
"""Operator → function of (node, input arrays) for shape arithmetic that moves numbers about."""


def evaluate(node: Node, inputs: list[Numbers]) -> list[Numbers] | None:
    """The outputs of a shape-arithmetic node on symbolic inputs; None if the operator is not known here, or no shape.

    What is computed in a tensor of rank 2 or more, or a large one, are positions: masks, rotary angles.
    """
    if any(i.size > LARGEST for i in inputs):
        return None
    if node.op in ELEMENTWISE:
        shape = np.broadcast_shapes(*(i.shape for i in inputs))
        if len(shape) > 1 or math.prod(shape) > LARGEST:
            return None
        return [np.asarray(ELEMENTWISE[node.op](*inputs), dtype=object)]
    if node.op not in TABLE:
        return None
    made = TABLE[node.op](node, *inputs)
    return made if isinstance(made, list) else [np.asarray(made, dtype=object)]
