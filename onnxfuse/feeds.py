"""Made-up inputs for a model: sizes to try for its open dimensions, and random values."""

from __future__ import annotations

import itertools
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from .errors import ModelError, UsageError
from .states import INTEGERS
from .tensors import Array

IMAGE = (1, 3, 224, 224)
"""The example of a shape for an input of which not even the number of axes is known."""
TOKENS = 16
"""Of text, tried before these: what is fitted to many short pieces keeps more than what is to a few long ones."""
LINE = (48, 192)
"""Rows and columns of a line of writing, where the model leaves both open."""
SPATIAL_GUESSES = (224, 256, 64, 32, 512, 16, 1)
"""Sizes tried, in this order, for dynamic dimensions other than the batch; 1 suits a batch behind the steps."""


def check_overrides(inputs: Sequence[ValueInfoProto], given: Mapping[str, Sequence[int]]) -> None:
    """Refuse shapes that are given for no input, or for one that cannot have them.

    Raises:
        UsageError: either.
    """
    known = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] if _ranked(v) else None for v in inputs}
    for name, shape in given.items():
        if name not in known:
            raise UsageError(f"--input-shape names {name!r}, but the model's inputs are {', '.join(known) or 'none'}")
        dims = [0] * len(shape) if (own := known[name]) is None else own
        wrong = len(dims) != len(shape) or any(d > 0 and d != s for d, s in zip(dims, shape, strict=True))
        if any(s < 1 for s in shape) or wrong:
            sizes = ", ".join(str(d) if d > 0 else "?" for d in dims)
            raise UsageError(f"--input-shape {name}:{','.join(map(str, shape))} does not fit the model's [{sizes}]")


@dataclass(frozen=True)
class Guess:
    """Sizes for what neither the model nor the user has settled.

    Attributes:
        batch: of axes that lead an input.
        size: of others.
        behind: whether an axis that is alone open behind a settled one is the batch, as in a recurrent state.
        whole: whether lengths are the whole of what they are the lengths of: of nothing a network makes little.
        rows: of an image, where that is not the size of all: the last but one of an input's open axes.
    """

    batch: int = 1
    size: int = SPATIAL_GUESSES[0]
    behind: bool = False
    whole: bool = False
    rows: int | None = None

    def of(self, axes: Sequence[int], axis: int) -> int:
        """The size of one of an input's open axes."""
        if self.rows is not None and axis == axes[-2:][0] > 0:
            return self.rows
        return self.batch if axis == 0 or (self.behind and axes == [axis]) else self.size


def candidates(inputs: Sequence[ValueInfoProto], given: Mapping[str, Sequence[int]], lines: bool) -> list[Guess]:
    """Guesses to try: two samples first, so that the batch cannot be mistaken for a channel, and images as low as
    lines of writing, where a network `lines` looks like one that reads them."""
    free = [axes for v in inputs if v.name not in given and (axes := free_axes(v))]
    sizes = _sizes([v for v in inputs if v.name not in given and any(i > 0 for i in free_axes(v))])
    batches = (2, 1) if any(0 in axes for axes in free) else (1,)
    low = [Guess(batch, LINE[1], rows=LINE[0]) for batch in batches if lines and len(sizes) > 1]
    guesses = low + [Guess(batch, size) for batch, size in itertools.product(batches, sizes)]
    if _may_be_behind(free):
        some = [g for g in guesses if g.size > 1]  # a single step fits nearly everywhere, and tells little
        guesses = [*some, *(replace(g, behind=True) for g in some), *(g for g in guesses if g.size == 1)]
    return [replace(g, whole=True) for g in guesses if any(map(_is_length, inputs))] + guesses


def _sizes(longer: Sequence[ValueInfoProto]) -> Sequence[int]:
    """What to try for open axes behind the batch, which these inputs have: of text if all of them are integers."""
    if not longer:
        return SPATIAL_GUESSES[:1]
    text = all(v.type.tensor_type.elem_type in INTEGERS for v in longer)
    return tuple(dict.fromkeys((TOKENS, *SPATIAL_GUESSES))) if text else SPATIAL_GUESSES


