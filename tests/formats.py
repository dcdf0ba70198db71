"""One model in every form in which files hold the same network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def in_type(element: int) -> Callable[[ModelProto], ModelProto]:
    """All real numbers of another element type."""

    def convert(model: ModelProto) -> ModelProto:
        model, dtype = _copy(model), helper.tensor_dtype_to_np_dtype(element)
        for t in model.graph.initializer:
            if t.data_type == TensorProto.FLOAT:
                t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(dtype), t.name))
        for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                value.type.tensor_type.elem_type = element
        return model

    return convert


def mixed(model: ModelProto) -> ModelProto:
    """float16 inside, float32 at the inputs and outputs."""
    model = in_type(TensorProto.FLOAT16)(model)
    before, after = [], []
    for values, cast in ((model.graph.input, before), (model.graph.output, after)):
        for value in values:
            outside, inside = value.name, f"{value.name}_half"
            for node in model.graph.node:
                node.input[:] = [inside if n == outside else n for n in node.input]
                node.output[:] = [inside if n == outside else n for n in node.output]
            pair = ([outside], [inside]) if values is model.graph.input else ([inside], [outside])
            element = TensorProto.FLOAT16 if values is model.graph.input else TensorProto.FLOAT
            cast.append(helper.make_node("Cast", *pair, name=f"cast_{outside}", to=element))
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    nodes = [*before, *model.graph.node, *after]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def quantized(per_channel: bool) -> Callable[[ModelProto], ModelProto]:
    """int8 weights and int32 biases behind DequantizeLinear; activations through uint8."""

    def convert(model: ModelProto) -> ModelProto:
        model = _copy(model)
        inits = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        nodes: list[NodeProto] = []
        scales: dict[str, Array] = {}
        del model.graph.initializer[:]

        def add(name: str, values: Array) -> str:
            if name not in {t.name for t in model.graph.initializer}:
                model.graph.initializer.append(numpy_helper.from_array(values, name))
            return name

        def held(name: str, integers: Array, scale: Array, axis: int) -> str:
            stored, s = add(f"{name}_q", integers), add(f"{name}_s", scale)
            zero = add(f"{name}_z", np.zeros(scale.shape, integers.dtype))
            if not any(n.output[0] == f"{name}_real" for n in nodes):
                nodes.append(helper.make_node("DequantizeLinear", [stored, s, zero], [f"{name}_real"], axis=axis))
            return f"{name}_real"

        step = add("x_step", np.float32(4 / 127)), add("x_zero", np.uint8(128))
        for node in model.graph.node:
            if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in inits:
                values = inits[node.input[1]]
                rows = node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)
                axis = 0 if rows else 1
                others = tuple(a for a in range(values.ndim) if a != axis)
                peak = np.abs(values).max(axis=others if per_channel else None, keepdims=per_channel)
                scale = (peak / 127).astype(np.float32)
                scales[node.input[1]] = scale.reshape(-1) if per_channel else scale
                integers = np.rint(values / scale).astype(np.int8)
                name, data = node.input[1], node.input[0]
                node.input[1] = held(name, integers, scales[name], axis)
                coarse, real = f"{node.output[0]}_in_q", f"{node.output[0]}_in"
                nodes.append(helper.make_node("QuantizeLinear", [data, *step], [coarse]))
                nodes.append(helper.make_node("DequantizeLinear", [coarse, *step], [real]))
                node.input[0] = real
                if len(node.input) > 2 and node.input[2] in inits:
                    unit = (scales[name] * np.float32(4 / 127)).astype(np.float32)
                    bias = np.rint(inits[node.input[2]] / unit).astype(np.int32)
                    node.input[2] = held(f"{node.input[2]}_{node.output[0]}", bias, unit, 0)
            nodes.append(node)
        for name in {n for node in nodes for n in node.input} & inits.keys():
            add(name, inits[name])
        nodes = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        return model

    return convert


def with_constant_nodes(model: ModelProto) -> ModelProto:
    """Every initializer as a Constant node."""
    model = _copy(model)
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    nodes = [*constants, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def in_a_function(model: ModelProto) -> ModelProto:
    """The whole network as a local function, called with the weights."""
    model = _copy(model)
    graph = model.graph
    inputs = [*(v.name for v in graph.input), *(t.name for t in graph.initializer)]
    outputs = [v.name for v in graph.output]
    function = helper.make_function("local", "Network", inputs, outputs, list(graph.node), list(model.opset_import))
    del graph.node[:], graph.value_info[:]
    graph.node.append(helper.make_node("Network", inputs, outputs, domain="local", name="network"))
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def sharing(model: ModelProto) -> ModelProto:
    """Equal initializers are one, as exporters make of them."""
    model, names = _copy(model), dict[tuple[Any, ...], str]()
    for t in list(model.graph.initializer):
        key = (t.data_type, tuple(t.dims), numpy_helper.to_array(t).tobytes())
        if names.setdefault(key, t.name) != t.name:
            model.graph.initializer.remove(t)
            for node in model.graph.node:
                node.input[:] = [names[key] if n == t.name else n for n in node.input]
    return model


def sparse(model: ModelProto) -> ModelProto:
    """Every weight as a sparse initializer."""
    model = _copy(model)
    for t in list(model.graph.initializer):
        values = numpy_helper.to_array(t)
        if values.dtype == np.float32 and values.ndim == 2:
            model.graph.initializer.remove(t)
            flat = np.flatnonzero(values)
            stored = numpy_helper.from_array(values.reshape(-1)[flat], t.name)
            places = numpy_helper.from_array(flat.astype(np.int64), f"{t.name}_places")
            model.graph.sparse_initializer.append(helper.make_sparse_tensor(stored, places, list(values.shape)))
    return model


def external(model: ModelProto, folder: Path) -> Path:
    """A file with its weights in another file, in a folder of its own."""
    (folder / "beside").mkdir()
    path = folder / "beside" / "in.onnx"
    onnx.save(_copy(model), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


FORMATS: Mapping[str, Callable[[ModelProto], ModelProto]] = {
    "float32": _copy,
    "float16": in_type(TensorProto.FLOAT16),
    "bfloat16": in_type(TensorProto.BFLOAT16),
    "float64": in_type(TensorProto.DOUBLE),
    "mixed": mixed,
    "int8": quantized(per_channel=False),
    "int8 per channel": quantized(per_channel=True),
    "constants": with_constant_nodes,
    "function": in_a_function,
    "shared": sharing,
    "sparse": sparse,
}
