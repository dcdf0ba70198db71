"""Measure what the weights of a graph read: moments of activations, from the user's data or from synthetic inputs.

Synthetic inputs drift away from what training data looked like, the deeper the more. A BatchNormalization holds
the true mean β and deviation |γ| σ/√(σ²+ε) of each of its channels, so the *twin* of the network, in which every
normalization uses the batch's own statistics, has them at every depth. All moments are those of the twin. Of a file
whose normalizations are folded it has them in part, as far as biases tell (`inferred.py`).
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from .anchors import anchor_norm, anchor_producer, anchors_of, free_norm
from .bytestreams import BYTES
from .calibdata import Batches
from .channels import Channels, Slot
from .errors import Unsound
from .findings import Role
from .folding import Folded
from .ids import Ids
from .inferred import Correction, anchor_inferred
from .moments import LARGEST, Moments, measure
from .parts import Parts
from .ranges import Range
from .readers import Key, Reader, depthwise_readers, hindered, readers
from .samples import all_sound, all_writing
from .shrinkage import oas
from .surgeon import View
from .tensors import Array
from .tokens import largest_vocabulary
from .trust import Source
from .walk import Walk

UNREACHED = "in a branch of If that cannot run on the samples"
SEPARABLE = 6
"""A network is one of depthwise separable convolutions if one in so many of its layers, or more, is depthwise."""
LEAST = 1e-6
"""Of the mean variance of a reader's outputs: below, an output counts as one of this variance."""


@dataclass(frozen=True, eq=False)
class Study:
    """What was measured before anything was merged.

    Attributes:
        batches: the inputs.
        twin: constants of the twin that differ from the graph's.
        readers: in graph order.
        hindered: weights that read channels but are no readers, with the reason.
        depthwise: kernels that read, and make, one channel each; none where samples are not like real ones.
        moments: of each reader; empty if they were not wanted.
        parts: what each reader makes, as a share of the variance of the sum it is added to; 1 if to none, and where
            samples are not like real ones, since variances are not what training data makes them.
        source: what they are measured on.
        one_sided: If nodes of which all samples take one branch.
        others: synthetic inputs that nothing is measured on, for the result to be compared on.
        ranges: of synthetic inputs that are not of mean 0 and deviation 1.
        unknown: images of which nothing tells whether they should be.
    """

    batches: Batches
    twin: Mapping[str, Array]
    readers: tuple[Reader, ...]
    hindered: Mapping[Key, str]
    depthwise: tuple[Reader, ...]
    moments: tuple[Moments, ...]
    parts: tuple[float, ...]
    source: Source
    one_sided: tuple[str, ...] = ()
    others: Batches = field(default_factory=list)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    def views(self, rows: Mapping[Slot, Array], costs: bool = False) -> list[View]:
        """How the consumers of one group read it; `rows` has the (n, …) weights of its slots.

        With `costs`, as losses count: all outputs of a consumer alike, where what the moments are on says so
        (`Trust.evenly`).
        """
        at = {r.key: i for i, r in enumerate(self.readers)}
        found = [(s, at.get((s.tensor, s.axes, s.split))) for s in rows if s.role is Role.CONSUMES]
        return [self._view(i, s, rows[s], costs) for s, i in found if i is not None and self.moments]

    def _view(self, number: int, slot: Slot, weights: Array, costs: bool) -> View:
        reader, moments = self.readers[number], self.moments[number]
        channel = np.empty(reader.layout.size, np.int64)
        channel[reader.layout] = np.arange(len(reader.layout))[:, None]
        own = channel[slot.positions[:, 0]]
        covariance, weights = moments.square[np.ix_(own, own)], _moderate(weights)
        if costs and self.source.value.evenly and slot.split == 1:
            weights = _evenly(weights, covariance, reader.taps)
        gram = weights @ weights.T
        if slot.split > 1:  # a block's weights do not read the others
            block = slot.positions[:, 0] // (reader.layout.size // slot.split)
            gram *= block[:, None] == block
        return View(covariance, gram, oas(moments.square, moments.count), self.parts[number] if costs else 1)


def separable(layers: Sequence[Reader], depthwise: Sequence[Reader]) -> bool:
    """Whether kernels that read one channel each do much of the work."""
    return 0 < len(layers) <= SEPARABLE * len(depthwise)


def pinned(layers: Sequence[Reader], norms: int) -> bool:
    """Whether most layers have a normalization, of which there are `norms`."""
    return 2 * norms >= len(layers)


