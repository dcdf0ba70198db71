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
    before: list[NodeProto] = []
    after: list[NodeProto] = []
    for values, cast in ((model.graph.input, before), (model.graph.output, after)):
        for value in values:
            outside, inside = value.name, f"{value.name}_half"
            for node in model.graph.node:
                node.input[:] = [inside if n == outside else n for n in node.input]
                node.output[:] = [inside if n == outside else n for n in node.output]
            source, target = (outside, inside) if cast is before else (inside, outside)
            element = TensorProto.FLOAT16 if cast is before else TensorProto.FLOAT
            cast.append(helper.make_node("Cast", [source], [target], f"cast_{outside}", to=element))
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    nodes = [*before, *model.graph.node, *after]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


class _Quantizer:
    """Rewrites a model node by node: int8 weights and int32 biases behind DequantizeLinear, data through uint8."""

    def __init__(self, model: ModelProto, per_channel: bool) -> None:
        self.inits = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.per_channel = per_channel
        self.made: dict[str, Array] = {"x_step": np.array(STEP, np.float32), "x_zero": np.array(128, np.uint8)}
        self.nodes: list[NodeProto] = []

    def held(self, name: str, integers: Array, scale: Array, axis: int) -> str:
        parts = {f"{name}_q": integers, f"{name}_s": scale, f"{name}_z": np.zeros(scale.shape, integers.dtype)}
        if f"{name}_q" not in self.made:
            self.made |= parts
            self.nodes.append(helper.make_node("DequantizeLinear", list(parts), [f"{name}_real"], axis=axis))
        return f"{name}_real"

    def through_integers(self, node: NodeProto) -> None:
        steps = ["x_step", "x_zero"]
        coarse, real = f"{node.output[0]}_in_q", f"{node.output[0]}_in"
        self.nodes.append(helper.make_node("QuantizeLinear", [node.input[0], *steps], [coarse]))
        self.nodes.append(helper.make_node("DequantizeLinear", [coarse, *steps], [real]))
        node.input[0] = real

    def weigh(self, node: NodeProto) -> None:
        values = self.inits[node.input[1]]
        axis = 0 if node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute) else 1
        others = tuple(a for a in range(values.ndim) if a != axis)
        peak = np.abs(values).max(axis=others if self.per_channel else None, keepdims=self.per_channel)
        scale = np.asarray(peak / 127, np.float32)
        integers = np.rint(values / scale).astype(np.int8)
        unit = scale.reshape(-1) if self.per_channel else scale
        node.input[1] = self.held(node.input[1], integers, unit, axis)
        if len(node.input) > 2:
            unit = np.asarray(unit * np.float32(STEP))
            bias = np.rint(self.inits[node.input[2]] / unit).astype(np.int32)
            node.input[2] = self.held(f"{node.input[2]}_{node.output[0]}", bias, unit, 0)

    def run(self, nodes: list[NodeProto]) -> None:
        for node in nodes:
            if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in self.inits:
                self.weigh(node)
                self.through_integers(node)
            self.nodes.append(node)


STEP = 4 / 127
"""Of the activations' scale."""


def quantized(per_channel: bool) -> Callable[[ModelProto], ModelProto]:
    """The weights of all layers in int8, their biases in int32, their inputs through uint8."""

    def convert(model: ModelProto) -> ModelProto:
        model = _copy(model)
        work = _Quantizer(model, per_channel)
        work.run(list(_copy(model).graph.node))
        read = {n for node in work.nodes for n in node.input}
        constants = {**{n: a for n, a in work.inits.items() if n in read}, **work.made}
        del model.graph.initializer[:], model.graph.node[:]
        model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
        model.graph.node.extend(work.nodes)
        return model

    return convert


