"""Lines of writing, as networks that read text see them: words of letters and figures, or of dense signs.

Statistics of photographs are not those of writing: long strokes of one width and one colour, close to each other, on a
ground of another. They are drawn with strokes of our own, in faces of all kinds, so no font is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .bytestreams import some_words
from .leaves import leaves
from .tensors import Array

Strokes = Sequence[NDArray[np.float64]]
"""(points, 2) corners of each stroke of a sign: x to the right and y downwards, in units of the face."""
COLOURS, HIGHEST, LONG = (1, 3), 64, 3
"""An image is a line of writing if it has so many channels, no more rows, and is so many times as wide as high."""
TURNED, SHORT, DENSE, NUMBERS, MARKED, SERIFS, SLANTED = 0.3, 0.2, 0.25, 0.15, 0.1, 0.4, 0.3
"""Shares: of lines upside down, lines that end early, with nothing behind, lines of dense signs; of words that are
numbers, that end with a mark; of faces with serifs, and slanted ones."""
SQUEEZED = (0.25, 1.25)
"""How wide a unit of a line that may be squeezed is for its height: an image holds four times its height of a line, and
most are longer."""
MARKS, FIGURES = ".,:-/()", "0123456789"
BASE, ENDS = 6, (0, 2, 6)
"""Where letters stand, and where serifs are: on top of capitals and of small letters, and where letters stand."""
HEIGHT = 9
"""Of a line, with what hangs below it, in units."""
SIGNS: Mapping[str, str] = {
    "a": "12 32 43 46|44 14 05 16 36 45", "b": "00 06|03 12 32 43 45 36 16 05", "c": "43 32 12 03 05 16 36 45",
    "d": "40 46|43 32 12 03 05 16 36 45", "e": "04 44|44 43 32 12 03 05 16 36 45", "f": "30 20 11 16|02 32",
    "g": "42 47 38 18 07|43 32 12 03 05 16 36 45", "h": "00 06|03 12 32 43 46", "i": "12 16|10 10",
    "j": "22 27 18 08|20 20", "k": "00 06|42 04|14 46", "l": "10 16", "m": "02 06|03 12 22 33 36|33 42 52 63 66",
    "n": "02 06|03 12 32 43 46", "o": "22 12 03 05 16 36 45 43 32 22", "p": "02 08|03 12 32 43 45 36 16 05",
    "q": "42 48|43 32 12 03 05 16 36 45", "r": "02 06|03 12 22 32", "s": "43 32 12 03 14 34 45 36 16 05",
    "t": "10 15 26 36|02 32", "u": "02 05 16 36 45|42 46", "v": "02 26|26 42", "w": "02 16|16 32|32 46|46 62",
    "x": "02 46|42 06", "y": "02 26|42 26 18 08", "z": "02 42|42 06|06 46", "A": "06 20|20 46|14 34",
    "B": "00 06|00 30 41 42 33 03|03 33 44 45 36 06", "C": "41 30 10 01 05 16 36 45", "D": "00 06|00 20 41 45 26 06",
    "E": "00 06|00 40|03 33|06 46", "F": "00 06|00 40|03 33", "G": "41 30 10 01 05 16 36 45|45 43|43 23",
    "H": "00 06|40 46|03 43", "I": "10 16", "J": "30 35 26 16 05", "K": "00 06|40 03|13 46", "L": "00 06|06 46",
    "M": "06 00|00 34|34 60|60 66", "N": "06 00|00 46|46 40", "O": "20 10 01 05 16 36 45 41 30 20",
    "P": "00 06|00 30 41 42 33 03", "Q": "20 10 01 05 16 36 45 41 30 20|34 46", "R": "00 06|00 30 41 42 33 03|23 46",
    "S": "41 30 10 01 02 13 33 44 45 36 16 05", "T": "00 40|20 26", "U": "00 05 16 36 45 40", "V": "00 26|26 40",
    "W": "00 16|16 31|31 46|46 60", "X": "00 46|40 06", "Y": "00 23|23 40|23 26", "Z": "00 40|40 06|06 46",
    "0": "20 10 01 05 16 36 45 41 30 20", "1": "11 20|20 26", "2": "01 10 30 41 42 06|06 46",
    "3": "01 10 30 41 42 33 23|33 44 45 36 16 05", "4": "30 04|04 44|30 36", "5": "40 00|00 03|03 33 44 45 36 16 05",
    "6": "30 20 02 05 16 36 45 44 33 13 04", "7": "00 40|40 16",
    "8": "23 13 02 01 10 30 41 42 33 13 04 05 16 36 45 44 33 23", "9": "42 33 13 02 01 10 30 41 44 26 16", ".": "16 16",
    ",": "16 07", ":": "13 13|16 16", "-": "04 34", "/": "30 06", "(": "20 02 04 26", ")": "00 22 24 06",
}  # fmt: skip
"""Letters, figures and marks: their strokes, joined where there is an edge, each of corners `xy`: x from 0, y from 0 at
the top to 8."""


def is_line(shape: Sequence[int]) -> bool:
    """Whether an image (C, H, W) is as low and as long as a line of writing."""
    channels, rows, columns = shape
    return channels in COLOURS and 1 < rows <= HIGHEST and columns >= LONG * rows


def line(shape: tuple[int, int, int], rng: np.random.Generator) -> Array:
    """(C, H, W) one line from −1, black, to 1, white; behind a short one there is what is half-way between them."""
    return counted_line(shape, rng)[0]


def counted_line(shape: tuple[int, int, int], rng: np.random.Generator) -> tuple[Array, int]:
    """The same, and how many signs it has, none if it is upside down."""
    image, signs, turned = _line(shape, face_for(shape[1], rng), TURNED, rng)
    return image, 0 if turned else signs


def turned_line(shape: tuple[int, int, int], rng: np.random.Generator) -> tuple[Array, int]:
    """One whose letters may be narrow, as long lines are squeezed to the size of an image; and 1 if it is upside down,
    as half of them are, else 0."""
    face = face_for(shape[1], rng)
    face = replace(face, unit=(face.unit[1] * float(np.exp(rng.uniform(*np.log(SQUEEZED)))), face.unit[1]))
    image, _, turned = _line(shape, face, 0.5, rng)
    return image, int(turned)


def _line(shape: tuple[int, int, int], face: Face, share: float, rng: np.random.Generator) -> tuple[Array, int, bool]:
    """(C, H, W) one line, how many signs it has, and whether it is upside down, as a share of them is."""
    channels, rows, columns = shape
    end = int(columns * (rng.uniform(0.4, 0.95) if rng.random() < SHORT else 1))
    ink, signs = inked((rows, end), face, rng)
    image, turned = _printed(ink, channels, rng), bool(rng.random() < share)
    image = image[:, ::-1, ::-1] if turned else image
    return np.pad(np.clip(image, -1, 1), ((0, 0), (0, 0), (0, columns - end))), signs, turned


def inked(size: tuple[int, int], face: Face, rng: np.random.Generator) -> tuple[Array, int]:
    """(H, W) 0 to 1: how much of each pixel a line covers, as long as there is room; and how many signs it has."""
    segments, signs = _set(size[1] / face.unit[0], face, rng)
    return _ink(_placed(segments, face, size, rng), face, size, rng), signs


@dataclass(frozen=True)
class Face:
    """How signs are drawn.

    Attributes:
        unit: pixels in a unit, along x and y.
        thick: pixels across a stroke that goes up.
        contrast: how many times that is one which goes across.
        slant: units to the right for each one up.
        gap: units between signs.
        rounds: how often corners are cut: 0 leaves them, twice makes them round.
        uneven: deviation of corners from where they belong, in units, alike for all of a sign in a line.
        serifs: whether strokes end in bars.
        dense: whether signs are dense ones, of which none comes twice, in place of letters.
    """

    unit: tuple[float, float]
    thick: float
    contrast: float
    slant: float
    gap: float
    rounds: int
    uneven: float
    serifs: bool
    dense: bool


def face_for(rows: int, rng: np.random.Generator) -> Face:
    """One for lines of so many rows."""
    size = rows / HEIGHT * rng.uniform(0.6, 0.95)
    return Face(
        unit=(size * rng.uniform(0.7, 1.25), size),
        thick=size * rng.uniform(0.45, 1.5),
        contrast=float(np.exp(0.5 * abs(rng.standard_normal()))),
        slant=0.25 * rng.random() if rng.random() < SLANTED else 0.0,
        gap=rng.uniform(0.8, 2),
        rounds=int(rng.integers(0, 3)),
        uneven=0.15,
        serifs=rng.random() < SERIFS,
        dense=rng.random() < DENSE,
    )


# --- what is written ------------------------------------------------------------------------------------------------
def _text(rng: np.random.Generator) -> Iterator[str]:
    """Words without end."""
    while True:
        for codes in some_words(16, rng):
            word = bytes(codes.tolist()).decode()
            word = "".join(rng.choice(list(FIGURES), len(word))) if rng.random() < NUMBERS else word
            yield word + (MARKS[rng.integers(len(MARKS))] if rng.random() < MARKED else "")


def _set(length: float, face: Face, rng: np.random.Generator) -> tuple[Array, int]:
    """(segments, 4) x, y of both ends of each piece of all strokes, in units, of as many signs as find room."""
    found, x, signs = [np.empty((0, 4))], rng.uniform(0, 2), _signs(face, rng)
    while True:
        space, segments = next(signs)
        left, right = segments[:, 0::2].min(), segments[:, 0::2].max()
        x += space
        if x + right - left > length:
            return np.concatenate(found), len(found) - 1
        found.append(segments + np.array([x - left, 0, x - left, 0]))
        x += right - left + face.gap


def _signs(face: Face, rng: np.random.Generator) -> Iterator[tuple[float, Array]]:
    """Space before each sign, beside the face's gap, and its segments."""
    known, space = dict[str, Array](), 0.0
    for word in _text(rng):
        for sign in word:
            if face.dense or sign not in known:
                known[sign] = _segments(_dense(rng) if face.dense else _strokes(sign), face, rng)
            yield space, known[sign]
            space = 0.0
        space = rng.uniform(2, 3.5)


