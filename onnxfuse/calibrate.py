"""Measure what the weights of a graph read: moments of activations, from the user's data or from synthetic inputs.

Synthetic inputs drift away from what training data looked like, the deeper the more. A BatchNormalization holds
the true mean β and deviation |γ| of each of its channels, so the *twin* of the network, in which every
normalization uses the batch's own statistics, has them at every depth. All moments are those of the twin.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from .calibdata import Batches
from .channels import Channels, Slot
from .classes import Classes
from .findings import RawSlot, Role
from .folding import Folded
from .graph import Graph
from .ids import Ids
from .picking import behind_picks
from .producers import scaled_rows
from .protos import attribute, proto_label
from .shrinkage import oas
from .surgeon import Source, View
from .tensors import Array
from .walk import Chunks, Walk

Moment = NDArray[np.floating[Any]]
WIDEST = 4096
"""Readers of more channels than this are left as their merge makes them: their moments would be too large."""
ROWS = 8
"""Samples of a moment for each of its channels (and `FEWEST` at least): more of them are left out, at random."""
FEWEST = 4096
PLACES = 8192
"""Values from which a channel's mean and deviation are taken, at most: these need fewer than a covariance does."""
TINY = 1e-6
MEASURED = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
"""Element types of weights that are refitted."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A weight that reads channels.

    Attributes:
        slot: its axis of d positions.
        value, axis: where they arrive.
        bias: the initializer that is added to what it makes, one number for each output, or None.
        made: what it makes, the bias included.
        layout: (n, q) the q positions of each of the n channels it reads (several behind a Flatten).
    """

    slot: RawSlot
    value: str
    axis: int
    bias: str | None
    made: str
    layout: Ids

    @property
    def key(self) -> tuple[str, tuple[int, ...], int]:
        """What tells it from other readers: initializer, axes, split."""
        return self.slot.tensor, self.slot.axes, self.slot.split


@dataclass(frozen=True, eq=False)
class Moments:
    """Of the n channels that a reader sees, over `count` samples.

    Attributes:
        mean: (n,), zero if the reader has no bias that could take up a difference.
        square: (n, n) covariance, or second moments if it has no bias.
        count: of samples.
    """

    mean: Moment
    square: Moment
    count: int


@dataclass(frozen=True, eq=False)
class Crossed:
    """What a reader sees before, x of n channels, and after, y of k of them.

    Attributes:
        mean: (n,) of x.
        after: moments of y.
        product: (n, k) E[x yᵀ], centred as they are.
    """

    mean: Moment
    after: Moments
    product: Moment


@dataclass(frozen=True, eq=False)
class Study:
    """What was measured before anything was merged.

    Attributes:
        batches: the inputs.
        twin: constants of the twin that differ from the graph's.
        readers: in graph order.
        moments: of each reader; empty if they were not wanted.
        source: what they are measured on.
    """

    batches: Batches
    twin: Mapping[str, Array]
    readers: tuple[Reader, ...]
    moments: tuple[Moments, ...]
    source: Source

    def views(self, rows: Mapping[Slot, Array]) -> list[View]:
        """How the consumers of one group read it; `rows` has the (n, …) weights of its slots."""
        at = {r.key: i for i, r in enumerate(self.readers)}
        found = [(s, at.get((s.tensor, s.axes, s.split))) for s in rows if s.role is Role.CONSUMES]
        return [_view(self.readers[i], self.moments[i], s, rows[s]) for s, i in found if i is not None and self.moments]


def study(
    channels: Channels,
    folded: Sequence[Folded],
    batches: Batches,
    anchored: bool,
    exclude: Sequence[str] = (),
    wanted: Container[Source] = frozenset(Source),
) -> Study:
    """Walk through the graph once; with `anchored`, correct every normalization on the way.

    Nodes that match one of `exclude`, regular expressions, are no readers: their weights keep every bit. Moments are
    measured if what they would be measured on is `wanted`.
    """
    graph = channels.tracker.graph
    found, twin = readers(channels, [re.compile(p) for p in exclude]), dict[str, Array]()
    walk, moments = Walk(graph, channels.tracker.probe.stand_in, twin, batches), list[Moments]()
    anchors = dict(_anchors(graph, folded)) if anchored else {}
    norms = sum(1 for node in graph.model.graph.node if _free_norm(graph, node)) if anchored else 0
    synthetic = Source.ANCHORED if 2 * (len(anchors) + norms) >= len(found) else Source.SYNTHETIC
    source = synthetic if anchored else Source.DATA
    at: dict[int, list[Reader]] = {}
    for reader in found:
        at.setdefault(reader.slot.edge.node, []).append(reader)
    for position, node in enumerate(graph.model.graph.node):
        if source in wanted:
            moments += [measure(reader, walk.value(reader.value)) for reader in at.get(position, [])]
        if position in anchors:
            _anchor_producer(graph, twin, walk, node, anchors[position])
        elif anchored and _free_norm(graph, node):
            _anchor_norm(graph, twin, walk, node)
    return Study(batches, twin, tuple(found), tuple(moments), source)


