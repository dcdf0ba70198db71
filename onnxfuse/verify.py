"""Compare a result with its original in onnxruntime, and refuse what is not a sound model."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto

from .errors import Unsound, VerificationFailed, one_line
from .files import file_bytes, too_large
from .picking import feeds_of, numeric, picked, with_outputs, with_picks
from .probe import Probe, session, session_options
from .standin import in_float32
from .tensors import Array

log = logging.getLogger("onnxfuse")
AGREEMENT = 1e-3
"""Relative difference allowed between a result's outputs with onnxruntime's optimizations off and on."""
WARY = 1e-4
"""The same where another way to make the result is left: no trained model's outputs are made of roundings."""
FAR = 10.0
"""And there, how far outputs may be from the original's, where zeros would be 1: some random weights explode."""
LARGE = 1 << 30
"""Bytes of a model from which on onnxruntime must not copy its weights into another layout for one run."""
SLACK = 10.0
"""Or this many times what the original's own outputs differ by, for models that are that sensitive."""

LOSSLESS = 1e-5
"""Relative difference allowed from the original where nothing may be lost."""
EPSILON: Mapping[int, float] = {TensorProto.FLOAT16: 2.0**-10, TensorProto.BFLOAT16: 2.0**-7}
ROUNDINGS = 8
"""Or so many roundings of a coarse number format."""

Outputs = Mapping[str, Array]


@dataclass(frozen=True)
class OutputError:
    """How one output of the result differs from the original's on the probe input.

    Attributes:
        name: the output.
        cosine: similarity of the flattened tensors, 1 if both are zero; NaN if their shapes differ.
        max_abs: largest absolute difference.
        relative: L2 norm of the difference over L2 norm of the original.
    """

    name: str
    cosine: float
    max_abs: float
    relative: float


@dataclass(frozen=True)
class Comparison:
    """What `verify` measured.

    Attributes:
        outputs: the result against the original, for each numeric output.
        agreement: largest relative difference between the result with optimizations off and on.
    """

    outputs: tuple[OutputError, ...]
    agreement: float

    @property
    def cosine(self) -> float:
        """The smallest cosine similarity of any output."""
        return min((o.cosine for o in self.outputs), default=1.0)


def difference(name: str, a: Array, b: Array) -> OutputError:
    """How `b` differs from `a`."""
    x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    if x.shape != y.shape:
        return OutputError(name, float("nan"), float("inf"), float("inf"))
    if np.array_equal(x, y):
        return OutputError(name, 1.0, 0.0, 0.0)
    nx, ny, gap = (float(np.linalg.norm(v)) for v in (x, y, x - y))
    cosine = float(x @ y) / (nx * ny) if nx and ny else 0.0
    return OutputError(name, cosine, float(np.abs(x - y).max()), gap / nx if nx else float("inf"))


def compare(original: Outputs, result: Outputs) -> tuple[OutputError, ...]:
    """`difference` of every numeric output."""
    return tuple(difference(name, a, result[name]) for name, a in numeric(original).items())


def run(model: Path | ModelProto, feeds: Outputs, providers: Sequence[str], optimized: bool) -> dict[str, Array]:
    """All outputs of a model, by name."""
    if isinstance(model, ModelProto):
        opened = session(model, providers, optimized)
    else:
        options = session_options(optimized, large=file_bytes(model) > LARGE)
        opened = ort.InferenceSession(str(model), options, providers=list(providers))
    names = [o.name for o in opened.get_outputs()]
    return dict(zip(names, opened.run(names, dict(feeds)), strict=True))