def _strokes(sign: str) -> Strokes:
    return [np.array([[float(n) for n in corner] for corner in stroke.split()]) for stroke in SIGNS[sign].split("|")]


def _dense(rng: np.random.Generator) -> Strokes:
    """Bars across and up, and a few slanted ones, in a square."""
    across, up, slanted = (int(rng.integers(*most)) for most in ((2, 6), (1, 4), (0, 3)))
    bars = [np.array([[x, y], [x + rng.uniform(1, 5), y]]) for x, y in rng.uniform((-0.5, 0), (2, 6.5), (across, 2))]
    bars += [np.array([[x, y], [x, y + rng.uniform(1.5, 7)]]) for x, y in rng.uniform((0, -0.3), (4, 3), (up, 2))]
    return bars + list(rng.uniform((-0.5, 0), (4.5, 6.5), (slanted, 2, 2)))


def _segments(strokes: Strokes, face: Face, rng: np.random.Generator) -> Array:
    """(segments, 4) of one sign."""
    own = [corners + face.uneven * rng.standard_normal(corners.shape) for corners in strokes]
    for _ in range(face.rounds):
        own = [_rounded(corners) for corners in own]
    if face.serifs:
        own += [_serif(end) for corners in strokes for end in (corners[0], corners[-1]) if end[1] in ENDS]
    return np.concatenate([np.hstack([corners[:-1], corners[1:]]) for corners in own])


