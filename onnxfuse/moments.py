"""Moments of what readers see, and the mean and deviation of channels, from batches of activations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .readers import Reader
from .tensors import Array
from .walk import Chunks

Moment = NDArray[np.floating[Any]]
ROWS = 8
"""Samples of a moment for each of its channels (and `FEWEST` at least): more of them are left out, at random."""
FEWEST = 4096
PLACES = 8192
"""Values from which a channel's mean and deviation are taken, at most: these need fewer than a covariance does."""


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
    return joined(rows(reader, chunks), len(reader.layout))


def joined(parts: Iterable[Array], least: int) -> Iterator[Array]:
    """Arrays of at least so many rows, but for the last one."""
    held: list[Array] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= least:
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
