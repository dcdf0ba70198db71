"""Small sparse matrices, made without the checks and conversions that take longer than what is done with them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Ids = NDArray[np.int64]


def rows_of(matrix: csr_array) -> Ids:
    """(entries,) the row of each entry, in the order of `matrix.data`."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def from_entries(values: NDArray[np.floating], row: Ids, column: Ids, shape: tuple[int, int]) -> csr_array:
    """The matrix with these (entries,) `values`, all at different places, which may come in any order."""
    order = np.lexsort((column, row))
    ends = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=shape[0]))])
    return csr_array((values[order], column[order], ends), shape=shape)


def selection(kept: Ids, n: int) -> csr_array:
    """(k, n) ones where row i takes the channel `kept[i]`."""
    k = len(kept)
    return csr_array((np.ones(k), kept, np.arange(k + 1)), shape=(k, n))


def turned(matrix: csr_array) -> csr_array:
    """The transpose."""
    return from_entries(matrix.data, matrix.indices, rows_of(matrix), (matrix.shape[1], matrix.shape[0]))