def _rounded(corners: Array) -> Array:
    """Each inner corner cut at a quarter of its sides (Chaikin, Computer Graphics and Image Processing, 1974)."""
    first, second = 0.75 * corners[:-1] + 0.25 * corners[1:], 0.25 * corners[:-1] + 0.75 * corners[1:]
    cut = np.stack([first, second], axis=1).reshape(-1, 2)
    cut[0], cut[-1] = corners[0], corners[-1]
    return cut


def _serif(end: Array) -> Array:
    return np.array([[end[0] - 0.6, end[1]], [end[0] + 0.6, end[1]]])


# --- how it looks ---------------------------------------------------------------------------------------------------
def _placed(segments: Array, face: Face, size: tuple[int, int], rng: np.random.Generator) -> Array:
    """Segments in pixels, slanted, on a line that hardly rises or falls."""
    x, y = segments[:, 0::2], segments[:, 1::2]
    across = (x + face.slant * (BASE - y)) * face.unit[0]
    down = (y - 3.5) * face.unit[1] + size[0] / 2 + 0.015 * rng.standard_normal() * (across - size[1] / 2)
    return np.stack([across, down], axis=2).reshape(-1, 4)


def _ink(segments: Array, face: Face, size: tuple[int, int], rng: np.random.Generator) -> Array:
    """(H, W) 0 to 1: how much of each pixel is covered."""
    apart, reach, soft = np.full(size, np.inf), face.thick / 2 + 3, rng.uniform(0.5, 2)
    least = np.minimum(segments[:, :2], segments[:, 2:]) - reach
    most = np.maximum(segments[:, :2], segments[:, 2:]) + reach + 1
    boxes = np.clip(np.hstack([least, most]), 0, [size[1], size[0]] * 2).astype(int)
    for segment, (left, top, right, bottom) in zip(segments, boxes, strict=True):
        part = apart[top:bottom, left:right]
        y, x = np.arange(top, bottom)[:, None] - segment[1], np.arange(left, right) - segment[0]
        np.minimum(part, _distance(x, y, segment[2:] - segment[:2], face.contrast), out=part)
    return np.clip((face.thick / 2 - apart) / (2 * soft) + 0.5, 0, 1)


def _distance(x: Array, y: Array, to: Array, contrast: float) -> Array:
    """From each place to the segment from (0, 0); what is apart in y counts `contrast` times."""
    length = float(to @ to)
    nearest = np.clip((x * to[0] + y * to[1]) / length, 0, 1) if length else 0.0
    return np.asarray(np.hypot(x - nearest * to[0], contrast * (y - nearest * to[1])))


def _printed(ink: Array, channels: int, rng: np.random.Generator) -> Array:
    """(C, H, W) ink of one colour on a ground of another, not quite even, with noise; one is dark, the other is not."""
    light = rng.choice((-1, 1))
    ground, written = rng.uniform(-0.6, 0.6, (2, channels, 1, 1)) + light * np.reshape((0.5, -0.6), (2, 1, 1, 1))
    image = np.clip(ground, -1, 1) * (1 - ink) + np.clip(written, -1, 1) * ink
    shade = leaves((channels, *ink.shape), rng)
    image += 0.3 * rng.random() ** 2 * (shade - shade.mean()) / max(shade.std(), 1e-6)
    return np.asarray(image + rng.uniform(0, 0.12) * rng.standard_normal(image.shape))
