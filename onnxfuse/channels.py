"""Channel groups: which channels must shrink together, and where they lie in the constants of a graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .classes import Classes
from .findings import RawSlot, Role
from .ids import Ids
from .tracker import Tracker

NAMED = 5
"""Reasons that a message lists."""


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a group's channels lie in one constant.

    Attributes:
        tensor: the initializer's name.
        node: label of the node that uses it.
        axes: the axes, of the tensor viewed with axis 0 split into (`split`, −1) when `split` > 1.
        split: number of blocks in axis 0 (a grouped convolution's groups), or 1.
        role: what a merge does to these axes.
        positions: (n, q) flat positions over `axes` of each of the n channels' q places.
    """

    tensor: str
    node: str
    axes: tuple[int, ...]
    split: int
    role: Role
    positions: Ids


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that are made and read by the same weights, so that any of them may be merged into any other.

    Attributes:
        name: the first node that makes them.
        channels: n, how many there are.
        slots: where they lie.
        classes: (n,) their class numbers, which `Channels` uses.
        family: groups of one family keep the same fraction of their channels (the blocks of grouped convolutions).
        unit: the family shrinks by multiples of channels / unit.
        order: position in the graph of the first node that makes them.
        nodes: labels of all nodes that make or read them.
        select: why channels of it may be dropped but not mixed; '' if they may.
    """

    name: str
    channels: int
    slots: tuple[Slot, ...]
    classes: Classes
    family: int
    unit: int
    order: int
    nodes: tuple[str, ...]
    select: str = ""

    def __str__(self) -> str:
        head = f"{self.name}: {self.channels} channels"
        rows = [f"  {s.role.value:<9} {s.tensor} axis {','.join(map(str, s.axes))} ({s.node})" for s in self.slots]
        return "\n".join([head, *rows])


@dataclass(frozen=True)
class Locked:
    """Channels left alone."""

    name: str
    channels: int
    reason: str
    node: str


def held(locked: Iterable[Locked]) -> str:
    """What is left alone, and why: some of it, in one line."""
    reasons = list(dict.fromkeys(f"{row.reason} ({row.name})" for row in locked))
    return "; ".join(reasons[:NAMED]) + (f"; and {len(reasons) - NAMED} more" if len(reasons) > NAMED else "")


def but_held(locked: Iterable[Locked]) -> str:
    """The end of a message that says what cannot be reached, and what is in the way."""
    return f"; left alone: {listed}" if (listed := held(locked)) else ""


@dataclass(frozen=True, eq=False)
class Channels:
    """What `find_channels` knows of a graph.

    Attributes:
        tracker: ids of every value, and demands on shape constants.
        classes: id → class; ids of one class are kept or removed together.
        groups: what may shrink, in graph order.
        locked: what may not, with the reason.
        slots: every use of a constant, with the constant's final name.
    """

    tracker: Tracker
    classes: Classes
    groups: tuple[ChannelGroup, ...]
    locked: tuple[Locked, ...]
    slots: tuple[RawSlot, ...]

    def mask(self, removed: Iterable[Classes]) -> NDArray[np.bool_]:
        """(ids,) True for every id that stays when these classes go."""
        kept = np.ones(int(self.classes.max()) + 1, bool)
        for gone in removed:
            kept[gone] = False
        return kept[self.classes]
