"""Refit a convolution tap by tap: what one channel no longer says here, others may say next to it.

The map of channels that every reader gets is the same for all taps of a kernel. From the whole patch y under the
kernel more can be made up: the weights w of an output become those w′ that bring w′·y closest to what the output t was
(covariances C of y, and c of y with t):

    w′ = (C + λ diag C)⁻¹ (c + λ diag C · w)

λ is p/n for p weights and patches worth n independent ones (`likeness`), what is best for ridge regression if as much
of what is missing can be had from the patches as cannot (λ = p σ²/(n |w|²): Hoerl, Kennard and Baldwin, Comm. in
Statistics 1975); the shrinkage of the repair's other ridge would forbid all correction where patches hardly correlate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from .channels import ChannelGroup
from .cutoff import Goal, Limits, is_cut, less
from .findings import Role
from .likeness import Likeness
from .merge import Merge
from .moments import enough, joined
from .patches import Places, Window, patches, places, window
from .readers import Reader
from .shrinkage import shrunk
from .tensors import Array
from .trust import Source
from .walk import Chunks
from .weights import Weights, front

WIDEST = 4608
"""Weights of an output from which on their covariance would be too large."""
MARGIN = 1.25
"""Places that must be seen for each weight of an output."""
TINY = 1e-20
Sizes = tuple[Array, Array]
"""(outputs,) mean and deviation."""


@dataclass(frozen=True, eq=False)
class Made:
    """What a convolution made of one batch, at some places.

    Attributes:
        at: the places.
        size: of the output's spatial axes.
        values: (P, outputs), float32 or float64.
        cut: what those who read them cut off.
    """

    at: Places
    size: tuple[int, ...]
    values: Array
    cut: Limits


def made(reader: Reader, kernel: Sequence[int], chunks: Chunks, source: Source, cut: Limits) -> tuple[Made, ...]:
    """Of every batch."""
    weights = reader.layout.size // reader.slot.split * math.prod(kernel)
    wanted = enough(weights, source) // len(chunks) + 1
    return tuple(_made(c, places(c.shape, wanted), cut) for c in chunks)


def refittable(node: NodeProto, kernel: Sequence[int]) -> bool:
    """Whether a node is a convolution whose kernel has several taps."""
    return node.op_type == "Conv" and math.prod(kernel) > 1


def _made(chunk: Array, at: Places, cut: Limits) -> Made:
    values = np.moveaxis(chunk, 1, -1)[at]
    return Made(at, chunk.shape[2:], values.astype(np.float64 if chunk.dtype == np.float64 else np.float32), cut)


def merged(
    wanted: Sequence[Made], tensor: str, merges: Sequence[tuple[ChannelGroup, Merge]], role: Role = Role.PRODUCES
) -> list[Made]:
    """What outputs should be after their own merges: a merged one the same mixture, one that went nothing at all.

    Args:
        wanted: what they were.
        tensor: the weight that makes them.
        merges: of all groups.
        role: of the weight for the channels that it makes.
    """
    found = [m.values.copy() for m in wanted]
    for group, merge in merges:
        for slot in (s for s in group.slots if s.tensor == tensor and s.role is role):
            for place in slot.positions.T:
                for values, before in zip(found, wanted, strict=True):
                    values[:, place] = 0
                    values[:, place[merge.kept]] = before.values[:, place] @ merge.compress.T.astype(values.dtype)
    return [replace(m, values=v) for m, v in zip(wanted, found, strict=True)]


def beside(wanted: Sequence[Made], other: Chunks) -> list[Made]:
    """What is left to make of a sum, whose other operand is this."""
    known = (np.moveaxis(c, 1, -1)[m.at].astype(m.values.dtype) for c, m in zip(other, wanted, strict=True))
    pairs = zip(wanted, known, strict=True)
    return [replace(m, values=m.values - k, cut=less(m.cut, k)) for m, k in pairs]


def sizes_of(wanted: Sequence[Made]) -> Sizes:
    """At all places."""
    return sizes(np.concatenate([m.values for m in wanted]))


def sizes(values: Array) -> Sizes:
    """Of (places, outputs)."""
    return values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class PatchMoments:
    """Of the patches under a kernel, for one block of a convolution.

    Attributes:
        own: (k,) which of the channels that are left the block reads.
        added: (p,) λ diag C.
        factor: (p, p) of Cholesky, of C + λ diag C; C has second moments if the convolution has no bias.
        product: (p, outputs) c.
        goal: the same place by place, if what reads the outputs cuts off some of them.
    """

    own: NDArray[np.int64]
    added: Array
    factor: Array
    product: Array
    goal: Goal | None


def patch_moments(
    reader: Reader, node: NodeProto, kernel: Sequence[int], chunks: Chunks, wanted: Sequence[Made],
    kept: NDArray[np.int64], alike: Likeness, least: float, weights: Array,
) -> list[PatchMoments]:  # fmt: skip
    """Of each block of a convolution; none if an output has more weights than `WIDEST`, or too many for the places.

    Args:
        reader: of the weights.
        node: the convolution.
        kernel: taps on each spatial axis.
        chunks: what arrives at it.
        wanted: what it should make, as `merged` has it; nothing if it is not to be refitted.
        kept: (k,) channels of the reader's layout that are left, ascending.
        alike: what is seen at the places of one sample.
        least: the least λ.
        weights: (n,) squares of those that read each channel, see `read_by`.
    """
    from scipy import linalg  # dear to import

    if not wanted:
        return []
    found, moves, rows = list[PatchMoments](), window(node, kernel), sum(len(m.values) for m in wanted)
    blocks = np.split(np.arange(len(reader.layout)), reader.slot.split)
    for channels, outputs in zip(blocks, np.split(np.arange(wanted[0].values.shape[1]), len(blocks)), strict=True):
        own = np.flatnonzero(np.isin(kept, channels))
        read = reader.layout[kept[own]].ravel()
        if (p := len(read) * math.prod(kernel)) > min(WIDEST, rows / MARGIN):
            return []
        seen: Iterable[Array] = joined(_seen(chunks, read, wanted, outputs, moves), p)
        goal = None
        if is_cut(wanted[0].cut):
            seen, goal = _goal(seen, p, wanted, outputs, bool(reader.bias))
        square, product, count = _moments(seen, p, bool(reader.bias))
        by = np.tile(np.repeat(weights[kept[own]], reader.layout.shape[1]), math.prod(kernel))
        added = shrunk(square.diagonal(), max(least, p / alike.worth(count)), by).astype(square.dtype)
        square[np.diag_indices_from(square)] += added  # and turned, for LAPACK wants columns first and would copy it
        factor, _ = linalg.cho_factor(square.T, lower=True, overwrite_a=True, check_finite=False)
        found.append(PatchMoments(own, added, factor, product.T, goal))
    return found


def _seen(
    chunks: Chunks, channels: NDArray[np.int64], wanted: Sequence[Made], outputs: NDArray[np.int64], moves: Window
) -> Iterator[Array]:
    """(P, p + outputs) patches and what should be made of them."""
    for chunk, m in zip(chunks, wanted, strict=True):
        read = patches(chunk, channels, m.at, moves, m.size)
        yield np.concatenate([read, m.values[:, outputs]], axis=1, dtype=m.values.dtype)


def _goal(
    seen: Iterable[Array], p: int, wanted: Sequence[Made], outputs: NDArray[np.int64], centred: bool
) -> tuple[Iterable[Array], Goal]:
    """All (P, p + outputs) patches and what should be made of them, in blocks as before, and as a goal."""
    rows = sum(len(m.values) for m in wanted)
    whole, start = np.empty((rows, p + len(outputs)), wanted[0].values.dtype), 0
    for block in seen:
        whole[start : start + len(block)] = block
        start += len(block)
    low, high = (_whole([m.cut[side] for m in wanted], outputs) for side in (0, 1))
    x = whole[:, :p]
    if centred:
        x -= x.mean(axis=0)
    return (whole[i : i + p] for i in range(0, rows, p)), Goal(x, whole[:, p:], (low, high), centred)


def _whole(limits: Sequence[Array], outputs: NDArray[np.int64]) -> Array:
    """What is cut off in all batches: one number, or (places, outputs)."""
    return np.concatenate([limit[:, outputs] for limit in limits]) if limits[0].ndim else limits[0]


def _moments(seen: Iterable[Array], p: int, centred: bool) -> tuple[Array, Array, int]:
    """Square, product and count of (P, p + outputs) blocks; all is summed around the first block's mean."""
    total, origin, off, square, product = 0, np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(1)
    for z in seen:
        if centred:
            origin = origin if total else z.mean(axis=0)
            z = z - origin
            off = off + z.sum(axis=0)
        total += len(z)
        x = z[:, :p]
        square, product = square + x.T @ x, product + z[:, p:].T @ x
    square, product = square / total, product / total
    if centred:
        off = off / total
        square -= np.outer(off[:p], off[:p])
        product -= np.outer(off[p:], off[:p])
    return square, product, total


