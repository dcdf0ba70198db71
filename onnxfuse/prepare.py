"""Make a graph ready for tracking, without changing what it computes.

    functions            inlined
    Constant value_float(s), value_int(s)   → value
    Identity/Cast/Transpose/Reshape/(Un)squeeze of a constant   → an initializer
    Conv/ConvTranspose/Gemm → BatchNormalization                → one node with other weights

Statistics do not average, weights do: that is why BatchNormalization is folded before anything is merged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.inliner
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from .model import Array, Edge, attribute, constant_tensors, consumers

FOLDABLE = ("Conv", "ConvTranspose", "Gemm")


def inline(model: ModelProto) -> ModelProto:
    """The model with its local functions inlined; the same object if it has none."""
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def prepare(model: ModelProto, exclude: Sequence[str] = ()) -> list[Folded]:
    """Normalise constants and fold BatchNormalization, in place; returns what was folded.

    Args:
        model: functions inlined, external data loaded.
        exclude: regular expressions; a producer whose name matches keeps its BatchNormalization.
    """
    for node in model.graph.node:
        if node.op_type == "Constant":
            _as_tensor(node)
    _fold_constants(model)
    return _fold_batch_norms(model, [re.compile(p) for p in exclude])


def _as_tensor(node: NodeProto) -> None:
    for a in node.attribute:
        if a.name in ("value_float", "value_floats", "value_int", "value_ints"):
            dtype = np.float32 if "float" in a.name else np.int64
            values = np.array(onnx.helper.get_attribute_value(a), dtype)
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("value", numpy_helper.from_array(values)))
            return


# --- constants computed from constants ------------------------------------------------------------------------------
def _cast(node: NodeProto, x: Array, *_: Array) -> Array:
    return x.astype(onnx.helper.tensor_dtype_to_np_dtype(attribute(node, "to")))


def _reshape(node: NodeProto, x: Array, shape: Array) -> Array:
    return x.reshape([x.shape[i] if n == 0 else int(n) for i, n in enumerate(shape)])


def _axes(node: NodeProto, rest: Sequence[Array]) -> tuple[int, ...] | None:
    axes = rest[0].tolist() if rest else attribute(node, "axes")
    return tuple(axes) if axes else None


MOVES: dict[str, Callable[..., Array]] = {
    "Identity": lambda node, x: x,
    "Cast": _cast,
    "Transpose": lambda node, x: np.transpose(x, attribute(node, "perm")),
    "Reshape": _reshape,
    "Squeeze": lambda node, x, *rest: np.squeeze(x, _axes(node, rest)),
    "Unsqueeze": lambda node, x, *rest: np.expand_dims(x, _axes(node, rest) or ()),
}
"""Operators that are evaluated when all their inputs are constant, so that the weight behind them can be seen."""


def _fold_constants(model: ModelProto) -> None:
    graph = model.graph
    constants = constant_tensors(graph)
    outputs = {o.name for o in graph.output}
    gone = []
    for i, node in enumerate(graph.node):
        known = node.op_type in MOVES and node.domain in ("", "ai.onnx") and all(n in constants for n in node.input)
        if known and constants[node.input[0]].data_type != TensorProto.STRING and node.output[0] not in outputs:
            values = [numpy_helper.to_array(constants[n]) for n in node.input]
            result = np.ascontiguousarray(MOVES[node.op_type](node, *values))
            tensor = graph.initializer.add()
            tensor.CopyFrom(numpy_helper.from_array(result, node.output[0]))
            constants[node.output[0]] = tensor
            gone.append(i)
    for i in reversed(gone):
        del graph.node[i]


# --- BatchNormalization ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Folded:
    """A BatchNormalization that went into the weights before it.

    Attributes:
        node: the producer's name, or its output's.
        weight, bias: initializers that hold the folded values; `bias` may be new.
        norm: the initializers γ, β, mean, variance.
        epsilon: of the normalization.
    """

    node: str
    weight: str
    bias: str
    norm: tuple[str, ...]
    epsilon: float


def _fold_batch_norms(model: ModelProto, excluded: Sequence[re.Pattern[str]]) -> list[Folded]:
    graph = model.graph
    constants, uses = constant_tensors(graph), consumers(graph)
    makers = {node.output[0]: node for node in graph.node if node.op_type in FOLDABLE}
    folded, gone = [], []
    for i, norm in enumerate(graph.node):
        maker = makers.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if maker is None or len(uses[norm.input[0]]) != 1 or not _can_fold(maker, norm, constants):
            continue
        if any(p.search(name) for p in excluded for name in (_name(maker), _name(norm))):
            continue
        folded.append(_fold(model, maker, norm, constants, uses))
        gone.append(i)
    for i in reversed(gone):
        del graph.node[i]
    if gone:
        _drop_unused(model)
    return folded


def _name(node: NodeProto) -> str:
    return node.name or node.output[0]


def _can_fold(maker: NodeProto, norm: NodeProto, constants: Container[str]) -> bool:
    known = all(i in constants for i in [*maker.input[1:], *norm.input[1:]] if i)
    scaled = maker.op_type == "Gemm" and (attribute(maker, "alpha", 1.0), attribute(maker, "beta", 1.0)) != (1.0, 1.0)
    return known and not scaled and not any(norm.output[1:]) and not attribute(norm, "training_mode", 0)


def _fold(
    model: ModelProto, maker: NodeProto, norm: NodeProto, constants: dict[str, TensorProto], uses: dict[str, list[Edge]]
) -> Folded:
    """W ← W·γ/√(σ²+ε), b ← (b − μ)·γ/√(σ²+ε) + β; the producer takes over the normalization's output name."""
    epsilon = attribute(norm, "epsilon", 1e-5)
    gamma, beta, mean, variance = (numpy_helper.to_array(constants[i]).astype(np.float64) for i in norm.input[1:5])
    scale = gamma / np.sqrt(variance + epsilon)
    weight = numpy_helper.to_array(constants[maker.input[1]])
    has_bias = len(maker.input) > 2 and maker.input[2] != ""
    bias = numpy_helper.to_array(constants[maker.input[2]]).astype(np.float64) if has_bias else np.zeros_like(mean)
    shifted = (np.broadcast_to(bias, mean.shape) - mean) * scale + beta
    if not has_bias:
        maker.input[2:] = [_free_name(f"{maker.input[1]}_bias", constants)]
    for i, values in ((1, _scaled(maker, weight, scale)), (2, shifted.astype(weight.dtype))):
        if len(uses.get(maker.input[i], ())) > 1:
            maker.input[i] = _free_name(maker.input[i], constants)
        if maker.input[i] not in constants:
            constants[maker.input[i]] = model.graph.initializer.add()
        constants[maker.input[i]].CopyFrom(numpy_helper.from_array(values, maker.input[i]))
    maker.output[0] = norm.output[0]
    return Folded(_name(maker), maker.input[1], maker.input[2], tuple(norm.input[1:5]), epsilon)


def _scaled(maker: NodeProto, weight: Array, scale: Array) -> Array:
    factor = scale.astype(weight.dtype)
    if maker.op_type == "ConvTranspose":
        groups = attribute(maker, "group", 1)
        blocks = weight.reshape(groups, -1, *weight.shape[1:])
        return np.asarray(blocks * factor.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))).reshape(weight.shape)
    axis = 1 if maker.op_type == "Gemm" and not attribute(maker, "transB", 0) else 0
    return np.asarray(weight * np.expand_dims(factor, [a for a in range(weight.ndim) if a != axis]))


def _free_name(stem: str, taken: Container[str]) -> str:
    name = f"{stem}_folded"
    while name in taken:
        name += "_"
    return name


def _drop_unused(model: ModelProto) -> None:
    """Remove initializers that nothing reads any more."""
    graph = model.graph
    used, inputs = consumers(graph), {value.name for value in graph.input}
    for i in reversed(range(len(graph.initializer))):
        name = graph.initializer[i].name
        if not used.get(name) and name not in inputs:
            del graph.initializer[i]