def _view(reader: Reader, moments: Moments, slot: Slot, weights: Array) -> View:
    channel = np.empty(reader.layout.size, np.int64)
    channel[reader.layout] = np.arange(len(reader.layout))[:, None]
    own = channel[slot.positions[:, 0]]
    gram = weights @ weights.T
    if slot.split > 1:  # a block's weights do not read the others
        block = slot.positions[:, 0] // (reader.layout.size // slot.split)
        gram *= block[:, None] == block
    return View(moments.square[np.ix_(own, own)], gram, oas(moments.square, moments.count))


# --- readers --------------------------------------------------------------------------------------------------------
def readers(channels: Channels, exclude: Sequence[re.Pattern[str]]) -> list[Reader]:
    """Every weight that reads channels, at its only use, in graph order, but for those of excluded nodes.

    Nor those behind an operator that picks by value: what the original and the result see there are other things.
    """
    graph, found = channels.tracker.graph, []
    picked = behind_picks(graph.model.graph)
    for s in channels.slots:
        own = len(graph.edges[s.tensor]) == 1 and graph.constants[s.tensor].data_type in MEASURED
        if s.role is Role.CONSUMES and s.data and own:
            node, layout = graph.model.graph.node[s.edge.node], _layout(channels.classes[s.ids])
            if any(p.search(proto_label(node)) for p in exclude):
                continue
            value = node.input[s.data[0]]
            if len(layout) <= WIDEST and value not in graph.constants and value not in picked:
                found.append(Reader(s, value, s.data[1], *_bias(graph, node), layout))
    return sorted(found, key=lambda r: r.slot.edge.node)


def _layout(classes: Classes) -> Ids:
    """(n, q) the positions of each class, by its first; (d, 1) if not all of them have equally many."""
    _, counts = np.unique(classes, return_counts=True)
    if (counts != counts[0]).any():
        return np.arange(len(classes))[:, None]
    layout = np.argsort(classes, kind="stable").reshape(len(counts), -1)
    return layout[np.argsort(layout[:, 0])]


def _bias(graph: Graph, node: NodeProto) -> tuple[str | None, str]:
    """The constant that is added to each output of a node, if nothing else uses it, and the value that has it added."""
    made = node.output[0]
    if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2:
        scaled = node.op_type == "Gemm" and (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)) != (1.0, 1.0)
        return None if scaled else _own_vector(graph, node.input[2]), made
    uses = graph.edges.get(made, [])
    after = graph.model.graph.node[uses[0].node] if len(uses) == 1 and uses[0].node >= 0 else None
    weight = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
    if weight is not None and after is not None and after.op_type == "Add":
        shapes = {"MatMul": weight.dims[-1:], "Conv": [*weight.dims[:1], *[1] * (len(weight.dims) - 2)]}
        bias = _own(graph, after.input[1 - uses[0].slot], shapes.get(node.op_type, [0]))
        return bias, after.output[0] if bias else made
    return None, made


def _own_vector(graph: Graph, name: str) -> str | None:
    tensor = graph.constants.get(name)
    return name if tensor is not None and len(tensor.dims) == 1 and len(graph.edges[name]) == 1 else None


def _own(graph: Graph, name: str, shape: Sequence[int]) -> str | None:
    """A constant of this shape, but for axes of length 1 in front, that one node uses."""
    tensor = graph.constants.get(name)
    if tensor is None or len(graph.edges[name]) != 1:
        return None
    dims = [1] * (len(shape) - len(tensor.dims)) + list(tensor.dims)
    more = len(dims) - len(shape)
    return name if dims[more:] == list(shape) and set(dims[:more]) <= {1} else None


# --- moments --------------------------------------------------------------------------------------------------------
def rows(reader: Reader, chunks: Chunks) -> Iterator[Array]:
    """(samples, n) what the reader sees in each batch, at as many places as are needed."""
    n = len(reader.layout)
    wanted = max(ROWS * n, FEWEST) // len(chunks) + 1
    for chunk in chunks:
        flat = _sampled(chunk, reader.axis, wanted)
        yield _sampled(flat[:, reader.layout.T].reshape(-1, n), 1, wanted)


def _sampled(chunk: Array, axis: int, wanted: int) -> Array:
    """(samples, d) what is along an axis, at random places if there are more than wanted; float32 or float64.

    The places are the same on every call for the same sizes.
    """
    dtype = np.float64 if chunk.dtype == np.float64 else np.float32
    d, axis = chunk.shape[axis], axis % chunk.ndim
    inner, places = math.prod(chunk.shape[axis + 1 :]), chunk.size // max(d, 1)
    if places <= wanted:
        return np.ascontiguousarray(np.moveaxis(chunk, axis, -1).reshape(-1, d), dtype)
    chosen = np.sort(np.random.default_rng(places).choice(places, wanted, replace=False))
    outer, inside = np.divmod(chosen, inner)
    return np.ascontiguousarray(chunk.reshape(-1, d, inner)[outer, :, inside], dtype)


