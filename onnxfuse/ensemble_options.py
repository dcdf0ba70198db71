"""What an ensemble is asked to be, and whether that is possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from onnx import ModelProto

from . import files
from .checks import check_floors, check_options
from .errors import UsageError
from .fusion import ALIGNMENTS
from .options import Options
from .origin import PathLike

ORDERS = ("fap", "paf")
"""Fuse and prune, prune and fuse."""
EPSILON = 1e-6
PRUNING = ("sparsity", "method", "importance", "repair", "exclude", "round_to")
"""Options that only the pruning has."""
SHARED = tuple("calib calib_preprocess input_shapes input_ranges provider seed min_cosine external_data".split())


@dataclass(frozen=True)
class EnsembleOptions:
    """How models become one.

    Attributes:
        prune: how the result is made smaller; its sparsity is None if it is not.
        order: 'fap' or 'paf'.
        weights: one share for each model; None: equal ones.
        align: one of `ALIGNMENTS`.
        restore: whether channels get the mean and deviation they have in the models; None: unless nothing is aligned.
    """

    prune: Options
    order: str = "fap"
    weights: tuple[float, ...] | None = None
    align: str = "activations"
    restore: bool = True


def check_ensemble(
    models: Sequence[PathLike | ModelProto], output: PathLike | None, o: EnsembleOptions
) -> tuple[float, ...]:
    """The share of each model; every option is checked, and that no file is named twice.

    Raises:
        UsageError: one makes no sense.
        OutputError: the result cannot be written there.
    """
    if len(models) < 2:
        raise UsageError("an ensemble takes two models or more; give at least two, and the output last")
    for name, value, valid in (("order", o.order, ORDERS), ("align", o.align, ALIGNMENTS)):
        if value not in valid:
            raise UsageError(f"{name} {value!r} is not known; choose from {', '.join(valid)}")
    _check_files([Path(m) for m in models if not isinstance(m, ModelProto)], output)
    _check_used(o)
    return _shares(o.weights, len(models))


def _check_files(inputs: Sequence[Path], output: PathLike | None) -> None:
    for a, b in combinations(inputs, 2):
        if files.same(a, b):
            raise UsageError(f"{b} is given twice{f' (as {a}, too)' if a != b else ''}; give different models")
    if output is not None:
        for path in inputs:
            if files.same(path, Path(output)):
                raise UsageError(f"{output} is both a model and the output; give the output last, another file")


def _check_used(o: EnsembleOptions) -> None:
    """No option is given that nothing uses."""
    p, default = o.prune, Options()
    if p.sparsity is not None:
        check_options(replace(p, calib=None, calib_preprocess=None) if p.repair is False else p)
    else:
        check_floors(p)
        given = [n for n in PRUNING if getattr(p, n) != getattr(default, n)]
        given += ["order"] if o.order != ORDERS[0] else []
        if given:
            names = ", ".join("--" + n.replace("_", "-") for n in given)
            raise UsageError(f"nothing is pruned, so {names} would do nothing; give --sparsity, too")
    if p.calib is not None and o.align != "activations" and not o.restore:
        raise UsageError("nothing is measured with this --align and --no-restore: leave out --calib")
    if p.calib_preprocess is not None and p.calib is None:
        raise UsageError("--calib-preprocess is of the images of --calib; give that, too")
    if p.seed < 0:
        raise UsageError(f"seed {p.seed} is negative; give a whole number from 0 up")


def _shares(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    if weights is None:
        return (1 / count,) * count
    if len(weights) != count:
        raise UsageError(f"{len(weights)} weights are given for {count} models; give one for each")
    if not all(0 <= w <= 1 for w in weights) or abs(sum(weights) - 1) > EPSILON:
        listed_weights = ", ".join(f"{w:g}" for w in weights)
        raise UsageError(f"the weights {listed_weights} are no shares: give numbers from 0 to 1 whose sum is 1")
    return tuple(weights)


def recorded(o: EnsembleOptions) -> dict[str, Any]:
    own = {f.name: getattr(o, f.name) for f in fields(o) if f.name != "prune"}
    pruned = o.prune.recorded()
    return own | {n: pruned[n] for n in (*PRUNING, *SHARED)}
