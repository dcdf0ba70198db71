"""What a graph makes of its inputs before its layers read them, and what that tells of their ranges."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper

from .errors import UsageError
from .protos import constant_tensors, subgraphs
from .providers import provider_list
from .ranges import BYTES, LOUD, SPREAD, USUAL, Range, between, is_image
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
CLEAR = 0.5
"""Of the divergence that values of mean 0 and deviation 1 have there, another range must have less."""
DEAF = 8.0
"""Times what a first layer makes of values of deviation 1 that its biases are where it takes bytes: 34 and 49 in two
networks that do, 2 at most in twenty that take images from −1 to 1, from 0 to 1, or normalised. No training leaves a
layer that hardly sees what it reads."""
DEAD = 0.01
"""Of the largest kernel: those of less make nothing."""
OF_BYTES = ((0.0, 255.0), (-128.0, 128.0))
"""Between what images of bytes lie, as they are or less their mean."""
FAR = 1e4
"""How large numbers are by which it is looked at what a graph adds to an input, and what it multiplies it with."""
FAINT = 1e-12
"""Variance: less counts as this much."""
SAID, TYPE, SCALE, DONE, FIRST = (
    "--input-range says", "its type says", "its scale says", "what the graph does to it says",
    "the first layer's biases say",
)  # fmt: skip
"""What tells, in words."""
Run = Callable[[Array], list[Array]]


def told(model: ModelProto, feeds: Mapping[str, Array], given: Mapping[str, Sequence[float]]) -> dict[str, Range]:
    """What ranges inputs have, as far as anything tells.

    Args:
        model: the model.
        feeds: for each input values of mean 0 and deviation 1, or integers.
        given: input → least and greatest value, as the user says.

    Raises:
        UsageError: `given` names no input, one that is drawn otherwise, or no range.
    """
    codes, sounds = cast_to_integers(model), waveforms(model)
    real = {n for n in feeds if _ranges_over(feeds[n]) and n not in codes and not is_state(model, n)}
    for name, ends in given.items():
        _check(name, ends, feeds, real)
    ours = [n for n in feeds if n in real and n not in sounds and n not in given]
    found = {n: known for n in ours if (known := _told(model, n, feeds[n])) is not None}
    said = {n: between(e[0], e[1], SAID, LOUD if n in sounds else SPREAD) for n, e in given.items()}
    return found | said


def _check(name: str, ends: Sequence[float], feeds: Mapping[str, Array], real: Collection[str]) -> None:
    if name not in feeds:
        raise UsageError(f"--input-range names {name!r}, but the model's inputs are {', '.join(feeds) or 'none'}")
    if len(ends) != 2 or not -np.inf < ends[0] < ends[1] < np.inf:
        raise UsageError(f"--input-range {name}:{','.join(f'{e:g}' for e in ends)} is no range; give LOW,HIGH")
    if name not in real:
        raise UsageError(f"--input-range: {name!r} holds codes, whole numbers or a state, which have no range")


def _ranges_over(values: Array) -> bool:
    return values.dtype.kind not in "iub" or is_image(values)


def _told(model: ModelProto, name: str, feed: Array) -> Range | None:
    if feed.dtype.name in BYTES:
        limits = np.iinfo(feed.dtype)
        return between(limits.min, limits.max, TYPE)
    if (quantized := _quantized(model.graph, name)) is not None:
        return quantized
    read = _read_first(model, name)
    made = [value for value in read if value != name]
    run = _running(_part(model, name, made), name) if made else None
    if not is_image(feed):
        return None if run is None else _undone(run, feed)
    found = None if run is None else _of_image(run, feed)
    return found or _heard(model.graph, read)


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


def _read_first(model: ModelProto, name: str) -> list[str]:
    """The values that layers read first of an input: itself, or what a graph makes of it before."""
    fixed, made, read = {"", *(t.name for t in model.graph.initializer)}, {name}, dict[str, None]()
    for node in model.graph.node:
        inputs = set(node.input)
        if node.op_type in LAYERS:
            read |= dict.fromkeys(n for n in node.input if n in made)
        elif (inputs <= fixed and not subgraphs(node)) or (node.op_type in ("Shape", "Size") and inputs <= made):
            fixed |= set(node.output)
        elif node.op_type in SCALING and inputs <= fixed | made:
            made |= set(node.output)
    return list(read)


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
    part.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in wanted)
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


def _heard(graph: GraphProto, read: Sequence[str]) -> Range | None:
    """Bytes, where convolutions that read an image have biases many times what they make of values of deviation 1.

    Folded normalizations left −μ ΣW in them: the μ that explains most tells whether the mean was taken away before.
    """
    rows, biases = _first_layer(graph, read)
    size, sums = np.linalg.norm(rows, axis=1), rows.sum(axis=1)
    alive = size > DEAD * size.max(initial=0)
    if not alive.any() or np.median(np.abs(biases)[alive] / size[alive]) <= DEAF:
        return None
    mean = -float(biases @ sums) / max(float(sums @ sums), FAINT)
    known = min((between(*ends, FIRST) for ends in OF_BYTES), key=lambda one: abs(float(one.shift) - mean))
    left = np.abs(biases + known.shift * sums)[alive] / size[alive]
    return known if np.median(left) <= DEAF * known.scale else None


def _first_layer(graph: GraphProto, read: Sequence[str]) -> tuple[Array, Array]:
    """(channels, taps) kernels of the first convolution that reads one of these values, and its (channels,) biases; of
    no channels if there is none."""
    constants = constant_tensors(graph)
    for node in graph.node:
        reads = node.op_type == "Conv" and node.input[0] in read and len(node.input) > 2
        if reads and set(node.input[1:]) <= constants.keys():
            kernels, bias = (values_of(constants[name]).astype(np.float64) for name in node.input[1:])
            return kernels.reshape(len(kernels), -1), bias
    return np.zeros((0, 1)), np.zeros(0)
