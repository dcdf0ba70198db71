"""Where the channels of a group may be rescaled without changing what the network computes.

A positively homogeneous activation (ReLU, pooling …) lets a channel be multiplied by a > 0 if what reads it is divided
by a. A group falls into *segments*, values between which no weight of one factor a channel lies: a depthwise
convolution, an unfolded BatchNormalization or a Mul by a constant start a new one. Weights take part with

    produces, shift   × the scale of the segment they make
    consumes          ÷ the scale of the segment they read
    scale             × that of the segment they make ÷ that of the one they read
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .channels import ChannelGroup, Channels
from .conduct import Conduct, verdicts
from .findings import RawSlot, Role
from .topology import raw_of

RESCALING: Mapping[str, tuple[int, ...]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "BatchNormalization": (1,),
    "Mul": (0, 1),
}
"""Operators → the inputs whose constants multiply each channel by a factor of its own."""


@dataclass(frozen=True)
class Scaling:
    """Segments that a slot reads and makes; None where there is no scale to follow."""

    reads: int | None = None
    makes: int | None = None


@dataclass(frozen=True, eq=False)
class Segments:
    """Of one group.

    Attributes:
        slots: one `Scaling` for each slot.
        values: value → its segment.
        free: segments in which channels may be rescaled.
    """

    slots: tuple[Scaling, ...]
    values: Mapping[str, int]
    free: frozenset[int]


def segments(channels: Channels) -> dict[ChannelGroup, Segments]:
    """The segments of every group."""
    nodes = channels.tracker.graph.protos
    strict: dict[ChannelGroup, set[str]] = {group: set() for group in channels.groups}
    for verdict in verdicts(channels):
        if verdict.conduct is not Conduct.HOMOGENEOUS:
            node = nodes[verdict.node]
            strict[verdict.group].update(node.input, node.output)
    found = {}
    for group in channels.groups:
        raw = [raw_of(channels, slot) for slot in group.slots]
        number = _number(channels, group, [r for uses in raw for r in uses])
        free = frozenset(number.values()) - {number[n] for n in strict[group] & number.keys()}
        scalings = tuple(_scaling(channels, uses, number, free) for uses in raw)
        found[group] = Segments(scalings, number, free)
    return found


def _number(channels: Channels, group: ChannelGroup, raw: list[RawSlot]) -> dict[str, int]:
    """Value → segment: what nodes without weights, or with ones that only add, connect."""
    t = channels.tracker
    own = np.zeros(int(channels.classes.max()) + 1, bool)
    own[group.classes] = True
    carried = [name for name, ids in t.ids.items() if own[channels.classes[ids]].any()]
    root = {name: name for name in carried}

    def find(name: str) -> str:
        while root[name] != name:
            name = root[name]
        return name

    apart = {s.edge.node for s in raw if s.role in (Role.PRODUCES, Role.CONSUMES) or _rescales(channels, s)}
    for i, node in enumerate(t.graph.protos):
        inputs, outputs = ([n for n in names if n in root] for names in (node.input, node.output))
        for side in (inputs, outputs) if i in apart else (inputs + outputs,):
            for name in side[1:]:
                root[find(name)] = find(side[0])
    for uses in _shared(raw):
        for names in zip(*(_ends(channels, s) for s in uses), strict=True):
            known = [n for n in names if n in root]
            for name in known[1:]:
                root[find(name)] = find(known[0])
    order = {r: i for i, r in enumerate(dict.fromkeys(find(n) for n in carried))}
    return {name: order[find(name)] for name in carried}


def _shared(raw: list[RawSlot]) -> list[list[RawSlot]]:
    """Uses of one constant, which has one scale."""
    by_tensor: dict[tuple[str, tuple[int, ...], int], list[RawSlot]] = {}
    for s in raw:
        by_tensor.setdefault((s.tensor, s.axes, s.split), []).append(s)
    return [uses for uses in by_tensor.values() if len(uses) > 1]


def _rescales(channels: Channels, slot: RawSlot) -> bool:
    node = channels.tracker.graph.protos[slot.edge.node]
    return slot.role is Role.SCALE and slot.edge.slot in RESCALING.get(node.op_type, ())


def _ends(channels: Channels, slot: RawSlot) -> tuple[str, str]:
    """The value that a weight reads and the one that its node makes."""
    node = channels.tracker.graph.protos[slot.edge.node]
    data = slot.data[0] if slot.data else int(slot.edge.slot == 0)
    return node.input[data], node.output[0]


def _scaling(channels: Channels, uses: list[RawSlot], number: Mapping[str, int], free: frozenset[int]) -> Scaling:
    reads, makes = (s if (s := number.get(name)) in free else None for name in _ends(channels, uses[0]))
    role = uses[0].role
    if role is Role.CONSUMES:
        return Scaling(reads=reads)
    if role in (Role.PRODUCES, Role.SHIFT):
        return Scaling(makes=makes)
    return Scaling(reads, makes) if _rescales(channels, uses[0]) else Scaling()
