"""The state of running a graph on channel ids, and the few verbs that operator rules are written with.

Every value carries an integer array of ids that broadcasts to its shape. Id 0 (`FIXED`) is a position that can
never be removed. Nothing is decided here: unions, locks, slots and demands are only collected, and
`grouping.find_channels` turns them into groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from .findings import Demand, Lock, Norm, Pair, Pick, Pin, RawSlot, Role
from .graph import Graph, Node
from .ids import FIXED, Ids, counted, varying
from .probe import Probe
from .protos import Edge
from .symbols import Dim, Number, Numbers, Place, as_numbers, constant, dimension, opaque
from .tensors import FLOATS

SMALL = 4096
"""Integer constants of at most this many elements are followed as symbolic numbers."""


@dataclass(frozen=True)
class Permit:
    """What the user allows beyond what leaves every layer's arithmetic as it was.

    Attributes:
        norms: a norm or mean over channels may be taken over those that are left.
        heads: attention loses whole heads, instead of equally many channels in every head.
    """

    norms: bool = False
    heads: bool = False


@dataclass
class Tracker:
    """Ids of every value of a graph, and all that the rules have found out about them.

    `position` and `node_label` are those of the node whose rule is running. `settings` are attributes that a small
    graph must spell out, since their default follows a size: (node number, name, value). `tables` are positions that a
    constant factor makes by itself.
    """

    graph: Graph
    probe: Probe
    permit: Permit = Permit()
    norms: list[Norm] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    settings: list[tuple[int, str, float | list[int]]] = field(default_factory=list)
    ids: dict[str, Ids] = field(default_factory=dict)
    numbers: dict[str, Numbers] = field(default_factory=dict)
    unions: list[tuple[Ids, Ids]] = field(default_factory=list)
    locks: list[Lock] = field(default_factory=list)
    selections: list[Lock] = field(default_factory=list)
    tables: list[Ids] = field(default_factory=list)
    slots: list[RawSlot] = field(default_factory=list)
    grids: list[Ids] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    demands: list[Demand] = field(default_factory=list)
    picks: list[Pick] = field(default_factory=list)
    producers: list[tuple[Ids, str]] = field(default_factory=list)
    count: int = 1
    position: int = -1
    node_label: str = "the graph's inputs"
    used_numbers: set[str] = field(default_factory=set)

    # --- reading values ---------------------------------------------------------------------------------------------
    def name(self, node: Node, i: int) -> str:
        """The name of input `i`, or '' if it is absent."""
        return node.inputs[i].name if i < len(node.inputs) else ""

    def is_constant(self, node: Node, i: int) -> bool:
        return self.name(node, i) in self.graph.constants

    def shape(self, name: str) -> tuple[int, ...]:
        """The concrete shape of any value; () for one that is not a tensor."""
        if name in self.graph.constants:
            return tuple(self.graph.constants[name].dims)
        return self.probe.shapes.get(name, ())

    def in_shape(self, node: Node, i: int = 0) -> tuple[int, ...]:
        return self.shape(self.name(node, i))

    def out_shape(self, node: Node, i: int = 0) -> tuple[int, ...]:
        return self.shape(node.outputs[i].name)

    def of(self, node: Node, i: int = 0) -> Ids:
        """The ids of input `i`; all FIXED for a constant, an absent input or one nothing is known of."""
        name = self.name(node, i)
        found = self.ids.get(name)
        return self.fixed(len(self.shape(name))) if found is None else found

    def put(self, node: Node, ids: Ids, i: int = 0) -> None:
        """Set the ids of output `i`; an array with several varying axes must stay rectangular."""
        if i < len(node.outputs) and node.outputs[i].name:
            self.ids[node.outputs[i].name] = ids
            if len(varying(ids)) > 1:
                self.grids.append(ids)

    def keep_only(self, free: NDArray[np.bool_]) -> None:
        """Forget the ids of values in which none of the `free` (ids,) is: millions of a detector's stay as they are."""
        held = [*self.ids.values(), *self.grids, *(d.ids for d in self.demands)]
        matter = {key for key, ids in {id(ids): ids for ids in held}.items() if free[ids].any()}
        self.ids = {name: x if id(x) in matter else self.fixed(x.ndim) for name, x in self.ids.items()}
        self.grids = [x for x in self.grids if id(x) in matter]
        self.demands = [d if id(d.ids) in matter else replace(d, ids=self.fixed(d.ids.ndim)) for d in self.demands]

    # --- what rules say ---------------------------------------------------------------------------------------------
    def fixed(self, rank: int) -> Ids:
        """Ids of a value that carries no channels."""
        return np.zeros((1,) * rank, np.int64)

    def fresh(self, n: int) -> Ids:
        """`n` new ids, the channels that this node makes."""
        ids = self.unmade(n)
        self.producers.append((ids, self.node_label))
        return ids

    def unmade(self, n: int) -> Ids:
        """`n` new ids of positions that no weight makes, but that may follow the channels they are combined with."""
        ids = np.arange(self.count, self.count + n)
        self.count += n
        return ids

    def constant_row(self, node: Node, i: int) -> Ids:
        """The ids of a constant that an operator moves about: its last axis may hold channels (a class token)."""
        shape = self.in_shape(node, i)
        if not shape or shape[-1] < 2 or self.graph.constants[self.name(node, i)].data_type not in FLOATS:
            return self.fixed(len(shape))
        ids = self.unmade(shape[-1])
        self.slot(node, i, (len(shape) - 1,), ids, Role.SHIFT)
        return ids.reshape((1,) * (len(shape) - 1) + (-1,))

    def leave_alone(self, n: int, reason: str) -> None:
        """Report `n` channels that this node makes in a way that cannot be followed."""
        self.lock(self.fresh(n), reason)

    def unite(self, a: Ids, b: Ids) -> None:
        """Keep or remove together, position by position (broadcasting)."""
        x, y = (v.ravel() for v in np.broadcast_arrays(a, b))
        new = np.ones(len(x), bool)
        new[1:] = (x[1:] != x[:-1]) | (y[1:] != y[:-1])
        x, y = x[new], y[new]  # a channel's places follow each other: of millions of pairs few differ
        free = (x != FIXED) & (y != FIXED)
        self.lock((x + y)[~free], "shares positions with a value whose size must stay")
        differ = free & (x != y)
        if differ.any():
            self.unions.append((x[differ], y[differ]))

    def collapse(self, ids: Ids, keep: Sequence[int]) -> Ids:
        """Unite over all axes but `keep`; the result has size 1 there."""
        for axis in varying(ids):
            if axis not in keep:
                along = np.moveaxis(ids, axis, -1)
                differ = along[..., 1:] != along[..., :-1]  # nowhere, for most of a large value
                self.unite(along[..., :-1][differ], along[..., 1:][differ])
                ids = ids.take([0], axis)
        return ids

    def lock(self, ids: Ids, reason: str) -> None:
        """These channels must stay."""
        if ids.any():
            self.locks.append(Lock(counted(ids)[0], reason, self.node_label))

    def select(self, ids: Ids, reason: str) -> None:
        """These channels may go, but not be mixed with each other."""
        if ids.any():
            self.selections.append(Lock(counted(ids)[0], reason, self.node_label))

    def pin(self, ids: Ids, axis: int, only: Ids | None = None) -> None:
        """Along `axis` no position (of `only` these ids) may go, though whole positions of a later axis may."""
        if ids.shape[axis] > 1:
            self.pins.append(Pin(ids, axis, ids if only is None else only, self.node_label))

    def pair(self, a: Ids, b: Ids) -> None:
        """Say that this node sums over these channels, which both operands of its product carry."""
        self.pairs.append(Pair(self.position, counted(np.concatenate([a.ravel(), b.ravel()]))[0]))

    def slot(
        self,
        node: Node,
        i: int,
        axes: Sequence[int],
        ids: Ids,
        role: Role,
        split: int = 1,
        data: tuple[int, int] | None = None,
    ) -> None:
        """Say that positions along `axes` of constant input `i` are channels (that arrive at `data`: see RawSlot)."""
        if ids.any():
            name, edge = self.name(node, i), Edge(self.position, i)
            self.slots.append(RawSlot(edge, name, tuple(axes), split, np.ascontiguousarray(ids).ravel(), role, data))

    # --- numbers ----------------------------------------------------------------------------------------------------
    def read(self, node: Node, i: int) -> Numbers | None:
        """Input `i` as symbolic numbers, if it is a small constant or computed from shapes; None otherwise."""
        name = self.name(node, i)
        self.used_numbers.add(name)
        if name in self.numbers:
            return self.numbers[name]
        if name not in self.graph.constants or int(np.prod(self.shape(name))) > SMALL:
            return None
        values = self.graph.array(name)
        if values.dtype.kind not in "iubf":
            return None
        items = [constant(v, Place(self.position, i, k)) for k, v in enumerate(values.ravel().tolist())]
        return as_numbers(items).reshape(values.shape)

    def attribute(self, node: Node, name: str) -> Numbers | None:
        """An integer-list attribute as numbers that can be edited; None if it is absent."""
        if name not in node.attrs:
            return None
        return as_numbers([constant(v, Place(self.position, name, k)) for k, v in enumerate(node.attrs[name])])

    def operand(self, node: Node, i: int, name: str) -> Numbers | None:
        """What newer opsets pass as input `i` and older ones as attribute `name`."""
        return self.read(node, i) if self.name(node, i) else self.attribute(node, name)

    def demand(
        self, number: Number, ids: Ids, extent: int, axis: int, lo: int = 0, hi: int | None = None, sign: int = 1
    ) -> None:
        """`number` counts positions lo…hi along `axis`, of full size `extent`: it must follow their removal.

        A size that stays matters, too, where another value's may want the number edited: it is made by other nodes.
        """
        made = not number.dims if number.place is None else number.place.node != self.position
        if ids.shape[axis] > 1 or made:
            stop = extent if hi is None else hi
            self.demands.append(Demand(number, ids, extent, axis, lo, stop, sign, self.node_label))

    def shape_numbers(self, name: str) -> Numbers:
        """What a Shape node makes of a value."""
        return as_numbers([dimension(name, axis, size) for axis, size in enumerate(self.shape(name))])

    def opaque_numbers(self, name: str, dims: frozenset[Dim]) -> Numbers | None:
        """The probed values of an integer tensor that was computed in an unknown way from `dims`."""
        if name not in self.probe.integers or self.probe.integers[name].size > SMALL:
            return None
        sizes = {dim: self.shape(dim[0])[dim[1]] for dim in dims}
        values = self.probe.integers[name]
        numbers = {value: opaque(value, sizes) for value in set(values.ravel().tolist())}
        return as_numbers([numbers[value] for value in values.ravel().tolist()]).reshape(values.shape)

    def lock_dims(self, dims: frozenset[Dim], reason: str) -> None:
        """Lock every channel along these dimensions: their size enters a computation."""
        for name, axis in sorted(dims):
            ids = self.ids.get(name)
            if ids is not None and axis < ids.ndim and ids.shape[axis] > 1:
                self.lock(ids, reason)
