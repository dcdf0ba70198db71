"""BatchNormalizations that a file no longer has, by the marks they left on the biases they went into.

A normalization takes its channel's mean away. Folded into the weights W before it, it leaves the bias β − E[W x], which
cancels most of what the channel would be on average; training without one leaves biases that have little to do with
that. On drawn samples means are further off than on what the network was trained on, and deviations differ more from
channel to channel. Both can be put right in part, layer by layer, as an anchor does in full (`anchors.py`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from .anchors import adjust
from .calibdata import Batches
from .channels import Channels
from .findings import Role
from .folding import FOLDABLE
from .graph import Graph
from .linear import linear
from .moments import Moment, statistics
from .ranges import Range, between, put_in
from .readers import own_bias
from .tensors import Array
from .walk import Walk

CANCELLED = 0.5
"""Of the energy of a layer's means biases leave at most so much where a normalization was. On drawn samples it is 0.16
to 0.3 in the median layer that tells of four networks, folded (ResNet-20, VGG-11, two MobileNets), 1.2 in Silero and 2
in CREPE, which had none there; 0.45 in SVHN, three of whose five do."""
SHARES = (0.0, 1.0)
"""The range of images that is tried, too: bytes are known before (`intake.py`), and a factor of two changes little."""
FAINT = 0.02
"""Energy of means without biases, and of biases, as a share of the variances, from which a layer tells: what reads
means of zero has none to cancel."""
MOST, FEWEST = 2 / 3, 3
"""Share of the layers that tell, and number of them, in which biases do so if normalizations were folded: 0.7 to 1 in
nine networks, 0.91 to 1 in the bottlenecks of EfficientNets and PP-OCR, 0.6 at most where there were none."""
PARTLY = 0.3
"""How far deviations of other layers are drawn together, as logarithms, where only bottlenecks tell."""
DEAD = 0.01
"""Of the largest deviation: channels of less have none that tells."""
SAMPLES, LEAST, WORK = 64, 2, 8e9
"""Samples that are looked at, at most and at least, and multiply-accumulates that these may cost."""


@dataclass(frozen=True)
class Correction:
    """What is done to a layer.

    Attributes:
        means: whether its means are corrected; then nothing is done where they do not tell at last.
        alike: how far its deviations are drawn together, as logarithms: 0 not at all, 1 to one value.
        level: that value; None if it is what they are on average.
    """

    means: bool
    alike: float
    level: float | None = None


def looked_at(macs: int) -> int:
    """How many samples of a model of this many multiply-accumulates for one of them are needed."""
    return int(np.clip(WORK / max(macs, 1), LEAST, SAMPLES))


@dataclass(frozen=True)
class Inferred:
    """What biases tell.

    Attributes:
        layers: what is done to those that had a normalization, by their positions.
        ranges: of images that are not of mean 0 and deviation 1.
        sure: whether they tell of the range at all.
    """

    layers: Mapping[int, Correction] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    sure: bool = False


def infer(channels: Channels, batches: Batches, images: Collection[str]) -> Inferred:
    """What to do to layers that had a normalization, as far as biases tell.

    Where they do in all kinds of layers, as after moderate training, β are small and γ alike, so that all deviations
    are what those of the first layer are, which drawn samples are right for. Nothing follows a linear bottleneck that
    its own β could be good for, so that is 0 however long training was: then only bottlenecks tell. Biases cancel what
    means were on what the network was trained on: on images of another range the means are others.

    Args:
        channels: of the graph, nothing merged yet.
        batches: synthetic samples.
        images: inputs of mean 0 and deviation 1 that may have to be others.

    Raises:
        Unsound: onnxruntime cannot run the model on them.
    """
    layers = dict(_layers(channels.tracker.graph))
    streams = {s.tensor for group in linear(channels) for s in group.slots if s.role is Role.PRODUCES}
    bottlenecks = {i for i, node in layers.items() if node.input[1] in streams}
    others, marks, ranges = layers.keys() - bottlenecks, _marks(channels, layers, batches), dict[str, Range]()
    if images and not _had(marks.left, others):
        known = between(*SHARES, "its biases say")
        if _had((found := _marks(channels, layers, put_in(known, batches, images), others)).left, others):
            marks, ranges = found, dict.fromkeys(images, known)
    if _had(marks.left, others):
        normalized = layers if _had(marks.left, bottlenecks) else others
        return Inferred({i: Correction(means=True, alike=1, level=marks.level) for i in normalized}, ranges, True)
    if not _had(marks.left, bottlenecks):
        return Inferred()
    return Inferred({i: Correction(i in bottlenecks, 0 if i in bottlenecks else PARTLY) for i in layers})


@dataclass(frozen=True)
class _Marks:
    """What biases leave of the energy of each layer's means, and what deviations the first layer's channels have."""

    left: Mapping[int, float | None]
    level: float


def _marks(
    channels: Channels, layers: Mapping[int, NodeProto], batches: Batches, others: Collection[int] = ()
) -> _Marks:
    """Of every layer, until too many of the `others` tell that they had no normalization for most to have had one."""
    graph, left, levels = channels.tracker.graph, dict[int, float | None](), list[float]()
    walk, against = Walk(graph, channels.tracker.probe.stand_in, {}, batches), 0
    for position, node in layers.items():
        mean, deviation = statistics(walk.value(node.output[0]))
        left[position] = r = _uncancelled(graph, node, mean, deviation)
        levels.append(_level(deviation))
        against += position in others and r is not None and r >= CANCELLED
        if against > (1 - MOST) * len(others) > 0:
            break
    return _Marks(left, levels[0] if levels else 1.0)


def _layers(graph: Graph) -> Iterator[tuple[int, NodeProto]]:
    """(position, node) of what a normalization could be in, of the main graph, but for what makes only outputs."""
    for position, node in enumerate(graph.protos):
        known = node.op_type in FOLDABLE and position not in graph.inner and len(node.input) > 2
        own = known and node.input[1] in graph.constants and len(graph.edges[node.input[1]]) == 1
        read = any(edge.node >= 0 for edge in graph.edges[node.output[0]])
        if own and read and own_bias(graph, node)[0] is not None:
            yield position, node


def _uncancelled(graph: Graph, node: NodeProto, mean: Moment, deviation: Moment) -> float | None:
    """What its biases leave of the energy of a layer's means; None if either are hardly anything."""
    bias = graph.array(node.input[2]).astype(np.float64)
    spread, after, before, added = (float(v @ v) for v in (deviation, mean, mean - bias, bias))
    return after / before if min(before, added) > FAINT * spread else None