def check(model: Path | ModelProto) -> None:
    """The ONNX checker with strict shape inference.

    Raises:
        VerificationFailed: with what the checker says.
    """
    if isinstance(model, ModelProto) and too_large(model):
        return  # too large for the checker in memory; it runs on the file when one is written
    try:
        onnx.checker.check_model(model if isinstance(model, ModelProto) else str(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationFailed(f"the result is not a valid model: {one_line(error)}") from error


@dataclass(frozen=True, eq=False)
class Runs:
    """What the original and the result make of the probe input.

    Attributes:
        original: with optimizations off.
        plain, fast: the result's, with optimizations off and on.
    """

    original: Outputs
    plain: Outputs
    fast: Outputs

    @property
    def agreement(self) -> float:
        """Largest relative difference that optimizations make to the result."""
        return _furthest(self.plain, self.fast)

    @property
    def drift(self) -> float:
        """The same relative to the original's outputs where these are larger: a score that saturates is near zero."""
        return max(
            (_drift(a, self.fast[n], self.original.get(n, a)) for n, a in numeric(self.plain).items()), default=0.0
        )


def _drift(plain: Array, fast: Array, original: Array) -> float:
    x, y, whole = (np.asarray(v, np.float64).ravel() for v in (plain, fast, original))
    if x.shape != y.shape:
        return math.inf
    gap, size = float(np.linalg.norm(x - y)), max(float(np.linalg.norm(v)) for v in (x, whole))
    return gap / size if size else gap


def _furthest(a: Outputs, b: Outputs) -> float:
    return max((e.relative for e in compare(a, b)), default=0.0)


def verify(
    model: Path | ModelProto,
    reference: Probe,
    providers: Sequence[str],
    min_cosine: float | None,
    max_error: float | None,
    original: Callable[[], ModelProto],
    wary: bool = False,
) -> Comparison:
    """Check a result and compare it with the original.

    Where values are picked, as a detector picks its boxes, both are run once more with the original's picks: if the
    result has nothing to go on with, other shapes than the original, or is another with optimizations.

    Args:
        model: the result, as the file that was written or in memory.
        reference: the original's run, with optimizations off.
        providers: of onnxruntime.
        min_cosine: smallest cosine similarity allowed for any output, or None.
        max_error: largest absolute difference allowed in any output, or None.
        original: loads the original again; called only if the result fails a check that the original may fail, too.
        wary: whether there is another way to make the result, so that doubts are enough to refuse it (`WARY`, `FAR`).

    Raises:
        VerificationFailed: invalid, outputs of another type, or beyond `min_cosine` or `max_error`.
        Unsound: does not run, outputs that are not finite, not the same with optimizations off and on, or far off.
    """
    _check_as_well_as(model, original)
    opened = _stand_in(model) if reference.stand_in else model
    again = cache(lambda: _source(original(), reference))
    runs = _run_both(opened, reference, providers, again)
    _same_interface(runs.original, runs.plain)
    agreement = WARY if wary else AGREEMENT
    if not runs.agreement <= agreement or any(math.isnan(e.cosine) for e in compare(runs.original, runs.plain)):
        runs = _with_picks(opened, reference, providers, again()) or runs
    if not runs.agreement <= agreement:
        own = _own_agreement(reference, providers, again())
        if not (runs.agreement <= own * SLACK or (runs.drift <= agreement and not wary)):
            raise Unsound(
                f"outputs with optimizations off and on differ by {runs.agreement:.2g} (the original's by {own:.2g})"
            )
    result = Comparison(_of_outputs(runs, reference), runs.agreement)
    if wary:
        _refuse_exploded(result)
    if (missed := floor_missed(result, min_cosine, max_error)) is not None:
        raise VerificationFailed(missed)
    return result


def _source(original: ModelProto, reference: Probe) -> ModelProto:
    return in_float32(original) if reference.stand_in else original


def _of_outputs(runs: Runs, reference: Probe) -> tuple[OutputError, ...]:
    """How the model's outputs differ; what its picks read, if all of its outputs are picks."""
    errors = compare(runs.original, runs.plain)
    return tuple(e for e in errors if e.name in reference.outputs) or errors


def _refuse_exploded(result: Comparison) -> None:
    for output in result.outputs:
        if math.isfinite(output.relative) and output.relative > FAR:
            raise Unsound(f"output {output.name!r} is {output.relative:.2g} times as far off as zeros would be")


def floor_missed(result: Comparison, min_cosine: float | None, max_error: float | None) -> str | None:
    """By which output, and by how much, a sound result is worse than asked; None if it is not."""
    if min_cosine is not None and not result.cosine >= min_cosine:
        worst = min(result.outputs, key=lambda o: o.cosine)
        return f"output {worst.name!r} has cosine similarity {worst.cosine:.4f}, below the minimum {min_cosine}"
    furthest = max(result.outputs, key=lambda o: o.max_abs, default=None)
    if max_error is not None and furthest is not None and not furthest.max_abs <= max_error:
        return (
            f"output {furthest.name!r} has an absolute error of {furthest.max_abs:.3g}, above the maximum {max_error}"
        )
    return None


def _run_both(
    model: Path | ModelProto, reference: Probe, providers: Sequence[str], original: Callable[[], ModelProto]
) -> Runs:
    """The result as it is; with the original's picks, if it makes too few of its own to run to its end."""
    try:
        plain, fast = _plain_and_fast(model, reference.inputs, providers)
    except Exception as error:  # onnxruntime has no base class for what it raises
        runs = _with_picks(model, reference, providers, original())
        if runs is None:
            raise Unsound(f"onnxruntime cannot run the result: {one_line(error)}") from error
        log.warning(
            "the result runs with what the original picks, but not with its own picks from a random input; "
            "run it on an input of yours (%s)",
            one_line(error, 160),
        )
        return runs
    return Runs(reference.outputs, plain, fast)


def _plain_and_fast(
    model: Path | ModelProto, feeds: Outputs, providers: Sequence[str]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Outputs with optimizations off and on; at the same time, unless the weights are many."""
    many = too_large(model) if isinstance(model, ModelProto) else file_bytes(model) > LARGE
    with ThreadPoolExecutor(1 if many else 2) as pool:
        plain, fast = pool.map(lambda optimized: run(model, feeds, providers, optimized), (False, True))
    return plain, fast


def _with_picks(
    model: Path | ModelProto, reference: Probe, providers: Sequence[str], original: ModelProto
) -> Runs | None:
    """Runs with the original's picks, of what both have; None if it makes none, or the result fails with these, too."""
    result = model if isinstance(model, ModelProto) else onnx.load(model)
    names = picked(original.graph)
    if not names:
        return None
    given = numeric(run(with_outputs(original, names), reference.inputs, providers, optimized=False))
    parts = [with_picks(m, given) for m in (original, result)]
    feeds = [feeds_of(part, reference.inputs, given) for part in parts]
    before = run(parts[0], feeds[0], providers, optimized=False)
    try:
        plain, fast = _plain_and_fast(parts[1], feeds[1], providers)
    except Exception as error:  # onnxruntime has no base class for what it raises
        log.debug("nor does the result run with the original's picks: %s", one_line(error))
        return None
    return Runs({name: a for name, a in before.items() if name in plain}, plain, fast)


def _own_agreement(reference: Probe, providers: Sequence[str], original: ModelProto) -> float:
    """What optimizations change in the original's outputs; if it picks, in what it makes of the same picks."""
    runs = _with_picks(original, reference, providers, original)
    if runs is not None:
        return runs.agreement
    return _furthest(reference.outputs, run(original, reference.inputs, providers, optimized=True))


def check_lossless(comparison: Comparison, types: Set[int]) -> Comparison:
    """The same comparison, if nothing was lost.

    Args:
        types: element types of the model's weights; sums in another order differ by roundings of the coarsest.

    Raises:
        VerificationFailed: an output changed by more than `LOSSLESS` of its norm.
    """
    allowed = max([LOSSLESS, *(ROUNDINGS * EPSILON[t] for t in types & EPSILON.keys())])
    for output in comparison.outputs:
        if not output.relative <= allowed:
            raise VerificationFailed(f"output {output.name!r} changed by {output.relative:.2g}, over {allowed:.2g}")
    return comparison


def _check_as_well_as(model: Path | ModelProto, original: Callable[[], ModelProto]) -> None:
    """The result must pass the checker, unless the original, which onnxruntime runs all the same, does not either."""
    try:
        check(model)
    except VerificationFailed:
        try:
            check(original())
        except VerificationFailed as own:
            log.warning("the original does not pass the ONNX checker, so the result need not: %s", own)
        else:
            raise


def _stand_in(model: Path | ModelProto) -> ModelProto:
    return in_float32(model if isinstance(model, ModelProto) else onnx.load(model))


def _same_interface(original: Outputs, result: Outputs) -> None:
    for name, a in original.items():
        b = result.get(name)
        if not isinstance(a, np.ndarray):
            continue
        if not isinstance(b, np.ndarray) or a.dtype != b.dtype or a.ndim != b.ndim:
            raise VerificationFailed(f"output {name!r} is missing or has another type than the original's")
        if a.dtype.kind == "f" and np.isfinite(a).all() and not np.isfinite(b).all():
            raise Unsound(f"output {name!r} has values that are not finite, unlike the original's")
