"""Quantized models as real-number ones; `requantize.py` is the way back.

    DequantizeLinear(int8 W, scale, zero)              → W′, an initializer of real numbers
    DequantizeLinear(QuantizeLinear(float W, …), …)    → the same; a Transpose after it is taken along
    QLinearConv, ConvInteger                           → Conv        with real weights
    QLinearMatMul, MatMulInteger                       → MatMul
    QGemm                                              → Gemm
    QLinearAdd, QLinearConcat, QLinearSigmoid …        → Add, Concat, Sigmoid …

so that all later stages see one kind of weight. Until it is undone the graph computes on real numbers, and onnxruntime
cannot run it where an integer operator was replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from .graph import Graph
from .protos import Edge, add_initializer, attribute, constant_tensors, consumers, free_name
from .tensors import Array, values_of

INTEGERS = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32)
"""Types that weights and biases are held in."""


@dataclass(frozen=True)
class Operator:
    """How an integer operator maps to one on real numbers.

    Attributes:
        real: the operator on real numbers.
        data: inputs that hold activations.
        weight: the inputs (values, scale, zero point) of the weight; −1 for one the operator does not have.
        bias: the input that holds the bias, or −1.
        axis: of the weight, for a scale per channel.
        scale: the input that holds the scale of the data, in whose units the bias counts, or −1.
    """

    real: str
    data: tuple[int, ...]
    weight: tuple[int, int, int] | None = None
    bias: int = -1
    axis: int = 0
    scale: int = -1

    def real_inputs(self) -> tuple[int, ...]:
        """The inputs that the operator on real numbers has, too, in its order."""
        return self.data if self.weight is None else (*self.data, self.weight[0], self.bias)


_PASSING = "Sigmoid LeakyRelu Softmax AveragePool GlobalAveragePool".split()
OPERATORS: Mapping[str, Operator] = {
    "QLinearConv": Operator("Conv", (0,), (3, 4, 5), 8, 0, 1),
    "ConvInteger": Operator("Conv", (0,), (1, -1, 3)),
    "QLinearMatMul": Operator("MatMul", (0,), (3, 4, 5), axis=1),
    "MatMulInteger": Operator("MatMul", (0,), (1, -1, 3), axis=1),
    "QGemm": Operator("Gemm", (0,), (3, 4, 5), 6, 0, 1),
    "QLinearAdd": Operator("Add", (0, 3)),
    "QLinearMul": Operator("Mul", (0, 3)),
    **{f"QLinear{real}": Operator(real, (0,)) for real in _PASSING},
}
"""Integer operators, of the standard domain and com.microsoft."""


@dataclass(frozen=True, eq=False)
class Scheme:
    """How one constant of real numbers is held in the file.

    Attributes:
        tensor: name of the constant, in real numbers.
        stored, scale, zero: names of the initializers that hold it; '' for one that there is not.
        integers, scales, zeros: their values; `scales` and `zeros` are scalar, or vectors along `axis`.
        axis: of a scale per channel.
        nodes: the nodes that make real numbers of it, taken out of the graph; none if an operator reads integers.
        follows: the weight in whose scale, times `factor`, it counts; '' if it has a scale of its own.
        order: of the axes in the file, if the last of the nodes transposes them.
        later: whether a node of the graph, further on, multiplies by the scale.
        floats: whether the file holds real numbers that its nodes quantize.
    """

    tensor: str
    stored: str
    scale: str
    zero: str
    integers: Array
    scales: Array
    zeros: Array
    axis: int
    nodes: tuple[NodeProto, ...] = ()
    follows: str = ""
    factor: Array | None = None
    order: tuple[int, ...] = ()
    later: bool = False
    floats: bool = False

    def agrees(self, other: Scheme | None) -> bool:
        """Whether another scheme of the same constant, if there is one, says the same."""
        return other is None or (self.scale, self.zero, self.axis) == (other.scale, other.zero, other.axis)

    def real(self) -> Array:
        """The constant's values."""
        return self.values(self.integers, self.scales, self.zeros)

    def values(self, integers: Array, scales: Array, zeros: Array) -> Array:
        """What the integers stand for, in the type of the scales."""
        return np.asarray((integers.astype(np.float64) - self.along(zeros)) * self.along(scales)).astype(scales.dtype)

    def held(self, integers: Array, scales: Array, zeros: Array) -> Array:
        """What the file holds of it: the integers, or the real numbers that its nodes quantize."""
        stored = self.values(integers, scales, zeros) if self.floats else integers
        return np.transpose(stored, np.argsort(self.order)) if self.order else stored

    def transposed(self, node: NodeProto) -> Scheme:
        """The same constant as a Transpose that follows makes it."""
        order = tuple(attribute(node, "perm") or reversed(range(self.integers.ndim)))
        axis = order.index(self.axis) if self.scales.size > 1 else self.axis
        nodes, integers = (*self.nodes, *_copies(node)), np.transpose(self.integers, order)
        return replace(self, tensor=node.output[0], integers=integers, axis=axis, nodes=nodes, order=order)

    def along(self, vector: Array) -> NDArray[np.float64]:
        """A vector along `axis`, or a scalar, so that it broadcasts to the constant."""
        form = [-1 if a == self.axis else 1 for a in range(self.integers.ndim)]
        return vector.astype(np.float64).reshape(form if vector.size > 1 else [1] * len(form))


