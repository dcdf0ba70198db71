"""Transport plans and clusters. NumPy, SciPy and POT only: nothing here knows of ONNX."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from .components import components
from .groundcost import Matrix, ground_cost
from .lazy import network_simplex
from .nearplan import near_plan
from .sparse import from_entries, rows_of

EXACT = 1 << 18
"""Sources × targets up to which the plan is exact, so up to 1,024 channels whatever goes of them; above it is the best
one over near pairs, see `nearplan`: at twice as many its cost was 0.03% above the optimum, in a third of the time."""


def normalized(rows: NDArray[np.floating], out: NDArray[np.floating] | None = None) -> NDArray[np.floating]:
    """Each row divided by its L2 norm, in `out` if given; a row of zeros (a dead channel) stays zero."""
    size = np.maximum(rows.max(axis=1, initial=0), -rows.min(axis=1, initial=0))  # first, so that no square overflows
    result = np.divide(rows, np.where(size == 0, 1, size)[:, None], out=out)
    norm = np.sqrt(np.einsum("nd,nd->n", result, result))[:, None]
    result /= np.where(norm == 0, 1, norm)
    return np.asarray(result)


def solve(cost: Matrix, sources: Matrix, targets: Matrix) -> Matrix:
    """(s, t) optimal transport plan between the masses (s,) and (t,), by POT's exact network simplex.

    Raises:
        RuntimeError: POT did not reach the optimum.
    """
    simplex = network_simplex()
    targets = targets * (sources.sum() / targets.sum())
    targets = targets * sources.sum() / targets.sum()  # again: what rounding leaves would be a flow of its own
    plan, *_, state = simplex.emd_c(sources, targets, np.ascontiguousarray(cost), 10_000_000, 1)
    if warning := simplex.check_result(state):
        raise RuntimeError(f"transport plan not optimal: {warning}")
    return np.asarray(plan)


def kept_plan(features: NDArray[np.floating], kept: NDArray[np.int64], p: int = 1) -> csr_array:
    """(n, m) optimal plan from all n rows, uniform mass 1/n, to the m `kept` of them, uniform mass 1/m.

    A kept row gives all its mass to itself: the cost is a metric and that move is free, so by the triangle
    inequality some optimum does so. Only the n−m others are solved for, against what capacity is left.
    """
    n, m = len(features), len(kept)
    gone = np.delete(np.arange(n), kept)
    mass, rows, columns = np.full(m, 1 / n), kept, np.arange(m)
    if len(gone):
        masses = np.full(len(gone), 1 / n), np.full(m, 1 / m - 1 / n)
        flow, source, target = _flow(features[gone], features[kept], *masses, p)
        mass, rows, columns = np.append(mass, flow), np.append(rows, gone[source]), np.append(columns, target)
    return from_entries(mass, rows, columns, (n, m))


def full_plan(
    features: NDArray[np.floating], targets: NDArray[np.floating], source_mass: Matrix, target_mass: Matrix, p: int = 1
) -> csr_array:
    """(n, m) optimal plan between any masses; each side is normalised to 1."""
    a, b = source_mass / source_mass.sum(), target_mass / target_mass.sum()
    return from_entries(*_flow(features, targets, a, b, p), (len(a), len(b)))


def _flow(
    sources: NDArray[np.floating], targets: NDArray[np.floating], a: Matrix, b: Matrix, p: int
) -> tuple[Matrix, NDArray[np.int64], NDArray[np.int64]]:
    """The plan between these masses, exact, or over near pairs if there are too many: (entries,) what goes, from where,
    and where to."""
    if len(sources) * len(targets) > EXACT:
        plan = near_plan(sources, targets, a, b, p).plan
        return plan.data, rows_of(plan), plan.indices
    dense = solve(ground_cost(sources, targets, p), a, b)
    row, column = np.nonzero(dense)
    return dense[row, column], row, column


def clusters(rows: NDArray[np.floating], m: int, rounds: int = 20) -> NDArray[np.int64]:
    """(n,) cluster number of each of (n, d) rows: k-means with k = m, started from Ward's hierarchy.

    Ward joins exact duplicates first, and needs no random start, so the result is the same on every run. Centres
    are means of rows, so all distances come from the (n, n) Gram matrix, whatever d is.
    """
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    n = len(rows)
    if m >= n:
        return np.arange(n)
    rows = rows / (np.abs(rows).max(initial=0) or 1)  # so that no square overflows
    gram = rows @ rows.T
    size = gram.diagonal()
    distance = np.sqrt(np.maximum(size[:, None] + size - 2 * gram, 0))
    np.fill_diagonal(distance, 0)
    labels = _cut(linkage(squareform(distance, checks=False), "ward"), m)
    for _ in range(rounds):
        new = _nearest(gram, labels, m)
        if len(np.unique(new)) < m or np.array_equal(new, labels):
            break
        labels = new
    return np.asarray(labels, dtype=np.int64)


def _cut(joins: NDArray[np.float64], m: int) -> NDArray[np.int64]:
    """(n,) cluster number of each leaf of a hierarchy of n − 1 joins, as SciPy's `linkage` returns it, cut into m."""
    n = len(joins) + 1
    pairs = joins[: n - m, :2].astype(np.int64)
    made = np.repeat(np.arange(n, 2 * n - m), 2)
    labels = components(pairs.reshape(-1), made, 2 * n - m)
    return np.unique(labels[:n], return_inverse=True)[1]


def _nearest(gram: NDArray[np.floating], labels: NDArray[np.int64], m: int) -> NDArray[np.int64]:
    """(n,) the nearest of the m cluster means: |x − c|² = x·x − 2 x·c + c·c, where x·x is the same for all c."""
    share = (1 / np.bincount(labels, minlength=m))[labels]
    mean = csr_array((share, (labels, np.arange(len(labels)))), shape=(m, len(labels))).astype(gram.dtype)
    dot = mean @ gram
    square = np.asarray((mean * dot).sum(axis=1)).reshape(-1, 1)
    return np.asarray((square - 2 * dot).argmin(axis=0))
