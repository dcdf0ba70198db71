"""Dead leaves: images whose edges, plain areas and objects of all sizes are those of photographs.

Lee, Mumford and Huang, Occlusion Models for Natural Images, IJCV 2001: shapes that cover each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .tensors import Array

SHAPES = (3, 60)
"""Leaves in an image, at least and at most."""
FALL = 1.25
"""A little more than the 1 of photographs as a whole, whose edges are those of leaves here."""


def leaves(shape: tuple[int, int, int], rng: np.random.Generator, texture: float = 0.0) -> Array:
    """(C, H, W) shapes of random place, size, direction and colour that cover each other.

    Few large ones or many small ones; the colours of an image's channels go together. Over all of them lies noise
    whose spectrum falls, of a deviation up to `texture`, as on surfaces that are not even.
    """
    c, h, w = shape
    image = np.empty(shape, np.float32)
    image[:] = _colour(c, rng)[:, None, None]
    for _ in range(int(np.exp(rng.uniform(*np.log(SHAPES))))):
        _leaf(image, min(h, w) * 0.5 * rng.uniform(0.05, 1) ** 2 + 0.5, rng)
    return image + texture * rng.random() * _noise((h, w), rng) if texture else image


def _colour(channels: int, rng: np.random.Generator) -> Array:
    return np.asarray(rng.standard_normal() + 0.4 * rng.standard_normal(channels))


def _leaf(image: Array, radius: float, rng: np.random.Generator) -> None:
    """Draw one ellipse, rectangle or bar with a slope of brightness."""
    h, w = image.shape[1:]
    cy, cx, angle = rng.uniform(0, h), rng.uniform(0, w), rng.uniform(0, np.pi)
    stretch = math.exp(0.6 * rng.standard_normal())
    reach = 2 + 1.5 * radius * max(stretch, 1 / stretch, 2)
    rows, columns = (slice(max(0, int(c - reach)), min(n, int(c + reach) + 1)) for c, n in ((cy, h), (cx, w)))
    y, x = np.arange(rows.start, rows.stop)[:, None] - cy, np.arange(columns.start, columns.stop) - cx
    u, v = y * math.cos(angle) + x * math.sin(angle), x * math.cos(angle) - y * math.sin(angle)
    inside = SHAPED[int(rng.integers(len(SHAPED)))](u, v, radius, stretch)
    slope = 0.3 * rng.standard_normal() / radius
    image[:, rows, columns][:, inside] = _colour(len(image), rng)[:, None] + slope * u[inside]


def _noise(size: tuple[int, int], rng: np.random.Generator) -> Array:
    """(H, W) noise of mean 0 and deviation 1, whose amplitudes fall as frequency to the power of `FALL`."""
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1]))
    frequency[0, 0] = np.inf
    made = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(size)) / frequency**FALL, size)
    return np.asarray(made / max(made.std(), 1e-12))


Drawing = Callable[[Array, Array, float, float], Array]
SHAPED: Sequence[Drawing] = (
    lambda u, v, radius, stretch: (u / stretch) ** 2 + (v * stretch) ** 2 < radius**2,
    lambda u, v, radius, stretch: (abs(u) < radius * stretch) & (abs(v) < radius / stretch),
    lambda u, v, radius, stretch: (abs(u) < 2 * radius) & (abs(v) < max(0.5, 0.15 * radius)),
)
"""Which places are inside an ellipse, a rectangle and a bar, whose axes are `u` and `v`."""
