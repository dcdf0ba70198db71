"""Tables of the accuracy benchmark, and the goals of the project that it decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from cells import Row
from common import markdown

BASELINE = "intra-fusion"
OTHERS = ("drop", "fold")
"""Published rivals that the default must beat on every model."""
GLOBAL = "+global"
"""In the name of a variant with `--scope global`."""
AVERAGED = (0.2, 0.3, 0.4, 0.5)
"""Sparsities over which losses are averaged."""


@dataclass(frozen=True)
class Goal:
    """An accuracy to reach: at least `accuracy` %, or if that is negative, dense accuracy minus so many points."""

    model: str
    method: str
    sparsity: float
    accuracy: float


LENET = "lenet300_fmnist"
VGG = "vgg11_bn_cifar10"
GOALS = (
    *(Goal(LENET, "auto", s, a) for s, a in ((0.5, 85.6), (0.6, 84.0), (0.7, 79.0), (0.8, 73.0))),
    *(Goal(LENET, "auto+calib256", s, a) for s, a in ((0.5, 86.0), (0.6, 85.5), (0.7, 84.4), (0.8, 81.5))),
    Goal(VGG, "auto+calib256", 0.3, -3.0),
    Goal(VGG, "auto+global+calib256", 0.3, -1.0),
)
SHARES = (("auto", True, 0.25), ("auto", False, 0.5), ("auto+calib256", True, 0.25), ("auto+calib256", False, 0.25))
"""(method, the file keeps BatchNormalization, largest share of the baseline's mean loss)."""


class Results:
    """Rows by cell."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.at = {(r.model, r.method, r.sparsity, r.group): r.accuracy for r in rows}
        self.models = list(dict.fromkeys(r.model for r in rows))
        self.methods = list(dict.fromkeys(r.method for r in rows if r.method != "dense"))
        self.sparsities = sorted({r.sparsity for r in rows if r.method != "dense"})

    def get(self, model: str, method: str, sparsity: float, group: str = "") -> float | None:
        """Accuracy in %; None if it was not measured."""
        return self.at.get((model, method, sparsity, group))

    def dense(self, model: str) -> float:
        found = self.at[model, "dense", 0.0, ""]
        assert found is not None
        return found

    def loss(self, model: str, method: str) -> float | None:
        """Mean of dense − accuracy, in points, over `AVERAGED`; None if one is missing."""
        found = [self.get(model, method, s) for s in AVERAGED]
        known = [a for a in found if a is not None]
        return self.dense(model) - float(np.mean(known)) if len(known) == len(found) else None


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


# --- the whole network ----------------------------------------------------------------------------------------------
def whole_table(rows: Sequence[Row]) -> str:
    """A line for each model and method, a column for each sparsity."""
    r = Results(rows)
    body = [
        [model, method, number(r.dense(model)), *(number(r.get(model, method, s)) for s in r.sparsities)]
        for model in r.models
        for method in r.methods
    ]
    return markdown(["model", "method", "dense", *(f"{s:.0%}" for s in r.sparsities)], body)


def loss_table(rows: Sequence[Row]) -> str:
    """Mean loss over `AVERAGED`: a line for each model, a column for each method, with its share of the baseline's."""
    r = Results(rows)
    body = [[model, *(_share(r, model, method) for method in r.methods)] for model in r.models]
    return markdown([f"mean loss {AVERAGED[0]:.0%}–{AVERAGED[-1]:.0%}", *r.methods], body)


def _share(r: Results, model: str, method: str) -> str:
    loss, base = r.loss(model, method), r.loss(model, BASELINE)
    if loss is None or base is None or method == BASELINE or base <= 0:
        return number(loss)
    return f"{loss:.2f} (× {loss / base:.2f})"


def goals(rows: Sequence[Row], norms: set[str]) -> Iterator[str]:
    """One table with every goal that was measured: what is asked, what was reached."""
    r = Results(rows)
    body = [*_share_goals(r, norms), *_rival_goals(r), *_scope_goals(r), *_accuracy_goals(r)]
    if body:
        yield markdown(["goal", "model", "method", "asked", "measured", ""], body)


def _share_goals(r: Results, norms: set[str]) -> Iterator[list[str]]:
    for method, kept, most in SHARES:
        for model in r.models:
            loss, base = r.loss(model, method), r.loss(model, BASELINE)
            if loss is not None and base is not None and (model in norms) == kept:
                limit = most * base
                yield [
                    f"share of {BASELINE}'s loss",
                    model,
                    method,
                    f"≤ {limit:.2f}",
                    number(loss),
                    _verdict(loss <= limit),
                ]


def _rival_goals(r: Results) -> Iterator[list[str]]:
    for model in r.models:
        loss, rivals = r.loss(model, "auto"), [r.loss(model, m) for m in OTHERS]
        known = [x for x in rivals if x is not None]
        if loss is not None and known:
            yield [
                f"loss below {', '.join(OTHERS)}",
                model,
                "auto",
                f"< {min(known):.2f}",
                number(loss),
                _verdict(loss < min(known)),
            ]


def _scope_goals(r: Results) -> Iterator[list[str]]:
    """At equal MACs, `--scope global` against the same without."""
    for method in [m for m in r.methods if GLOBAL in m and m.replace(GLOBAL, "") in r.methods]:
        for model in r.models:
            loss, local = r.loss(model, method), r.loss(model, method.replace(GLOBAL, ""))
            if loss is not None and local is not None:
                verdict = _verdict(loss < local)
                yield ["global's loss below local's", model, method, f"< {local:.2f}", number(loss), verdict]


def _accuracy_goals(r: Results) -> Iterator[list[str]]:
    for g in GOALS:
        reached = r.get(g.model, g.method, g.sparsity)
        if reached is not None:
            asked = g.accuracy if g.accuracy > 0 else r.dense(g.model) + g.accuracy
            what = f"accuracy at {g.sparsity:.0%}"
            yield [what, g.model, g.method, f"≥ {asked:.2f}", number(reached), _verdict(reached >= asked)]


def _verdict(reached: bool) -> str:
    return "reached" if reached else "missed"


# --- one group at a time --------------------------------------------------------------------------------------------
def group_tables(rows: Sequence[Row]) -> Iterator[str]:
    """For each model a line for each group, drop beside the baseline, their means, and how often the latter wins."""
    r = Results(rows)
    for model in r.models:
        groups = list(dict.fromkeys(row.group for row in rows if row.model == model and row.group))
        columns = [(s, m) for s in r.sparsities for m in ("drop", BASELINE) if m in r.methods]
        body = [[g, *(number(r.get(model, m, s, g)) for s, m in columns)] for g in groups]
        means = ["mean", *(number(_mean(rows, model, m, s)) for s, m in columns)]
        heads = [f"{m} {s:.0%}" for s, m in columns]
        yield markdown([f"{model}, dense {r.dense(model):.2f}", *heads], [*body, means])


def mean_table(rows: Sequence[Row]) -> str:
    """Means over groups: a line for each model and method, a column for each sparsity."""
    r = Results(rows)
    body = [
        [model, method, number(r.dense(model)), *(number(_mean(rows, model, method, s)) for s in r.sparsities)]
        for model in r.models
        for method in r.methods
    ]
    return markdown(["mean over groups", "method", "dense", *(f"{s:.0%}" for s in r.sparsities)], body)


def _mean(rows: Sequence[Row], model: str, method: str, sparsity: float) -> float | None:
    """Over the groups that lose channels at this sparsity."""
    cell = (model, method, sparsity)
    found = [r.accuracy for r in rows if (r.model, r.method, r.sparsity) == cell and r.accuracy is not None]
    return float(np.mean(found)) if found else None
