"""Whether what a run is asked to do is possible, as far as that can be known before there is a model."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from .allocate import kept_count
from .errors import UsageError
from .merge import MEASURING, SCORED, TRANSPORTS, TransportOptions, strategy
from .options import BUDGETS, Options
from .patterns import check_patterns, ratios
from .scores import check_importance, feature_of

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
repair allow_norm prune_heads""".split()
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
    if o.scored and o.method not in SCORED:
        raise UsageError(
            f"method {o.method!r} does not go by importance: leave out --importance, or choose from {', '.join(SCORED)}"
        )
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
    """Widths and threads must be positive whole numbers, and the machine must have as many: each spins while it waits.

    Raises:
        UsageError: they are not.
    """
    if o.round_to != "auto" and not (str(o.round_to).isascii() and str(o.round_to).isdigit() and int(o.round_to) > 0):
        raise UsageError(f"round-to {o.round_to!r} is not known; choose from auto, 1, 8, 16 or another number")
    cores = os.cpu_count() or 1
    if o.threads is not None and not 1 <= o.threads <= cores:
        raise UsageError(f"threads {o.threads} is not a number of threads that this machine has; give 1 to {cores}")
