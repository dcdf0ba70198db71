"""How alike the original's and the result's outputs are on samples: what random input cannot tell.

No labels are needed for them. Of the user's, if there are enough, they are some that nothing was fitted to (`heldout`).
Without any, others are drawn than those that the result was fitted to.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto

from .calibdata import Batches, Samples
from .comparison import OutputError, Vector, cleared, of_numbers, shared_cosine
from .errors import ModelError, OnnxFuseError, Unsound, one_line
from .heldout import a_few, samples_in
from .joined import taken_apart
from .picking import behind_picks, numeric
from .probe import Probe
from .sessions import session
from .standin import in_float32
from .tensors import Array

FITTED = 64
"""As many of the fitted samples are run at most, or one batch of the model, if none were held out."""
log = logging.getLogger("onnxfuse")


@dataclass(frozen=True)
class Fidelity:
    """Of the result to the original.

    Attributes:
        samples: that were run.
        held_out: whether nothing was fitted to these; else they are some of those that the result was fitted to.
        cosine: similarity of an output, mean over the samples, of the output where it is least; NaN if there is none.
            Of one that holds a single number for each sample as `comparison.of_numbers` has it, over all of them.
        same_top: share of samples for which the same class has the largest score in the first output; None if that is
            not (samples, classes).
        outputs: of each output that no picks by value lie before the mean similarity, the largest absolute difference,
            and the L2 norm of the difference over that of the original; of other sizes as `comparison` has it.
        still: outputs of the original, of real numbers, that are the same for all samples, and so tell nothing.
    """

    samples: int
    held_out: bool
    cosine: float
    same_top: float | None
    outputs: tuple[OutputError, ...]
    still: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Sums:
    """What one run tells of an output: similarities, largest difference, squared norms.

    Attributes:
        cosines: (samples,).
        numbers: (2, samples) the original's and the result's, if an output holds one for each sample.
        max_abs, gap, norm: of all values; the latter two of the difference and of the original, squared.
        same: stands for what the original makes of all samples alike; empty if it does not, or makes no real numbers.
    """

    cosines: Vector
    numbers: Vector | None
    max_abs: float
    gap: float
    norm: float
    same: bytes


def fidelity(
    original: ModelProto, result: ModelProto, samples: Samples, providers: Sequence[str], reference: Probe
) -> Fidelity:
    """Run both models on the samples that were held out, or on some of the others.

    Args:
        original, result: the models.
        samples: the user's, or drawn ones.
        providers: of onnxruntime.
        reference: the original's run, which tells whether both are run as float32, and which outputs have faint parts.

    Raises:
        ModelError: the original does not run on them.
        Unsound: the result does not.
    """
    sessions = [session(in_float32(m) if reference.stand_in else m, providers) for m in (original, result)]
    names, wanted = [o.name for o in sessions[0].get_outputs()], set(comparable(original))
    found: dict[str, list[_Sums]] = {}
    tops: list[NDArray[np.bool_]] = []
    count = 0
    for feeds in samples.held or a_few(samples.fitted, FITTED):
        n = samples_in(feeds)
        before = _run(sessions[0], names, feeds, ModelError, "the model")
        after = _run(sessions[1], names, feeds, Unsound, "the result")
        count += n
        before = {name: a for name, a in before.items() if name in wanted}
        tops += _same_top(before.get(names[0]), after.get(names[0]), n)
        before, after = taken_apart(before, after, reference.faint)
        for name, a in before.items():
            found.setdefault(name, []).append(_sums(a, after[name], n))
    outputs = tuple(_error(name, sums) for name, sums in found.items())
    least = float(np.min([o.cosine for o in outputs])) if outputs else float("nan")  # NaN, if one is
    top = float(np.concatenate(tops).mean()) if tops else None
    still = tuple(n for n, sums in found.items() if count > 1 and sums[0].same and len({s.same for s in sums}) == 1)
    return Fidelity(count, bool(samples.held), least, top, outputs, still)


def fidelity_on_drawn(
    original: ModelProto, result: ModelProto, drawn: Batches, providers: Sequence[str], reference: Probe
) -> Fidelity | None:
    """The same on drawn samples; None if there are none, values are picked, or the original does not run on them."""
    if not drawn or behind_picks(original.graph):
        return None
    try:
        found = fidelity(original, result, Samples([], drawn), providers, reference)
    except ModelError as error:
        log.debug("no comparison on synthetic samples: %s", error)
        return None
    return found if found.outputs else None


def comparable(model: ModelProto) -> list[str]:
    """The outputs that runs on samples can be compared in: what lies behind picks by value needs the same picks."""
    behind = behind_picks(model.graph)
    return [o.name for o in model.graph.output if o.name not in behind]


def _error(name: str, sums: Sequence[_Sums]) -> OutputError:
    numbers = [s.numbers for s in sums if s.numbers is not None]
    if len(numbers) == len(sums):
        cosine = of_numbers(*np.concatenate(numbers, axis=1))
    else:
        cosine = float(np.concatenate([s.cosines for s in sums]).mean())
    gap, norm = np.sqrt(sum(s.gap for s in sums)), np.sqrt(sum(s.norm for s in sums))
    relative = float(gap / norm) if norm else float("inf") if gap else 0.0
    return OutputError(name, cosine, max(s.max_abs for s in sums), relative)


def _sums(a: Array, b: Array, n: int) -> _Sums:
    if a.shape != b.shape:
        return _Sums(np.full(n, shared_cosine(a, b)), None, float("inf"), float("inf"), 1.0, b"")
    x, y = _rows(a, n), _rows(b, n)
    x, y = cleared(x, y)
    gap = np.abs(x - y) if np.isfinite(x).all() and np.isfinite(y).all() else np.full_like(x, np.inf)
    numbers = np.stack([x[:, 0], y[:, 0]]) if x.shape[1] == 1 else None
    sizes = float(gap.max(initial=0)), float(np.sum(gap**2)), float(np.sum(x**2))
    same = a.dtype.kind == "f" and bool((x == x[0]).all())
    digest = hashlib.sha1((x[0] + 0.0).tobytes(), usedforsecurity=False).digest() if same else b""
    return _Sums(_cosines(x, y), numbers, *sizes, digest)


def _run(
    model: ort.InferenceSession, names: Sequence[str], feeds: Mapping[str, Array], kind: type[OnnxFuseError], which: str
) -> dict[str, Array]:
    try:
        return numeric(dict(zip(names, model.run(names, dict(feeds)), strict=True)))
    except Exception as error:  # onnxruntime has no base class for what it raises
        raise kind(f"{which} does not run on the samples it is compared on: {one_line(error)}") from error


def _rows(a: Array, n: int) -> Vector:
    """(samples, values) float64; one sample if the first axis does not count them."""
    return np.asarray(a, np.float64).reshape(n if a.ndim and len(a) == n else 1, -1)


def _cosines(a: Vector, b: Vector) -> Vector:
    """(samples,) similarities, 1 where both are the same; NaN where they differ and one is infinite."""
    with np.errstate(invalid="ignore"):
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines = np.sum(a * b, axis=1) / np.where(norms > 0, norms, 1)
    return np.asarray(np.where((a == b).all(axis=1), 1.0, cosines))


def _same_top(a: Array | None, b: Array | None, n: int) -> Iterator[NDArray[np.bool_]]:
    """Whether the largest scores are at one place, if these are scores."""
    if a is not None and b is not None and a.shape == b.shape and a.ndim == 2 and len(a) == n and a.shape[1] > 1:
        yield a.argmax(axis=1) == b.argmax(axis=1)
