"""How far a covariance of few samples can be trusted: what is added to its diagonal before it is inverted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .tensors import Array

FLOOR = 1e-5
"""Of the mean variance: the least that is added to each channel's, so that dead ones can be solved for."""
MOST = 1e12
"""Times the largest variance is the most that is added: what is added to is then as good as known."""
Moment = NDArray[np.floating]
Variances = NDArray[np.float64]


def shrunk(size: Moment, share: float, read: Moment | None = None) -> Variances:
    """(n,) what is added to a covariance's diagonal: a share of the variances `size`, a little for dead channels.

    `read` is the square of the weights that read each of them, see `faint`; all alike if it is not given.
    """
    size = np.maximum(size, 0)
    return np.asarray(share * size + faint(size, np.ones(len(size)) if read is None else read, FLOOR))


def faint(size: Moment, read: Moment, share: float) -> Variances:
    """(n,) the variances that are a `share` of the mean one in what readers make: channels have no units of their own.

    A channel that is multiplied by a, and read by weights divided by a, is the same channel. Weight decay leaves
    weights of 1e-38, whose squares would be divided by: what is read by such has `MOST` of the largest variance.
    """
    made = np.asarray(size, np.float64) * read
    least = share * (np.mean(size, dtype=np.float64) or 1)
    most = MOST * max(float(np.max(size, initial=0)), least)
    own = np.minimum(share * made.mean() / np.where(read > 0, read, 1), most)
    return np.where(made.any() & (read > 0), own, least)


def oas(square: Moment, count: float) -> float:
    """ρ / (1 − ρ), with ρ the oracle-approximating shrinkage of the correlations towards none (Chen et al., eq. 23).

    Of an (n, n) covariance of `count` samples.
    """
    deviation = _deviations(square.diagonal())
    return _odds(float(np.square(square / np.outer(deviation, deviation)).sum()), len(square), count)


def oas_of_samples(samples: Array, worth: float) -> float:
    """The same of the covariance of (m, n) centred samples, m < n, worth so many."""
    count, n = samples.shape
    alike = samples / _deviations(np.einsum("mn,mn->n", samples, samples) / count).astype(samples.dtype)
    return _odds(float(np.square(alike @ alike.T / count).sum()), n, worth)


def _deviations(size: Moment) -> Moment:
    """(n,) square roots of variances; a dead channel gets one with which it correlates with none."""
    return np.sqrt(np.where(size > 0, size, 1))


def _odds(trace: float, p: int, count: float) -> float:
    """Equation 23, for p variables whose correlations have this sum of squares, over `count` samples."""
    if p == 1:
        return 0.0  # it correlates with none, and roundings are all that would be left of the equation
    rho = ((1 - 2 / p) * trace + p * p) / ((count + 1 - 2 / p) * max(trace - p, 1e-12))
    return rho / (1 - rho) if rho < 0.999 else 1e3
