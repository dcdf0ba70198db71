"""Make a graph ready for tracking, without changing what it computes.

    functions            inlined
    names in branches of If               → of their own
    If with a constant condition                     → the branch that runs
    sparse initializers  → dense ones
    Constant value_float(s), value_int(s)     → value
    what is computed from constants only    → an initializer
    what Shape tells of sizes that never change   → an initializer (sizes.py)
    Reshape → Gather by computed indices that changes no order   → Reshape (strided.py)
    Reshape → Transpose → Reshape that permutes channels   → Gather (shuffles.py)
    Conv/ConvTranspose/Gemm → BatchNormalization   → one node with other weights

Statistics do not average, weights do: that is why BatchNormalization is folded before anything is merged.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from .branches import choose_branches, name_apart
from .probe import without_weights
from .protos import (
    Edge,
    add_initializer,
    attribute,
    constant_tensors,
    consumers,
    every_constant,
    graphs,
    outer_names,
    proto_label,
    subgraphs,
)
from .shuffles import fold_shuffles
from .sizes import fold_sizes
from .strided import fold_strided
from .tensors import Array, set_values, values_of

EVALUATED = frozenset(
    """Abs Add And Cast CastLike Ceil Clip Concat ConstantOfShape Cos CumSum Div Equal Exp Expand Flatten Floor Gather
    GatherND Greater GreaterOrEqual Identity Less LessOrEqual Log MatMul Max Min Mod Mul Neg Not Or Pow
    Range Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round
    ScatterND Shape Sigmoid Sign Sin Size Slice Sqrt Squeeze Sub Sum Tanh Tile Transpose Trilu
    Unsqueeze Where Xor""".split()
)
"""Operators that are evaluated when all their inputs are constant."""
GROWTH = 1 << 16
"""Bytes by which a folded constant may be larger than what it was computed from."""
FOLDABLE = ("Conv", "ConvTranspose", "Gemm")


def inline(model: ModelProto) -> ModelProto:
    """The model with its local functions inlined and no name made twice; the same object if it has no functions."""
    model = onnx.inliner.inline_local_functions(model) if model.functions else model
    name_apart(model)
    return model


def densify(model: ModelProto) -> None:
    """Make every sparse initializer a dense one, in place: merged channels leave few zeros."""
    for sparse in model.graph.sparse_initializer:
        dense = np.zeros(sparse.dims, helper.tensor_dtype_to_np_dtype(sparse.values.data_type))
        places = values_of(sparse.indices)
        index = tuple(places.T) if places.ndim == 2 else np.unravel_index(places, dense.shape)
        dense[index] = values_of(sparse.values)
        add_initializer(model, numpy_helper.from_array(dense), sparse.values.name)
    del model.graph.sparse_initializer[:]


def prepare(model: ModelProto, exclude: Sequence[str] = ()) -> list[Folded]:
    """Normalise constants and fold BatchNormalization, in place; returns what was folded.

    Args:
        model: functions inlined, external data loaded.
        exclude: regular expressions; a producer whose name matches keeps its BatchNormalization.
    """
    densify(model)
    idle = _idle(model.graph)
    for node in (node for graph in graphs(model) for node in graph.node):
        if node.op_type == "Constant":
            _as_tensor(node)
    _fold_constants(model)
    while fold_sizes(model) or choose_branches(model):  # what one round finds lets shape inference prove more
        _fold_constants(model)
    fold_strided(model)
    fold_shuffles(model)
    folded = _fold_batch_norms(model, [re.compile(p) for p in exclude])
    _drop_unused(model, idle)
    return folded


def _as_tensor(node: NodeProto) -> None:
    for a in node.attribute:
        if a.name in ("value_float", "value_floats", "value_int", "value_ints"):
            dtype = np.float32 if "float" in a.name else np.int64
            values = np.array(onnx.helper.get_attribute_value(a), dtype)
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("value", numpy_helper.from_array(values)))
            return


# --- constants computed from constants ------------------------------------------------------------------------------
def _fold_constants(model: ModelProto) -> None:
    """Evaluate, with onnx's reference implementation, every node whose inputs are all constant.

    Weights behind an Identity or Transpose and shapes that were never computed from the input come to light.
    Quantized weights are left behind their DequantizeLinear, and nothing is folded that would grow the model.
    """
    constants = every_constant(model)
    types = _element_types(model) if any(n.op_type == "CastLike" for n in model.graph.node) else {}
    for graph in graphs(model):
        _fold_constants_of(graph, constants, types, model)


def _fold_constants_of(
    graph: GraphProto, constants: dict[str, TensorProto], types: dict[str, int], model: ModelProto
) -> None:
    outputs, gone = {o.name for o in graph.output}, []
    for i, node in enumerate(graph.node):
        if _can_evaluate(node, constants, types) and not outputs & set(node.output):
            result = _evaluate(node, constants, types, model)
            given = sum(values_of(constants[n]).nbytes for n in node.input if n in constants)
            if result.nbytes <= GROWTH + given:
                tensor = numpy_helper.from_array(np.asarray(result, order="C"))
                constants[node.output[0]] = add_initializer(model, tensor, node.output[0])
                gone.append(i)
    for i in reversed(gone):
        del graph.node[i]


def _element_types(model: ModelProto) -> dict[str, int]:
    """Value name → element type, as far as shape inference finds it."""
    graph = onnx.shape_inference.infer_shapes(without_weights(model)[0]).graph
    return {v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.value_info, *graph.output]}


def _can_evaluate(node: NodeProto, constants: dict[str, TensorProto], types: dict[str, int]) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type not in EVALUATED or len(node.output) != 1 or not node.input:
        return False
    data = node.input[:1] if node.op_type == "CastLike" else node.input
    typed = all(n in constants or n in types for n in node.input if n)
    return typed and all(n in constants and constants[n].data_type != TensorProto.STRING for n in data if n)


def _evaluate(node: NodeProto, constants: dict[str, TensorProto], types: dict[str, int], model: ModelProto) -> Array:
    feeds: dict[str, Array] = {}
    for n in node.input:
        if n in constants:
            feeds[n] = values_of(constants[n])
        elif n:  # CastLike wants to know a type only
            dtype: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(types[n])
            feeds[n] = np.zeros(0, dtype)
    inputs = [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in feeds]
    output = helper.make_tensor_value_info(node.output[0], TensorProto.UNDEFINED, None)
    small = helper.make_model(
        helper.make_graph([node], "constant", inputs, [output]),
        opset_imports=[o for o in model.opset_import if o.domain in ("", "ai.onnx")],
    )
    with np.errstate(all="ignore"):  # an exporter's masks hold log(0) on purpose
        outputs: Any = ReferenceEvaluator(small).run(None, feeds)
    return np.asarray(outputs[0])


# --- BatchNormalization ---------------------------------------------------------------------------------------------
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
        mean, deviation: (n,) β and |γ|: what each channel of it has on the training data.
    """

    node: str
    weight: str
    bias: str
    source: str
    norm: tuple[str, ...]
    epsilon: float
    output: str
    mean: Array
    deviation: Array


