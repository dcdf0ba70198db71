"""What a merge cannot keep is repaired: what consumers make stays as close as it can to what they made before.

Every reader gets its own `expand` E and shift s, so that E·y + s is closest to x, where x is what it saw in the
original network and y what it sees in the small one (centred covariances C):

    E = E₀ + (C_xy − E₀ C_yy)(C_yy + λ diag C_yy)⁻¹        s = mean x − E · mean y

E₀ is the merge's own expand, to which λ pulls what the samples do not determine. λ is the oracle-approximating
shrinkage of the correlations of y (OAS: Chen, Wiesel, Eldar and Hero, IEEE TSP 2010), `RIDGE` at least.

A least-squares prediction varies less than what it predicts, and layer after layer that adds up until nothing passes
a ReLU any more. So what a reader makes is then scaled and shifted to the mean and deviation it had (REPAIR: Jordan et
al., ICLR 2023), in its own weights and bias.

Readers are repaired in graph order: each sees what the repairs before it have left.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto
from scipy.linalg import cho_factor, cho_solve

from .calibrate import Moment, Moments, Reader, Study, cross, scaled_and_shifted, statistics
from .channels import ChannelGroup, Channels
from .merge import Merge
from .model import Array
from .prepare import out_axis, scaled_rows
from .rewrite import Removal, removed_mask
from .surgeon import Source
from .tracker import Role
from .walk import Walk
from .weights import Weights, front

Matrix = NDArray[np.float64]
Merges = Sequence[tuple[ChannelGroup, Merge]]
RIDGE: Mapping[Source, float] = {Source.DATA: 1e-2, Source.ANCHORED: 1e-2, Source.SYNTHETIC: 1.0}
"""The least λ, by what was measured on: moments of synthetic inputs alone only correct the merge half-way."""
FLOOR = 1e-5
"""Of the mean variance: the least that is added to each channel's, so that dead ones can be solved for."""
GAIN = 3.0
"""No output is made larger or smaller by more than this factor."""
SILENT = 1e-3
"""Outputs that vary less than this, relative to what they did before, are left alone: they were removed."""


@dataclass(frozen=True, eq=False)
class Repair:
    """What replaced the merges' expand at one reader.

    Attributes:
        reader: the weight.
        kept: (k,) channels of its layout that it reads from now on.
        expand: (n, k).
        shift: (n,), which the reader's bias took up.
        gain, offset: (outputs,) by which what it makes was then scaled and shifted; empty without a bias.
        outputs_axis: of the weight.
        bias_apart: whether the bias is in a node of its own, so that the gain does not reach it.
    """

    reader: Reader
    kept: NDArray[np.int64]
    expand: Matrix
    shift: Matrix
    gain: Matrix
    offset: Matrix
    outputs_axis: int
    bias_apart: bool


def repair(
    channels: Channels, merges: Merges, measured: Study, tell: Callable[[int, int], None]
) -> tuple[Weights, list[Repair]]:
    """The merged weights of a graph that still has its own, consumers repaired; and what was done.

    Args:
        channels: of the graph.
        merges: every group that shrinks.
        measured: moments of its readers.
        tell: called with the number of readers done and of all.
    """
    graph = channels.tracker.graph
    real, twin = Weights(graph, keep=True), Weights(graph, measured.twin, keep=True)
    for weights in (real, twin):
        _apply(weights, merges, measured.readers)
    kept = removed_mask(channels, [Removal(g, m.kept) for g, m in merges])
    stand_in, batches = channels.tracker.probe.stand_in, measured.batches
    before = Walk(graph, stand_in, measured.twin, batches)
    after = Walk(graph, stand_in, ChainMap(twin.arrays, dict(measured.twin)), batches)
    done = []
    for i, reader in enumerate(measured.readers):
        tell(i, len(measured.readers))
        own = np.flatnonzero(kept[reader.slot.ids[reader.layout[:, 0]]])
        moments = cross(reader, before.value(reader.value), after.value(reader.value))
        least = RIDGE[measured.source]
        expand, shift = solve(moments, own, _expand(reader, merges), least, reader.slot.split)
        for weights in (real, twin):
            _read(weights, reader, own, expand, shift)
        gain, offset = _restore(reader, before, after, (real, twin))
        node = before.nodes[reader.slot.edge.node]
        apart = bool(reader.bias) and reader.bias not in node.input
        done.append(Repair(reader, own, expand, shift, gain, offset, out_axis(node), apart))
    return real, done


def _apply(weights: Weights, merges: Merges, readers: Sequence[Reader]) -> None:
    """Merge all slots but those of the readers."""
    later = {r.key for r in readers}
    for group, merge in merges:
        slots = [s for s in group.slots if s.role is not Role.CONSUMES or (s.tensor, s.axes, s.split) not in later]
        weights.apply(slots, merge, {})


def _expand(reader: Reader, merges: Merges) -> Matrix:
    """(n, n) what the merges do to the channels of a reader; columns of removed ones are zero."""
    n = len(reader.layout)
    matrix, channel = np.eye(n), np.empty(reader.layout.size, np.int64)
    channel[reader.layout] = np.arange(n)[:, None]
    for group, merge in merges:
        for slot in group.slots:
            if (slot.tensor, slot.axes, slot.split) == reader.key:
                for place in np.unique(channel[slot.positions], axis=1).T:
                    matrix[place] = 0
                    matrix[np.ix_(place, place[merge.kept])] = merge.expand.toarray()
    return matrix


