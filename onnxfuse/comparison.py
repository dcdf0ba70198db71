"""How a result's outputs differ from the original's, and whether that is more than was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from .errors import VerificationFailed
from .picking import numeric
from .tensors import Array

LOSSLESS = 1e-5
"""Relative difference allowed from the original where nothing may be lost."""
EPSILON: Mapping[int, float] = {TensorProto.FLOAT16: 2.0**-10, TensorProto.BFLOAT16: 2.0**-7}
ROUNDINGS = 8
"""Or so many roundings of a coarse number format."""
TINY = 1e-6
"""Of a size, what is a rounding."""
Outputs = Mapping[str, Array]
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class OutputError:
    """How one output of the result differs from the original's on the probe input.

    Attributes:
        name: the output.
        cosine: similarity of the flattened tensors, 1 if both are zero; NaN where they are not finite, or have other
            numbers of axes. Of single numbers as `of_numbers` has it; of other sizes what one has not counts as zero.
        max_abs: largest absolute difference; infinite if sizes are others.
        relative: L2 norm of the difference over L2 norm of the original; alike.
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
    if a.shape != b.shape:
        return OutputError(name, shared_cosine(a, b), float("inf"), float("inf"))
    x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    x, y = cleared(x, y)
    if np.array_equal(x, y):
        return OutputError(name, 1.0, 0.0, 0.0)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return OutputError(name, float("nan"), float("inf"), float("inf"))
    nx, ny, gap = (float(np.linalg.norm(v)) for v in (x, y, x - y))
    cosine = of_numbers(x, y) if x.size == 1 else float(x @ y) / (nx * ny) if nx and ny else 0.0
    return OutputError(name, cosine, float(np.abs(x - y).max()), gap / nx if nx else float("inf"))


def shared_cosine(a: Array, b: Array) -> float:
    """Similarity of arrays of other sizes, as of a decoder that ends later: what one has not counts as zero.

    NaN if they have other numbers of axes, or are not finite.
    """
    if a.ndim != b.ndim:
        return float("nan")
    both = tuple(slice(min(n, m)) for n, m in zip(a.shape, b.shape, strict=True))
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(np.sum(x[both] * y[both])) / (size or 1.0) if np.isfinite(size) else float("nan")


def cleared(x: Vector, y: Vector) -> tuple[Vector, Vector]:
    """Both with zeros where they are NaN alike, or the same infinity, as what a mask leaves out: no difference."""
    alike = ~np.isfinite(x) & ((x == y) | (np.isnan(x) & np.isnan(y)))
    return (np.where(alike, 0, x), np.where(alike, 0, y)) if alike.any() else (x, y)


def of_numbers(x: Vector, y: Vector) -> float:
    """How alike (samples,) outputs are that hold one number for each sample; -1 to 1, NaN where one is infinite.

    The cosine over all samples, both less the mean of `x`, the original's: of one number it would be 1 for any other of
    its sign, and a result that is constant, shifted or shrunk is not like it. Where the original does not vary, or of
    one sample, 1 − |x − y| / |x|, but -1 at least.
    """
    if np.array_equal(x, y):
        return 1.0
    with np.errstate(invalid="ignore"):
        own, other = x - x.mean(), y - x.mean()
        size = float(np.linalg.norm(x))
        if not (varies := float(np.linalg.norm(own))) > TINY * size:
            return max(-1.0, 1 - float(np.linalg.norm(x - y)) / size) if size else -1.0
        return float(own @ other) / (varies * (float(np.linalg.norm(other)) or 1.0))


def compare(original: Outputs, result: Outputs) -> tuple[OutputError, ...]:
    """`difference` of every numeric output."""
    return tuple(difference(name, a, result[name]) for name, a in numeric(original).items())


def furthest_apart(a: Outputs, b: Outputs) -> float:
    """The largest relative difference of any output."""
    return max((e.relative for e in compare(a, b)), default=0.0)


def shares(*arrays: Array) -> bool:
    """Whether all values are from 0 to 1."""
    return all(bool(((values >= 0) & (values <= 1)).all()) for values in arrays)


def floor_missed(outputs: Sequence[OutputError], min_cosine: float | None, max_error: float | None) -> str | None:
    """By which output, and by how much, a sound result is worse than asked; None if it is not."""
    for output in sorted(outputs, key=lambda o: o.cosine):
        if min_cosine is not None and not output.cosine >= min_cosine:
            return f"output {output.name!r} has cosine similarity {output.cosine:.6g}, below the minimum {min_cosine}"
    for output in sorted(outputs, key=lambda o: -o.max_abs):
        if max_error is not None and not output.max_abs <= max_error:
            return (
                f"output {output.name!r} has an absolute error of {output.max_abs:.3g}, above the maximum {max_error}"
            )
    return None


def check_lossless(outputs: Iterable[OutputError], types: Set[int], where: str) -> None:
    """Nothing may be lost.

    Args:
        outputs: of the result, against the original's.
        types: element types of the model's weights; sums in another order differ by roundings of the coarsest.
        where: on what input, for the message.

    Raises:
        VerificationFailed: an output changed by more than `LOSSLESS` of its norm.
    """
    allowed = max([LOSSLESS, *(ROUNDINGS * EPSILON[t] for t in types & EPSILON.keys())])
    for output in outputs:
        if not output.relative <= allowed:
            raise VerificationFailed(
                f"output {output.name!r} changed by {output.relative:.2g} {where}, over {allowed:.2g}; "
                "leave out the layers at fault with --exclude"
            )
