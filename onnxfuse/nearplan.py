"""Transport between many channels, where the exact solver takes too long and all L1 distances take longer still.

Only pairs that are near by L2, which one matrix product finds, get their true cost and may carry mass: the k nearest
targets of each source, the k nearest sources of each target, and one feasible plan. POT's network simplex is exact over
these pairs. Its dual potentials u, v bound what the pairs left out could gain: with u′ᵢ = minⱼ cᵢⱼ − vⱼ over *all* j
they are feasible for the whole problem, so the plan is at most Σ aᵢ(uᵢ − u′ᵢ) above the optimum. u′ is computed for a
sample of sources, the sum estimated from it, and k doubled until the estimate is small.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

log = logging.getLogger("onnxfuse")
Real = NDArray[np.floating]
Ids = NDArray[np.int64]
NEIGHBOURS, MOST = 16, 128
"""k to begin with, and at most."""
SAMPLE = 64
"""Sources for which the bound is computed."""
GAP = 1e-3
"""Relative distance from the optimum that is near enough."""
ROWS = 256
"""Sources handled at a time, to keep memory small."""


@dataclass(frozen=True, eq=False)
class Near:
    """A transport plan and how good it is.

    Attributes:
        plan: (s, t).
        cost: Σ plan × ground cost.
        gap: estimate of how far the cost lies above the optimum at most, relative to it.
        neighbours: the k that was used.
    """

    plan: csr_array
    cost: float
    gap: float
    neighbours: int


def near_plan(
    sources: Real, targets: Real, a: NDArray[np.float64], b: NDArray[np.float64], p: int, sample: int = SAMPLE
) -> Near:
    """The best plan over near pairs of (s, d) `sources` of masses (s,) `a` and (t, d) `targets` of masses (t,) `b`.

    Args:
        sources, targets: features, rows of length 1.
        a, b: positive masses; `b` is scaled to the sum of `a`.
        p: exponent of the Lp ground cost, 1 or 2.
        sample: how many sources the bound is computed for; with all of them it is a bound and no estimate.

    Raises:
        RuntimeError: POT did not reach the optimum.
    """
    b, k = b * (a.sum() / b.sum()), NEIGHBOURS
    chosen = np.sort(np.random.default_rng(0).permutation(len(sources))[:sample])
    full = np.stack([_distances(sources[i], targets, p) for i in chosen])
    while True:
        pairs = _pairs(sources, targets, a, b, k)
        cost = _pair_costs(sources, targets, pairs, p)
        plan, total, u, v = _solve(pairs, cost, a, b)
        short = np.maximum(u[chosen] - (full - v).min(axis=1), 0)
        gap = float(short @ a[chosen]) * len(a) / len(chosen) / (total or 1)
        log.debug(
            "transport %d × %d over %d near pairs: within %.2g%% of the optimum", len(a), len(b), len(cost), 100 * gap
        )
        if gap <= GAP or k >= MOST:
            return Near(plan, total, gap, k)
        k *= 2


def _distances(x: Real, rows: Real, p: int) -> NDArray[np.float64]:
    """(r,) Lp distances of (d,) x from (r, d) rows."""
    if p == 2:
        return np.asarray(np.linalg.norm(rows - x, axis=1), np.float64)
    parts = [np.abs(rows[i : i + ROWS] - x).sum(axis=1, dtype=np.float64) for i in range(0, len(rows), ROWS)]
    return np.concatenate(parts)


def _pairs(sources: Real, targets: Real, a: NDArray[np.float64], b: NDArray[np.float64], k: int) -> coo_array:
    """The (source, target) pairs that may carry mass, each once."""
    dot = sources @ targets.T  # rows have length 1, so the largest product is the smallest distance
    rows, columns = (_largest(matrix, min(k, matrix.shape[1])) for matrix in (dot, dot.T))
    i = [np.repeat(np.arange(len(a)), rows.shape[1]), columns.ravel()]
    j = [rows.ravel(), np.repeat(np.arange(len(b)), columns.shape[1])]
    x, y = _feasible(sources, targets, a, b)
    code = np.unique(np.concatenate([*i, x]) * len(b) + np.concatenate([*j, y]))
    return coo_array((np.ones(len(code)), np.divmod(code, len(b))), shape=(len(a), len(b)))


def _largest(matrix: Real, k: int) -> Ids:
    """(n, k) the columns of the k largest elements of each row."""
    parts = [np.argpartition(-matrix[i : i + ROWS], k - 1, axis=1)[:, :k] for i in range(0, len(matrix), ROWS)]
    return np.concatenate(parts)


def _feasible(sources: Real, targets: Real, a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[Ids, Ids]:
    """The pairs of one plan that moves all mass: both sides in order along a line, filled from its beginning."""
    line = targets.sum(axis=0)
    s, t = np.argsort(sources @ line, kind="stable"), np.argsort(targets @ line, kind="stable")
    ends = np.cumsum(a[s]), np.cumsum(b[t])
    cuts = np.sort(np.concatenate([[0], *ends]))
    middle = (cuts[:-1] + cuts[1:]) / 2
    x, y = (np.minimum(np.searchsorted(e, middle), len(e) - 1) for e in ends)
    near = [(np.minimum(x + d, len(s) - 1), y) for d in (0, 1)]  # cuts that should coincide may differ by rounding
    return s[np.concatenate([i for i, _ in near])], t[np.concatenate([j for _, j in near])]


def _pair_costs(sources: Real, targets: Real, pairs: coo_array, p: int) -> NDArray[np.float64]:
    costs = [np.linalg.norm(sources[i] - targets[j], ord=p, axis=1) for i, j in _in_blocks(pairs.row, pairs.col)]
    return np.concatenate(costs).astype(np.float64)


def _in_blocks(i: Ids, j: Ids) -> list[tuple[Ids, Ids]]:
    return [(i[n : n + ROWS], j[n : n + ROWS]) for n in range(0, len(i), ROWS)]


def _solve(
    pairs: coo_array, cost: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]
) -> tuple[csr_array, float, NDArray[np.float64], NDArray[np.float64]]:
    import ot  # here, because its import takes longer than all the others together

    costs = coo_array((cost, (pairs.row, pairs.col)), shape=pairs.shape)
    plan, found = ot.emd(a, b, costs, numItermax=100_000_000, log=True, center_dual=False)
    if found["warning"]:
        raise RuntimeError(f"transport plan not optimal: {found['warning']}")
    return csr_array(plan), float(found["cost"]), np.asarray(found["u"]), np.asarray(found["v"])
