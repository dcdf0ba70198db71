"""Files as a network that reads bytes sees them: lines of words, and binary data with what lies in it."""

from __future__ import annotations

import numpy as np

from .tensors import Array

BYTES = range(256, 261)
"""Sizes of vocabularies that are bytes, with a few codes for what is no byte."""
BINARY = 0.3
"""Share of binary files."""
LETTERS = "etaoinshrdlcumwfgypbvkjxqz"
"""Most frequent first; each letter is `FALL` times as frequent as the one before."""
FALL = 0.88
MARKS = ".,;:!?()[]{}<>=+-*/\\'\"#@$%&|_~^`"


def stream(count: int, rng: np.random.Generator) -> Array:
    """(count,) bytes of one file."""
    return _binary(count, rng) if rng.random() < BINARY else _text(count, rng)


def _text(count: int, rng: np.random.Generator) -> Array:
    """Words of a vocabulary of which few are frequent (Zipf's law), numbers, marks, line ends and indents."""
    words = _words(int(rng.integers(20, 200)), rng)
    chances = 1 / np.arange(1, len(words) + 1)
    marks = rng.choice(_codes(MARKS), int(rng.integers(2, 12)))
    numbers, marked, ended = rng.uniform((0, 0.05, 0.03), (0.2, 0.6, 0.3))
    end, indented = (b"\n" if rng.random() < 0.7 else b"\r\n"), rng.random() < 0.5
    picks = iter(rng.choice(len(words), count, p=chances / chances.sum()).tolist())
    parts: list[Array] = []
    left = count
    while left > 0:
        first = len(parts)
        parts.append(
            rng.integers(ord("0"), ord("9") + 1, int(rng.integers(1, 6)))
            if rng.random() < numbers
            else words[next(picks)]
        )
        if rng.random() < marked:
            parts.append(rng.choice(marks, 1))
        spaces = 4 * int(rng.integers(0, 4)) * indented
        parts.append(np.frombuffer(end + b" " * spaces if rng.random() < ended else b" ", np.uint8))
        left -= sum(map(len, parts[first:]))
    return np.concatenate(parts)[:count]


def _words(count: int, rng: np.random.Generator) -> list[Array]:
    """Words of letters, some of them capitals."""
    sizes, chances = rng.integers(1, 10, count), FALL ** np.arange(len(LETTERS))
    letters = rng.choice(_codes(LETTERS), int(sizes.sum()), p=chances / chances.sum())
    words = np.split(letters, np.cumsum(sizes)[:-1])
    for word, style in zip(words, rng.random(count), strict=True):
        word[: len(word) if style < 0.1 else 1 if style < 0.2 else 0] -= 32
    return words


def _codes(characters: str) -> Array:
    return np.frombuffer(characters.encode(), np.uint8).astype(np.int64)


def _binary(count: int, rng: np.random.Generator) -> Array:
    """Any bytes, more or less of them zeros or small, with runs of one byte, texts and repetitions."""
    data = rng.integers(0, 256, count)
    zeros, small = rng.random((2, count)) < rng.uniform((0, 0), (1, 0.5))[:, None]
    data[zeros] = 0
    data[small] = rng.integers(0, 16, int(small.sum()))
    at = 0
    while at < count:
        length = min(int(np.exp(rng.uniform(0, np.log(256)))), count - at)
        kind, part = rng.random(), slice(at, at + length)
        if kind < 0.2:
            data[part] = rng.integers(0, 256)
        elif kind < 0.35:
            data[part] = _text(length, rng)
        elif kind < 0.5 and at >= length:
            source = int(rng.integers(0, at - length + 1))
            data[part] = data[source : source + length].copy()
        at += length
    return data
