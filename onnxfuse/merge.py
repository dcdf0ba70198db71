"""How the channels of a group become fewer: every strategy returns one pair of matrices.

`compress` (k, n) makes the k new channels from the n old ones; `expand` (n, k) is how consumers, which read n
channels, read the k new ones instead. Producing weights become `compress @ w`, consuming ones `w @ expand`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array

from . import transport
from .errors import UsageError
from .importance import Scores
from .sparse import from_entries, rows_of, selection, turned
from .surgeon import View, basis, error, survivors
from .trust import Source

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Merge:
    """What happens to the n channels of a group.

    Attributes:
        kept: (k,) old channels whose places the new ones take, ascending.
        compress: (k, n) sparse.
        expand: (n, k) sparse.
        method: by which it was made, once that is known.
    """

    kept: Ids
    compress: csr_array
    expand: csr_array
    method: str = ""


@dataclass(frozen=True)
class TransportOptions:
    """The ablations of the paper's §5: masses of both sides, what the targets are, the exponent of the ground cost."""

    source_mass: str = "uniform"
    target_mass: str = "uniform"
    target: str = "important"
    cost_norm: int = 1


@dataclass(frozen=True, eq=False)
class Task:
    """One group to merge.

    Attributes:
        rows: (n, d) all weights that make or read each channel, side by side; a strategy may overwrite them.
        scores: (n,) importance.
        keep: k.
        options: of the transport.
        views: of the group's consumers, as far as they were measured.
        source: what they were measured on.
        mixes: whether new channels may be any mixtures of the old ones, and all consumers were measured.
        scored: whether the user has said what importance is.
    """

    rows: NDArray[np.floating]
    scores: Scores
    keep: int
    options: TransportOptions
    views: Sequence[View] = ()
    source: Source = Source.OTHER
    mixes: bool = False
    scored: bool = False


Strategy = Callable[[Task], Merge]


def most_important(task: Task) -> Ids:
    """The k channels with the highest scores, ascending; of equal ones the first."""
    order = np.argsort(-task.scores, kind="stable")
    return np.sort(order[: task.keep])


def drop(task: Task) -> Merge:
    """Keep the most important channels, forget the others."""
    return _selection(most_important(task), len(task.scores))


def _selection(kept: Ids, n: int) -> Merge:
    select = selection(kept, n)
    return Merge(kept, select, turned(select))


def surgeon(task: Task) -> Merge:
    """Keep the channels from which consumers can best make up the others; the most important if none is measured."""
    return _selection(survivors(task.views, task.keep), len(task.scores)) if task.views else drop(task)


def auto(task: Task) -> Merge:
    """What keeps most with the moments there are (README, "What it does to accuracy").

    Without moments, or on synthetic inputs alone, `fold-variance`, which does not depend on them; on anchored ones, on
    sound and text of words `surgeon`; on real samples `fold`, `surgeon` or, where channels are mere coordinates,
    `mixture`: the one that leaves least error after repair. What the user has called important stays, in any case.
    """
    if task.scored:
        return important(task)
    if not task.views or not task.source.value.chooses:
        return _least_error(task, {UNMEASURED: fold_variance})
    if not task.source.value.real:
        return _least_error(task, {"surgeon": surgeon})
    mixing: dict[str, Strategy] = {"mixture": mixture} if task.mixes else {}
    return _least_error(task, {"fold": fold, "surgeon": surgeon, **mixing})


def important(task: Task) -> Merge:
    """Keep the most important channels; the others flow into them, or go, as leaves least error after repair."""
    dropping: dict[str, Strategy] = {"drop": drop} if task.views else {}
    return _least_error(task, {"intra-fusion": intra_fusion, **dropping})


def _least_error(task: Task, methods: Mapping[str, Strategy]) -> Merge:
    """The merge that leaves least error after repair, and its method; the first where nothing is measured."""
    found = [replace(method(task), method=name) for name, method in methods.items()]
    if len(found) == 1:
        return found[0]
    return min(found, key=lambda m: sum(error(v, m.compress) for v in task.views))


def mixture(task: Task) -> Merge:
    """New channels are the k mixtures of all from which consumers can best make up what they read."""
    mix, back = basis(task.views, task.keep)
    return Merge(np.arange(task.keep), csr_array(mix), csr_array(back))


def intra_fusion(task: Task) -> Merge:
    """The paper's §3: F is the transposed plan with every source's column divided by its sum; consumers get Fᵀ."""
    kept, plan = _plan(task)
    share = per_row(plan)
    return Merge(kept, turned(share), share)


def barycentric(task: Task) -> Merge:
    """New channels are plan-weighted means of what flows into them; consumers read plan-weighted shares."""
    kept, plan = _plan(task)
    return Merge(kept, per_row(turned(plan)), per_row(plan))


def fold(task: Task) -> Merge:
    """Model Folding (ICLR 2025): k-means; producers take a cluster's mean, consumers the sum of its columns."""
    labels = transport.clusters(task.rows, task.keep)
    kept, member = _places(labels, task.scores)
    return Merge(kept, per_row(turned(member)), member)


