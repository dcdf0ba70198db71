"""Refuse a result that is not a sound model, or not as good as asked."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from onnx import ModelProto

from .comparison import Comparison, OutputError, Outputs, compare, floor_missed, shares
from .defined import UNDEFINED, check_defined, is_real
from .errors import Unsound, VerificationFailed, one_line
from .fidelity import comparable
from .files import too_large
from .joined import Faint, taken_apart
from .picking import in_order_of, numeric
from .probe import Probe
from .quantized import rounds
from .runs import Runs, agreements_elsewhere, many_weights, own_agreements, run, run_both, with_given_picks
from .standin import in_float32

log = logging.getLogger("onnxfuse")
SCALE, MEAN = 2.0, 1.0
"""What the probe input is multiplied by, and what is added, for an input of another kind."""
ELSEWHERE = "on random input of another mean and scale"
AGREEMENT = 1e-3
"""Relative difference allowed between a result's outputs with onnxruntime's optimizations off and on."""
WARY = 1e-4
"""The same where another way to make the result is left: no trained model's outputs are made of roundings."""
FAR = 10.0
"""And there, how far outputs may be from the original's, where zeros would be 1: some random weights explode."""
SLACK = 10.0
"""Or this many times what the original's own outputs differ by, for models that are that sensitive."""


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
    result has nothing to go on with, other shapes than the original, is another with optimizations (in whatever order),
    or is not as near to the original as asked.

    Args:
        model: the result, as the file that was written or in memory.
        reference: the original's run, with optimizations off.
        providers: of onnxruntime.
        min_cosine: smallest cosine similarity allowed for any output, or None.
        max_error: largest absolute difference allowed in any output, or None.
        original: loads the original again; called only if the result fails a check that the original may fail, too.
        wary: whether there is another way to make the result, so that doubts are enough to refuse it (`WARY`, `FAR`).

    Raises:
        VerificationFailed: invalid, outputs of another type, or beyond `min_cosine` or `max_error`; or the original's
            are not finite anywhere.
        Unsound: does not run, outputs that are not finite, not the same with optimizations off and on, or far off.
    """
    check_defined(reference)
    opened = _stand_in(model) if reference.stand_in else model
    runs = _checked(model, original, partial(run_both, opened, reference, providers))
    _same_interface(runs.original, runs.plain)
    agreement = WARY if wary else AGREEMENT
    if reference.noted and not runs.agreement <= agreement:
        runs = replace(runs, fast=in_order_of(runs.plain, runs.fast))
    if _doubtful(runs, agreement) or floor_missed(_errors(runs, reference), min_cosine, max_error):
        runs = with_given_picks(opened, reference, providers) or runs
    if not runs.agreement <= agreement:
        source = _source(original(), reference)
        others = agreements_elsewhere(opened, reference, providers) if rounds(source) else ()
        _refuse_apart(runs, own_agreements(reference, providers, source), others, agreement, wary)
    result = Comparison(_of_outputs(runs, reference, reference.faint), runs.agreement)
    whole = replace(result, outputs=_of_outputs(runs, reference, {})) if reference.faint else result
    if wary:
        _refuse_exploded(whole, runs)
    _refuse_undefined(whole, runs)
    if (missed := floor_missed(result.outputs, min_cosine, max_error)) is not None:
        raise VerificationFailed(f"{missed} (on random input)")
    return result


def compare_elsewhere(
    model: Path | ModelProto, reference: Probe, providers: Sequence[str], original: ModelProto
) -> tuple[OutputError, ...]:
    """A result against the original on an input of another mean and scale than the probe's.

    Of the outputs that are finite there and that no picks by value lie before; of none if the original does not run.

    Raises:
        Unsound: the result does not run there.
    """
    feeds = {n: (SCALE * a + MEAN).astype(a.dtype) for n, a in reference.inputs.items() if is_real(a)}
    feeds = {**reference.inputs, **feeds}
    try:
        before = run(_source(original, reference), feeds, providers, optimized=False)
    except Exception as error:  # onnxruntime has no base class for what it raises
        log.debug("the original does not run on an input of another mean and scale: %s", one_line(error))
        return ()
    try:
        after = run(_stand_in(model) if reference.stand_in else model, feeds, providers, optimized=False)
    except Exception as error:
        raise Unsound(f"onnxruntime cannot run the result {ELSEWHERE}: {one_line(error)}") from error
    names = [n for n in comparable(original) if is_real(before[n]) and np.isfinite(before[n]).all()]
    return compare({n: before[n] for n in names}, after)


def _comparison(runs: Runs) -> Comparison:
    return Comparison(compare(runs.original, runs.plain), runs.agreement)


def _doubtful(runs: Runs, agreement: float) -> bool:
    """Or the original makes nothing, as a detector that finds no box: that tells nothing."""
    nothing = not any(a.size for a in numeric(runs.original).values())
    return nothing or not runs.agreement <= agreement or any(math.isinf(e.max_abs) for e in _comparison(runs).outputs)


def _checked(model: Path | ModelProto, original: Callable[[], ModelProto], running: Callable[[], Runs]) -> Runs:
    """Check and run a result at the same time, which onnxruntime does without Python; unless its weights are many."""
    with ThreadPoolExecutor(1) as pool:
        early = None if many_weights(model) else pool.submit(running)
        _check_as_well_as(model, original)
        return running() if early is None else early.result()


def _source(original: ModelProto, reference: Probe) -> ModelProto:
    return in_float32(original) if reference.stand_in else original


def _stand_in(model: Path | ModelProto) -> ModelProto:
    return in_float32(model if isinstance(model, ModelProto) else onnx.load(model))


def _of_outputs(runs: Runs, reference: Probe, faint: Mapping[str, Faint]) -> tuple[OutputError, ...]:
    """How the model's outputs differ; what its picks read, if all of its outputs are picks, or hold nothing."""
    original, result = taken_apart(runs.original, runs.plain, faint)
    errors = compare(original, result)
    own = reference.outputs.keys() | (original.keys() - runs.original.keys())
    full = tuple(e for e in errors if original[e.name].size)
    return tuple(e for e in full if e.name in own) or full or errors


