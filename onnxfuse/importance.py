"""Importance metrics: a score for each channel of a group, from the paper's §3 and its code.

A metric sees, for each slot that holds weights, the (n, d) rows of its n channels. The group's score is the
unweighted mean over slots, divided by its own mean. Biases and other shifts do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Scores = NDArray[np.float64]
Metric = Callable[[Sequence[Array], np.random.Generator], Scores]


def _power(p: int) -> Metric:
    def metric(rows: Sequence[Array], rng: np.random.Generator) -> Scores:
        """Σ|w|^p over each channel's weights, without the root; mean over slots."""
        total = np.zeros(len(rows[0]))
        for row in rows:
            if p == 1:
                total += np.abs(row).sum(axis=1, dtype=np.float64)
            else:
                total += np.einsum("nd,nd->n", row, row, dtype=np.float64)
        return total / len(rows)

    return metric


def lamp(rows: Sequence[Array], rng: np.random.Generator) -> Scores:
    """LAMP (Lee et al., ICLR 2021): the squared magnitude over the sum of those not smaller."""
    score = _power(2)(rows, rng)
    order = np.argsort(score, kind="stable")
    tail = np.cumsum(score[order][::-1])[::-1]
    result = np.empty_like(score)
    result[order] = np.divide(score[order], tail, out=np.zeros_like(tail), where=tail > 0)
    return result


def random(rows: Sequence[Array], rng: np.random.Generator) -> Scores:
    """Uniform random scores: the baseline every metric must beat."""
    return rng.random(len(rows[0]))


METRICS: Mapping[str, Metric] = {"l1": _power(1), "l2": _power(2), "lamp": lamp, "random": random}


def importance(name: str, rows: Sequence[Array], rng: np.random.Generator) -> Scores:
    """(n,) scores with mean 1 (all zero if every channel is dead).

    Args:
        name: a key of `METRICS`.
        rows: for each slot that holds weights, the (n, d) values of the n channels.
        rng: for metrics that draw numbers.
    """
    scores = METRICS[name](rows, rng)
    mean = scores.mean()
    return scores / mean if mean > 0 else scores
