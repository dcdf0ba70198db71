"""Integer operators become their counterparts on real numbers.

    QLinearConv, ConvInteger                           → Conv        with real weights
    QLinearMatMul, MatMulInteger                       → MatMul
    QGemm                                              → Gemm
    QLinearAdd, QLinearConcat, QLinearSigmoid …        → Add, Concat, Sigmoid …

One whose constants cannot be followed stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from .protos import add_initializer, attribute, constant_tensors, consumers, copies, free_name, input_name
from .scheme import Lowered, Scheme
from .tensors import values_of


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


def lower_operators(model: ModelProto, found: Lowered) -> None:
    """Replace integer operators in place, and note in `found` what they and their weights were."""
    constants = constant_tensors(model.graph)
    for node in model.graph.node:
        rule = OPERATORS.get(node.op_type)
        if rule is None or (rule.weight is not None and not _lower_weight(model, node, rule, constants, found)):
            continue
        (found.operators[node.output[0]],) = copies(node)
        inputs = [name for i in rule.real_inputs() if (name := input_name(node, i))]
        del node.input[:]
        node.input.extend(inputs)
        node.op_type, node.domain = rule.real, ""


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
