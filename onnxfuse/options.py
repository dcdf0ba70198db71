"""What a run is asked to do, and whether that is possible."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from .allocate import kept_count
from .errors import UsageError
from .merge import TRANSPORTS, TransportOptions, strategy
from .scores import Importance, check_importance
from .sources import Source


@dataclass(frozen=True)
class Options:
    """How to merge. Fields that only apply to some methods are None unless given.

    Attributes:
        sparsity: fraction of channels removed from each group; None if budgets say how much.
        method: intra-fusion, barycentric, fold or drop.
        importance: a metric's name, an .npz file or its arrays, or a function.
        gradients: of the weights, for the taylor metric.
        source_mass, target_mass, target, cost_norm: the transport's ablations (None: the method's own).
        exclude: regular expressions of nodes to leave alone.
        input_shapes: input name → shape for the probe run.
        provider: onnxruntime execution provider.
        seed: of random inputs and random importance.
        min_cosine: smallest cosine similarity allowed for any output.
        only: regular expressions of group names: merge these only.
        scope: 'local' (the same sparsity everywhere) or 'global'; None: local for a sparsity, global for budgets.
        target_macs, target_params, target_size: budgets, as shares of the original or amounts (`budget.Quantity`).
        ratio: 'REGEX=0.6' each: sparsity of the layers that match.
        keep: regular expressions of layers that keep all their channels.
    """

    sparsity: float | None = None
    method: str = "intra-fusion"
    importance: Importance = "l1"
    source_mass: str | None = None
    target_mass: str | None = None
    target: str | None = None
    cost_norm: int | None = None
    exclude: tuple[str, ...] = ()
    input_shapes: Mapping[str, tuple[int, ...]] | None = None
    provider: str = "cpu"
    seed: int = 0
    min_cosine: float | None = None
    only: tuple[str, ...] = ()
    gradients: Source | None = None
    scope: str | None = None
    target_macs: str | float | None = None
    target_params: str | float | None = None
    target_size: str | float | None = None
    ratio: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    @property
    def budgets(self) -> dict[str, str | float]:
        """Resource → the budget for it, where there is one."""
        given = {name: getattr(self, f"target_{name}") for name in BUDGETS}
        return {name: value for name, value in given.items() if value is not None}

    def recorded(self) -> dict[str, Any]:
        """The options as JSON values: a function by its name, arrays only as such."""
        return {f.name: _recorded(getattr(self, f.name)) for f in fields(self)}


def _recorded(value: Any) -> Any:
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping) and any(isinstance(v, np.ndarray) for v in value.values()):
        return f"arrays: {', '.join(value)}"
    return value


BUDGETS = ("macs", "params", "size")
CHOICES: Mapping[str, Sequence[Any]] = {
    "source_mass": ("uniform", "importance"),
    "target_mass": ("uniform", "importance"),
    "target": ("important", "cluster"),
    "cost_norm": (1, 2),
    "scope": ("local", "global"),
}
"""Options with a closed list of values."""


def check_options(o: Options) -> TransportOptions:
    """The transport options that apply; every value is checked.

    Raises:
        UsageError: an unknown value, or an option that the method does not use.
    """
    check_amounts(o)
    strategy(o.method)
    for name, valid in CHOICES.items():
        value = getattr(o, name)
        if value is not None and value not in valid:
            names = ", ".join(map(str, valid))
            raise UsageError(f"{name.replace('_', '-')} {value!r} is not known; choose from {names}")
    check_importance(o.importance, {"gradients": o.gradients})
    given = {f.name: getattr(o, f.name) for f in fields(TransportOptions) if getattr(o, f.name) is not None}
    if given and o.method not in TRANSPORTS:
        names = ", ".join("--" + n.replace("_", "-") for n in given)
        raise UsageError(f"method {o.method!r} solves no transport problem: leave out {names}")
    if o.seed < 0:
        raise UsageError(f"seed {o.seed} is negative; give a whole number from 0 up")
    if o.min_cosine is not None and not -1 <= o.min_cosine <= 1:
        raise UsageError(f"min-cosine {o.min_cosine} is not a cosine; give a number from −1 to 1")
    check_patterns([*o.exclude, *o.only, *o.keep, *(pattern for pattern, _ in ratios(o))])
    default = TransportOptions(target="cluster") if o.method == "barycentric" else TransportOptions()
    return replace(default, **given)


def check_amounts(o: Options) -> None:
    """It must be clear how much goes.

    Raises:
        UsageError: nothing says so, or a sparsity and a budget both do.
    """
    flags = [f"--target-{name}" for name in o.budgets]
    if o.sparsity is not None:
        kept_count(1, o.sparsity)
        if flags:
            raise UsageError(f"--sparsity and {flags[0]} contradict each other; give one of them")
    elif not flags and not o.ratio:
        wanted = ", ".join(f"--target-{name}" for name in BUDGETS)
        raise UsageError(f"nothing says how small the model should be; give --sparsity, or a budget: {wanted}")


def ratios(o: Options) -> list[tuple[str, float]]:
    """The pattern and the sparsity of each 'REGEX=0.6'.

    Raises:
        UsageError: one is not of that form.
    """
    found = []
    for item in o.ratio:
        pattern, _, number = item.rpartition("=")
        try:
            kept_count(1, float(number))
        except ValueError as error:  # UsageError is one
            raise UsageError(f"--ratio {item!r} is not REGEX=S with a sparsity 0 ≤ S < 1") from error
        found.append((pattern, float(number)))
    return found


def listed(patterns: Sequence[str]) -> tuple[str, ...]:
    """A single pattern is a list of one, not of its letters."""
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def check_patterns(patterns: Sequence[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"{pattern!r} is not a regular expression: {error}") from error


def check_matches(option: str, patterns: Sequence[str], what: str, names: Sequence[str]) -> None:
    """Every pattern must match one of the names; the error suggests near ones."""
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise UsageError(f"--{option} {pattern!r} matches no {what}" + near(pattern, names))


def near(wanted: str, names: Sequence[str]) -> str:
    """What ends a message about a name that does not exist: names like it."""
    found = ", ".join(difflib.get_close_matches(wanted, names, 3, 0.3))
    return f"; near: {found}" if found else ""
