"""Compare a result with its original in onnxruntime, and refuse what is not a sound model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto

from .errors import VerificationFailed, one_line
from .model import Array, file_bytes, too_large
from .picking import before_picks
from .probe import Probe, session, session_options
from .standin import in_float32

log = logging.getLogger("onnxfuse")
AGREEMENT = 1e-3
"""Relative difference allowed between a result's outputs with onnxruntime's optimizations off and on."""
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
    numeric = [n for n, a in original.items() if isinstance(a, np.ndarray) and a.dtype.kind in "fiub"]
    return tuple(difference(n, original[n], result[n]) for n in numeric)


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


def verify(
    model: Path | ModelProto,
    reference: Probe,
    providers: Sequence[str],
    min_cosine: float | None,
    max_error: float | None,
    original: Callable[[], ModelProto],
) -> Comparison:
    """Check a result and compare it with the original.

    Args:
        model: the result, as the file that was written or in memory.
        reference: the original's run, with optimizations off.
        providers: of onnxruntime.
        min_cosine: smallest cosine similarity allowed for any output, or None.
        max_error: largest absolute difference allowed in any output, or None.
        original: loads the original again; called only if the result fails a check that the original may fail, too.

    Raises:
        VerificationFailed: invalid, does not run, outputs of other shape or type, not finite, not the same with
            optimizations off and on, or beyond `min_cosine` or `max_error`.
    """
    _check_as_well_as(model, original)
    runs = _stand_in(model) if reference.stand_in else model
    try:
        plain = run(runs, reference.inputs, providers, optimized=False)
        fast = run(runs, reference.inputs, providers, optimized=True)
    except Exception as error:  # onnxruntime has no base class for what it raises
        raise VerificationFailed(f"onnxruntime cannot run the result: {one_line(error)}") from error
    _same_interface(reference.outputs, plain)
    agreement = max((e.relative for e in compare(plain, fast)), default=0.0)
    if not agreement <= AGREEMENT:
        source = original()
        fused = run(in_float32(source) if reference.stand_in else source, reference.inputs, providers, optimized=True)
        own = max((e.relative for e in compare(reference.outputs, fused)), default=0.0)
        if not agreement <= own * SLACK and not _same_before_picks(runs, reference.inputs, providers):
            raise VerificationFailed(
                f"outputs with optimizations off and on differ by {agreement:.2g} (the original's by {own:.2g})"
            )
    result = Comparison(compare(reference.outputs, plain), agreement)
    if min_cosine is not None and not result.cosine >= min_cosine:
        worst = min(result.outputs, key=lambda o: o.cosine)
        raise VerificationFailed(
            f"output {worst.name!r} has cosine similarity {worst.cosine:.4f}, below the minimum {min_cosine}"
        )
    furthest = max(result.outputs, key=lambda o: o.max_abs, default=None)
    if max_error is not None and furthest is not None and not furthest.max_abs <= max_error:
        raise VerificationFailed(
            f"output {furthest.name!r} has an absolute error of {furthest.max_abs:.3g}, above the maximum {max_error}"
        )
    return result


def _same_before_picks(model: Path | ModelProto, feeds: Outputs, providers: Sequence[str]) -> bool:
    """Whether optimizations change only what is picked: in noise a rounding decides which of two boxes is found."""
    part = before_picks(model if isinstance(model, ModelProto) else onnx.load(model))
    if part is None:
        return False
    plain, fast = (run(part, feeds, providers, optimized) for optimized in (False, True))
    return all(e.relative <= AGREEMENT for e in compare(plain, fast))


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
            raise VerificationFailed(f"output {name!r} has values that are not finite, unlike the original's")
