"""Inputs that are codes of something, tokens or bytes: what they index, what goes with them, and text to draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto

from .heldout import Feeds
from .probe import Probe
from .protos import every_constant
from .states import cast_to_integers, is_state, readers_of
from .tensors import Array, values_of

Kind = tuple[tuple[int, ...], np.dtype[Any]]
"""Shape and type of an input."""
REPEATED = 0.5
"""Of a text: the share that is copied from elsewhere in it."""


def vocabularies(model: ModelProto, probe: Probe) -> dict[str, int]:
    """Input → how many codes it may have, of those that index something: integers, or numbers that are cast to such."""
    found, cast = dict[str, int](), cast_to_integers(model)
    for name, values in probe.inputs.items():
        if (values.dtype.kind in "iu" or name in cast) and (size := _vocabulary(model, name)) is not None:
            found[name] = size
    return found


def _vocabulary(model: ModelProto, name: str) -> int | None:
    """Rows of the constant that an input indexes, or the length of its one-hot code."""
    constants = every_constant(model)
    sizes = []
    for node, slot in readers_of(model, name):
        other = constants.get(node.input[1 - slot]) if len(node.input) > 1 and slot < 2 else None
        if other is not None and node.op_type == "Gather" and slot == 1:
            sizes.append(int(other.dims[0]))
        elif other is not None and node.op_type == "Equal" and _is_code(codes := values_of(other)):
            sizes.append(codes.size)
        elif other is not None and node.op_type == "OneHot" and slot == 0:
            sizes.append(int(values_of(other).ravel()[0]))
    return min(sizes, default=None)


def _is_code(values: Array) -> bool:
    """Whether a constant is 0, 1, …, what a one-hot code is compared with."""
    return values.size > 1 and np.array_equal(values.ravel(), np.arange(values.size))


def largest_vocabulary(model: ModelProto, probe: Probe) -> int:
    """The most codes that an input may have, if all inputs but states are codes or integers; else 0."""
    found = vocabularies(model, probe)
    rest = [n for n in probe.inputs if n not in found and not is_state(model, n)]
    return max(found.values(), default=0) if all(probe.inputs[n].dtype.kind in "iub" for n in rest) else 0


def beside(kinds: Mapping[str, Kind], codes: Mapping[str, int]) -> Feeds:
    """What goes with codes, of inputs of these kinds: masks, integers that index nothing, are ones, and positions,
    which their name tells, count."""
    found = Feeds()
    for name, (shape, dtype) in kinds.items() if codes else ():
        if len(shape) > 1 and dtype.kind in "iu" and "position" in name.lower():
            found[name] = np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape).copy()
        elif len(shape) > 1 and dtype.kind in "iu" and name not in codes:
            found[name] = np.ones(shape, dtype)
    return found


def text(count: int, rng: np.random.Generator, vocabulary: int) -> Array:
    """Tokens of which few are frequent (Zipf's law), other ones in each sample, and of which whole runs come again."""
    order = rng.permutation(vocabulary)
    chances = 1 / np.arange(1, vocabulary + 1) ** rng.uniform(0, 2)
    tokens = order[rng.choice(vocabulary, count, p=chances / chances.sum())]
    at = 0
    while count > 8 and at < count:
        length = int(min(np.exp(rng.uniform(0, np.log(64))), count - at, count // 2))
        if rng.random() < REPEATED:
            source = rng.integers(0, count - length + 1)
            tokens[at : at + length] = tokens[source : source + length].copy()
        at += max(length, 1)
    return tokens