@dataclass
class Lowered:
    """What `lower` changed.

    Attributes:
        schemes: constant of real numbers → how the file holds it.
        operators: output of a replaced node → the node as it was.
    """

    schemes: dict[str, Scheme] = field(default_factory=dict)
    operators: dict[str, NodeProto] = field(default_factory=dict)

    def element_bytes(self) -> dict[str, int]:
        """Constant of real numbers → bytes that one of its elements takes in the file."""
        return {n: (s.scales if s.floats else s.integers).dtype.itemsize for n, s in self.schemes.items()}


# --- down -----------------------------------------------------------------------------------------------------------
def lower(model: ModelProto) -> Lowered:
    """Replace quantized weights by real numbers and integer operators by their counterparts, in place.

    What is quantized in blocks, or to less than 8 bits, stays: its weights are then computed in the graph.
    """
    found = Lowered()
    _lower_dequantized(model, found)
    _lower_operators(model, found)
    return found


def lowered_graph(model: ModelProto) -> tuple[Graph, Lowered]:
    """`lower` a model; the graph of what it is then, and what was changed."""
    lowered = lower(model)
    return Graph(model, lowered.element_bytes(), runs=not lowered.operators), lowered


def _lower_dequantized(model: ModelProto, found: Lowered) -> None:
    graph, constants, uses = model.graph, constant_tensors(model.graph), consumers(model.graph)
    makers = {n.output[0]: n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] in constants}
    outputs, gone = {o.name for o in graph.output}, set()
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.output[0] not in outputs:
            scheme = _dequantized(node, makers.get(node.input[0]), constants)
            if scheme is not None:
                (reader, *others) = uses[node.output[0]] or [Edge(-1, 0)]
                if not others and reader.node >= 0 and graph.node[reader.node].op_type == "Transpose":
                    scheme = scheme.transposed(graph.node[reader.node])
                found.schemes[scheme.tensor] = scheme
                gone |= {n.output[0] for n in scheme.nodes}
    for i in reversed(range(len(graph.node))):
        if graph.node[i].output and graph.node[i].output[0] in gone:
            del graph.node[i]
    for scheme in found.schemes.values():
        add_initializer(model, numpy_helper.from_array(scheme.real()), scheme.tensor)
    _follow_weights(model, found)


def _dequantized(node: NodeProto, quantize: NodeProto | None, constants: Mapping[str, TensorProto]) -> Scheme | None:
    nodes, source = _copies(*([] if quantize is None else [quantize]), node), node.input[0]
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


