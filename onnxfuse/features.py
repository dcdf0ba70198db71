"""What a channel's activations in one sample say of its importance. NumPy only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Maps = NDArray[np.float64]
Feature = Callable[[Maps], Maps]
"""(n, places) what n channels carry in one sample → (n,) scores."""
CHUNK = 64
"""Channels whose eigenvalues are found at a time."""


def energy(x: Maps) -> Maps:
    """Mean square of the activations."""
    return np.asarray((x**2).mean(axis=1))


def chip(x: Maps) -> Maps:
    """CHIP (Sui et al., NeurIPS 2021): the feature map's nuclear norm, less the same with the channel zeroed.

    It is the sum of the square roots of the eigenvalues of x xᵀ or xᵀ x, whichever is smaller.
    """
    n, d = x.shape
    whole = _nuclear(x @ x.T if n <= d else x.T @ x)
    scores = []
    for start in range(0, n, CHUNK):
        rows = np.arange(start, min(start + CHUNK, n))
        if n <= d:
            gram = np.repeat((x @ x.T)[None], len(rows), axis=0)
            gram[np.arange(len(rows)), rows, :] = 0
            gram[np.arange(len(rows)), :, rows] = 0
        else:
            gram = (x.T @ x)[None] - x[rows, :, None] * x[rows, None, :]
        scores.append(whole - _nuclear(gram))
    return np.maximum(np.concatenate(scores), 0)  # below 0 by rounding only


def _nuclear(gram: Maps) -> Maps:
    return np.asarray(np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0)).sum(axis=-1))