def study(
    channels: Channels,
    folded: Sequence[Folded],
    batches: Batches,
    known: Source | None,
    exclude: Sequence[str] = (),
    wanted: Container[Source] = frozenset(Source),
    inferred: Mapping[int, Correction] = MappingProxyType({}),
) -> Study:
    """Walk through the graph once; if it is not `known` what samples are, correct every normalization on the way.

    What samples of our own are worth goes by the network then. Nodes that match one of `exclude`, regular expressions,
    are no readers: their weights keep every bit. Moments are measured if what they would be measured on is `wanted`.
    Layers of which a normalization is `inferred` are corrected, too.
    """
    graph = channels.tracker.graph
    patterns, twin = [re.compile(p) for p in exclude], dict[str, Array]()
    found, depthwise = readers(channels, patterns), depthwise_readers(channels, patterns)
    anchored, by_channel = known is None, separable(found, depthwise)
    walk, moments = Walk(graph, channels.tracker.probe.stand_in, twin, batches), list[Future[Moments]]()
    free = (i for i, n in enumerate(graph.protos) if anchored and free_norm(graph, n) and i not in walk.whole)
    norms = {i: graph.protos[i].input[0] for i in free}
    missing = _missing(channels, {r.slot.edge.node: r.value for r in (*found, *depthwise)} | norms, batches)
    left = {r.key: UNREACHED for r in found if r.value in missing}
    found, depthwise = ([r for r in some if r.value not in missing] for some in (found, depthwise))
    norms = {i: name for i, name in norms.items() if name not in missing}
    anchors = dict(anchors_of(graph, folded)) if anchored else {}
    pins = pinned(found, len(anchors) + len(norms))
    source = known or _drawn(channels, pins, by_channel, bool(inferred))
    depthwise = depthwise if source.value.real else []
    parts, at = Parts(graph, found), dict[int, list[Reader]]()
    for reader in found:
        at.setdefault(reader.slot.edge.node, []).append(reader)
    with ThreadPoolExecutor(1) as pool:  # moments of one value are taken while the next one is computed
        for position, node in enumerate(graph.protos):
            for reader in at.get(position, []) if source in wanted else []:
                moments.append(pool.submit(measure, reader, walk.value(reader.value), source))
                wait(moments[-2:-1])  # no more than two values are held
            if position in anchors:
                anchor_producer(graph, twin, walk, node, anchors[position])
            elif position in norms:
                anchor_norm(graph, twin, walk, node)
            elif position in inferred:
                anchor_inferred(graph, twin, walk, node, inferred[position])
            if source.value.real and source in wanted:
                parts.see(walk, node)
    measured, shares = tuple(m.result() for m in moments), tuple(parts.of(r) for r in found)
    left |= hindered(channels)
    one_sided = tuple(walk.one_sided(i for i in range(len(graph.protos)) if i not in graph.inner))
    return Study(batches, twin, tuple(found), left, tuple(depthwise), measured, shares, source, one_sided)


def _missing(channels: Channels, values: Mapping[int, str], batches: Batches) -> set[str]:
    """What nodes in branches of If read, of these nodes' values, that cannot be had: no sample takes the branch, and it
    does not run on what would reach it, or makes other sizes of that than in the probing run."""
    t, graph = channels.tracker, channels.tracker.graph
    inside = [values[i] for i in sorted(values.keys() & graph.inner)]
    if not inside:
        return set()
    walk, found = Walk(graph, t.probe.stand_in, {}, batches[:1]), set[str]()
    for name in dict.fromkeys(inside):
        try:
            value = walk.value(name)[0]
        except Unsound:
            found.add(name)
        else:
            known = name not in t.ids or _fits(value, t.ids[name])
            found |= set() if known else {name}
    return found


def _fits(value: Array, ids: Ids) -> bool:
    """Whether a value has its channels where it had them in the probing run."""
    return value.ndim == ids.ndim and all(n in (1, size) for n, size in zip(ids.shape, value.shape, strict=True))


def _drawn(channels: Channels, pins: bool, by_channel: bool, inferred: bool) -> Source:
    """What synthetic samples are worth: if the network is `pinned`, is `separable`, has had normalizations."""
    graph, probe = channels.tracker.graph, channels.tracker.probe
    if pins:
        return Source.SEPARABLE if by_channel else Source.ANCHORED
    if all_sound(graph.model, probe):
        return Source.SOUND
    if all_writing(graph.model, probe):
        return Source.WRITING
    if inferred:
        return Source.SEPARABLE if by_channel else Source.INFERRED
    codes = largest_vocabulary(graph.model, probe)
    if codes in BYTES:
        return Source.FILES
    return Source.TEXT if codes > max(BYTES) else Source.LETTERS if codes else Source.OTHER


def _moderate(weights: Array) -> Array:
    """Weights too large for sums of their squares, divided by a power of two: a consumer has no unit of its own."""
    largest = max(weights.max(initial=0), -weights.min(initial=0))
    return weights if largest < LARGEST else np.ldexp(weights, -int(np.frexp(largest)[1]))


def _evenly(weights: Array, covariance: Array, taps: int) -> Array:
    """(n, outputs · taps) weights, scaled so that all outputs vary alike.

    What is lost counts by how much of each output it is then: synthetic samples tell how channels go together better
    than how much training data moves the one output or the other.
    """
    varies = np.einsum("nk,nk->k", covariance @ weights, weights).reshape(-1, taps).sum(axis=1)
    size = float(varies.mean()) or 1.0
    return np.asarray(weights * np.repeat(np.sqrt(size / np.maximum(varies, LEAST * size)), taps), weights.dtype)
