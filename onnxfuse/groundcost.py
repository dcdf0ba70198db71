"""How far apart channels are: the ground cost of transport."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .schedule import WORKERS

Matrix = NDArray[np.float64]
Ids = NDArray[np.int64]
BLOCK = 1 << 15
"""Elements of targets that a pass works on, and `BATCH` sources at a time: together they fit a core's L2 cache, and
one NumPy call is long against the cost of the call and of taking turns with another thread."""
BATCH = 8
FEW = 1 << 20
"""Numbers to compare up to which one pass in memory takes less than what prepares the blocks."""
LONG_LOOP = 4096
"""NumPy broadcasts a row against a matrix a third faster when the row is longer than this."""


def ground_cost(sources: NDArray[np.floating], targets: NDArray[np.floating], p: int = 1) -> Matrix:
    """(s, t) distances Lp between the rows of (s, d) `sources` and (t, d) `targets`.

    The paper's ground cost is L1 on normalised features (§3, step 5 of the code). L2 goes through one matrix
    product. L1 uses |a − b| = 2·max(a, b) − a − b, so that each pair costs one elementwise pass and a sum.
    """
    if p == 2:
        square = (sources**2).sum(1)[:, None] + (targets**2).sum(1)[None] - 2 * (sources @ targets.T)
        return np.asarray(np.sqrt(np.maximum(square, 0)), np.float64)
    if p != 1:
        raise UsageError(f"cost norm {p} is not known; choose 1 or 2")
    if not sources.shape[1]:
        return np.zeros((len(sources), len(targets)))
    larger = np.empty((len(sources), len(targets)), np.float64)
    if larger.size * sources.shape[1] <= FEW:
        pairs = np.maximum(sources[:, None], targets).reshape(-1, sources.shape[1])
        larger[:] = np.einsum("rd->r", pairs).reshape(larger.shape)
    else:
        _in_blocks(sources, targets, larger)
    larger *= 2
    larger -= np.einsum("sd->s", sources)[:, None] + np.einsum("td->t", targets)
    return np.maximum(larger, 0, out=larger)


def _in_blocks(sources: NDArray[np.floating], targets: NDArray[np.floating], larger: Matrix) -> None:
    """larger[i, j] = Σ_d max(sources[i, d], targets[j, d]), by several threads if that is long."""
    repeats = LONG_LOOP // sources.shape[1] + 1
    copies = np.concatenate([sources] * repeats, axis=1) if repeats > 1 else sources
    parts = WORKERS if larger.size * sources.shape[1] > BLOCK * BATCH else 1
    cuts = [len(sources) * i // parts for i in range(parts + 1)]
    if parts == 1:  # a pool's start takes longer
        _sum_of_larger(copies, targets, range(len(sources)), larger)
    else:
        with ThreadPoolExecutor(parts) as pool:
            list(pool.map(lambda rows: _sum_of_larger(copies, targets, rows, larger), map(range, cuts, cuts[1:])))


def _sum_of_larger(copies: NDArray[np.floating], targets: NDArray[np.floating], rows: range, result: Matrix) -> None:
    """result[i, j] = Σ_d max(sources[i, d], targets[j, d]) for the given rows i, blocked to stay in cache.

    `copies` has several copies of each source side by side, against as many targets laid end to end, so that
    NumPy's inner loop is long.
    """
    width, d = copies.shape[1], targets.shape[1]
    lines = max(1, BLOCK // width)
    step = lines * (width // d)
    buffer = np.empty((BATCH, lines, width), copies.dtype)
    for start in range(0, len(targets), step):
        block, n = _end_to_end(targets[start : start + step], width // d), min(step, len(targets) - start)
        for i in range(rows.start, rows.stop, BATCH):
            batch = copies[i : min(i + BATCH, rows.stop)]
            larger = np.maximum(block[None], batch[:, None], out=buffer[: len(batch), : len(block)])
            sums = np.einsum("rd->r", larger.reshape(-1, d)).reshape(len(batch), -1)
            result[i : i + len(batch), start : start + n] = sums[:, :n]


def _end_to_end(targets: NDArray[np.floating], repeats: int) -> NDArray[np.floating]:
    """(t, d) → (⌈t / repeats⌉, repeats · d), the last row filled up with zeros."""
    missing = -len(targets) % repeats
    padded = np.concatenate([targets, np.zeros((missing, targets.shape[1]), targets.dtype)]) if missing else targets
    return padded.reshape(-1, repeats * targets.shape[1])


def pair_costs(
    sources: NDArray[np.floating], targets: NDArray[np.floating], i: Ids, j: Ids, p: int
) -> NDArray[np.float64]:
    """(n,) distances Lp, p of 1 or 2, between the rows `i` (n,) of `sources` and `j` (n,) of `targets`."""
    step = max(1, BLOCK * BATCH // max(1, sources.shape[1]))

    def of_block(n: int) -> NDArray[np.floating]:
        apart = sources[i[n : n + step]]
        apart -= targets[j[n : n + step]]
        if p == 2:
            return np.asarray(np.sqrt(np.einsum("nd,nd->n", apart, apart)))
        return np.asarray(np.einsum("nd->n", np.abs(apart, out=apart)))

    with ThreadPoolExecutor(WORKERS) as pool:
        return np.concatenate([np.zeros(0), *pool.map(of_block, range(0, len(i), step))])
