"""BatchNormalization goes into the weights before it: statistics do not average, weights do."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from .producers import is_scaled, scaled_rows
from .protos import (
    Edge,
    add_initializer,
    attribute,
    constant_tensors,
    consumers,
    first_free,
    proto_label,
    resize_inputs,
)
from .tensors import Array, set_values, values_of

FOLDABLE = ("Conv", "ConvTranspose", "Gemm")
"""Producers that a normalization may go into."""


@dataclass(frozen=True, eq=False)
class Folded:
    """A BatchNormalization that went into the weights before it.

    Attributes:
        node: the producer's name, or its output's.
        weight, bias: initializers that hold the folded values; `bias` may be new.
        source: the initializer that held the weight before.
        norm: the initializers γ, β, mean, variance.
        epsilon: of the normalization.
        output: the value that the normalization made, and the producer makes now.
        gamma: (n,) |γ|.
        mean, deviation: (n,) β and |γ| σ / √(σ² + ε): what each channel of it has on the training data.
    """

    node: str
    weight: str
    bias: str
    source: str
    norm: tuple[str, ...]
    epsilon: float
    output: str
    gamma: Array
    mean: Array
    deviation: Array


def fold_batch_norms(model: ModelProto, excluded: Sequence[re.Pattern[str]]) -> list[Folded]:
    """Fold every BatchNormalization that alone reads what a producer makes, in place, unless either is excluded."""
    graph = model.graph
    constants, uses = constant_tensors(graph), consumers(graph)
    makers = {node.output[0]: node for node in graph.node if node.op_type in FOLDABLE}
    folded, gone = [], []
    for i, norm in enumerate(graph.node):
        maker = makers.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if maker is None or len(uses[norm.input[0]]) != 1 or not _can_fold(maker, norm, constants):
            continue
        if any(p.search(name) for p in excluded for name in (proto_label(maker), proto_label(norm))):
            continue
        folded.append(_fold(model, maker, norm, constants, uses))
        gone.append(i)
    for i in reversed(gone):
        del graph.node[i]
    return folded


def _can_fold(maker: NodeProto, norm: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    known = all(i in constants for i in [*maker.input[1:], *norm.input[1:]] if i)
    plain = not is_scaled(maker) and not any(norm.output[1:]) and not attribute(norm, "training_mode", 0)
    return known and plain and _is_row(maker, constants)


def _is_row(maker: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Whether what is added, if anything, is the same for all rows: a Gemm may add (rows, 1) or (rows, channels)."""
    bias = constants.get(maker.input[2]) if len(maker.input) > 2 else None
    return bias is None or math.prod(bias.dims[:-1]) == 1


def _fold(
    model: ModelProto, maker: NodeProto, norm: NodeProto, constants: dict[str, TensorProto], uses: dict[str, list[Edge]]
) -> Folded:
    """W ← W·γ/√(σ²+ε), b ← (b − μ)·γ/√(σ²+ε) + β; the producer takes over the normalization's output name."""
    epsilon = attribute(norm, "epsilon", 1e-5)
    gamma, beta, mean, variance = (values_of(constants[i]).astype(np.float64) for i in norm.input[1:5])
    scale = gamma / np.sqrt(variance + epsilon)
    weight = values_of(constants[maker.input[1]])
    has_bias = len(maker.input) > 2 and maker.input[2] != ""
    bias = values_of(constants[maker.input[2]]).astype(np.float64) if has_bias else np.zeros_like(mean)
    source = maker.input[1]
    shifted = (np.broadcast_to(bias.ravel(), mean.shape) - mean) * scale + beta
    if not has_bias:
        maker.input[2:] = [_free_name(f"{maker.input[1]}_bias", constants)]
    for i, values in ((1, scaled_rows(maker, weight, scale)), (2, shifted.astype(weight.dtype))):
        if len(uses.get(maker.input[i], ())) > 1:
            maker.input[i] = _free_name(maker.input[i], constants)
        name = maker.input[i]
        if name in constants:
            set_values(constants[name], values)
            resize_inputs(model, {name: values.shape})
        else:
            constants[name] = add_initializer(model, numpy_helper.from_array(values), name)
    maker.output[0] = norm.output[0]
    names = tuple(norm.input[1:5])
    weight_name, bias_name = maker.input[1:3]
    sizes = np.abs(gamma), beta, np.abs(scale) * np.sqrt(np.maximum(variance, 0))
    return Folded(proto_label(maker), weight_name, bias_name, source, names, epsilon, maker.output[0], *sizes)


def _free_name(stem: str, taken: Container[str]) -> str:
    return first_free((f"{stem}_folded{'_' * i}" for i in itertools.count()), taken)