def _had(left: Mapping[int, float | None], layers: Collection[int]) -> bool:
    """Whether most of the layers that tell had a normalization."""
    told = [r for i in layers if (r := left.get(i)) is not None]
    return len(told) >= FEWEST and sum(r < CANCELLED for r in told) >= MOST * len(told)


def anchor_inferred(graph: Graph, twin: dict[str, Array], walk: Walk, node: NodeProto, how: Correction) -> None:
    """Correct what a layer makes; the twin's weights alike.

    What biases leave of its means, a share r of their energy, is β and what samples are off by, which nothing tells
    apart: each gets half of it, in orders of magnitude, so that means are multiplied by √r.
    """
    mean, deviation = statistics(walk.value(node.output[0]))
    left = _uncancelled(graph, node, mean, deviation) if how.means else None
    if how.means and (left is None or left >= CANCELLED):
        return
    level = _level(deviation) if how.level is None else how.level
    alive = _alive(deviation)
    scale = np.where(alive, level / np.where(alive, deviation, 1), 1) ** how.alike
    adjust(graph, twin, walk, node, scale, (1 if left is None else math.sqrt(left)) * mean - mean * scale)


def _level(deviation: Moment) -> float:
    """What deviations are on average, as logarithms."""
    alive = _alive(deviation)
    return math.exp(float(np.log(deviation[alive]).mean())) if alive.any() else 1.0


def _alive(deviation: Moment) -> NDArray[np.bool_]:
    """(n,) which channels vary at all."""
    return np.asarray(deviation > DEAD * deviation.max(initial=0))
