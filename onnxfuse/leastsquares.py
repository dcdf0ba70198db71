"""The least-squares map from what a reader sees in the small network to what it saw in the original one.

With x seen before and y now (centred covariances C), and the merge's own map E₀, to which λ pulls what samples do not
determine:

    E = E₀ + (C_xy − E₀ C_yy)(C_yy + λ diag C_yy)⁻¹ = (C_xy + λ E₀ diag C_yy)(C_yy + λ diag C_yy)⁻¹

λ is the oracle-approximating shrinkage of the correlations of y (OAS: Chen, Wiesel, Eldar and Hero, IEEE TSP 2010). Of
m samples, rows of X and Y, fewer than channels, with D = λ diag C_yy, the same is had by solving for samples (matrix
inversion lemma: Hager, SIAM Review 1989):

    E = E₀ + (X − Y E₀ᵀ)ᵀ (Y D⁻¹ Yᵀ / m + I)⁻¹ Y D⁻¹ / m
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array

from .likeness import Likeness
from .moments import Centred, Moment
from .schedule import in_halves
from .shrinkage import oas, oas_of_samples, shrunk
from .tensors import Array

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Prior:
    """What E is like without any samples.

    Attributes:
        expand: (n, k) of the merge.
        kept: (k,) which of the n channels are still there, ascending.
        blocks: into which the channels fall that are not read together (a grouped convolution), equally many each.
        least: the least λ.
        read: (k,) squares of the weights that read the channels left; None: all alike.
    """

    expand: csr_array
    kept: Ids
    blocks: int
    least: float
    read: Moment | None = None

    def added(self, size: Moment, share: float, own: Ids) -> Array:
        """`shrunk` of these of the channels left."""
        return shrunk(size, share, None if self.read is None else self.read[own])

    def parts(self) -> Iterator[tuple[Ids, Ids, csr_array]]:
        """For each block the channels before, the places of those left among `kept`, and E₀ between them."""
        for block in np.split(np.arange(self.expand.shape[0]), self.blocks):
            own = np.flatnonzero(np.isin(self.kept, block))
            yield block, own, self.expand[block][:, own]


@dataclass(frozen=True, eq=False)
class Crossed:
    """Of x, with n channels, and y, with k of them.

    Attributes:
        means: (n,) of x and (k,) of y; zero if they are not centred.
        product: (n, k) E[x yᵀ], of what is left.
        square: (k, k) E[y yᵀ].
        worth: how many independent samples they are taken from.
    """

    means: tuple[Moment, Moment]
    product: Moment
    square: Moment
    worth: float


def fit(
    before: Sequence[Array],
    after: Iterable[Array],
    centred: bool,
    prior: Prior,
    alike: Likeness,
    pool: Executor,
) -> tuple[Moment, Moment]:
    """(n, k) expand E and (n,) shift, mean x − E · mean y.

    Args:
        before, after: (samples, n) and (samples, k) blocks of x and y, which change.
        centred: if not, all is as if both means were zero.
        prior: of E.
        alike: what is seen at the places of one sample.
        pool: has a thread or two for parts of it.
    """
    if len(before) == 1 and len(before[0]) < len(prior.kept):
        return _of_samples(before[0], next(iter(after)), centred, prior, alike)
    moments = _cross(before, after, centred, alike, pool)
    expand = _of_moments(moments, prior, pool)
    return expand, moments.means[0] - expand @ moments.means[1]


def _cross(before: Iterable[Array], after: Iterable[Array], centred: bool, alike: Likeness, pool: Executor) -> Crossed:
    """The moments of y itself are taken in another thread."""
    x, y = Centred(centred), Centred(centred)
    product, square = np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32)
    for old, new in zip(before, after, strict=True):
        old, new = x(old), y(new)
        own = pool.submit(np.matmul, new.T, new)
        product = product + old.T @ new
        square = square + own.result()
    return Crossed((x.mean(), y.mean()), x.product(product, y), y.product(square, y), alike.worth(y.total))


def _of_moments(moments: Crossed, prior: Prior, pool: Executor) -> Moment:
    from scipy import linalg  # dear to import, and methods without repair need it not

    expand = np.zeros(prior.expand.shape, moments.product.dtype)
    for block, own, known in prior.parts():
        square = moments.square[np.ix_(own, own)]
        added = prior.added(square.diagonal(), max(prior.least, oas(square, moments.worth)), own)
        square[np.diag_indices_from(square)] += added.astype(square.dtype)
        wanted = moments.product[np.ix_(block, own)] + (known @ diags_array(added)).astype(expand.dtype).toarray()
        factor = linalg.cho_factor(square.T, overwrite_a=True, check_finite=False)
        solved = in_halves(pool, partial(linalg.cho_solve, factor, check_finite=False), wanted.T)
        expand[np.ix_(block, own)] = solved.T
    return expand


def _of_samples(before: Array, after: Array, centred: bool, prior: Prior, alike: Likeness) -> tuple[Moment, Moment]:
    from scipy import linalg  # as above

    means = Centred(centred), Centred(centred)
    x, y = (c(samples) for c, samples in zip(means, (before, after), strict=True))
    expand = np.zeros(prior.expand.shape, x.dtype)
    for block, own, known in prior.parts():
        read, e0 = np.ascontiguousarray(y[:, own]), known.astype(x.dtype)
        size = np.einsum("mk,mk->k", read, read) / len(read)
        share = max(prior.least, oas_of_samples(read, alike.worth(len(read))))
        scaled = read / prior.added(size, share, own).astype(read.dtype) / len(read)
        inner = scaled @ read.T
        inner[np.diag_indices_from(inner)] += 1
        back = linalg.solve(inner, scaled, assume_a="pos", overwrite_a=True, overwrite_b=True, check_finite=False)
        expand[np.ix_(block, own)] = e0.toarray() + (x[:, block].T - e0 @ read.T) @ back
    return expand, means[0].mean() - expand @ means[1].mean()
