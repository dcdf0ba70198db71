"""How many independent samples the places of images, or the steps of sounds, are worth.

What a reader sees at the places of one sample is alike. If a share ρ of a channel's variance lies between samples, the
mean over `count` places of m samples varies as much as that over

    1 / ((1 − ρ) / count + ρ / m)

independent ones would (the design effect of samples in clusters: Kish, Survey Sampling, 1965, section 5.4). As many
are counted where a ridge is chosen on real samples: the 49 places of a deep layer's images are worth three or four.
Of other synthetic samples it is not their number that limits what they tell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .readers import Reader
from .tensors import Array
from .trust import Source
from .walk import Chunks

TINY = 1e-12
"""Variance, as a share of the mean square, below which a channel says nothing of it."""


@dataclass(frozen=True)
class Likeness:
    """Of what one reader sees.

    Attributes:
        samples: how many there are.
        share: ρ, 0 to 1, the mean over its channels.
    """

    samples: int
    share: float

    def worth(self, count: int) -> float:
        """How many independent samples `count` places are worth: of all samples, or of as many if these are fewer."""
        return 1 / ((1 - self.share) / count + self.share / min(self.samples, count))


def likeness(reader: Reader, chunks: Chunks, source: Source) -> Likeness:
    """Of what a reader sees in every batch, samples along the first axis; none if that is the channels' own."""
    samples, axis = sum(map(len, chunks)), reader.axis % chunks[0].ndim
    if not source.value.real or not axis:
        return Likeness(samples, 0)
    sums = [_of_samples(chunk, axis) for chunk in chunks]
    means, squares = (np.concatenate(part)[:, reader.layout].mean(axis=2) for part in zip(*sums, strict=True))
    varies = squares.mean(axis=0) - np.square(means.mean(axis=0))
    alive, places = (
        varies > TINY * squares.mean(axis=0),
        chunks[0].size // len(chunks[0]) // chunks[0].shape[axis] * reader.layout.shape[1],
    )
    if places == 1 or not alive.any():
        return Likeness(samples, 1)
    between = float((means.var(axis=0)[alive] / varies[alive]).mean())  # of a mean over places that are not alike 1/n
    return Likeness(samples, min(max((places * between - 1) / (places - 1), 0), 1))


def _of_samples(chunk: Array, axis: int) -> tuple[Array, Array]:
    """(samples, d) mean and mean square over the places of each sample."""
    inner = math.prod(chunk.shape[axis + 1 :])
    values = np.asarray(chunk, np.result_type(chunk, np.float32)).reshape(len(chunk), -1, chunk.shape[axis], inner)
    total = values.shape[1] * inner
    squares = np.einsum("spdq,spdq->sd", values, values)
    return values.mean(axis=(1, 3), dtype=np.float64), squares.astype(np.float64) / total
