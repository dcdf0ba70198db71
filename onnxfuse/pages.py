"""Pages: lines of writing of all sizes on a ground of any kind, as networks that find text see them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from .leaves import leaves
from .tensors import Array
from .writing import COLOURS, face_for, inked

SMALLEST = 96
"""Rows and columns of an image that has room for a page, at least."""
SIDE = 320
"""Rows and columns of a page, where a model leaves them open: what is fitted to smaller ones is fitted to borders."""
HEIGHTS, LONG, APART = (10, 48), (2, 25), (1.0, 2.5)
"""Of a line: rows, at least and at most, columns and the distance to the next one for each of these."""
LINES = (2, 25)
"""On a page, as far as there is room."""
EVEN = 0.3
"""Share of pages whose lines are all alike, and begin below each other."""
TURNS = 4
"""Ways to lay a page."""
GROUNDS = (0.0, 0.02, 0.1, 0.3, 0.6)
"""Deviations of what is behind: paper, or anything else."""


def has_room(shape: tuple[int, int, int]) -> bool:
    """Whether an image (C, H, W) may be a page."""
    return shape[0] in COLOURS and min(shape[1:]) >= SMALLEST


def page(shape: tuple[int, int, int], rng: np.random.Generator) -> Array:
    """(C, H, W) one page, of values between −2 and 2 nearly."""
    return marked_page(shape, rng)[0]


def marked_page(shape: tuple[int, int, int], rng: np.random.Generator) -> tuple[Array, Array]:
    """The same, and (H, W) where its lines are: 1 in the middle half of their rows, 0 elsewhere."""
    image, where = _ground(shape, rng), np.zeros(shape[1:])
    for place in _places(shape[1:], rng):
        ink = place.ink(rng)
        part = image[:, place.top : place.top + ink.shape[0], place.left : place.left + ink.shape[1]]
        written = rng.uniform(0.5, 1.2) * (1 if part.mean() < 0 else -1) + rng.uniform(-0.3, 0.3, (shape[0], 1, 1))
        part += ink * (written - part)
        _mark(where, place, ink)
    return image + rng.uniform(0, 0.1) * (rng.random() < 0.5) * rng.standard_normal(shape), where


def turned_page(shape: tuple[int, int, int], rng: np.random.Generator) -> tuple[Array, int]:
    """A square one, turned, and by how many quarters, to the left."""
    turn = int(rng.integers(TURNS))
    return np.rot90(page(shape, rng), turn, (1, 2)), turn


@dataclass(frozen=True)
class _Place:
    """Of a line, in pixels."""

    top: int
    left: int
    rows: int
    columns: int
    seed: int

    def ink(self, rng: np.random.Generator) -> Array:
        """(rows, columns) 0 to 1: how much of each pixel is covered; all places of one seed have the same face."""
        face = face_for(self.rows, np.random.default_rng(self.seed))
        return inked((self.rows, self.columns), face, rng)[0]


def _ground(shape: tuple[int, int, int], rng: np.random.Generator) -> Array:
    image = leaves(shape, rng).astype(np.float64)
    image = (image - image.mean()) / max(image.std(), 1e-6)
    return np.asarray(image * rng.choice(GROUNDS) + rng.uniform(-0.8, 0.8))


def _places(size: tuple[int, int], rng: np.random.Generator) -> Iterator[_Place]:
    """Of lines below each other, which do not touch."""
    between = partial(_between, rng)
    even, count, top = rng.random() < EVEN, int(between(*LINES)), rng.uniform(0, 0.2) * size[0]
    rows, left, apart, seed = between(*HEIGHTS), rng.uniform(0, 0.3) * size[1], rng.uniform(*APART), _seed(rng)
    for _ in range(count):
        if not even:
            rows, apart, seed = between(*HEIGHTS), rng.uniform(*APART), _seed(rng)
        columns = min(size[1] - 4.0, rows * rng.uniform(*LONG))
        if not even:
            left = rng.uniform(0, max(size[1] - columns, 1))
        if top + rows >= size[0]:
            return
        yield _Place(int(top), int(left), int(rows), int(min(columns, size[1] - left)), seed)
        top += rows * apart


def _mark(where: Array, place: _Place, ink: Array) -> None:
    """From the first to the last column with ink; of rows the middle half, as networks tell lines apart by it."""
    rows, columns = (np.flatnonzero(ink.max(axis=axis) > 0.5) for axis in (1, 0))
    if len(rows):
        quarter = (rows[-1] + 1 - rows[0]) // 4
        down = slice(place.top + rows[0] + quarter, place.top + rows[-1] + 1 - quarter)
        where[down, place.left + columns[0] : place.left + columns[-1] + 1] = 1


def _between(rng: np.random.Generator, least: float, most: float) -> float:
    """A size: small ones are as many as large ones."""
    return float(np.exp(rng.uniform(np.log(least), np.log(most))))


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(1 << 31))
