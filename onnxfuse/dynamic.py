"""Dynamically quantized layers, as onnxruntime's `quantize_dynamic` writes them, become layers on real numbers.

    DynamicQuantizeLinear(x) → q, a, z
    Cast(MatMulInteger(q, W, z, w_zero)) · (a · w_scale)      → MatMul(x, W′); the same with ConvInteger and Conv

Before a BatchNormalization, which integers of one scale cannot take over, an Add of zeros joins a convolution, for
repair to shift what it makes; it stays if there is anything to shift.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .constants import evaluate
from .protos import (
    Edge,
    add_initializer,
    attribute,
    constant_tensors,
    consumers,
    copies,
    free_name,
    input_name,
    set_nodes,
)
from .scheme import Layer, Lowered, Scheme
from .tensors import values_of
from .unused import drop_unused, idle_names

REAL: Mapping[str, str] = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}
"""Integer operators and their counterparts."""
AXIS: Mapping[str, int] = {"MatMulInteger": 1, "ConvInteger": 0}
"""Of the weight, that counts what they make."""


def lower_dynamic(model: ModelProto, found: Lowered) -> None:
    """Replace dynamically quantized layers in place, and note in `found` what they and their weights were."""
    _hold_weights(model)
    view = _View(model)
    layers = {layer.integer.output[0]: layer for node in model.graph.node if (layer := view.layer(node)) is not None}
    whole = [layer for layer in layers.values() if view.is_read_alike(layer, layers)]
    for layer in whole:
        scheme = view.scheme(layer)
        if scheme.tensor not in found.schemes:
            found.schemes[scheme.tensor] = scheme
            view.constants[scheme.tensor].CopyFrom(numpy_helper.from_array(scheme.real(), scheme.tensor))
    gone = {n.output[0] for layer in whole for n in (layer.scale, layer.cast, layer.product)}
    replaced = gone | {layer.integer.output[0] for layer in whole}
    gone |= {layer.quantize.output[0] for layer in whole if view.read_by(layer.quantize) <= replaced}
    real = {layer.integer.output[0]: view.real(layer) for layer in whole}
    found.layers |= {nodes[0].output[0]: layer for layer, nodes in zip(whole, real.values(), strict=True)}
    kept = [node for node in model.graph.node if not node.output or node.output[0] not in gone]
    set_nodes(model, [new for node in kept for new in real.get(node.output[0] if node.output else "", [node])])


def restore_dynamic(model: ModelProto, lowered: Lowered, names: Mapping[str, tuple[str, str]]) -> None:
    """Put the integer layers back, in place; `names` has each weight's scale and zero point."""
    if lowered.layers:
        writer = _Writer(model, names)
        set_nodes(model, [new for node in model.graph.node for new in writer.nodes(node, lowered.layers)])
        for values in (model.graph.initializer, model.graph.input):
            for i in reversed([i for i, value in enumerate(values) if value.name in writer.idle]):
                del values[i]


def _hold_weights(model: ModelProto) -> None:
    """Hold as integers the constants that every run quantizes anew, as it does the weights of files of Constant nodes.

    Only what integer operators read as their weight: a table that a network reads stays real.
    """
    constants, uses = constant_tensors(model.graph), consumers(model.graph)
    nodes = model.graph.node
    todo = [n for n in nodes if n.op_type == "DynamicQuantizeLinear" and n.input[0] in constants]
    todo = [n for n in todo if all(e.node >= 0 and nodes[e.node].op_type in REAL for e in uses[n.output[0]])]
    todo = [n for n in todo if all(e.slot == 1 for e in uses[n.output[0]])]
    if todo:
        idle, held = idle_names(model), copies(*todo)
        for name, values in evaluate(held, constants, {}, model).items():
            add_initializer(model, numpy_helper.from_array(values), name)
        gone = {node.output[0] for node in held}
        set_nodes(model, [n for n in nodes if not n.output or n.output[0] not in gone])
        drop_unused(model, idle)