def integer_operators(model: ModelProto) -> ModelProto:
    """QLinearConv, QGemm, QLinearMatMul, QLinearAdd and QLinearConcat, between QuantizeLinear and DequantizeLinear."""
    model, work = _copy(model), _Quantizer(model, per_channel=False)
    for node in _copy(model).graph.node:
        known = [n in work.inits for n in node.input]
        weighed = node.op_type in ("Conv", "Gemm", "MatMul") and known[1:2] == [True]
        summed = node.op_type in ("Add", "Concat") and not any(known)
        work.nodes += _integer_operator(node, work, weighed) if weighed or summed else [node]
    read = {n for node in work.nodes for n in node.input}
    constants = {n: a for n, a in {**work.inits, **work.made}.items() if n in read}
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    model.graph.node.extend(work.nodes)
    if not any(entry.domain == "com.microsoft" for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def _integer_operator(node: NodeProto, work: _Quantizer, weighed: bool) -> list[NodeProto]:
    """An operator in integers, and what makes them of all that it reads, and real numbers of what it makes."""
    steps, name, before = ["x_step", "x_zero"], node.output[0], len(work.nodes)
    if weighed:
        work.weigh(node)
        del work.nodes[before:]
    held = {n: n.removesuffix("_real") for n in node.input if n.endswith("_real")}
    data = [n for n in node.input if n not in held]
    nodes = [helper.make_node("QuantizeLinear", [n, *steps], [f"{n}_in_{name}"]) for n in dict.fromkeys(data)]
    triples = [[f"{n}_in_{name}", *steps] for n in data] + [[f"{w}_{part}" for part in "qsz"] for w in held.values()]
    bias = [f"{triples.pop()[0]}"] if len(held) > 1 else []
    flat = [n for triple in triples for n in triple]
    forms = {
        "Conv": ("QLinearConv", [*flat, *steps, *bias]),
        "Gemm": ("QGemm", [*flat, *(bias or [""]), *steps]),
        "Concat": ("QLinearConcat", [*steps, *flat]),
    }
    op, inputs = forms.get(node.op_type, (f"QLinear{node.op_type}", [*flat, *steps]))
    made = helper.make_node(op, inputs, [f"{name}_out"], node.name)
    made.domain = "" if op in ("QLinearConv", "QLinearMatMul") else "com.microsoft"
    made.attribute.extend(a for a in node.attribute if a.name != "beta")
    return [*nodes, made, helper.make_node("DequantizeLinear", [f"{name}_out", *steps], [name])]


def dynamic(model: ModelProto) -> ModelProto:
    """The weights of all layers in int8, what they read quantized as it comes, as `quantize_dynamic` does it."""
    model = _copy(model)
    made = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        is_layer = node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in made
        nodes += _dynamic_layer(node, made) if is_layer else [node]
    read = {n for node in nodes for n in node.input}
    nodes = [_node_of(n) for n in nodes]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in made.items() if n in read)
    model.graph.node.extend(nodes)
    return model


def _node_of(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _dynamic_layer(node: NodeProto, made: dict[str, Array]) -> list[NodeProto]:
    """Integers of what a layer reads, their product with its weight in int8, and what makes real numbers of it."""
    y, weight, is_conv = node.output[0], made[node.input[1]], node.op_type == "Conv"
    if any(a.name == "transB" and a.i for a in node.attribute):
        weight = weight.T
    name, step = f"{node.input[1]}_{y}", np.float32(np.abs(weight).max() / 127)
    dtype, zero = (np.uint8, 128) if is_conv else (np.int8, 0)  # older onnxruntimes convolve no int8
    integers = (np.rint(weight / step) + zero).astype(dtype)
    own = {f"{name}_q": integers, f"{name}_s": step, f"{name}_z": np.array(zero, dtype)}
    made |= {n: np.asarray(a) for n, a in own.items()}
    data = [f"{y}_in_q", f"{y}_in_s", f"{y}_in_z"]
    product = helper.make_node(
        "ConvInteger" if is_conv else "MatMulInteger",
        [data[0], f"{name}_q", data[2], f"{name}_z"],
        [f"{y}_i"],
        node.name,
    )
    product.attribute.extend(node.attribute if is_conv else [])
    has_bias = len(node.input) > 2
    nodes = [
        helper.make_node("DynamicQuantizeLinear", [node.input[0]], data),
        helper.make_node("Mul", [data[1], f"{name}_s"], [f"{y}_unit"]),
        product,
        helper.make_node("Cast", [f"{y}_i"], [f"{y}_c"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{y}_c", f"{y}_unit"], [f"{y}_m" if has_bias else y]),
    ]
    if has_bias:
        made[f"{name}_b"] = (
            made[node.input[2]].reshape(-1, *[1] * (weight.ndim - 2)) if is_conv else made[node.input[2]]
        )
        nodes.append(helper.make_node("Add", [f"{y}_m", f"{name}_b"], [y]))
    return nodes


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


def backwards(model: ModelProto) -> ModelProto:
    """The last node first; onnxruntime sorts them."""
    turned = _copy(model)
    del turned.graph.node[:]
    turned.graph.node.extend(reversed(model.graph.node))
    return turned


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
    "integer operators": integer_operators,
    "dynamic": dynamic,
    "constants": with_constant_nodes,
    "function": in_a_function,
    "shared": sharing,
    "sparse": sparse,
    "nodes in another order": backwards,
}
