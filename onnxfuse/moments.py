"""Moments of what readers see, and the mean and deviation of channels, from batches of activations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import Unsound
from .readers import Reader
from .tensors import Array
from .trust import Source
from .walk import Chunks

Moment = NDArray[np.floating[Any]]
ROWS, FEWEST = 8, 512
"""Samples of a moment for each of its variables, of so many at least: more of them are left out, at random."""
MANY, WORK = 32, 1 << 35
"""On the user's data, where places of one image are worth few: as many, as long as it is no more products."""
LARGEST = 1e16
"""Values whose squares, as many as are taken, still have a sum in single precision."""
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


def enough(variables: int, source: Source) -> int:
    """How many samples the moments of so many variables are taken from."""
    n = max(variables, FEWEST)
    return max(ROWS * n, min(MANY * n, WORK // n**2) if source.value.real else 0)


def rows(
    reader: Reader, chunks: Chunks, source: Source, kept: NDArray[np.int64] | slice = slice(None)
) -> Iterator[Array]:
    """(samples, n) what the reader sees in each batch, at as many places as are needed; or only the channels `kept`.

    Raises:
        Unsound: it is NaN, or so large that sums of its squares would be beyond all numbers.
    """
    wanted = enough(len(reader.layout), source) // len(chunks) + 1
    layout = reader.layout[kept]
    for chunk in chunks:
        flat = _sampled(chunk, reader.axis, wanted)
        if not max(flat.max(initial=0), -flat.min(initial=0)) < LARGEST:
            given = "the samples; scale them as in training"
            drawn = "synthetic samples; give your own with --calib"
            raise Unsound(f"{reader.value!r} overflows on {given if source is Source.DATA else drawn}")
        yield _sampled(flat[:, layout.T].reshape(-1, len(layout)), 1, wanted)


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


def blocks(
    reader: Reader, chunks: Chunks, source: Source, kept: NDArray[np.int64] | slice = slice(None)
) -> Iterator[Array]:
    """`rows`, joined until there are n samples at least: then a product of them is worth the (n, n) it is added to."""
    return joined(rows(reader, chunks, source, kept), len(reader.layout))


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


class Centred:
    """Samples of n channels around the mean of the first block of them, so that single precision suffices.

    Attributes:
        total: samples so far.
        origin: (n,) that mean; zero if samples are taken as they are.
        off: (n,) the sum of what is left.
    """

    def __init__(self, centred: bool) -> None:
        self.centred, self.total = centred, 0
        self.origin: Moment = np.zeros(1)
        self.off: Moment = np.zeros(1)

    def __call__(self, block: Array) -> Array:
        """A (samples, n) block of its own memory, which changes in place."""
        if not self.total:
            self.origin = block.mean(axis=0) if self.centred else np.zeros(block.shape[1])
        if self.centred:
            block -= self.origin
            self.off = self.off + block.sum(axis=0)
        self.total += len(block)
        return block

    def mean(self) -> Moment:
        """(n,) of all blocks; zero if they were not centred."""
        return np.asarray(self.origin + self.off / self.total)

    def product(self, total: Moment, other: Centred) -> Moment:
        """(n, m) sum of products of two versions of the samples, divided by their number and around their means."""
        total /= self.total
        if self.centred:
            total -= np.outer(self.off / self.total, other.off / self.total)
        return total


def measure(reader: Reader, chunks: Chunks, source: Source) -> Moments:
    """The moments of what a reader sees.

    Raises:
        Unsound: as `rows`.
    """
    x, square = Centred(bool(reader.bias)), np.zeros((1, 1), np.float32)
    for block in blocks(reader, chunks, source):
        block = x(block)
        square = square + block.T @ block
    return Moments(x.mean(), x.product(square, x), x.total)


def statistics(chunks: Chunks, axis: int = 1) -> tuple[Moment, Moment]:
    """(n,) mean and deviation over all batches of each channel on `axis`, of at most `PLACES` values and a few."""
    parts = [_sampled(c, axis, PLACES // len(chunks) + 1) for c in chunks]
    weight = np.array([len(p) for p in parts]) / sum(map(len, parts))
    with np.errstate(over="ignore", invalid="ignore"):  # `rows` looks
        means = np.stack([p.mean(axis=0) for p in parts]).astype(np.float64)
        variances = np.stack([p.var(axis=0) for p in parts]).astype(np.float64)
        mean = weight @ means
        return mean, np.sqrt(np.maximum(weight @ (variances + (means - mean) ** 2), 0))


def scaled_and_shifted(chunks: Chunks, scale: Array, shift: Array, axis: int = 1) -> Chunks:
    """Every batch with its channels on `axis` scaled and shifted."""
    shape = [1] * chunks[0].ndim
    shape[axis] = -1
    a, b = (v.reshape(shape).astype(chunks[0].dtype) for v in (scale, shift))
    made = [np.asarray(c * a) for c in chunks]
    for c in made:
        c += b
    return made
