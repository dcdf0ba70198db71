"""How long models take in onnxruntime: medians of interleaved runs, so that other load hits all of them alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import ModelProto

from .sessions import without_weights
from .tensors import Array

WARM_UP = 3
"""Runs before the clock counts."""
SECONDS = 1.0
"""Spent on timed runs of two models, if the rounds allow."""
ROUNDS = (7, 300)
"""Fewest and most timed runs of each model."""

DEVICES: Mapping[str, str] = dict.fromkeys(("CUDAExecutionProvider", "TensorrtExecutionProvider"), "cuda")
"""Provider → onnxruntime's name of the memory where inputs and outputs stay, so that copies from and to the host,
which take longer than many a network, are not counted."""

LATE = 1.1
"""Times its target a result may take when it is timed once more: clocks and other load change."""


@dataclass(frozen=True)
class Latency:
    """Median time of one run on the probe input, batch and all, without copies to and from an accelerator.

    Attributes:
        before, after: milliseconds of the original and of the result.
        runs: of each.
        threads: that onnxruntime used within an operator.
        provider: of onnxruntime.
        most: milliseconds that the result was to take at most, if a target was given.
    """

    before: float
    after: float
    runs: int
    threads: int
    provider: str
    most: float | None = None

    @property
    def change(self) -> float:
        """The result's latency relative to the original's: −0.4 is 40% faster, 0.4 is 40% slower."""
        return self.after / self.before - 1

    @property
    def missed(self) -> bool:
        """Whether this reading is beyond what was asked for, chance aside (`LATE`)."""
        return self.most is not None and self.after > LATE * self.most


def measure(
    original: Path | ModelProto,
    result: Path | ModelProto,
    feeds: Mapping[str, Array],
    providers: Sequence[str],
    threads: int | None,
) -> Latency:
    """Time both models in turns, after a warm-up."""
    (before, after), runs = in_turns((original, result), feeds, providers, threads)
    return Latency(before, after, runs, threads or os.cpu_count() or 1, providers[0])


def in_turns(
    models: Sequence[Path | ModelProto], feeds: Mapping[str, Array], providers: Sequence[str], threads: int | None
) -> tuple[list[float], int]:
    """The median milliseconds of each model, and how many runs of each; one run of every model in every round."""
    runs = [_ready(_session(model, providers, threads), feeds, providers[0]) for model in models]
    for _ in range(WARM_UP):
        for run in runs:
            run()
    times: list[list[float]] = []
    end = time.perf_counter() + SECONDS * len(runs) / 2
    while len(times) < ROUNDS[0] or (time.perf_counter() < end and len(times) < ROUNDS[1]):
        times.append([_time(run) for run in runs])
    return np.median(times, axis=0).tolist(), len(times)


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


def _ready(session: ort.InferenceSession, feeds: Mapping[str, Array], provider: str) -> Callable[[], object]:
    """A run of the session, its inputs in place."""
    device = DEVICES.get(provider)
    if device is None:
        return partial(session.run, None, dict(feeds))
    binding = session.io_binding()
    for name, value in feeds.items():
        if value.dtype.kind in "fiub":
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, device, 0))
        else:
            binding.bind_cpu_input(name, value)
    for output in session.get_outputs():
        plain = output.type.startswith("tensor(") and "string" not in output.type
        binding.bind_output(output.name, device if plain else "cpu")
    return partial(session.run_with_iobinding, binding)


def _time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)
