"""How long models take in onnxruntime: medians of interleaved runs, so that other load hits all of them alike."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import ModelProto

from .sessions import without_weights
from .tensors import Array

WARM_UP = 3
"""Runs before the clock counts."""
SECONDS = 1.0
"""Spent on timed runs, if the rounds allow."""
ROUNDS = (7, 300)
"""Fewest and most timed runs of each model."""


@dataclass(frozen=True)
class Latency:
    """Median time of one run on the probe input, batch and all.

    Attributes:
        before, after: milliseconds of the original and of the result.
        runs: of each.
        threads: that onnxruntime used within an operator.
        provider: of onnxruntime.
    """

    before: float
    after: float
    runs: int
    threads: int
    provider: str

    @property
    def change(self) -> float:
        """The result's latency relative to the original's: −0.4 is 40% faster, 0.4 is 40% slower."""
        return self.after / self.before - 1


def measure(
    original: Path | ModelProto,
    result: Path | ModelProto,
    feeds: Mapping[str, Array],
    providers: Sequence[str],
    threads: int | None,
) -> Latency:
    """Time both models in turns, after a warm-up."""
    sessions = [_session(model, providers, threads) for model in (original, result)]
    for _ in range(WARM_UP):
        for session in sessions:
            _time(session, feeds)
    times: list[list[float]] = []
    end = time.perf_counter() + SECONDS
    while len(times) < ROUNDS[0] or (time.perf_counter() < end and len(times) < ROUNDS[1]):
        times.append([_time(session, feeds) for session in sessions])
    before, after = np.median(times, axis=0).tolist()
    return Latency(before, after, len(times), threads or os.cpu_count() or 1, providers[0])


def _session(model: Path | ModelProto, providers: Sequence[str], threads: int | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # or one session would slow the other
    if isinstance(model, Path):
        return ort.InferenceSession(str(model), options, providers=list(providers))
    skeleton, weights = without_weights(model)
    options.add_external_initializers(list(weights), list(weights.values()))
    return ort.InferenceSession(skeleton.SerializeToString(), options, providers=list(providers))


def _time(session: ort.InferenceSession, feeds: Mapping[str, Array]) -> float:
    start = time.perf_counter()
    session.run(None, dict(feeds))
    return 1000 * (time.perf_counter() - start)
