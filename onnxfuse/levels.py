"""How loud synthetic sound should be: what channels have in common depends on the level, beside their biases.

The first BatchNormalization holds the deviations that channels had on training data; the level at which they have
them again is the one. Without a BatchNormalization nothing tells, and recordings are taken for what is usual.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from .anchors import anchors_of, free_norm
from .calibdata import Batches
from .channels import Channels
from .folding import Folded
from .moments import statistics
from .tensors import Array
from .walk import Walk

USUAL = 0.1
"""Deviation of sound between −1 and 1: −20 dB, as recordings are levelled."""
LEVELS = (1.0, 0.3, 0.1, 0.03, 0.01)
"""Deviations that are tried, where a BatchNormalization tells."""
TRIED = 2
"""Batches on which they are."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """(n,) deviation that the channels of a value had on training data."""

    value: str
    deviation: Array


def levelled(channels: Channels, folded: Sequence[Folded], batches: Batches, sounds: Collection[str]) -> Batches:
    """Batches in which the inputs `sounds`, of deviation 1, have the level that the network was trained at."""
    if not sounds:
        return batches
    first = _first_norm(channels, folded)
    level = (
        USUAL if first is None else min(LEVELS, key=lambda x: _misfit(channels, _at(x, batches[:TRIED], sounds), first))
    )
    return _at(level, batches, sounds)


def _at(level: float, batches: Batches, sounds: Collection[str]) -> Batches:
    return [{n: (v * level).astype(v.dtype) if n in sounds else v for n, v in batch.items()} for batch in batches]


def _first_norm(channels: Channels, folded: Sequence[Folded]) -> Recorded | None:
    graph = channels.tracker.graph
    taken = {position: Recorded(f.output, f.deviation) for position, f in anchors_of(graph, folded)}
    for position, node in enumerate(graph.model.graph.node):
        if position in taken:
            return taken[position]
        if free_norm(graph, node):
            return Recorded(node.input[0], np.sqrt(graph.array(node.input[4])))
    return None


def _misfit(channels: Channels, batches: Batches, recorded: Recorded) -> float:
    """By what factor deviations are off, as a logarithm."""
    walk = Walk(channels.tracker.graph, channels.tracker.probe.stand_in, {}, batches)
    measured = statistics(walk.value(recorded.value))[1]
    seen = (measured > 0) & (recorded.deviation > 0)
    return abs(float(np.median(np.log(measured[seen] / recorded.deviation[seen])))) if seen.any() else 0.0