def _fold_batch_norms(model: ModelProto, excluded: Sequence[re.Pattern[str]]) -> list[Folded]:
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


def _can_fold(maker: NodeProto, norm: NodeProto, constants: Container[str]) -> bool:
    known = all(i in constants for i in [*maker.input[1:], *norm.input[1:]] if i)
    scaled = maker.op_type == "Gemm" and (attribute(maker, "alpha", 1.0), attribute(maker, "beta", 1.0)) != (1.0, 1.0)
    return known and not scaled and not any(norm.output[1:]) and not attribute(norm, "training_mode", 0)


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
    shifted = (np.broadcast_to(bias, mean.shape) - mean) * scale + beta
    if not has_bias:
        maker.input[2:] = [_free_name(f"{maker.input[1]}_bias", constants)]
    for i, values in ((1, scaled_rows(maker, weight, scale)), (2, shifted.astype(weight.dtype))):
        if len(uses.get(maker.input[i], ())) > 1:
            maker.input[i] = _free_name(maker.input[i], constants)
        name = maker.input[i]
        if name in constants:
            set_values(constants[name], values)
        else:
            constants[name] = add_initializer(model, numpy_helper.from_array(values), name)
    maker.output[0] = norm.output[0]
    names = tuple(norm.input[1:5])
    weight_name, bias_name = maker.input[1:3]
    return Folded(
        proto_label(maker), weight_name, bias_name, source, names, epsilon, maker.output[0], beta, np.abs(gamma)
    )


def out_axis(maker: NodeProto) -> int:
    """The axis of a weight that counts what its node makes (of a grouped ConvTranspose, in each group)."""
    if maker.op_type in ("ConvTranspose", "MatMul"):
        return 1
    return int(maker.op_type == "Gemm" and not attribute(maker, "transB", 0))


def scaled_rows(maker: NodeProto, weight: Array, scale: Array) -> Array:
    """The weight with what makes output channel i multiplied by scale[i]."""
    factor, axis = scale.astype(weight.dtype), out_axis(maker)
    if maker.op_type == "ConvTranspose":
        groups = attribute(maker, "group", 1)
        blocks = weight.reshape(groups, -1, *weight.shape[1:])
        return np.asarray(blocks * factor.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))).reshape(weight.shape)
    return np.asarray(weight * np.expand_dims(factor, [a for a in range(weight.ndim) if a != axis]))


def _free_name(stem: str, taken: Container[str]) -> str:
    name = f"{stem}_folded"
    while name in taken:
        name += "_"
    return name


# --- what nothing reads any more -----------------------------------------------------------------------------------
def _idle(graph: GraphProto) -> set[str]:
    """Names of constants and of what nodes make that nothing reads."""
    used = consumers(graph)
    made = [*(t.name for t in graph.initializer), *(name for node in graph.node for name in node.output)]
    return {name for name in made if not used.get(name)}


def _drop_unused(model: ModelProto, idle: Container[str]) -> None:
    """Remove the nodes and initializers whose readers were folded away; what was `idle` before that stays.

    Up to IR version 3 initializers are listed as inputs, too.
    """
    graph = model.graph
    uses = Counter({name: len(edges) for name, edges in consumers(graph).items()})
    listed = {value.name for value in graph.input} if model.ir_version >= 4 else set()
    for i in reversed(range(len(graph.node))):
        node = graph.node[i]
        if not any(uses[name] or name in idle for name in node.output):
            uses.subtract([*node.input, *(n for inner in subgraphs(node) for n in set(outer_names(inner)))])
            del graph.node[i]
    unused = {t.name for t in graph.initializer if not (uses[t.name] or t.name in idle or t.name in listed)}
    for values in (graph.initializer, graph.input):
        for i in reversed(range(len(values))):
            if values[i].name in unused:
                del values[i]
