"""What the original and the result make of one input in onnxruntime, with optimizations off and on."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto
from onnxruntime import InferenceSession

from .comparison import TINY, Outputs, cleared, compare, furthest_apart, shares
from .errors import Unsound, one_line
from .files import file_bytes, too_large
from .picking import feeds_of, numeric, picked, with_picks
from .probe import Probe
from .sessions import exact_session, session, session_options
from .tensors import Array

log = logging.getLogger("onnxfuse")
BUSY = 1 << 25
"""Bytes of a model from which on one run keeps the cores busy, so that two at once are no faster."""
ELSEWHERE = 7
"""Inputs beside the probe's on which a model is tried, if optimizations change what the result makes of that."""
LARGE = 1 << 30
"""Bytes of a model from which on onnxruntime must not copy its weights into another layout for one run."""


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
        """Largest relative difference that optimizations make to the result; none to shares of 1 that are a rounding of
        1 apart: however small a Sigmoid's result is, onnxruntime computes it no better."""
        apart = [e for e in compare(self.plain, self.fast) if e.max_abs > TINY or not self._shares(e.name)]
        return max((e.relative for e in apart), default=0.0)

    def _shares(self, name: str) -> bool:
        return shares(self.plain[name], self.fast[name], self.original.get(name, self.plain[name]))

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
    x, y = cleared(x, y)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.inf
    gap = float(np.linalg.norm(x - y))
    size = max(float(np.linalg.norm(v[np.isfinite(v)])) for v in (x, whole))
    return gap / size if size else gap


def run(model: Path | ModelProto, feeds: Outputs, providers: Sequence[str], optimized: bool) -> dict[str, Array]:
    """All outputs of a model, by name."""
    return _outputs(_opened(model, providers, optimized), feeds)


def _opened(model: Path | ModelProto, providers: Sequence[str], optimized: bool) -> InferenceSession:
    if isinstance(model, ModelProto):
        return session(model, providers, optimized)
    options = session_options(optimized, large=file_bytes(model) > LARGE)
    return exact_session(str(model), options, providers)


def _outputs(opened: InferenceSession, feeds: Outputs) -> dict[str, Array]:
    names = [o.name for o in opened.get_outputs()]
    return dict(zip(names, opened.run(names, dict(feeds)), strict=True))


def run_both(model: Path | ModelProto, reference: Probe, providers: Sequence[str]) -> Runs:
    """The result as it is; with the original's picks, if it makes too few of its own to run to its end."""
    try:
        alone = many_weights(model) or (bool(reference.noted) and _bytes(model) > BUSY)  # nor run again what may fail
        plain, fast = _plain_and_fast(model, reference.inputs, providers, alone)
    except Exception as error:  # onnxruntime has no base class for what it raises
        runs = with_given_picks(model, reference, providers)
        if runs is None:
            raise Unsound(f"onnxruntime cannot run the result: {one_line(error)}") from error
        log.warning(
            "the result runs with what the original picks, but not with its own picks from a random input; "
            "run it on an input of yours (%s)",
            one_line(error, 160),
        )
        return runs
    return Runs(reference.outputs, plain, fast)


def many_weights(model: Path | ModelProto) -> bool:
    """Whether there must not be one more copy of a model's weights than there has to be."""
    return too_large(model) if isinstance(model, ModelProto) else file_bytes(model) > LARGE


def _bytes(model: Path | ModelProto) -> int:
    return model.ByteSize() if isinstance(model, ModelProto) else file_bytes(model)


def _plain_and_fast(
    model: Path | ModelProto, feeds: Outputs, providers: Sequence[str], alone: bool
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Outputs with optimizations off and on: one run after the other, or both at the same time."""
    if alone:
        return run(model, feeds, providers, optimized=False), run(model, feeds, providers, optimized=True)
    with ThreadPoolExecutor(2) as pool:
        plain, fast = pool.map(lambda optimized: run(model, feeds, providers, optimized), (False, True))
    return plain, fast


def with_given_picks(model: Path | ModelProto, reference: Probe, providers: Sequence[str]) -> Runs | None:
    """Runs with the original's picks, of what both have; None if it makes none, or the result fails with these, too."""
    if not reference.noted:
        return None
    result, before = model if isinstance(model, ModelProto) else onnx.load(model), reference.noted
    given = numeric({name: before[name] for name in picked(result.graph) if name in before})
    part = with_picks(result, given)
    try:
        plain, fast = _plain_and_fast(part, feeds_of(part, reference.inputs, given), providers, many_weights(model))
    except Exception as error:  # onnxruntime has no base class for what it raises
        log.debug("nor does the result run with the original's picks: %s", one_line(error))
        return None
    return Runs({name: a for name, a in before.items() if name in plain}, plain, fast)


def own_agreements(reference: Probe, providers: Sequence[str], original: ModelProto) -> Iterator[float]:
    """What optimizations change in the original's outputs, on the probe's input and then elsewhere.

    If it picks by value, in what it makes of the same picks.
    """
    runs = with_given_picks(original, reference, providers)
    if runs is not None:
        yield runs.agreement
        return
    yield furthest_apart(reference.outputs, run(original, reference.inputs, providers, optimized=True))
    apart = agreements_elsewhere(original, reference, providers)
    yield from (a for a in apart if math.isfinite(a))  # what is zero or undefined there excuses nothing


def agreements_elsewhere(model: Path | ModelProto, reference: Probe, providers: Sequence[str]) -> Iterator[float]:
    """What optimizations change in a model's outputs on inputs with the probe's numbers in other places.

    Infinite where it does not run. Where activations are quantized, it is chance whether a rounding makes a number
    another integer on one input or not.
    """
    if many_weights(model):
        return
    pair, rng = [_opened(model, providers, optimized) for optimized in (False, True)], np.random.default_rng(0)
    for _ in range(ELSEWHERE):
        feeds = {n: rng.permuted(a, axis=-1) if _is_shuffled(a) else a for n, a in reference.inputs.items()}
        try:
            plain, fast = (_outputs(opened, feeds) for opened in pair)
        except Exception as error:  # onnxruntime has no base class for what it raises
            log.debug("it does not run with the probe's numbers in other places: %s", one_line(error))
            yield math.inf
        else:
            yield furthest_apart(plain, fast)


def _is_shuffled(values: Array) -> bool:
    return values.ndim > 1 and values.dtype.kind in "fiub"
