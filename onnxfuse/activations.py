"""Scores from what channels carry: a feature of their activations, averaged over calibration samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper

from .calibdata import Batches
from .channels import ChannelGroup, Channels
from .errors import UsageError
from .features import Feature
from .findings import Role
from .ids import Ids
from .importance import Scores
from .paired import paired
from .sessions import session
from .standin import in_float32
from .tensors import Array


@dataclass(frozen=True, eq=False)
class Place:
    """Where a value carries a group.

    Attributes:
        group: its number.
        axis: of the value.
        positions: (n, q) of its channels there.
    """

    group: int
    axis: int
    positions: Ids


def measure(
    channels: Channels, batches: Batches, feature: Feature, providers: Sequence[str], tell: Callable[[int, int], None]
) -> dict[ChannelGroup, Scores]:
    """For each group the feature of what reads it sees (of what makes it makes, if no weight reads it).

    It is averaged over samples, and over values when several are read, each divided by its own mean (those of the two
    operands of a product that alone reads them are multiplied). A group whose channels nowhere lie on one axis (heads
    of attention) is left out.

    Raises:
        UsageError: what is measured is not finite.
    """
    graph, found, pairs = channels.tracker.graph, places(channels), paired(channels)
    model = ModelProto()
    model.CopyFrom(graph.model)
    names, have = list(found), {o.name for o in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names if n not in have)
    run = session(in_float32(model) if channels.tracker.probe.stand_in else model, providers)
    sums: dict[tuple[str, int], Scores] = {}
    for number, batch in enumerate(batches):
        tell(number, len(batches))
        for name, value in zip(names, run.run(names, batch), strict=True):
            if not np.isfinite(value).all():
                raise UsageError(f"{name!r} overflows on the samples; scale them as in training")
            for place in found[name]:
                score = np.sum([feature(x) for x in _maps(value, place)], axis=0)
                sums[name, place.group] = sums.get((name, place.group), np.zeros(len(score))) + score
    result = {}
    for number, group in enumerate(channels.groups):
        own = [s / (s.mean() or 1) for (_, g), s in sums.items() if g == number]
        if own:
            both = group in pairs and len(own) == 2
            result[group] = np.asarray((np.prod if both else np.mean)(own, axis=0))
    return result


def places(channels: Channels) -> dict[str, list[Place]]:
    """Value → the groups that are measured there."""
    found: dict[str, list[Place]] = {}
    for number, group in enumerate(channels.groups):
        read = _values(channels, group, Role.CONSUMES) or _values(channels, group, Role.PRODUCES)
        for name, place in read.items():
            found.setdefault(name, []).append(Place(number, *place))
    return found


def _values(channels: Channels, group: ChannelGroup, role: Role) -> dict[str, tuple[int, Ids]]:
    """What nodes with a weight of this role read or make of the group: value → (axis, positions)."""
    graph, found = channels.tracker.graph, dict[str, tuple[int, Ids]]()
    for slot in channels.slots:
        if (
            slot.role is role
            and slot.edge.node not in graph.inner
            and np.isin(channels.classes[slot.ids], group.classes).any()
        ):
            node = graph.nodes[slot.edge.node]
            for value in node.inputs if role is Role.CONSUMES else node.outputs:
                at = place(channels, group, value.name)
                if at is not None:
                    found[value.name] = at
    return found


def place(channels: Channels, group: ChannelGroup, name: str) -> tuple[int, Ids] | None:
    """Axis and (n, q) positions of the group in a value; None if they do not lie on one axis, equally often."""
    ids = channels.tracker.ids.get(name)
    axes = [] if ids is None else [a for a, size in enumerate(ids.shape) if size > 1]
    if ids is None or len(axes) != 1 or axes[0] == 0:
        return None
    classes = channels.classes[ids.ravel()]
    where = [np.flatnonzero(classes == c) for c in group.classes]
    counts = {len(w) for w in where}
    return (axes[0], np.stack(where)) if counts != {0} and len(counts) == 1 else None


def _maps(value: Array, place: Place) -> NDArray[np.float64]:
    """(samples, n, places) of one batch."""
    moved = np.moveaxis(value, place.axis, 1).astype(np.float64)
    picked = moved[:, place.positions]  # (samples, n, q, …)
    return np.asarray(picked.reshape(len(picked), len(place.positions), -1))