class _View:
    """What reads and makes what, in a graph with integer operators."""

    def __init__(self, model: ModelProto) -> None:
        self.model, self.constants, self.uses = model, constant_tensors(model.graph), consumers(model.graph)
        self.makers = {name: node for node in model.graph.node for name in node.output if name}

    def layer(self, node: NodeProto) -> Layer | None:
        """The layer that an integer operator is the middle of; None if it is none, or is written in another way."""
        quantize = self.makers.get(input_name(node, 0)) if node.op_type in REAL else None
        if quantize is None or quantize.op_type != "DynamicQuantizeLinear":
            return None
        data, step, zero = quantize.output
        cast = self._only_reader(node.output[0], "Cast")
        product = None if cast is None else self._only_reader(cast.output[0], "Mul")
        if cast is None or product is None or attribute(cast, "to") != TensorProto.FLOAT:
            return None
        scale = next((self.makers.get(n) for n in product.input if n != cast.output[0]), None)
        if scale is None or scale.op_type != "Mul" or self._only_reader(scale.output[0], "Mul") is None:
            return None
        own = [n for n in scale.input if n != step]
        if list(node.input[:1]) != [data] or input_name(node, 2) != zero or len(own) != 1:
            return None
        layer = Layer(own[0], *copies(quantize, node, cast, scale, product))
        return layer if self._is_known(layer) else None

    def _is_known(self, layer: Layer) -> bool:
        """Whether weight, scale and zero point are constants, and the scale is one number or counts columns."""
        weight, zero = input_name(layer.integer, 1), input_name(layer.integer, 3)
        if any(n not in self.constants for n in (weight, layer.scaled_by, *([zero] if zero else []))):
            return False
        dims, one = self.constants[weight].dims, int(np.prod(self.constants[layer.scaled_by].dims)) == 1
        by_column = layer.integer.op_type == "MatMulInteger" and len(dims) == 2
        return one or (by_column and list(self.constants[layer.scaled_by].dims) == [dims[1]])

    def _only_reader(self, value: str, operator: str) -> NodeProto | None:
        edges = self.uses.get(value, [])
        node = self.model.graph.node[edges[0].node] if len(edges) == 1 and edges[0].node >= 0 else None
        return node if node is not None and node.op_type == operator else None

    def is_read_alike(self, layer: Layer, layers: Mapping[str, Layer]) -> bool:
        """Whether all that reads its weight are layers that hold it in the same way."""
        readers = [layers.get(self._output(edge)) for edge in self.uses[layer.integer.input[1]]]
        return all(r is not None and self.scheme(r).agrees(self.scheme(layer)) for r in readers)

    def read_by(self, node: NodeProto) -> set[str]:
        """First outputs of all that reads what a node makes."""
        return {self._output(edge) for name in node.output for edge in self.uses.get(name, [])}

    def _output(self, edge: Edge) -> str:
        return str(self.model.graph.node[edge.node].output[0]) if edge.node >= 0 else ""

    def scheme(self, layer: Layer) -> Scheme:
        """How a layer's weight is held."""
        tensor, zero = layer.integer.input[1], input_name(layer.integer, 3)
        integers, scales = values_of(self.constants[tensor]), values_of(self.constants[layer.scaled_by])
        zeros = values_of(self.constants[zero]) if zero else np.zeros((), integers.dtype)
        return Scheme(tensor, tensor, layer.scaled_by, zero, integers, scales, zeros, AXIS[layer.integer.op_type])

    def real(self, layer: Layer) -> list[NodeProto]:
        """The layer on real numbers, and its Add of zeros."""
        made = layer.product.output[0]
        (node,) = copies(layer.integer)
        node.op_type, node.input[:] = REAL[node.op_type], [layer.quantize.input[0], node.input[1]]
        if node.op_type != "Conv" or self._only_reader(made, "BatchNormalization") is None:
            node.output[0] = made
            return [node]
        weight, node.output[0] = self.constants[node.input[1]], layer.cast.output[0]
        bias = free_name(f"{made}_bias", self.constants.keys() | self.makers.keys())
        zeros = np.zeros((1, weight.dims[0], *[1] * (len(weight.dims) - 2)), np.float32)
        self.constants[bias] = add_initializer(self.model, numpy_helper.from_array(zeros), bias)
        return [node, helper.make_node("Add", [node.output[0], bias], [made], f"{node.name}_bias" if node.name else "")]


@dataclass
class _Writer:
    """Makes integer layers of those on real numbers.

    Attributes:
        names: weight → the names of its scale and zero point.
        quantized: value → the nodes' outputs that hold it as integers, with its scale and zero point.
        shifts: what a convolution makes before an Add of its own → that Add's result, and what it is called now.
        idle: constants that nothing reads any more.
    """

    model: ModelProto
    names: Mapping[str, tuple[str, str]]
    quantized: dict[str, list[str]] = field(default_factory=dict)
    shifts: dict[str, str] = field(default_factory=dict)
    idle: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.taken = {n for node in self.model.graph.node for n in (*node.input, *node.output)}
        self.constants = constant_tensors(self.model.graph)
        for node in self.model.graph.node:
            if node.op_type == "DynamicQuantizeLinear":
                self.quantized[node.input[0]] = list(node.output)

    def nodes(self, node: NodeProto, layers: Mapping[str, Layer]) -> Iterator[NodeProto]:
        """What a node of the graph on real numbers becomes."""
        layer = layers.get(node.output[0]) if node.output else None
        if layer is not None and node.op_type == REAL[layer.integer.op_type]:
            yield from self._layer(node, layer)
        elif node.op_type == "Add" and node.input[0] in self.shifts:
            if self.shifts[node.input[0]] != node.output[0]:  # it shifts
                node.input[0] = self.shifts[node.input[0]]
                yield node
            else:
                self.idle.append(node.input[1])
        else:
            yield node

    def _layer(self, node: NodeProto, layer: Layer) -> Iterator[NodeProto]:
        if node.input[0] not in self.quantized:
            (quantize,) = copies(layer.quantize)
            quantize.input[0] = node.input[0]
            quantize.output[:] = [free_name(n, self.taken) if n in self.taken else n for n in quantize.output]
            self.taken.update(quantize.output)
            self.quantized[node.input[0]] = list(quantize.output)
            yield quantize
        (data, step, zero), (scale, own_zero) = self.quantized[node.input[0]], self.names[node.input[1]]
        integer, cast, factor, product = copies(node, layer.cast, layer.scale, layer.product)
        integer.op_type, integer.output[:] = layer.integer.op_type, layer.integer.output
        integer.input[:] = [data, node.input[1], zero, *([own_zero] if own_zero else [])]
        factor.input[:] = [step if n != layer.scaled_by else scale for n in factor.input]
        product.output[0] = self._shifted(node, layer)
        yield from (integer, cast, factor, product)

    def _shifted(self, node: NodeProto, layer: Layer) -> str:
        """What the layer's product is called: as it was, but where a shift follows."""
        made = str(layer.product.output[0])
        if node.output[0] == made:
            return made
        bias = next(n.input[1] for n in self.model.graph.node if n.op_type == "Add" and n.input[0] == node.output[0])
        if values_of(self.constants[bias]).any():
            made = free_name(f"{made}_unshifted", self.taken)
            self.taken.add(made)
        self.shifts[node.output[0]] = made
        return made
