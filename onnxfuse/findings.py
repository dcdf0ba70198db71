"""What operator rules find out about channels: the weights they lie in, and what must hold of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .ids import Ids
from .protos import Edge
from .symbols import Number


class Role(Enum):
    """What a weight axis does for its channels, and so how a merge acts on it."""

    PRODUCES = "produces"
    """Makes the channels: `compress @ w`."""
    CONSUMES = "consumes"
    """Reads the channels: `w @ expand`."""
    SHIFT = "shift"
    """Tied, in the units of the activation (bias, mean): `compress @ w`."""
    SCALE = "scale"
    """Tied, a factor (γ, slope, depthwise kernel): the weighted mean, `compress` with rows of sum 1."""


@dataclass(frozen=True)
class RawSlot:
    """Axes of one constant, at one use of it, whose positions are channels.

    Attributes:
        edge: the use.
        tensor: the constant's name.
        axes: axes of the constant viewed with its axis 0 split into (`split`, −1) when `split` > 1.
        ids: the ids of the positions, flattened over `axes`.
        data: (input, axis) of the same node on which a consuming slot's channels arrive, one for each position;
            None if they cannot be told apart there.
    """

    edge: Edge
    tensor: str
    axes: tuple[int, ...]
    split: int
    ids: Ids
    role: Role
    data: tuple[int, int] | None = None


@dataclass(frozen=True)
class Demand:
    """`number` must become `sign` × the count of channels kept in positions lo…hi of `axis` of `ids`."""

    number: Number
    ids: Ids
    extent: int
    axis: int
    lo: int
    hi: int
    sign: int
    node: str


@dataclass(frozen=True)
class Pick:
    """The constant indices at `edge` select positions along `axis` of `ids`: they are renumbered after removal.

    `taken` has the flat ids that they select.
    """

    edge: Edge
    ids: Ids
    extent: int
    axis: int
    taken: Ids


@dataclass(frozen=True)
class Lock:
    """These ids must stay, for this reason."""

    ids: Ids
    reason: str
    node: str


@dataclass(frozen=True)
class Pin:
    """`held` must stay if removal shortens `axis` of `ids`."""

    ids: Ids
    axis: int
    held: Ids
    node: str


@dataclass(frozen=True)
class Pair:
    """Channels that node number `node` sums over: `ids` of both of the values whose product it takes."""

    node: int
    ids: Ids


@dataclass(frozen=True)
class Norm:
    """A permitted norm or mean over channels: `ids` of its input, normalised along `axes`, at node number `node`."""

    node: int
    ids: Ids
    axes: tuple[int, ...]