def _may_be_behind(free: Sequence[Sequence[int]]) -> bool:
    """Whether one input leads with the batch, and another has a single open axis that is not its first."""
    return any(0 in axes for axes in free) and any(len(axes) == 1 and axes[0] > 0 for axes in free)


def free_axes(value: ValueInfoProto) -> list[int]:
    """Axes of a graph input whose size the model leaves open."""
    return [i for i, d in enumerate(value.type.tensor_type.shape.dim) if d.dim_value <= 0]


def _ranked(value: ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.HasField("shape"))


def suggested(inputs: Sequence[ValueInfoProto], given: Mapping[str, Sequence[int]]) -> str:
    """The options that settle all open sizes, with one sample and the first guess where nothing is known."""
    unknown = {v.name: IMAGE for v in inputs if not _ranked(v)}
    wanted = [v for v in inputs if free_axes(v) or v.name in unknown]
    guess = Guess(behind=_may_be_behind([free_axes(v) for v in wanted]))
    feeds = made_up(wanted, {**unknown, **given}, guess, 0)
    return " ".join(f"--input-shape {name}:{','.join(map(str, feed.shape))}" for name, feed in feeds.items())


def made_up(
    inputs: Sequence[ValueInfoProto],
    given: Mapping[str, Sequence[int]],
    guess: Guess,
    seed: int,
    chosen: Mapping[str, int] = MappingProxyType({}),
    codes: Container[str] = (),
) -> dict[str, Array]:
    """A feed for every input, with guessed sizes in dimensions that neither the model nor the user has settled, the
    `chosen` numbers where an input is a single one, and whole numbers where it holds `codes`."""
    rng, named, feeds = np.random.default_rng(seed), _named(inputs, given, guess.batch), dict[str, Array]()
    for value in inputs:
        dims, axes = value.type.tensor_type.shape.dim, free_axes(value)
        shape = [named.get(d.dim_param, guess.of(axes, i)) if i in axes else d.dim_value for i, d in enumerate(dims)]
        made = _make_input(value, tuple(given.get(value.name, shape)), value.name in codes, rng)
        feeds[value.name] = np.full_like(made, chosen[value.name]) if made.size == 1 and value.name in chosen else made
    longest = max((size for feed in feeds.values() for size in feed.shape[1:]), default=0)
    lengths = [v.name for v in inputs if guess.whole and _is_length(v) and longest]
    return feeds | {name: np.full_like(feeds[name], longest) for name in lengths}


def _is_length(value: ValueInfoProto) -> bool:
    """Whether an input says how long each sample is: an integer for each, with such a name as `input_lengths`."""
    kind = value.type.tensor_type
    one_each = kind.elem_type in INTEGERS and len(kind.shape.dim) == 1
    return one_each and re.search("len(s|gths?)?$", value.name.lower()) is not None


def _named(inputs: Sequence[ValueInfoProto], given: Mapping[str, Sequence[int]], batch: int) -> dict[str, int]:
    """Sizes of open dimensions that have a name: `batch` where it leads an input, what is given where it is given."""
    dims = {v.name: v.type.tensor_type.shape.dim for v in inputs}
    named = {d[0].dim_param: batch for d in dims.values() if d and d[0].dim_param}
    for name in given:
        named |= {d.dim_param: size for d, size in zip(dims.get(name, ()), given[name], strict=False) if d.dim_param}
    return named


def _make_input(value: ValueInfoProto, shape: tuple[int, ...], whole: bool, rng: np.random.Generator) -> Array:
    """A random array for one graph input: normal for floats, 0 or 1 for integers and what is to be `whole`, true for
    booleans.

    Raises:
        ModelError: the input is not a numeric tensor.
    """
    kind = value.type.WhichOneof("value")
    element = value.type.tensor_type.elem_type
    if kind != "tensor_type" or element == TensorProto.STRING:
        raise ModelError(f"input {value.name!r} is not a numeric tensor; onnxfuse cannot make data for it")
    dtype = helper.tensor_dtype_to_np_dtype(element)
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    if dtype.kind in "iu" or whole:
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)
