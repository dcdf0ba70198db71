"""Importance metrics: a score for each channel of a group, from the paper's §3 and its code.

A metric sees a `GroupView`; its score is the unweighted mean over the slots that hold weights, divided by its own
mean. Biases and other shifts do not count. A metric of the user's own is such a function, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .channels import ChannelGroup, Slot
from .errors import UsageError
from .features import Feature, chip, energy

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
    """

    group: ChannelGroup
    rows: Mapping[Slot, Array]
    rng: np.random.Generator
    salience: Mapping[Slot, Array] = field(default_factory=dict)
    measured: Scores | None = None


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


def _absolute(rows: Sequence[Array]) -> Scores:
    """Σ|w| over each channel's weights; mean over slots."""
    return np.asarray(np.mean([np.abs(row).sum(axis=1, dtype=np.float64) for row in rows], axis=0))


def l1(view: GroupView) -> Scores:
    """Σ|w|."""
    return _absolute(list(view.rows.values()))


def l2(view: GroupView) -> Scores:
    """Σw², without the root."""
    rows = view.rows.values()
    return np.asarray(np.mean([np.einsum("nd,nd->n", row, row, dtype=np.float64) for row in rows], axis=0))


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
    return _absolute([view.salience[slot] for slot in view.rows])


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
    scores = np.asarray(function(view), np.float64)
    if scores.shape != (view.group.channels,) or not np.isfinite(scores).all() or scores.min() < 0:
        raise UsageError(
            f"importance of {view.group.name}: the scores are not {view.group.channels} finite numbers from 0 up"
        )
    mean = scores.mean()
    return scores / mean if mean > 0 else scores
