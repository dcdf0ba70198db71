"""How far a covariance of few samples can be trusted: what is added to its diagonal before it is inverted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FLOOR = 1e-5
"""Of the mean variance: the least that is added to each channel's, so that dead ones can be solved for."""
Moment = NDArray[np.floating]
Variances = NDArray[np.float64]


def ridge(square: Moment, count: int, least: float) -> Variances:
    """(n,) what is added to the diagonal of a covariance of `count` samples before it is inverted."""
    return shrunk(square, max(least, oas(square, count)))


def shrunk(square: Moment, share: float) -> Variances:
    """(n,) a share of the variances, and a little for dead channels."""
    size = np.maximum(square.diagonal(), 0)
    return np.asarray(share * size + FLOOR * (size.mean() or 1))


def oas(square: Moment, count: int) -> float:
    """ρ / (1 − ρ), with ρ the oracle-approximating shrinkage of the correlations towards none (Chen et al., eq. 23)."""
    p = len(square)
    size = square.diagonal()
    deviation = np.sqrt(np.maximum(size, FLOOR * (size.mean() or 1)))  # a dead channel correlates with none
    trace = float(np.square(square / np.outer(deviation, deviation)).sum())
    rho = ((1 - 2 / p) * trace + p * p) / ((count + 1 - 2 / p) * max(trace - p, 1e-12))
    return rho / (1 - rho) if rho < 0.999 else 1e3