def _errors(runs: Runs, reference: Probe) -> tuple[OutputError, ...]:
    return compare(*taken_apart(runs.original, runs.plain, reference.faint))


def _refuse_apart(runs: Runs, own: Iterable[float], others: Iterable[float], agreement: float, wary: bool) -> None:
    """With optimizations off and on the result is another.

    More than by the original's `own` agreements, which are asked for one after the other; unless its `others`, on more
    inputs, show that on this one it was chance, or, without a need to be wary, it drifts relative to itself only.
    """
    if not wary and runs.drift <= agreement:
        return
    most = 0.0
    for apart in own:
        most = max(most, apart)
        if runs.agreement <= most * SLACK:
            return
    if median([runs.agreement, *others]) <= agreement:
        return
    raise Unsound(
        f"outputs with optimizations off and on differ by {runs.agreement:.2g} (the original's by {most:.2g})"
    )


def _refuse_exploded(result: Comparison, runs: Runs) -> None:
    """Shares of 1, as a Sigmoid makes them, cannot explode: the smallest may become many times as large."""
    for output in result.outputs:
        bounded = shares(runs.original[output.name], runs.plain[output.name])
        if math.isfinite(output.relative) and output.relative > FAR and not bounded:
            raise Unsound(f"output {output.name!r} is {output.relative:.2g} times as far off as zeros would be")


def _refuse_undefined(result: Comparison, runs: Runs) -> None:
    """Where the original is finite in places only, other places of the result prove nothing."""
    for output in result.outputs:
        a, b = runs.original[output.name], runs.plain[output.name]
        if a.shape == b.shape and not np.isfinite(a).all() and math.isnan(output.cosine):
            raise Unsound(UNDEFINED.format(output.name, " at some places, and the result at others"))


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


def _same_interface(original: Outputs, result: Outputs) -> None:
    for name, a in original.items():
        b = result.get(name)
        if not isinstance(a, np.ndarray):
            continue
        if not isinstance(b, np.ndarray) or a.dtype != b.dtype or a.ndim != b.ndim:
            raise VerificationFailed(f"output {name!r} is missing or has another type than the original's")
        if a.dtype.kind == "f" and np.isfinite(a).all() and not np.isfinite(b).all():
            raise Unsound(f"output {name!r} has values that are not finite, unlike the original's")