def columns_of(weights: Weights, reader: Reader) -> tuple[Array, tuple[NDArray[np.int64], ...]]:
    """A view of a reader's weight, and the index of the (n, q) positions of its channels there."""
    view = front(weights[reader.slot.tensor], reader.slot)
    return view, np.unravel_index(reader.layout, view.shape[: len(reader.slot.axes)])


def read_by(weights: Weights, reader: Reader) -> Array:
    """(n,) the sum of squares of the weights that read each channel."""
    view, index = columns_of(weights, reader)
    columns = np.asarray(view[index], np.float64).reshape(len(reader.layout), -1)
    return np.asarray(np.einsum("nd,nd->n", columns, columns))


def correct(
    both: Sequence[Weights], reader: Reader, kept: NDArray[np.int64], moments: Sequence[PatchMoments], pool: Executor
) -> tuple[Array | None, Sizes | None]:
    """Correct the weights; returns what was added to the graph's own, the first of `both`, and what they aim at.

    The others are those that the moments were measured with: the outputs of a twin have other units. They aim at what
    they should make, if what is cut off has changed that.
    """
    if not moments:
        return None, None
    real, measured = both[0], both[-1]
    view, index = columns_of(measured, reader)
    added, aims = _correction(view[tuple(i[kept] for i in index)], moments, pool)
    if real is measured:
        return _add(real, reader, kept, added), aims
    ratio = (_sizes(real, reader) / np.maximum(_sizes(measured, reader), TINY)).reshape(reader.slot.split, -1)
    block = reader.layout[kept, 0] // (reader.layout.size // reader.slot.split)
    own = added * ratio[block].reshape(len(kept), 1, -1, *[1] * (added.ndim - 3))
    _add(measured, reader, kept, added)
    return _add(real, reader, kept, own), aims