def blocks(reader: Reader, chunks: Chunks) -> Iterator[Array]:
    """`rows`, joined until there are n samples at least: then a product of them is worth the (n, n) it is added to."""
    held: list[Array] = []
    for part in rows(reader, chunks):
        held.append(part)
        if sum(map(len, held)) >= len(reader.layout):
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def measure(reader: Reader, chunks: Chunks) -> Moments:
    """The moments of what a reader sees."""
    pairs = ((x, x) for x in blocks(reader, chunks))
    mean, _, square, count = _products(pairs, centred=bool(reader.bias))
    return Moments(mean, square, count)


def cross(reader: Reader, before: Iterable[Array], after: Iterable[Array], kept: NDArray[np.int64]) -> Crossed:
    """Moments of two versions x and y of what a reader sees, in blocks, of the latter only the k channels `kept`."""
    joined = (np.concatenate([x, y[:, kept]], axis=1) for x, y in zip(before, after, strict=True))
    n = len(reader.layout)
    mean, _, product, count = _products(((z, z[:, n:]) for z in joined), centred=bool(reader.bias))
    return Crossed(mean[:n], Moments(mean[n:], product[n:], count), product[:n])


def _products(pairs: Iterator[tuple[Array, Array]], centred: bool) -> tuple[Moment, Moment, Moment, int]:
    """Means of x (count, a) and y (count, b), their E[x yᵀ] (a, b) around these, and count.

    The means are zero unless `centred`. Everything is summed around the first block's, so that single precision
    suffices.
    """
    total, origin, off, product = (
        0,
        (np.zeros(1), np.zeros(1)),
        [np.zeros(1), np.zeros(1)],
        np.zeros((1, 1), np.float32),
    )
    for x, y in pairs:
        same = x is y
        if centred:
            origin = (x.mean(axis=0), y.mean(axis=0)) if not total else origin
            x = x - origin[0]
            y = x if same else y - origin[1]
            off = [off[0] + x.sum(axis=0), off[1] + y.sum(axis=0)]
        total += len(x)
        product = product + x.T @ y
    product /= total
    if not centred:
        return np.zeros(len(product)), np.zeros(product.shape[1]), product, total
    off = [o / total for o in off]
    product -= np.outer(*off)
    return origin[0] + off[0], origin[1] + off[1], product, total


def statistics(chunks: Chunks, axis: int = 1) -> tuple[Moment, Moment]:
    """(n,) mean and deviation over all batches of each channel on `axis`, of at most `PLACES` values and a few."""
    parts = [_sampled(c, axis, PLACES // len(chunks) + 1) for c in chunks]
    weight = np.array([len(p) for p in parts]) / sum(map(len, parts))
    means = np.stack([p.mean(axis=0) for p in parts]).astype(np.float64)
    variances = np.stack([p.var(axis=0) for p in parts]).astype(np.float64)
    mean = weight @ means
    return mean, np.sqrt(np.maximum(weight @ (variances + (means - mean) ** 2), 0))


def scaled_and_shifted(chunks: Chunks, scale: Array, shift: Array, axis: int = 1) -> Chunks:
    """Every batch with its channels on `axis` scaled and shifted."""
    shape = [1] * chunks[0].ndim
    shape[axis] = -1
    a, b = (v.reshape(shape).astype(chunks[0].dtype) for v in (scale, shift))
    return [np.asarray(c * a + b) for c in chunks]


# --- anchors --------------------------------------------------------------------------------------------------------
def _anchors(graph: Graph, folded: Sequence[Folded]) -> Iterator[tuple[int, Folded]]:
    """(position, normalization) of the producers that took one over and whose weights are their own."""
    position = {o: i for i, node in enumerate(graph.model.graph.node) for o in node.output}
    for f in folded:
        node = graph.model.graph.node[position[f.output]]
        if all(len(graph.edges[name]) == 1 for name in node.input[1:3]):
            yield position[f.output], f


def _anchor_producer(graph: Graph, twin: dict[str, Array], walk: Walk, node: NodeProto, norm: Folded) -> None:
    """Scale and shift what the producer makes to mean β and deviation |γ|, and its weights in the twin alike."""
    chunks = walk.value(norm.output)
    mean, deviation = statistics(chunks)
    scale = np.where(deviation > TINY, norm.deviation / np.maximum(deviation, TINY), 1)
    shift = norm.mean - mean * scale
    weight, bias = node.input[1:3]
    twin[weight] = scaled_rows(node, graph.array(weight).astype(np.float32), scale)
    twin[bias] = graph.array(bias).astype(np.float64) * scale + shift
    walk.replace(norm.output, scaled_and_shifted(chunks, scale, shift))


def _free_norm(graph: Graph, node: NodeProto) -> bool:
    """A BatchNormalization that could not be folded, whose statistics are its own."""
    own = (n in graph.constants and len(graph.edges[n]) == 1 for n in node.input[3:5])
    return node.op_type == "BatchNormalization" and all(own)


def _anchor_norm(graph: Graph, twin: dict[str, Array], walk: Walk, node: NodeProto) -> None:
    """Give a BatchNormalization that could not be folded the batch's own statistics."""
    mean, variance = node.input[3:5]
    measured, deviation = statistics(walk.value(node.input[0]))
    twin[mean], twin[variance] = measured, np.maximum(deviation**2, TINY)
