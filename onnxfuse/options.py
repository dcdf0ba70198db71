"""What a run is asked to do, and whether that is possible."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from .allocate import kept_count
from .errors import UsageError
from .merge import MEASURING, TRANSPORTS, TransportOptions, strategy
from .scores import Importance, check_importance, feature_of
from .sources import Source
from .tracker import Permit


@dataclass(frozen=True)
class Options:
    """How to merge; `keywords.py` says what each field means.

    Patterns are tuples here, paths strings. Fields that only apply to some methods are None unless given.
    """

    sparsity: float | None = None
    method: str = "auto"
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
    round_to: str | int = "auto"
    from_plan: str | None = None
    latency: bool = False
    threads: int | None = None
    target_latency: str | float | None = None
    max_error: float | None = None
    max_drop: float | None = None
    eval: str | None = None
    metric: str | None = None
    lossless: bool = False
    repair: bool | None = None
    calib: Source | None = None
    calib_preprocess: str | None = None
    external_data: bool = False
    allow_norm: bool = False
    prune_heads: bool = False

    @property
    def permit(self) -> Permit:
        """What may change beyond what leaves every layer's arithmetic as it was."""
        return Permit(self.allow_norm, self.prune_heads)

    @property
    def budgets(self) -> dict[str, str | float]:
        """Resource → the budget for it, where there is one."""
        given = {name: getattr(self, f"target_{name}") for name in BUDGETS}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def timed(self) -> bool:
        """Whether the original and the result are to be timed."""
        return self.latency or self.threads is not None or self.target_latency is not None

    @property
    def floors(self) -> bool:
        """Whether anything says how good the result must be."""
        return any(value is not None for value in (self.min_cosine, self.max_error, self.max_drop))

    @property
    def sized(self) -> bool:
        """Whether anything but a floor says how small the result should be."""
        given = self.sparsity is not None or self.target_latency is not None
        return bool(given or self.budgets or self.ratio or self.from_plan or self.lossless)

    @property
    def spreads(self) -> bool:
        """Whether groups may lose different shares of their channels, those most that cost least."""
        return self.scope == "global" or (self.scope is None and self.sparsity is None)

    @property
    def repairs(self) -> bool:
        """Whether consumers are repaired."""
        if self.repair is not None:
            return self.repair
        given = self.calib is not None and feature_of(self.importance) is None  # not for the metric alone
        return self.method in MEASURING or given

    @property
    def may_go_without_repair(self) -> bool:
        """Whether consumers are repaired only because the method does so, on samples that are not the user's."""
        return self.repair is None and self.repairs and self.calib is None

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
CHOOSING = """sparsity method importance gradients source_mass target_mass target cost_norm only
scope target_macs target_params target_size target_latency ratio keep round_to from_plan calib
allow_norm prune_heads""".split()
"""Options that say which channels go, and how."""


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
    check_importance(o.importance, {"gradients": o.gradients, "calib": o.calib}, ("gradients",))
    if o.calib_preprocess is not None and o.calib is None:
        raise UsageError("--calib-preprocess is of the images of --calib; give that, too")
    if o.calib is not None and not (o.repairs or o.method in MEASURING or feature_of(o.importance)):
        raise UsageError(f"method {o.method!r} without repair measures nothing: leave out --calib or --no-repair")
    given = {f.name: getattr(o, f.name) for f in fields(TransportOptions) if getattr(o, f.name) is not None}
    if given and o.method not in TRANSPORTS:
        names = ", ".join("--" + n.replace("_", "-") for n in given)
        raise UsageError(f"method {o.method!r} solves no transport problem: leave out {names}")
    if o.seed < 0:
        raise UsageError(f"seed {o.seed} is negative; give a whole number from 0 up")
    check_floors(o)
    check_hardware(o)
    check_patterns([*o.exclude, *o.only, *o.keep, *(pattern for pattern, _ in ratios(o))])
    default = TransportOptions(target="cluster") if o.method == "barycentric" else TransportOptions()
    return replace(default, **given)


def check_amounts(o: Options) -> None:
    """It must be clear how much goes.

    Raises:
        UsageError: nothing says so, or a sparsity and a budget both do.
    """
    if o.lossless:
        besides = [f.name for f in fields(o) if f.name in CHOOSING and getattr(o, f.name) != f.default]
        if besides:
            names = ", ".join("--" + name.replace("_", "-") for name in besides)
            raise UsageError(f"--lossless decides by itself which channels go and how: leave out {names}")
        return
    flags = [f"--target-{name}" for name in o.budgets] + ["--target-latency"] * (o.target_latency is not None)
    if o.sparsity is not None:
        kept_count(1, o.sparsity)
        if flags:
            raise UsageError(f"--sparsity and {flags[0]} contradict each other; give one of them")
    elif not o.sized and not o.floors:
        wanted = ", ".join(f"--target-{name}" for name in (*BUDGETS, "latency"))
        raise UsageError(
            f"nothing says how small the model should be; give --sparsity, --lossless, a budget ({wanted}), or how "
            "good it must be (--max-drop, --min-cosine, --max-error)"
        )


def check_floors(o: Options) -> None:
    """Floors must be numbers that can be held, and have what they are measured with.

    Raises:
        UsageError: one does not.
    """
    if o.min_cosine is not None and not -1 <= o.min_cosine <= 1:
        raise UsageError(f"min-cosine {o.min_cosine} is not a cosine; give a number from −1 to 1")
    if o.max_error is not None and not 0 <= o.max_error < math.inf:
        raise UsageError(f"max-error {o.max_error} is not an error; give a number from 0 up")
    if o.max_drop is not None and not 0 <= o.max_drop < math.inf:
        raise UsageError(
            f"max-drop {o.max_drop} is not a loss; give a number from 0 up, 0.01 for one point of accuracy"
        )
    if o.max_drop is not None and o.eval is None:
        raise UsageError("--max-drop needs --eval DATA.npz, labelled data to measure the loss on")
    if o.metric is not None and o.eval is None:
        raise UsageError("--metric needs --eval DATA.npz to be measured on")


def check_hardware(o: Options) -> None:
    """Widths and threads must be positive whole numbers.

    Raises:
        UsageError: they are not.
    """
    if o.round_to != "auto" and not (str(o.round_to).isascii() and str(o.round_to).isdigit() and int(o.round_to) > 0):
        raise UsageError(f"round-to {o.round_to!r} is not known; choose from auto, 1, 8, 16 or another number")
    if o.threads is not None and o.threads < 1:
        raise UsageError(f"threads {o.threads} is not a number of threads; give 1 or more")


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