def _correction(columns: Array, moments: Sequence[PatchMoments], pool: Executor) -> tuple[Array, Sizes | None]:
    """(k, q, outputs of a block, *taps) w′ − w for such columns of weights; and what they aim at."""
    found, aims = np.zeros_like(columns), list[Sizes]()
    for m in moments:
        part = columns[m.own]
        k, q, outputs = part.shape[:3]
        weights = part.reshape(k * q, outputs, -1).transpose(2, 0, 1).reshape(-1, outputs)  # in the order of patches
        new, aim = _solved(m, weights, pool)
        change = (new - weights).reshape(-1, k * q, outputs).transpose(1, 2, 0)
        found[m.own] = change.reshape(part.shape)
        aims += [] if aim is None else [sizes(aim)]
    means, deviations = zip(*aims, strict=True) if aims else ((), ())
    return found, (np.concatenate(means), np.concatenate(deviations)) if aims else None


def _solved(m: PatchMoments, weights: Array, pool: Executor) -> tuple[Array, Array | None]:
    """(p, outputs) w′ from w, and what it aims at where some of that is cut off."""
    from scipy import linalg

    known = m.product + m.added[:, None] * weights
    solve = partial(linalg.cho_solve, (m.factor, True), check_finite=False)
    new = solve(known)
    return (new, None) if m.goal is None else m.goal.pursued(new, known, solve, pool)


def _add(weights: Weights, reader: Reader, kept: NDArray[np.int64], added: Array) -> Array:
    view, index = columns_of(weights, reader)
    own = added.astype(view.dtype)
    view[tuple(i[kept] for i in index)] += own
    return own


def _sizes(weights: Weights, reader: Reader) -> Array:
    """(outputs,) the norms of the weights that make them."""
    values = weights[reader.slot.tensor]
    return np.asarray(np.linalg.norm(values.reshape(len(values), -1), axis=1))
