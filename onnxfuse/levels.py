"""At what level inputs are what the network was trained on: the first BatchNormalization holds what its channels were.

How loud synthetic sound should be: what channels have in common depends on the level, beside their biases. Without a
BatchNormalization nothing tells, and recordings are taken for what is usual. And whether the user's samples are scaled
as the training data were, which nothing else would tell: the result is fitted to them whatever they are.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .anchors import anchors_of, free_norm
from .calibdata import Batches
from .channels import Channels
from .folding import Folded
from .heldout import a_few
from .moments import statistics
from .tensors import Array
from .walk import Walk

USUAL = 0.1
"""Deviation of sound between −1 and 1: −20 dB, as recordings are levelled."""
LEVELS = (1.0, 0.3, 0.1, 0.03, 0.01)
"""Deviations that are tried, where a BatchNormalization tells."""
TRIED = 2
"""Batches on which they are."""
LOOKED_AT = 32
"""Samples of the user's that are looked at."""
STRANGE, OFF = 2.0, 1.0
"""Factor by which deviations, and number of deviations by which means, are not those of training. With the right
preprocessing they are 0.92 to 1.38 and 0.02 to 0.47 on six networks, with images from 0 to 1 in place of normalised
ones 0.19 to 0.61, with bytes 50 to 160."""
log = logging.getLogger("onnxfuse")


@dataclass(frozen=True, eq=False)
class Recorded:
    """(n,) mean and deviation that the channels of a value had on training data."""

    value: str
    mean: Array
    deviation: Array


def levelled(channels: Channels, folded: Sequence[Folded], batches: Batches, sounds: Collection[str]) -> Batches:
    """Batches in which the inputs `sounds`, of deviation 1, have the level that the network was trained at."""
    if not sounds:
        return batches
    first = next(recorded(channels, folded), None)
    level = (
        USUAL if first is None else min(LEVELS, key=lambda x: _misfit(channels, _at(x, batches[:TRIED], sounds), first))
    )
    return _at(level, batches, sounds)


def _at(level: float, batches: Batches, sounds: Collection[str]) -> Batches:
    return [{n: (v * level).astype(v.dtype) if n in sounds else v for n, v in batch.items()} for batch in batches]


def recorded(channels: Channels, folded: Sequence[Folded]) -> Iterator[Recorded]:
    """What every BatchNormalization of the main graph holds, in graph order."""
    graph = channels.tracker.graph
    taken = {position: Recorded(f.output, f.mean, f.deviation) for position, f in anchors_of(graph, folded)}
    for position, node in enumerate(graph.protos):
        if position in taken:
            yield taken[position]
        elif position not in graph.inner and free_norm(graph, node):
            yield Recorded(node.input[0], graph.array(node.input[3]), np.sqrt(graph.array(node.input[4])))


def _misfit(channels: Channels, batches: Batches, recorded: Recorded) -> float:
    """By what factor deviations are off, as a logarithm."""
    return abs(float(np.log(_seen(channels, batches, recorded)[0])))


def _seen(channels: Channels, batches: Batches, recorded: Recorded) -> tuple[float, float]:
    """Medians over the channels: deviation / that of training, and how many of these the mean is off."""
    walk = Walk(channels.tracker.graph, channels.tracker.probe.stand_in, {}, batches)
    mean, deviation = statistics(walk.value(recorded.value))
    seen = (deviation > 0) & (recorded.deviation > 0)
    if not seen.any():
        return 1.0, 0.0
    off = np.abs(mean - recorded.mean)[seen] / recorded.deviation[seen]
    return float(np.exp(np.median(np.log(deviation[seen] / recorded.deviation[seen])))), float(np.median(off))


def look_at(channels: Channels, folded: Sequence[Folded], batches: Batches) -> None:
    """Warn if the user's samples are not what the network was trained on, by its first BatchNormalization."""
    first = next(recorded(channels, folded), None)
    if first is None:
        return
    factor, off = _seen(channels, a_few(batches, LOOKED_AT), first)
    if not 1 / STRANGE < factor < STRANGE or off > OFF:
        log.warning(
            "calibration data are not what the model was trained on: at %r channels vary %.2g times as much and are "
            "%.2g deviations off; scale and normalise them as in training (--calib-preprocess, or the arrays you give)",
            first.value, factor, off,
        )  # fmt: skip
