"""What `inspect` says of a model: each channel group with what it governs, each part left alone with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .channels import ChannelGroup, Channels, Locked, Slot
from .counts import macs, weight_macs
from .findings import Role


@dataclass(frozen=True, eq=False)
class Analysis:
    """The channel groups of a model, and what is left alone. Iterating over it gives the groups.

    Attributes:
        groups: what may shrink, in graph order.
        locked: what may not: who makes it, how many channels, why, and the node that causes it.
        macs: for each group the multiply-accumulates of the layers that make or read its channels. A layer that reads
            other channels, too, counts in proportion.
        total_macs: of the model.
    """

    groups: tuple[ChannelGroup, ...]
    locked: tuple[Locked, ...]
    macs: tuple[int, ...]
    total_macs: int

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def constraint(self, group: ChannelGroup) -> str:
        """In words: by how much the group may shrink, which groups shrink with it, and whether channels may mix."""
        step = group.channels // group.unit
        names = [g.name for g in self.groups if g.family == group.family]
        blocks, others = names.count(group.name), [n for n in dict.fromkeys(names) if n != group.name]
        parts = [f"multiples of {step}"] if step > 1 else []
        parts += [f"equally in {blocks} blocks"] if blocks > 1 else []
        parts += [f"same fraction as {', '.join(others)}"] if others else []
        parts += [f"selected, not merged: {group.select}"] if group.select else []
        return "; ".join(parts) or "any number"

    def as_json(self) -> dict[str, Any]:
        """The analysis as JSON values."""
        return {
            "macs": self.total_macs,
            "groups": [self._group_json(g, n) for g, n in zip(self.groups, self.macs, strict=True)],
            "locked": [asdict(row) for row in self.locked],
        }

    def _group_json(self, group: ChannelGroup, governed: int) -> dict[str, Any]:
        return {
            "name": group.name,
            "channels": group.channels,
            "layers": layers(group),
            "nodes": list(group.nodes),
            "macs": governed,
            "constraint": self.constraint(group),
            "slots": [_slot_json(s) for s in group.slots],
        }


def _slot_json(slot: Slot) -> dict[str, Any]:
    return {
        "initializer": slot.tensor,
        "axes": list(slot.axes),
        "split": slot.split,
        "role": slot.role.value,
        "node": slot.node,
    }


def layers(group: ChannelGroup) -> list[str]:
    """Labels of the nodes that make the group's channels."""
    return list(dict.fromkeys(s.node for s in group.slots if s.role is Role.PRODUCES))


def analysis(channels: Channels) -> Analysis:
    """What `channels` found, with the multiply-accumulates that each group governs."""
    graph, shapes = channels.tracker.graph, channels.tracker.probe.shapes
    by_weight = weight_macs(graph.model, shapes)
    dims = {name: tuple(t.dims) for name, t in graph.constants.items()}
    governed = tuple(_governed(group, by_weight, dims) for group in channels.groups)
    return Analysis(channels.groups, channels.locked, governed, macs(graph.model, shapes))


def _governed(group: ChannelGroup, by_weight: Mapping[str, int], dims: Mapping[str, tuple[int, ...]]) -> int:
    """Σ over weights of their MACs × the fraction of the weight that goes if the whole group goes."""
    stays: dict[str, float] = {}
    for slot in group.slots:
        if slot.tensor in by_weight:
            shape = dims[slot.tensor]
            view = (slot.split, shape[0] // slot.split, *shape[1:]) if slot.split > 1 else shape
            share = slot.positions.size / int(np.prod([view[a] for a in slot.axes]))
            stays[slot.tensor] = stays.get(slot.tensor, 1.0) * (1 - share)
    return round(sum(by_weight[name] * (1 - part) for name, part in stays.items()))
