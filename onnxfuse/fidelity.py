"""How alike the original's and the result's outputs are on the user's own samples: what random input cannot tell.

These are samples that the repair was fitted to, so the figures flatter a little; no labels are needed for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto

from .calibdata import Batches, evenly
from .errors import Unsound, one_line
from .picking import numeric
from .sessions import session
from .tensors import Array

SAMPLES = 64
"""As many are run at most, or one batch of the model."""
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Fidelity:
    """Of the result to the original.

    Attributes:
        samples: that were run, evenly spaced among the user's.
        cosine: similarity of an output, mean over the samples, of the output where it is least; NaN if none is
            comparable.
        same_top: share of samples for which the same class has the largest score in the first output; None if that is
            not (samples, classes).
    """

    samples: int
    cosine: float
    same_top: float | None


def fidelity(original: ModelProto, result: ModelProto, batches: Batches, providers: Sequence[str]) -> Fidelity:
    """Run both models on some of the samples.

    Raises:
        Unsound: the result does not run on them.
    """
    chosen = _some(batches)
    sessions = [session(model, providers) for model in (original, result)]
    names = [o.name for o in sessions[0].get_outputs()]
    cosines: dict[str, list[Vector]] = {}
    tops: list[NDArray[np.bool_]] = []
    count = 0
    for feeds in chosen:
        n = max((len(v) for v in feeds.values() if v.ndim), default=1)
        before = numeric(dict(zip(names, sessions[0].run(names, feeds), strict=True)))
        after = numeric(dict(zip(names, _run(sessions[1], names, feeds), strict=True)))
        count += n
        for name, a in before.items():
            if a.shape == after[name].shape:
                cosines.setdefault(name, []).append(_cosines(_rows(a, n), _rows(after[name], n)))
        tops += _same_top(before.get(names[0]), after.get(names[0]), n)
    means = [float(np.concatenate(c).mean()) for c in cosines.values()]
    return Fidelity(count, min(means, default=float("nan")), float(np.concatenate(tops).mean()) if tops else None)


def _run(result: ort.InferenceSession, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
    try:
        return list(result.run(names, dict(feeds)))
    except Exception as error:  # onnxruntime has no base class for what it raises
        raise Unsound(f"the result does not run on the calibration samples: {one_line(error)}") from error


def _some(batches: Batches) -> Batches:
    each = max((len(v) for v in batches[0].values() if v.ndim), default=1)
    return [batches[i] for i in evenly(len(batches), max(1, SAMPLES // each))]


def _rows(a: Array, n: int) -> Vector:
    """(samples, values) float64; one sample if the first axis does not count them."""
    return np.asarray(a, np.float64).reshape(n if a.ndim and len(a) == n else 1, -1)


def _cosines(a: Vector, b: Vector) -> Vector:
    """(samples,) similarities, 1 where both are zero."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = (a == b).all(axis=1)
    return np.asarray(np.where(same, 1.0, np.sum(a * b, axis=1) / np.where(norms > 0, norms, 1)))


def _same_top(a: Array | None, b: Array | None, n: int) -> Iterator[NDArray[np.bool_]]:
    """Whether the largest scores are at one place, if these are scores."""
    if a is not None and b is not None and a.shape == b.shape and a.ndim == 2 and len(a) == n and a.shape[1] > 1:
        yield a.argmax(axis=1) == b.argmax(axis=1)
