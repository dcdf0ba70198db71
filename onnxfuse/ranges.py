"""What values an input has, by its type, by what a graph does to it first, or as the user says.

Images come as bytes, from 0 to 1 or normalised, and many a graph normalises its own. One that divides by 255 sees a
single grey in numbers of deviation 1: whatever becomes of its weights, its outputs stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper

from .errors import UsageError
from .protos import constant_tensors, subgraphs
from .providers import provider_list
from .sessions import session
from .states import cast_to_integers, is_state, waveforms
from .tensors import Array, values_of

SCALING = frozenset(
    """Add BatchNormalization Cast CastLike Clip Concat DequantizeLinear Div Expand Flatten Gather Identity Imputer Mul
    Neg Pad QuantizeLinear Reshape Resize Scaler Slice Split Squeeze Sub Transpose Unsqueeze Upsample""".split()
)
"""Operators by which a graph makes of an input, and of constants, what its first layers read."""
LAYERS = frozenset(
    """Conv ConvInteger ConvTranspose DynamicQuantizeLinear Einsum FusedConv FusedMatMul Gemm MatMul MatMulInteger
    MatMulNBits QLinearConv QLinearMatMul""".split()
)
"""Operators in front of which values are what training likes: of about mean 0 and deviation 1."""
USUAL = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
"""Between what images lie, where they are not normalised."""
CLEAR = 0.5
"""Of the divergence that values of mean 0 and deviation 1 have there, another range must have less."""
SPREAD, GREY = 4.0, 0.45
"""Deviations in a range, and where in it the mean is, if it has no zero within: as photographs have it."""
LOUD = 20.0
"""Deviations in the range of sound: recordings are levelled to −20 dB."""
BYTES = ("uint8", "int8")
"""Types of images that are no real numbers."""
COLOURS = (1, 3, 4)
SIDE = 32
"""Rows and columns of an image that is no batch, at least; one less would be three signals."""
FAR = 1e4
"""How large numbers are by which it is looked at what a graph adds to an input, and what it multiplies it with."""
SAID, DONE, TYPE, SCALE = "--input-range says", "what the graph does to it says", "its type says", "its scale says"
FAINT = 1e-12
"""Variance: less counts as this much."""
Run = Callable[[Array], list[Array]]


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
    planes = values.ndim == 4 and min(values.shape[2:]) > 1
    colours = planes and (values.shape[1] in COLOURS or values.shape[3] in COLOURS)
    return planes and (values.dtype.kind not in "iub" or (values.dtype.name in BYTES and colours))


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


def told(model: ModelProto, feeds: Mapping[str, Array], given: Mapping[str, Sequence[float]]) -> dict[str, Range]:
    """What ranges inputs have, as far as anything tells.

    Args:
        model: the model.
        feeds: for each input values of mean 0 and deviation 1, or integers.
        given: input → least and greatest value, as the user says.

    Raises:
        UsageError: `given` names no input, one that is no real numbers or bytes, or no range.
    """
    for name, ends in given.items():
        _check(name, ends, feeds)
    codes, sounds = cast_to_integers(model), waveforms(model)
    ours = [n for n in feeds if n not in given and n not in codes | sounds and not is_state(model, n)]
    found = {n: known for n in ours if _ranges_over(feeds[n]) and (known := _told(model, n, feeds[n])) is not None}
    said = {n: between(e[0], e[1], SAID, LOUD if n in sounds else SPREAD) for n, e in given.items()}
    return found | said


def _check(name: str, ends: Sequence[float], feeds: Mapping[str, Array]) -> None:
    if name not in feeds:
        raise UsageError(f"--input-range names {name!r}, but the model's inputs are {', '.join(feeds) or 'none'}")
    if len(ends) != 2 or not -np.inf < ends[0] < ends[1] < np.inf:
        raise UsageError(f"--input-range {name}:{','.join(f'{e:g}' for e in ends)} is no range; give LOW,HIGH")
    if not _ranges_over(feeds[name]):
        raise UsageError(f"--input-range: {name!r} is {feeds[name].dtype}, not real numbers or the bytes of images")


def _ranges_over(values: Array) -> bool:
    return values.dtype.kind not in "iub" or is_image(values)


def _told(model: ModelProto, name: str, feed: Array) -> Range | None:
    if feed.dtype.name in BYTES:
        limits = np.iinfo(feed.dtype)
        return between(limits.min, limits.max, TYPE)
    if (quantized := _quantized(model.graph, name)) is not None:
        return quantized
    first = _first_of(model, name)
    if first is None:
        return None
    run = _running(first, name)
    return _of_image(run, feed) if is_image(feed) else _undone(run, feed)


def _quantized(graph: GraphProto, name: str) -> Range | None:
    """The range of an input that is quantized as it is, in one scale."""
    constants = constant_tensors(graph)
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] == name and len(node.input) > 2:
            scale, zero = (constants.get(n) for n in node.input[1:3])
            if scale is not None and zero is not None and not scale.dims and values_of(zero).dtype.kind in "iu":
                limits, unit, at = np.iinfo(values_of(zero).dtype), float(values_of(scale)), int(values_of(zero))
                return between((limits.min - at) * unit, (limits.max - at) * unit, SCALE)
    return None


def _first_of(model: ModelProto, name: str) -> ModelProto | None:
    """What a graph makes of an input before its layers read it, as a model; None if they read it as it is."""
    fixed, made, read = {"", *(t.name for t in model.graph.initializer)}, {name}, dict[str, None]()
    for node in model.graph.node:
        inputs = set(node.input)
        if node.op_type in LAYERS:
            read |= dict.fromkeys(n for n in node.input if n in made)
        elif (inputs <= fixed and not subgraphs(node)) or (node.op_type in ("Shape", "Size") and inputs <= made):
            fixed |= set(node.output)
        elif node.op_type in SCALING and inputs <= fixed | made:
            made |= set(node.output)
    return _part(model, name, list(read)) if read.keys() - {name} else None


def _part(model: ModelProto, name: str, wanted: Sequence[str]) -> ModelProto:
    """The nodes behind these values, and all that they need."""
    graph, nodes, needed = model.graph, list[NodeProto](), set(wanted)
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            nodes.append(node)
            needed |= set(node.input)
    part = ModelProto(ir_version=max(model.ir_version, 4), functions=model.functions)
    part.opset_import.extend(model.opset_import)
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(t for t in graph.initializer if t.name in needed)
    part.graph.input.extend(v for v in graph.input if v.name == name)
    part.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in wanted if n != name)
    return part


def _running(part: ModelProto, name: str) -> Run:
    opened = session(part, provider_list("cpu"))
    names = [o.name for o in part.graph.output]
    return lambda values: list(opened.run(names, {name: values}))


def _of_image(run: Run, feed: Array) -> Range | None:
    """The range in which what layers read is as near to mean 0 and deviation 1 as in no other, if that is clear."""
    found = [between(*ends, DONE) for ends in USUAL]
    off = [_divergence(run(known.as_type(feed, feed.dtype))) for known in found]
    best = int(np.argmin(off))
    return found[best] if off[best] < CLEAR * _divergence(run(feed)) else None


def _divergence(values: Sequence[Array]) -> float:
    """Of N(m, s²) from N(0, 1), ½ (s² + m² − 1 − ln s²) (Kullback and Leibler, 1951), mean over the values."""
    return float(np.mean(list(_each_divergence(values))))


def _each_divergence(values: Sequence[Array]) -> Iterator[float]:
    for value in values:
        mean, varies = float(value.mean(dtype=np.float64)), max(float(value.var(dtype=np.float64)), FAINT)
        yield 0.5 * (varies + mean**2 - 1 - np.log(varies))


def _undone(run: Run, feed: Array) -> Range | None:
    """What is of mean 0 and deviation 1 when layers read it, if each value is multiplied and added to on its own."""
    at = [run(np.full_like(feed, x)) for x in (FAR, -FAR)] + [run((FAR * feed).astype(feed.dtype))]
    if any(len(values) != 1 or values[0].size != feed.size for values in at):
        return None
    above, below, other = (values[0].astype(np.float64).reshape(feed.shape) for values in at)
    factor, added = (above - below) / (2 * FAR), (above + below) / 2
    size = np.abs(factor) * FAR + np.abs(added)
    if not (np.abs(factor * FAR * feed + added - other) <= 1e-3 * size).all():
        return None
    used = factor != 0
    shift, scale = -added / np.where(used, factor, 1), 1 / np.abs(np.where(used, factor, 1))
    shift, scale = (part[0] if (part == part[:1]).all() else part for part in (np.where(used, shift, 0), scale))
    if np.allclose(scale, 1, rtol=1e-3) and np.allclose(shift, 0, atol=1e-3):
        return None
    return Range(shift, scale, -np.inf, np.inf, DONE)
