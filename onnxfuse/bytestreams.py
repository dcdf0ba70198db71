"""Files as a network that reads bytes sees them: texts, markup, tables, code, and binary data with what lies in it.

What counts is that they are of many kinds. A network that knows file types has channels for what is common in some
of them and nowhere in others, and how these go together can't be seen where all files are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from .tensors import Array

BYTES = range(256, 261)
"""Sizes of vocabularies that are bytes, with a few codes for what is no byte."""
PADDING, PADDED = 256, 0.3
"""The code that stands where a short file has no bytes, and the share of files that are short."""
LETTERS = "etaoinshrdlcumwfgypbvkjxqz"
"""Most frequent first; each letter is `FALL` times as frequent as the one before."""
FALL = 0.88
MARKS = ".,;:!?()[]{}<>=+-*/\\'\"#@$%&|_~^`"
BRACKETS, SEPARATORS = (b"{", b"}", b"[", b"]"), (b",", b";", b"\t", b"|")
ASSIGNED, MEMBER, ENDS = (b"= ", b"", b"+= ", b"== "), (b".", b"_", b"->", b"::"), (b";", b"", b" {", b":", b"}")
"""Of a line of code: what stands before what is called, in its name, and at its end."""
SIZES, WIDTHS = (8, 12, 16, 20, 24, 32, 40, 64), (1, 2, 4, 8)
"""Bytes of a record and of its fields."""


def stream(count: int, rng: np.random.Generator, vocabulary: int) -> Array:
    """(count,) codes of one file of a random kind, with a gap of `PADDING` in some where the vocabulary has that."""
    kinds, shares = list(KINDS), np.array(list(KINDS.values()))
    data = kinds[rng.choice(len(kinds), p=shares / shares.sum())](count, rng)
    if vocabulary > PADDING and rng.random() < PADDED:
        length = int(count * rng.random())
        at = int(rng.integers(0, count - length + 1))
        data[at : at + length] = PADDING
    return data


def _text(count: int, rng: np.random.Generator) -> Array:
    """Words of a vocabulary of which few are frequent (Zipf's law), numbers, marks, line ends and indents."""
    words = some_words(int(rng.integers(20, 200)), rng)
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


def some_words(count: int, rng: np.random.Generator) -> list[Array]:
    """Words of letters, some of them capitals."""
    sizes, chances = rng.integers(1, 10, count), FALL ** np.arange(len(LETTERS))
    letters = rng.choice(_codes(LETTERS), int(sizes.sum()), p=chances / chances.sum())
    words = np.split(letters, np.cumsum(sizes)[:-1])
    for word, style in zip(words, rng.random(count), strict=True):
        word[: len(word) if style < 0.1 else 1 if style < 0.2 else 0] -= 32
    return words


def _codes(characters: str) -> Array:
    return np.frombuffer(characters.encode(), np.uint8).astype(np.int64)


# --- lines of one form ----------------------------------------------------------------------------------------------
Word = Callable[[], bytes]


def _lines(count: int, rng: np.random.Generator) -> Array:
    """Lines of one of `FORMS`, filled with words of which few are frequent."""
    words = [word.astype(np.uint8).tobytes() for word in some_words(int(rng.integers(8, 60)), rng)]
    chances = np.cumsum(1 / np.arange(1, len(words) + 1))
    end = b"\n" if rng.random() < 0.8 else b"\r\n"

    def word() -> bytes:
        return words[int(np.searchsorted(chances, chances[-1] * rng.random(), side="right"))]

    lines, data = FORMS[int(rng.integers(len(FORMS)))](rng, word), b""
    while len(data) < count:
        data += next(lines) + end
    return np.frombuffer(data, np.uint8)[:count].astype(np.int64)


def _markup(rng: np.random.Generator, word: Word) -> Iterator[bytes]:
    while True:
        tag, attributes, content = word(), int(rng.integers(0, 3)), int(rng.integers(0, 8))
        opened = b"".join(b" " + word() + b'="' + word() + b'"' for _ in range(attributes))
        yield b"<" + tag + opened + b">" + b" ".join(word() for _ in range(content)) + b"</" + tag + b">"


def _keys(rng: np.random.Generator, word: Word) -> Iterator[bytes]:
    for depth in _depths(rng):
        if rng.random() < 0.3:
            yield b"  " * depth + BRACKETS[rng.integers(len(BRACKETS))]
        else:
            value = b'"' + word() + b'"' if rng.random() < 0.5 else b"%d" % 10 ** rng.uniform(0, 6)
            yield b"  " * depth + b'"' + word() + b'": ' + value + b","


def _table(rng: np.random.Generator, word: Word) -> Iterator[bytes]:
    columns, separator = int(rng.integers(2, 10)), SEPARATORS[rng.integers(len(SEPARATORS))]
    while True:
        yield separator.join(word() if i % 2 else b"%d" % rng.integers(0, 1000) for i in range(columns))


def _code(rng: np.random.Generator, word: Word) -> Iterator[bytes]:
    for depth in _depths(rng):
        before, member, end = (choice[rng.integers(len(choice))] for choice in (ASSIGNED, MEMBER, ENDS))
        called = b", ".join(word() for _ in range(int(rng.integers(0, 4))))
        yield b"    " * depth + word() + b" " + before + word() + member + word() + b"(" + called + b")" + end


def _depths(rng: np.random.Generator) -> Iterator[int]:
    """Indents of line after line."""
    depth = 0
    while True:
        depth = max(0, depth + int(rng.integers(-1, 2)))
        yield depth


FORMS: Sequence[Callable[[np.random.Generator, Word], Iterator[bytes]]] = (_markup, _keys, _table, _code)


# --- binary data ----------------------------------------------------------------------------------------------------
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


def _records(count: int, rng: np.random.Generator) -> Array:
    """Records of one size, of fields each of which is one of `FIELDS`."""
    size, at = int(rng.choice(SIZES)), 0
    data = np.zeros((count // size + 1, size), np.int64)
    while at < size:
        field = data[:, at : at + int(rng.choice(WIDTHS))]
        field[:] = FIELDS[int(rng.integers(len(FIELDS)))](len(data), field.shape[1], rng)
        at += field.shape[1]
    return data.ravel()[:count]


def _counter(rows: int, width: int, rng: np.random.Generator) -> Array:
    """Numbers that rise by the same from record to record, their lowest byte first."""
    numbers = rng.integers(0, 1 << 16) + rng.integers(1, 64) * np.arange(rows)
    return np.asarray(numbers[:, None] >> 8 * np.arange(width) & 255)


def _small(rows: int, width: int, rng: np.random.Generator) -> Array:
    """Numbers of one byte up to a random one, and zeros behind them."""
    return np.asarray(rng.integers(0, rng.integers(2, 257), (rows, 1)) * (np.arange(width) == 0))


FIELDS: Sequence[Callable[[int, int, np.random.Generator], Array]] = (
    lambda rows, width, rng: np.zeros((rows, width), np.int64),
    lambda rows, width, rng: rng.integers(0, 256, width),
    _counter,
    _small,
    lambda rows, width, rng: rng.integers(0, 256, (rows, width)),
    lambda rows, width, rng: rng.integers(ord("a"), ord("z") + 1, (rows, width)),
)
"""Zeros, a constant, a counter, a small number, anything (a packed file has nothing else), letters."""


def _packed(count: int, rng: np.random.Generator) -> Array:
    """Any bytes, as compressed data is."""
    return rng.integers(0, 256, count)


KINDS: Mapping[Callable[[int, np.random.Generator], Array], float] = {
    _text: 0.3, _lines: 0.3, _binary: 0.25, _records: 0.1, _packed: 0.05,
}  # fmt: skip
"""What a file is, and the share of such files."""