def fold_variance(task: Task) -> Merge:
    """`fold`, with variance repair in closed form from the weights.

    The mean of N channels varies less than they do: at mean correlation ρ by √(ρ + (1 − ρ)/N), which folding's repair
    divides by (Model Folding, ICLR 2025, §3.3), with correlations taken from the weights: |mean of w| over the root
    mean of |w|². Its square root keeps more where channels are alike for reasons that weights do not show.
    """
    rows = np.array(task.rows, np.float64)
    merge = fold(task)
    members = (merge.compress > 0).astype(np.float64)
    single = members @ np.einsum("nd,nd->n", rows, rows) / np.asarray(members.sum(axis=1)).reshape(-1)
    mean = merge.compress @ rows
    together = np.einsum("nd,nd->n", mean, mean)
    gain = (single / np.where(together > 0, together, 1)) ** (VARIANCE / 2)
    scale = diags_array(np.where(together > 0, gain, 1))
    return Merge(merge.kept, csr_array(scale @ merge.compress), merge.expand)


def balanced(merge: Merge) -> Merge:
    """The merge for channels that no weight reads, but a product of two values that both carry them (`paired`).

    Nothing there follows `expand`: what its column adds up to, N for N equal channels, becomes a factor √N on either
    side of the product. Channels that are only selected have a factor of 1.
    """
    mass = np.asarray(merge.expand.sum(axis=0)).reshape(-1)
    scale = diags_array(np.sqrt(mass))
    return replace(merge, compress=csr_array(scale @ per_row(merge.compress)))


METHODS: Mapping[str, Strategy] = {
    "auto": auto,
    "intra-fusion": intra_fusion,
    "barycentric": barycentric,
    "fold": fold,
    "fold-variance": fold_variance,
    "surgeon": surgeon,
    "drop": drop,
}
UNMEASURED = "fold-variance"
"""What `auto` does where it does not go by what was measured."""
VARIANCE = 0.5
"""Exponent of the variance repair from weights: 0 is none, 1 all."""
MEASURING: Mapping[str, frozenset[Source]] = {
    "auto": frozenset(s for s in Source if s.value.chooses),
    "surgeon": frozenset(Source),
}
"""Methods that are repaired unless that is forbidden, and the kinds of moments that they look at."""
MIXING: Mapping[str, frozenset[Source]] = {"auto": frozenset(s for s in Source if s.value.real)}
"""Methods that mix channels where these are mere coordinates, and the kinds of moments that they trust for it."""
SCORED = ("auto", "intra-fusion", "barycentric", "drop")
"""Methods that go by importance."""
TRANSPORTS = ("intra-fusion", "barycentric")
"""Methods that solve a transport problem, to which its options apply."""


# --- plans ----------------------------------------------------------------------------------------------------------
def _plan(task: Task) -> tuple[Ids, csr_array]:
    """(k,) places and the (n, k) plan of the task. Dead channels (all weights zero) send nothing."""
    features, o = transport.normalized(task.rows, out=task.rows), task.options
    n, k = len(features), task.keep
    clustered = o.target == "cluster"
    kept, member = _places(transport.clusters(features, k), task.scores) if clustered else (most_important(task), None)
    alive: NDArray[np.bool_] = np.asarray(features.any(axis=1))
    alive[kept] = True
    living = features if alive.all() else features[alive]
    if o == TransportOptions(cost_norm=o.cost_norm):
        survivors = (np.cumsum(alive) - 1)[kept]
        plan = transport.kept_plan(living, survivors, o.cost_norm)
    else:
        if member is None:
            member, targets = turned(selection(kept, n)), features[kept]
        else:
            targets = np.asarray(per_row(turned(member)).astype(features.dtype) @ features)
        source = _mass(o.source_mass, task.scores)[alive]
        mass = _target_mass(o, task.scores, member)
        plan = transport.full_plan(living, targets, source, mass, o.cost_norm)
    if len(living) == n:
        return kept, plan
    return kept, from_entries(plan.data, np.flatnonzero(alive)[rows_of(plan)], plan.indices, (n, k))


def _mass(kind: str, scores: Scores) -> Scores:
    return scores if kind == "importance" and scores.any() else np.ones_like(scores)


def _target_mass(o: TransportOptions, scores: Scores, member: csr_array) -> Scores:
    """Mass of each target: equal, or the importance of the channels it stands for."""
    return member.T @ scores if o.target_mass == "importance" and scores.any() else np.ones(member.shape[1])


def _places(labels: Ids, scores: Scores) -> tuple[Ids, csr_array]:
    """For each cluster the place of its most important member, and the (n, k) membership in order of these places."""
    order = np.lexsort((-scores, labels))
    first = order[np.unique(labels[order], return_index=True)[1]]
    place = np.argsort(np.argsort(first))[np.unique(labels, return_inverse=True)[1]]
    return np.sort(first), selection(place, len(first))


def per_row(plan: csr_array) -> csr_array:
    """Rows divided by their sums; a row of zeros stays."""
    row = rows_of(plan)
    total = np.bincount(row, plan.data, plan.shape[0])
    data = plan.data / np.where(total == 0, 1, total)[row]
    return csr_array((data, plan.indices, plan.indptr), shape=plan.shape)


def strategy(method: str) -> Strategy:
    """The function of a method.

    Raises:
        UsageError: no such method.
    """
    if method not in METHODS:
        raise UsageError(f"method {method!r} is not known; choose from {', '.join(METHODS)}")
    return METHODS[method]