# --- least squares --------------------------------------------------------------------------------------------------
def solve(
    moments: tuple[Moments, Moments, Moment],
    kept: NDArray[np.int64],
    prior: Matrix,
    least: float,
    blocks: int = 1,
) -> tuple[Matrix, Matrix]:
    """(n, k) expand and (n,) shift from the moments of x and y, E[x yᵀ], the k `kept` channels and the (n, n) prior.

    λ is at least `least`.

    With several blocks (a grouped convolution) each is solved for by itself.
    """
    x, y, both = moments
    expand = np.zeros((len(prior), len(kept)))
    for block in np.split(np.arange(len(prior)), blocks):
        inside = np.flatnonzero(np.isin(kept, block))
        own = kept[inside]
        square, start = y.square[np.ix_(own, own)], prior[np.ix_(block, own)]
        factor = cho_factor(square + np.diag(ridge(square, y.count, least)))
        missing = both[np.ix_(block, own)] - start @ square
        expand[np.ix_(block, inside)] = start + cho_solve(factor, missing.T).T
    return expand, x.mean - expand @ y.mean[kept]


def ridge(square: Moment, count: int, least: float) -> Matrix:
    """(n,) what is added to the diagonal of a covariance of `count` samples before it is inverted."""
    size = np.maximum(square.diagonal(), 0)
    shrinkage = max(least, oas(square, count))
    return np.asarray(shrinkage * size + FLOOR * (size.mean() or 1))


def oas(square: Moment, count: int) -> float:
    """ρ / (1 − ρ), with ρ the oracle-approximating shrinkage of the correlations towards none (Chen et al., eq. 23)."""
    p = len(square)
    deviation = np.sqrt(np.maximum(square.diagonal(), np.finfo(np.float32).tiny))
    trace = float(np.square(square / np.outer(deviation, deviation)).sum())
    rho = ((1 - 2 / p) * trace + p * p) / ((count + 1 - 2 / p) * max(trace - p, 1e-12))
    return rho / (1 - rho) if rho < 0.999 else 1e3


def _read(weights: Weights, reader: Reader, kept: NDArray[np.int64], expand: Matrix, shift: Matrix) -> None:
    """Give a weight its repaired columns, and its bias the shift."""
    slot, (n, q) = reader.slot, reader.layout.shape
    view = front(weights[slot.tensor], slot)
    columns = np.array(view).reshape(n * q, *view.shape[len(slot.axes) :])[reader.layout]
    if reader.bias:
        made = _outputs(columns, shift, slot.split)
        weights[reader.bias] = (weights[reader.bias] + made).astype(weights[reader.bias].dtype)
    full = np.zeros_like(columns)
    flat = columns.reshape(n, -1)
    full[kept] = (expand.T.astype(flat.dtype) @ flat).reshape(len(kept), *columns.shape[1:])
    back = np.empty((n * q, *columns.shape[2:]), columns.dtype)
    back[reader.layout] = full
    view[...] = back.reshape(view.shape)


def _outputs(columns: Array, shift: Matrix, blocks: int) -> Array:
    """(outputs,) what (n, q, outputs, …) columns make of a constant input, away from the borders."""
    parts = zip(np.split(columns, blocks), np.split(shift, blocks), strict=True)
    made = [np.tensordot(s.astype(c.dtype), c, 1) for c, s in parts]
    return np.concatenate([m.sum(axis=(0, *range(2, m.ndim))) for m in made])


# --- variance -------------------------------------------------------------------------------------------------------
def _restore(reader: Reader, before: Walk, after: Walk, both: Sequence[Weights]) -> tuple[Matrix, Matrix]:
    """Scale and shift what a reader makes to the mean and deviation it had; returns (gain, offset), each (outputs,)."""
    node = before.nodes[reader.slot.edge.node]
    if not reader.bias:
        return np.zeros(0), np.zeros(0)
    axis = -1 if node.op_type == "MatMul" else 1
    (mean, deviation), (new_mean, new) = (statistics(w.value(node.output[0]), axis) for w in (before, after))
    alive = new > SILENT * deviation
    gain = np.where(alive, np.clip(deviation / np.where(alive, new, 1), 1 / GAIN, GAIN), 1)
    offset = np.where(alive, mean - gain * new_mean, 0)
    for weights in both:
        _scale(weights, reader, node, gain, offset)
    after.replace(node.output[0], scaled_and_shifted(after.value(node.output[0]), gain, offset, axis))
    return gain, offset


def _scale(weights: Weights, reader: Reader, node: NodeProto, gain: Matrix, offset: Matrix) -> None:
    tensor, bias = reader.slot.tensor, str(reader.bias)
    own = bias in node.input  # else an Add after the node has it
    weights[tensor] = scaled_rows(node, weights[tensor], gain)
    weights[bias] = (weights[bias] * (gain if own else 1) + offset).astype(weights[bias].dtype)
