"""What values inputs have, where these are not of mean 0 and deviation 1: how they are drawn then.

Images come as bytes, from 0 to 1 or normalised, and many a graph normalises its own. One that divides by 255 sees a
single grey in numbers of deviation 1: whatever becomes of its weights, its outputs stay what they were.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .tensors import Array

USUAL = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
"""Between what images lie, where they are not normalised."""
SPREAD, GREY = 4.0, 0.45
"""Deviations in a range, and where in it the mean is, if it has no zero within: as photographs have it."""
LOUD = 20.0
"""Deviations in the range of sound: recordings are levelled to −20 dB."""
BYTES = ("uint8", "int8")
"""Types of images that are no real numbers."""
COLOURS = (1, 3, 4)
SIDE = 32
"""Rows and columns of an image that is no batch, at least; one less would be three signals."""


@dataclass(frozen=True, eq=False)
class Range:
    """What values of mean 0 and deviation 1 become to be an input's.

    Attributes:
        shift: their mean, a number or one for each value of a sample.
        scale: their deviation, alike.
        low: the least value.
        high: the greatest.
        by: what tells, in words.
    """

    shift: float | Array
    scale: float | Array
    low: float
    high: float
    by: str

    def of(self, values: Array) -> Array:
        """Values of mean 0 and deviation 1, in this range."""
        return np.asarray(np.clip(self.shift + self.scale * values, self.low, self.high))

    def as_type(self, values: Array, dtype: np.dtype[Any]) -> Array:
        """The same, of an input's type."""
        found = self.of(values)
        return (np.rint(found) if dtype.kind in "iu" else found).astype(dtype)

    @property
    def words(self) -> str:
        if np.isfinite(self.low):
            return f"from {self.low:g} to {self.high:g}"
        return f"with a mean of {np.mean(self.shift):.3g} and a deviation of {np.mean(self.scale):.3g}"


def between(low: float, high: float, by: str, spread: float = SPREAD) -> Range:
    """Of images that lie there: normalised ones, of mean 0, if zero is within; else nearly in the middle."""
    width = high - low
    return Range(0.0 if low < 0 < high else low + GREY * width, width / spread, low, high, by)


def is_image(values: Array) -> bool:
    """Whether an input is a batch of images: real numbers, or bytes for each colour."""
    if values.ndim == 3:  # one in colours, as detectors take
        return values.dtype.kind not in "iub" and values.shape[0] == 3 and min(values.shape[1:]) >= SIDE
    if values.ndim != 4:
        return False
    _, first, *_, last = values.shape
    turned = last in COLOURS and first not in COLOURS
    planes = min(values.shape[1:3] if turned else values.shape[2:]) > 1
    in_bytes = values.dtype.name in BYTES and (turned or first in COLOURS)
    return planes and (in_bytes or values.dtype.kind not in "iub")


def put_in(known: Range, batches: Sequence[Mapping[str, Array]], names: Collection[str]) -> list[dict[str, Array]]:
    """Batches whose inputs of these names, of mean 0 and deviation 1, are in the range."""
    return [{n: known.as_type(v, v.dtype) if n in names else v for n, v in batch.items()} for batch in batches]


def in_ranges(feeds: Mapping[str, Array], ranges: Mapping[str, Range], seed: int) -> dict[str, Array]:
    """Random inputs, those with a range in it."""
    rng, found = np.random.default_rng((seed, 1)), dict(feeds)
    for name, known in ranges.items():
        like = feeds[name]
        values = rng.standard_normal(like.shape) if like.dtype.kind in "iu" else like
        found[name] = known.as_type(values, like.dtype)
    return found
