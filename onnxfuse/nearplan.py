"""Transport between many channels, where the exact solver takes too long and all L1 distances take longer still.

Only pairs that are near get their true cost and may carry mass: at first the k nearest targets of each source and the k
nearest sources of each target by L2, which one matrix product finds, and one feasible plan. POT's network simplex is
exact over these pairs. Its dual potentials u, v bound what the pairs left out could gain: with u′ᵢ = minⱼ cᵢⱼ − vⱼ over
*all* j they are feasible for the whole problem, so the plan is at most Σ aᵢ(uᵢ − u′ᵢ) above the optimum. u′ is computed
for a sample of sources and the sum estimated from it. While it is large, the pairs of least cᵢⱼ − vⱼ join, where c is
guessed from L2 until it is computed: column generation.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from .groundcost import ground_cost, pair_costs
from .lazy import network_simplex
from .sparse import from_entries

log = logging.getLogger("onnxfuse")
Real = NDArray[np.floating]
Ids = NDArray[np.int64]
NEIGHBOURS, ROUNDS = 16, 25
"""k, and how often pairs may join."""
JOINING = 6
"""Pairs that join in a round, for each source and for each target."""
SKETCH = 4096
"""Features from which distances are guessed."""
SAMPLE = 64
"""Sources for which the bound is computed."""
GAP = 5e-3
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
        pairs: how many pairs it was chosen from.
    """

    plan: csr_array
    cost: float
    gap: float
    pairs: int


def near_plan(
    sources: Real, targets: Real, a: NDArray[np.float64], b: NDArray[np.float64], p: int, sample: int = SAMPLE
) -> Near:
    """The best plan over near pairs of (s, d) `sources` of masses (s,) `a` and (t, d) `targets` of masses (t,) `b`.

    Args:
        sources, targets: features.
        a, b: positive masses; `b` is scaled to the sum of `a`.
        p: exponent of the Lp ground cost, 1 or 2.
        sample: how many sources the bound is computed for; with all of them it is a bound and no estimate.

    Raises:
        RuntimeError: POT did not reach the optimum.
    """
    b = b * (a.sum() / b.sum())
    chosen = np.sort(np.random.default_rng(0).permutation(len(sources))[:sample])
    true, guess = ground_cost(sources[chosen], targets, p), _euclidean(*_sketched(sources, targets))
    guess *= np.float32(true.sum() / (guess[chosen].sum(dtype=np.float64) or 1))
    codes, costs = np.zeros(0, np.int64), np.zeros(0)
    x, y = _feasible(sources, targets, a, b)
    joining = np.concatenate([x * len(b) + y, _pairs(guess, 0 * a, 0 * b, NEIGHBOURS)])
    for _ in range(ROUNDS):
        new = np.setdiff1d(joining, codes)
        codes = np.concatenate([codes, new])
        costs = np.concatenate([costs, pair_costs(sources, targets, *np.divmod(new, len(b)), p)])
        guess.reshape(-1)[codes] = costs
        plan, total, u, v = _solve(codes, costs, a, b)
        short = np.maximum(u[chosen] - (true - v).min(axis=1), 0)
        gap = float(short @ a[chosen]) * len(a) / len(chosen) / (total or 1)
        log.debug(
            "transport %d × %d, %d near pairs: within %.2g%% of the optimum", len(a), len(b), len(codes), 100 * gap
        )
        if gap <= GAP or not len(new):
            break
        joining = _pairs(guess, u, v, JOINING)
    return Near(plan, total, gap, len(codes))


def _sketched(*sides: Real) -> list[Real]:
    """The same (n, d) rows with at most `SKETCH` features, which keeps distances to about √(1 / 2 SKETCH).

    Features of random sign are summed (Charikar, Chen, Farach-Colton, "Finding frequent items in data streams", 2002).
    """
    d = sides[0].shape[1]
    if d <= 3 * SKETCH:
        return list(sides)
    signs = np.random.default_rng(1).choice(np.array([-1, 1], sides[0].dtype), d)
    made = [np.zeros((len(side), SKETCH), side.dtype) for side in sides]
    for start in range(0, d, SKETCH):
        part = slice(start, min(start + SKETCH, d))
        for side, small in zip(sides, made, strict=True):
            small[:, : part.stop - start] += side[:, part] * signs[part]
    return list(made)


def _euclidean(sources: Real, targets: Real) -> NDArray[np.float32]:
    """(s, t) L2 distances."""
    matrix = np.asarray(sources @ targets.T, np.float32)
    matrix *= -2
    matrix += np.einsum("nd,nd->n", sources, sources)[:, None]
    matrix += np.einsum("nd,nd->n", targets, targets)
    return np.asarray(np.sqrt(np.maximum(matrix, 0, out=matrix), out=matrix))


def _pairs(guess: Real, u: Real, v: Real, k: int) -> Ids:
    """Codes i·t + j of the k pairs of least reduced cost of each source, and of each target."""
    sources, targets = np.arange(len(u)), np.arange(len(v))
    rows, columns = _smallest(guess, v.astype(guess.dtype), k), _smallest(guess.T, u.astype(guess.dtype), k)
    return np.concatenate([(sources[:, None] * len(v) + rows).ravel(), (columns * len(v) + targets[:, None]).ravel()])


def _smallest(matrix: Real, potential: Real, k: int) -> Ids:
    """(n, k) the columns of the k smallest elements of each row, less `potential`."""
    k, blocks = min(k, matrix.shape[1]), (matrix[i : i + ROWS] - potential for i in range(0, len(matrix), ROWS))
    return np.concatenate([np.argpartition(block, k - 1, axis=1)[:, :k] for block in blocks])


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


def _solve(
    codes: Ids, costs: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]
) -> tuple[csr_array, float, NDArray[np.float64], NDArray[np.float64]]:
    simplex, ends = network_simplex(), [side.astype(np.uint64) for side in np.divmod(codes, len(b))]
    b = b * a.sum() / b.sum()  # what rounding leaves would be a flow of its own
    rows, columns, flow, cost, u, v, state = simplex.emd_c_sparse(a, b, *ends, costs, 100_000_000)
    if warning := simplex.check_result(state):
        raise RuntimeError(f"transport plan not optimal: {warning}")
    plan = from_entries(flow, rows.astype(np.int64), columns.astype(np.int64), (len(a), len(b)))
    return plan, float(cost), np.asarray(u), np.asarray(v)
