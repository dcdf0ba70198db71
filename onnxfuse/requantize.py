"""What `quantized.lower` made real numbers of becomes integers again.

With the integer type, the axis and the symmetry that a weight had. A channel that its old scale still represents keeps
that scale, to the bit; others get the scale of their new range. A bias that counts in units of (input scale × weight
scale) follows its weight's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from .dynamic import restore_dynamic
from .graph import Graph
from .protos import add_initializer, constant_tensors, consumers, free_name
from .qoperators import restore_operators
from .rewrite import Removal, kept_along
from .scheme import Lowered, Scheme, in_steps
from .tensors import Array, set_values, values_of
from .unused import drop_unused

EXACT = 1e-3
"""How far, in steps, a value may lie from what a scale represents to count as represented, besides its own rounding."""
SEVEN_BITS = 64
Real = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scales:
    """Scales and zero points, scalars or one for each channel."""

    scales: Array
    zeros: Array


def restore(graph: Graph, lowered: Lowered, scales: Mapping[str, Scales], exact: bool = False) -> None:
    """Quantize all that `lower` made real numbers of, and put the integer operators back, in place.

    Args:
        graph: with the weights it shall have, as real numbers. Its model is edited, and the view is stale afterwards.
        lowered: what `lower` returned.
        scales: for constants whose extents changed the scales to try first.
        exact: these scales must be used, whatever they represent.
    """
    model, schemes = graph.model, held(graph, lowered)
    units = {n.input[2]: n.input[1] for n in model.graph.node if len(n.input) == 3}
    writer, done = _Writer(model, lowered), dict[str, Scales]()
    for name in sorted(schemes, key=lambda n: bool(schemes[n].follows)):  # weights before the biases that follow them
        s, values = schemes[name], graph.array(name).astype(np.float64)
        unit = done.get(units.get(name, "")) if s.follows else None
        old = scales.get(name, Scales(s.scales, s.zeros))
        if exact and name in scales:
            done[name] = old
        elif unit is None:
            done[name] = fitting(values, s, old)
        else:
            done[name] = Scales(unit.scales * s.factor, old.zeros)
        writer.put(name, s, values, done[name])
    writer.finish()
    restore_operators(model, lowered, writer.names)
    restore_dynamic(model, lowered, writer.names)
    if schemes or lowered.operators:
        drop_unused(model, lowered.idle)


def held(graph: Graph, lowered: Lowered) -> dict[str, Scheme]:
    """Constant → how the file holds it, copies of constants included."""
    origins = {name: _origin(name, graph.clones) for name in (*lowered.schemes, *graph.clones)}
    return {n: lowered.schemes[o] for n, o in origins.items() if o in lowered.schemes}


def _origin(name: str, clones: Mapping[str, str]) -> str:
    while name in clones:
        name = clones[name]
    return name


def kept_scales(graph: Graph, lowered: Lowered, removals: Sequence[Removal]) -> dict[str, Scales]:
    """The scales of the channels that stay, for every constant whose scale is per channel."""
    found = {}
    for name, s in held(graph, lowered).items():
        kept = kept_along(removals, name, s.integers.shape, s.axis) if s.scales.size > 1 else None
        if kept is not None:
            found[name] = Scales(s.scales[kept], s.zeros.reshape(-1)[kept] if s.zeros.size > 1 else s.zeros)
    return found


# --- scales ---------------------------------------------------------------------------------------------------------
def fitting(values: Real, s: Scheme, old: Scales) -> Scales:
    """Scales that represent `values`: the `old` ones where they do to rounding, else those of the range of the values.

    A symmetric scheme, whose zero point is the middle of its type, stays symmetric; a new scale uses no more of its
    type than the old one did, and of 8 bits only 7: onnxruntime's kernels for x86 processors without VNNI add pairs of
    8-bit products in 16 bits, where those of full range overflow.
    """
    rows = _rows(values, s)
    if old.scales.size not in (1, len(rows)):  # which of them stay cannot be told
        old = Scales(old.scales.reshape(-1)[:1], old.zeros.reshape(-1)[:1])
    scales, zeros = (
        np.broadcast_to(v.reshape(-1, 1), (len(rows), 1)).astype(np.float64) for v in (old.scales, old.zeros)
    )
    stay = _represented(rows, s, scales, zeros)
    new, middle = (_centred if _is_centred(s) else _spanning)(rows, s, zeros)
    stay |= new == 0
    return Scales(
        _like(s.scales, np.where(stay, scales, new)),
        _like(s.zeros, np.where(stay, zeros, middle)),
    )


def _rows(values: Real, s: Scheme) -> Real:
    """(channels, d) for a scale per channel, else (1, d)."""
    if s.scales.size == 1:
        return values.reshape(1, -1)
    return np.moveaxis(values, s.axis, 0).reshape(values.shape[s.axis], -1)


def _represented(rows: Real, s: Scheme, scales: Real, zeros: Real) -> NDArray[np.bool_]:
    """(channels, 1) whether these scales represent all values of a channel to rounding."""
    limits, exact = np.iinfo(s.integers.dtype), in_steps(rows, scales) + zeros
    near = np.minimum(EXACT + 2 * np.finfo(s.scales.dtype).eps * np.abs(exact), 0.4)
    fits = (np.abs(exact - np.rint(exact)) < near) & (exact > limits.min - 0.5) & (exact < limits.max + 0.5)
    fits &= (scales != 0) | (rows == 0)
    return np.asarray(fits.all(axis=1, keepdims=True))


def _is_centred(s: Scheme) -> bool:
    """Whether the zero point is the middle of the type, or one for several scales: then it stays."""
    limits = np.iinfo(s.integers.dtype)
    return bool((s.zeros == (limits.min + limits.max + 1) // 2).all()) or s.zeros.size < s.scales.size


def _centred(rows: Real, s: Scheme, zeros: Real) -> tuple[Real, Real]:
    """Scales of the largest magnitude of each channel, and the zero points there were."""
    limits = np.iinfo(s.integers.dtype)
    used = int(np.abs(s.integers - s.along(s.zeros)).max(initial=1))
    room = min(limits.max - int(s.zeros.max()), int(s.zeros.min()) - limits.min)
    reach = max(1, min(used, room, SEVEN_BITS if limits.bits == 8 else room))
    return np.abs(rows).max(axis=1, keepdims=True, initial=0) / reach, zeros


def _spanning(rows: Real, s: Scheme, zeros: Real) -> tuple[Real, Real]:
    """Scales and zero points that lay the range of each channel, 0 included, over the integers that were used."""
    limits = np.iinfo(s.integers.dtype)
    low, high = int(s.integers.min(initial=0)), int(s.integers.max(initial=0))
    bottom, top = rows.min(axis=1, keepdims=True, initial=0), rows.max(axis=1, keepdims=True, initial=0)
    new = (top - bottom) / max(high - low, 1)
    return new, np.clip(np.rint(low - bottom / np.where(new == 0, 1, new)), limits.min, limits.max)


def _like(old: Array, values: Real) -> Array:
    """Values of the type of `old`; a single one, if it was, in its shape."""
    return values.astype(old.dtype).reshape(-1) if old.size > 1 else values[:1].astype(old.dtype).reshape(old.shape)


def _integers(values: Real, s: Scheme, found: Scales) -> Array:
    limits = np.iinfo(s.integers.dtype)
    steps = np.rint(in_steps(values, s.along(found.scales))) + s.along(found.zeros)
    return np.asarray(np.clip(steps, limits.min, limits.max).astype(s.integers.dtype))


# --- writing --------------------------------------------------------------------------------------------------------
class _Writer:
    """Puts integers, scales and zero points into the initializers that held them, or into new ones if others read them.

    Attributes:
        names: constant → the names of its scale and its zero point now.
    """

    def __init__(self, model: ModelProto, lowered: Lowered) -> None:
        self.model, self.constants = model, constant_tensors(model.graph)
        self.names: dict[str, tuple[str, str]] = {}
        self.nodes: list[NodeProto] = []
        self.users = Counter(_reads(model, lowered))
        self.written: set[str] = set()

    def put(self, name: str, s: Scheme, values: Real, found: Scales) -> None:
        """Hold the constant `name` by its scheme with these scales."""
        integers = _integers(values, s, found)
        scale, zero = self._write(s.scale, found.scales), self._write(s.zero, found.zeros)
        self.names[name] = (scale, zero)
        if not s.nodes:
            tensor = self.constants[name]
            tensor.CopyFrom(numpy_helper.from_array(integers, name))
            return
        stored = self._write(s.stored, s.held(integers, found.scales, found.zeros))
        self._remove(name)
        self._make_nodes(name, s, stored, scale, zero)

    def _write(self, name: str, values: Array) -> str:
        """The initializer that holds these values: `name`, or a new one if something else needs `name` as it is."""
        if not name:
            return ""
        tensor = self.constants[name]
        old = values_of(tensor)
        if old.shape == values.shape and np.array_equal(old, values):
            self.written.add(name)
            return name
        if self.users[name] > 1 or name in self.written:
            name = free_name(name, self.constants)
            tensor = self.constants[name] = add_initializer(self.model, tensor, name)
        set_values(tensor, values)
        self.written.add(name)
        return name

    def _remove(self, name: str) -> None:
        graph = self.model.graph
        del graph.initializer[next(i for i, t in enumerate(graph.initializer) if t.name == name)]

    def _make_nodes(self, name: str, s: Scheme, stored: str, scale: str, zero: str) -> None:
        """Copies of the scheme's nodes that make `name`."""
        clone, value = name != s.tensor, stored
        for node in s.nodes:
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [value, *[scale, zero][: len(copy.input) - 1]]
            if clone:
                copy.name = f"{node.name}_{name}" if node.name else ""
                copy.output[0] = f"{name}_quantized"
            value = copy.output[0]
            self.nodes.append(copy)
        self.nodes[-1].output[0] = name

    def finish(self) -> None:
        """Insert the nodes before all others."""
        graph = self.model.graph
        others = list(graph.node)
        del graph.node[:]
        graph.node.extend([*self.nodes, *others])


def _reads(model: ModelProto, lowered: Lowered) -> Iterator[str]:
    """Every use of a constant in the file: by what was taken out and by what is there."""
    for s in lowered.schemes.values():
        yield from (s.scale, s.zero, *([s.stored] if s.nodes else []))
    for name, edges in consumers(model.graph).items():
        yield from [name] * len(edges)
