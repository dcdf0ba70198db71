"""Importance metrics: a score for each channel of a group, from the paper's §3 and its code.

A metric sees a `GroupView`; its score is the unweighted mean over the slots that hold weights, divided by its own
mean. Of queries and keys, which nothing but their product reads, it is the product of both. Biases and other shifts do
not count. A metric of the user's own is such a function, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .channels import ChannelGroup, Slot
from .errors import UsageError
from .features import Feature, chip, energy
from .paired import sides

Array = NDArray[np.floating]
Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class GroupView:
    """What a metric may look at.

    Attributes:
        group: the n channels, and where they lie.
        rows: for each slot that holds weights, the (n, d) values, after the later groups were merged.
        rng: for metrics that draw numbers.
        salience: for the same slots the (n, d) products w · ∂L/∂w of the model as it was, if gradients were given.
        measured: (n,) the metric's feature of the activations, if it has one and they could be measured.
        paired: whether nothing but products of two values reads the channels, both of which carry them.
    """

    group: ChannelGroup
    rows: Mapping[Slot, Array]
    rng: np.random.Generator
    salience: Mapping[Slot, Array] = field(default_factory=dict)
    measured: Scores | None = None
    paired: bool = False


Function = Callable[[GroupView], Scores]


@dataclass(frozen=True)
class Metric:
    """A function that scores (n,) channels.

    Attributes:
        function: of a view.
        needs: the option without which it cannot, if any.
        feature: of activations, which is measured for it on calibration data.
    """

    function: Function
    needs: str | None = None
    feature: Feature | None = None


def _absolute(rows: Array) -> Scores:
    """Σ|w| over each channel's weights."""
    return np.asarray(np.abs(rows).sum(axis=1, dtype=np.float64))


def _square(rows: Array) -> Scores:
    """Σw² over each channel's weights, without the root."""
    return np.asarray(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))


def _over_slots(view: GroupView, size: Callable[[Array], Scores]) -> Scores:
    """Mean over slots; of a product's two operands the product, for a channel says nothing if one of them is zero."""
    rows = list(view.rows.values())
    if view.paired and len(sides(view.group)) == 2:
        first, second = rows if len(rows) == 2 else np.split(rows[0], 2, axis=1)
        return size(first) * size(second)
    return np.asarray(np.mean([size(r) for r in rows], axis=0))


def l1(view: GroupView) -> Scores:
    """Σ|w|."""
    return _over_slots(view, _absolute)


def l2(view: GroupView) -> Scores:
    """Σw²."""
    return _over_slots(view, _square)


def lamp(view: GroupView) -> Scores:
    """LAMP (Lee et al., ICLR 2021): the squared magnitude over the sum of those not smaller."""
    score = l2(view)
    order = np.argsort(score, kind="stable")
    tail = np.cumsum(score[order][::-1])[::-1]
    result = np.empty_like(score)
    result[order] = np.divide(score[order], tail, out=np.zeros_like(tail), where=tail > 0)
    return result


def taylor(view: GroupView) -> Scores:
    """Σ|w · ∂L/∂w|, a first-order estimate of what the loss gains without the channel (Molchanov et al., CVPR 2019)."""
    return np.asarray(np.mean([_absolute(view.salience[slot]) for slot in view.rows], axis=0))


def measured(view: GroupView) -> Scores:
    """The metric's feature of the activations in the original network; Σ|w| where they could not be measured."""
    return l1(view) if view.measured is None else view.measured


def random(view: GroupView) -> Scores:
    """Uniform random scores: the baseline every metric must beat."""
    return view.rng.random(view.group.channels)


METRICS: Mapping[str, Metric] = {
    "l1": Metric(l1),
    "l2": Metric(l2),
    "lamp": Metric(lamp),
    "taylor": Metric(taylor, needs="gradients"),
    "chip": Metric(measured, needs="calib", feature=chip),
    "energy": Metric(measured, needs="calib", feature=energy),
    "random": Metric(random),
}


def importance(function: Function, view: GroupView) -> Scores:
    """(n,) scores with mean 1 (all zero if every channel is dead).

    Raises:
        UsageError: the user's own function does not return n finite numbers that are not negative.
    """
    given = np.asarray(function(view))
    if given.shape != (view.group.channels,) or not _are_scores(given):
        raise UsageError(
            f"importance of {view.group.name}: the scores are not {view.group.channels} finite numbers from 0 up"
        )
    scores = given.astype(np.float64)
    mean = scores.mean()
    return scores / mean if mean > 0 else scores


def _are_scores(given: Array) -> bool:
    """Whether they are real numbers from 0 up that have a mean."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(given.dtype.kind in "fiub" and given.min() >= 0 and np.isfinite(given.sum(dtype=np.float64)))
