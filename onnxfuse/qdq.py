"""Weights in QDQ format become real numbers.

    DequantizeLinear(int8 W, scale, zero)              → W′, an initializer of real numbers
    DequantizeLinear(QuantizeLinear(float W, …), …)    → the same; a Transpose after it is taken along

What is quantized in blocks, or to less than 8 bits, stays: its weights are then computed in the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from .protos import Edge, add_initializer, attribute, constant_tensors, consumers, copies, input_name
from .scheme import Lowered, Scheme, in_steps
from .tensors import Array, values_of

INTEGERS = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32)
"""Types that weights and biases are held in."""


def lower_dequantized(model: ModelProto, found: Lowered) -> None:
    """Put initializers of real numbers in place of dequantized constants, and note in `found` how they were held."""
    graph, constants, uses = model.graph, constant_tensors(model.graph), consumers(model.graph)
    makers = {n.output[0]: n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] in constants}
    outputs, gone, mine = {o.name for o in graph.output}, set(), dict[str, Scheme]()
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.output[0] not in outputs:
            scheme = _dequantized(node, makers.get(node.input[0]), constants)
            if scheme is not None:
                (reader, *others) = uses[node.output[0]] or [Edge(-1, 0)]
                if not others and reader.node >= 0 and graph.node[reader.node].op_type == "Transpose":
                    scheme = scheme.transposed(graph.node[reader.node])
                mine[scheme.tensor] = scheme
                gone |= {n.output[0] for n in scheme.nodes}
    for i in reversed(range(len(graph.node))):
        if graph.node[i].output and graph.node[i].output[0] in gone:
            del graph.node[i]
    for scheme in mine.values():
        add_initializer(model, numpy_helper.from_array(scheme.real()), scheme.tensor)
    found.schemes |= mine
    _follow_weights(model, found)


def _dequantized(node: NodeProto, quantize: NodeProto | None, constants: Mapping[str, TensorProto]) -> Scheme | None:
    nodes, source = copies(*([] if quantize is None else [quantize]), node), node.input[0]
    names = input_name(node, 1), input_name(node, 2)
    if quantize is not None:
        source = quantize.input[0]
        if list(quantize.input[1:]) != list(node.input[1:]):
            return None
    blocked = any(attribute(n, "block_size", 0) for n in nodes)
    if blocked or source not in constants or any(n not in constants for n in names if n):
        return None
    scales = values_of(constants[names[0]])
    stored = values_of(constants[source])
    axis = attribute(node, "axis", 1) % max(stored.ndim, 1)
    if quantize is None:
        if constants[source].data_type not in INTEGERS:
            return None
        zeros = values_of(constants[names[1]]) if names[1] else np.zeros((), stored.dtype)
        return Scheme(node.output[0], source, *names, stored, scales, zeros, axis, nodes)
    if not names[1] or constants[names[1]].data_type not in INTEGERS:
        return None
    zeros = values_of(constants[names[1]])
    scheme = Scheme(node.output[0], source, *names, stored, scales, zeros, axis, nodes, floats=True)
    limits = np.iinfo(zeros.dtype)
    integers = np.rint(in_steps(stored, scheme.along(scales))) + scheme.along(zeros)
    return replace(scheme, integers=np.clip(integers, limits.min, limits.max).astype(zeros.dtype))


def _follow_weights(model: ModelProto, found: Lowered) -> None:
    """Mark the int32 biases that count in units of their weight's scale times a number."""
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2:
            weight, bias = (found.schemes.get(name) for name in node.input[1:3])
            if weight is not None and bias is not None and bias.integers.dtype == np.int32:
                factor = _common_factor(weight.scales.reshape(-1), bias.scales.reshape(-1))
                if factor is not None:
                    found.schemes[bias.tensor] = replace(bias, follows=weight.tensor, factor=factor)


def _common_factor(weight: Array, bias: Array) -> Array | None:
    """(1,) by how much all scales of a bias are larger than its weight's; None if there is no such number."""
    used = weight != 0
    if len(bias) != len(weight) or not used.any():
        return None
    factor = bias[used] / weight[used]
    return factor[:1] if np.allclose(factor, factor[0], rtol=1e-4) else None
