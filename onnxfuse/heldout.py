"""Which of the user's samples results are fitted to, and which are held out, for results to be compared on.

On what it was fitted to a result looks better than it is: EfficientNet-Lite0 without 20% of its channels has the same
class on top as the original for all of the photos it was fitted to, and for 72% of others. A copy is no other sample:
of those that are the same one is taken, before any are held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .tensors import Array

SHARE, FEW = 16, 8
"""One of so many samples is held out, where there are no more than can be fitted to; of few samples one of so many."""
LEAST, MOST = 8, 32
"""As many samples are held out at least, if that is not more than of few, and at most; or one run of the model."""
Positions = NDArray[np.int64]
Feeds = dict[str, Array]


def parted(units: int, each: int, fitted: int, stretch: int) -> tuple[Positions, Positions]:
    """Positions of what is fitted to, and of what is held out.

    Args:
        units: how many there are: samples, or runs of a model that fixes its batch size.
        each: samples of a unit.
        fitted: units to fit to, at most.
        stretch: units that follow each other and stay together, if these are steps of one sequence; else 1.
    """
    few, most = min(units // FEW, -(-LEAST // each)), stretch if stretch > 1 else max(MOST // each, 1)
    count = min(max(units // SHARE, few), most)
    if stretch > 1:  # its end: what is cut out of the middle leaves two sequences
        held = np.arange(units - count, units)
    else:
        held = ((np.arange(count) + 0.5) * units / max(count, 1)).astype(np.int64)
    others = np.setdiff1d(np.arange(units), held)
    return others[evenly(len(others), fitted, stretch)], held


def distinct(units: Sequence[Array]) -> Positions:
    """Positions of those of n units that are no copies of an earlier one, over all (n, …) arrays together."""
    first: dict[bytes, int] = {}
    for n in range(len(units[0])):
        bits = hashlib.sha1(usedforsecurity=False)
        for array in units:
            bits.update(np.ascontiguousarray(array[n]).tobytes())
        first.setdefault(bits.digest(), n)
    return np.array(list(first.values()), np.int64)


def evenly(n: int, most: int, steps: int = 1) -> Array:
    """Positions of all n samples, or of `most` of them: stretches of `steps` that follow each other, evenly spaced."""
    if n <= most:
        return np.arange(n)
    starts = np.linspace(0, n - steps, max(most // steps, 1)).round().astype(np.int64)
    return np.asarray((starts[:, None] + np.arange(steps)).ravel())


def samples_in(feeds: Mapping[str, Array]) -> int:
    """How many samples the input arrays of one run hold."""
    return max((len(v) for v in feeds.values() if v.ndim), default=1)


def a_few(batches: Sequence[Feeds], most: int) -> list[Feeds]:
    """Runs of so many samples at most, but one at least, evenly spaced."""
    return [batches[i] for i in evenly(len(batches), max(most // samples_in(batches[0]), 1))]