def in_steps(values: Array, scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values over scales; a scale of 0, which a channel of zeros may have, represents nothing but 0."""
    scales = np.broadcast_to(scales, values.shape)
    return np.divide(values, scales, out=np.zeros(values.shape), where=scales != 0)


def _copies(*nodes: NodeProto) -> tuple[NodeProto, ...]:
    copies = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    return tuple(copies)


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


def _lower_operators(model: ModelProto, found: Lowered) -> None:
    constants = constant_tensors(model.graph)
    for node in model.graph.node:
        rule = OPERATORS.get(node.op_type)
        if rule is None or (rule.weight is not None and not _lower_weight(model, node, rule, constants, found)):
            continue
        (found.operators[node.output[0]],) = _copies(node)
        inputs = [name for i in rule.real_inputs() if (name := input_name(node, i))]
        del node.input[:]
        node.input.extend(inputs)
        node.op_type, node.domain = rule.real, ""


def input_name(node: NodeProto, i: int) -> str:
    """The name of input `i`, or '' if there is none."""
    return node.input[i] if 0 <= i < len(node.input) else ""


def _lower_weight(
    model: ModelProto, node: NodeProto, rule: Operator, constants: dict[str, TensorProto], found: Lowered
) -> bool:
    """Make real numbers of an operator's weight and bias; False if that is not possible."""
    scheme = _weight_scheme(model, node, rule, constants)
    bias, unit = input_name(node, rule.bias), input_name(node, rule.scale)
    if scheme is None or not scheme.agrees(found.schemes.get(scheme.tensor)):
        return False
    if bias and (bias not in constants or unit not in constants):
        return False
    if bias and len(consumers(model.graph)[bias]) > 1:  # another layer has another unit
        node.input[rule.bias] = free_name(bias, constants)
        constants[node.input[rule.bias]] = add_initializer(model, constants[bias], node.input[rule.bias])
        bias = node.input[rule.bias]
    todo = {} if scheme.tensor in found.schemes else {scheme.tensor: scheme}
    if bias:
        factor = values_of(constants[unit]).reshape(-1)[:1]
        integers, zero = values_of(constants[bias]), np.zeros((), np.int32)
        todo[bias] = Scheme(bias, bias, "", "", integers, scheme.scales * factor[0], zero, 0, (), scheme.tensor, factor)
    found.schemes |= todo
    for name, s in todo.items():
        constants[name].CopyFrom(numpy_helper.from_array(s.real(), name))
    return True


def _weight_scheme(
    model: ModelProto, node: NodeProto, rule: Operator, constants: dict[str, TensorProto]
) -> Scheme | None:
    """How an operator's constant weight is held; None if it, or another use of it, cannot be followed."""
    tensor, scale, zero = (input_name(node, i) for i in rule.weight or ())
    later = scale == ""
    scale = scale or _later_scale(model, node, constants)
    scaled = attribute(node, "alpha", 1.0) != 1.0
    if scaled or tensor not in constants or scale not in constants or (zero and zero not in constants):
        return None
    for edge in consumers(model.graph)[tensor]:
        reader = OPERATORS.get(model.graph.node[edge.node].op_type) if edge.node >= 0 else None
        if reader is None or reader.weight is None or edge.slot != reader.weight[0]:
            return None
    integers, scales = (values_of(constants[n]) for n in (tensor, scale))
    zeros = values_of(constants[zero]) if zero else np.zeros((), integers.dtype)
    transposed = node.op_type == "QGemm" and not attribute(node, "transB", 0)
    return Scheme(tensor, tensor, scale, zero, integers, scales, zeros, 1 if transposed else rule.axis, later=later)


def _later_scale(model: ModelProto, node: NodeProto, constants: dict[str, TensorProto]) -> str:
    """The constant scale of a ConvInteger's or MatMulInteger's weight: in y = Cast(node) · (x_scale · scale); or ''.

    It becomes that node's own.
    """
    makers = {o: n for n in model.graph.node for o in n.output}
    value = node.output[0]
    for op in ("Cast", "Mul"):
        readers = [n for n in model.graph.node if value in n.input]
        if len(readers) != 1 or readers[0].op_type != op:
            return ""
        last, value = value, readers[0].output[0]
    factors = [makers.get(i) for i in readers[0].input if i != last]
    if len(factors) != 1 or factors[0] is None or factors[0].op_type != "Mul":
        return ""
    known = [k for k, i in enumerate(factors[0].input) if i in constants]
    if len(known) != 1:
        return ""
    name = str(factors[0].input[known[0]])
    if len(consumers(model.graph)[name]) > 1:
        new = free_name(name, constants)
        factors[0].input[known[0]] = new
        constants[new] = add_initializer(model, constants[name], new)
        return new
    return name
