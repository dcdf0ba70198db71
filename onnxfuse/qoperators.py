"""Integer operators become operators on real numbers, between the integers that they read and make.

    QLinearConv(x, W, b)       → QuantizeLinear(Conv(DequantizeLinear(x), W′, b′))
    QGemm, QLinearMatMul       → the same with Gemm and MatMul
    QLinearAdd, QLinearConcat, QLinearSigmoid …        → the same with Add, Concat, Sigmoid …

That computes what they do, so it can be run and measured. An operator whose scales are not constants stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .protos import (
    add_initializer,
    attribute,
    constant_tensors,
    consumers,
    copies,
    free_name,
    input_name,
    opset_of,
    set_nodes,
)
from .scheme import Lowered, Scheme
from .tensors import values_of


@dataclass(frozen=True)
class Operator:
    """How an integer operator maps to one on real numbers.

    Attributes:
        real: the operator on real numbers.
        data: inputs that hold integers; the scale and the zero point of each follow it.
        made: the input that holds the scale of what it makes; its zero point follows.
        bias: the input that holds int32 in units of both data's scales, or −1.
        plain: inputs that are read as they are.
        axis: of a constant, for a scale per channel; −1 if there may be none.
    """

    real: str
    data: slice
    made: int
    bias: int = -1
    plain: tuple[int, ...] = ()
    axis: int = -1

    def places(self, node: NodeProto) -> tuple[int, ...]:
        """The inputs of `node` that hold integers."""
        return tuple(range(len(node.input))[self.data])

    def read(self, node: NodeProto) -> tuple[int, ...]:
        """The inputs that the operator on real numbers has, too, in its order."""
        bias = [self.bias] if input_name(node, self.bias) else []
        return *self.plain, *self.places(node), *bias


ONE, TWO = slice(1), slice(0, 4, 3)
_PASSING = "Sigmoid LeakyRelu Softmax AveragePool GlobalAveragePool".split()
OPERATORS: Mapping[str, Operator] = {
    "QLinearConv": Operator("Conv", TWO, 6, 8, axis=0),
    "QLinearMatMul": Operator("MatMul", TWO, 6, axis=1),
    "QGemm": Operator("Gemm", TWO, 7, 6, axis=1),
    "QLinearAdd": Operator("Add", TWO, 6),
    "QLinearMul": Operator("Mul", TWO, 6),
    "QLinearConcat": Operator("Concat", slice(2, None, 3), 0),
    "QLinearWhere": Operator("Where", slice(1, 5, 3), 7, plain=(0,)),
    **{f"QLinear{real}": Operator(real, ONE, 3) for real in _PASSING},
}
"""Integer operators, of the standard domain and com.microsoft."""
DEQUANTIZE = "DequantizeLinear"
OWN = ("channels_last", "opset")
"""Attributes that their counterparts do not have."""
BYTES = (TensorProto.INT8, TensorProto.UINT8)
Key = tuple[str, str, str, int]


def lower_operators(model: ModelProto, found: Lowered) -> None:
    """Replace integer operators in place, and note in `found` what they and their constants were."""
    lowering = _Lowering(model, found)
    set_nodes(model, [new for node in model.graph.node for new in lowering.nodes(node)])


def restore_operators(model: ModelProto, lowered: Lowered, names: Mapping[str, tuple[str, str]]) -> None:
    """Put the integer operators back, with the data, weights and biases that their counterparts have now.

    `names` has the scale and the zero point of each constant.
    """
    if not lowered.operators:
        return
    old = lowered.operators
    held = {n.output[0]: [input_name(n, i) for i in range(3)] for n in model.graph.node if n.op_type == DEQUANTIZE}
    held |= {name: [name, *scaled] for name, scaled in names.items()}
    made = {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in old}
    nodes = [n for n in model.graph.node if not (n.op_type == "QuantizeLinear" and n.input[0] in old)]
    set_nodes(model, [_restored(n, old[n.output[0]], held, made) if old.keys() & n.output else n for n in nodes])


def _restored(node: NodeProto, old: NodeProto, held: Mapping[str, list[str]], made: Mapping[str, str]) -> NodeProto:
    """The integer operator of a node that stands for `old`.

    Args:
        node: on real numbers.
        old: the integer operator that it was.
        held: real numbers → the integers that they stand for, their scale and zero point.
        made: what a node makes → the integers made of it.
    """
    rule, inputs, (new,) = OPERATORS[old.op_type], list(old.input), copies(node)
    for place, name in zip(rule.read(old), node.input, strict=True):
        is_data = place in rule.places(old)
        inputs[place : place + 1 + 2 * is_data] = held[name] if is_data else [name]
    new.op_type, new.domain, new.input[:] = old.op_type, old.domain, inputs
    new.output[:] = [made.get(node.output[0], node.output[0])]
    new.attribute.extend(a for a in old.attribute if a.name in OWN)
    return new


@dataclass
class _Lowering:
    """Replaces integer operators one by one.

    Attributes:
        reals: (value, scale, zero point, axis) → the real numbers that stand for them.
        readers: the same → how many read them so.
    """

    model: ModelProto
    found: Lowered
    reals: dict[Key, str] = field(default_factory=dict)
    readers: Counter[Key] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.constants, self.uses = constant_tensors(self.model.graph), consumers(self.model.graph)
        self.opset = opset_of(self.model) or 1
        self.stored = {s.stored for s in self.found.schemes.values()}
        self.taken = {*self.constants, *self.uses, *(name for node in self.model.graph.node for name in node.output)}
        rules = [(n, OPERATORS[n.op_type]) for n in self.model.graph.node if n.op_type in OPERATORS]
        clear = [(n, rule) for n, rule in rules if self._is_clear(n, rule)]
        self.clear = {node.output[0]: rule for node, rule in clear}
        self.readers.update(_key(n, place, rule) for n, rule in clear for place in rule.places(n))

    def nodes(self, node: NodeProto) -> Iterator[NodeProto]:
        """What takes the place of a node."""
        rule = self.clear.get(node.output[0]) if node.output else None
        if rule is None:
            yield node
            return
        (real,) = copies(node)
        for place in rule.places(node):
            yield from self._dequantized(node, place, rule)
        real.input[:] = [self._real(node, place, rule) for place in rule.read(node)]
        real.op_type, real.domain = rule.real, ""
        del real.attribute[:]
        real.attribute.extend(a for a in node.attribute if a.name not in OWN)
        yield from (real, *self._quantized(node, real, rule))
        (self.found.operators[real.output[0]],) = copies(node)

    # --- whether it can be ------------------------------------------------------------------------------------------
    def _is_clear(self, node: NodeProto, rule: Operator) -> bool:
        """Whether scales and zero points are constants, and the operator on real numbers does the same."""
        later = attribute(node, "opset", self.opset) >= 13
        if attribute(node, "channels_last", 0) or later != (self.opset >= 13) or self.opset < 10:
            return False  # softmax is another one since opset 13; integers have a meaning since opset 10
        if node.op_type == "QGemm" and attribute(node, "alpha", 1.0) != 1:
            return False
        scaled = all(self._is_scaled(node, place, _axis(node, rule)) for place in rule.places(node))
        return scaled and self._is_made_by_one_scale(node, rule) and self._has_bias_of_its_own(node, rule)

    def _is_scaled(self, node: NodeProto, place: int, axis: int) -> bool:
        """Whether the scale and zero point behind the input `place` are constants, for all or for a constant's axis."""
        value, scale, zero = (input_name(node, place + i) for i in range(3))
        count, constant = self._count(scale), self.constants.get(value)
        if not count or (zero and zero not in self.constants):
            return False
        if constant is None:
            return count == 1
        along = axis >= 0 and list(constant.dims[axis : axis + 1]) == [count]
        return constant.data_type in BYTES and (count == 1 or along)

    def _is_made_by_one_scale(self, node: NodeProto, rule: Operator) -> bool:
        """Whether it makes integers by a constant scale and zero point, or real numbers."""
        scale, zero = input_name(node, rule.made), input_name(node, rule.made + 1)
        return not scale or (self._count(scale) == 1 and zero in self.constants)

    def _count(self, name: str) -> int:
        """How many numbers a constant has; 0 if it is none."""
        return int(np.prod(self.constants[name].dims)) if name in self.constants else 0

    def _has_bias_of_its_own(self, node: NodeProto, rule: Operator) -> bool:
        """Whether a bias, if there is one, is a constant in units of a constant weight."""
        bias = input_name(node, rule.bias)
        return not bias or (bias in self.constants and input_name(node, rule.places(node)[1]) in self.constants)

    # --- what it becomes --------------------------------------------------------------------------------------------
    def _dequantized(self, node: NodeProto, place: int, rule: Operator) -> Iterator[NodeProto]:
        """Makes real numbers of the input `place`, if nothing does yet."""
        key = _key(node, place, rule)
        if key not in self.reals:
            if key[0] in self.constants:
                self.reals[key] = self._held(key)
                return
            self.reals[key] = self._name(key[0])
            self.found.like[self.reals[key]] = key[0]
            yield helper.make_node(DEQUANTIZE, [name for name in key[:3] if name], [self.reals[key]])

    def _held(self, key: Key) -> str:
        """A constant in real numbers; in a copy, if something else reads its integers."""
        name = self._own(key[0], self.readers[key])
        integers, scales = values_of(self.constants[name]), values_of(self.constants[key[1]])
        zeros = values_of(self.constants[key[2]]) if key[2] else np.zeros((), integers.dtype)
        self._hold(Scheme(name, name, key[1], key[2], integers, scales, zeros, max(key[3], 0)))
        return name

    def _own(self, name: str, readers: int) -> str:
        """The constant itself if it has only so many readers, else a copy."""
        if len(self.uses[name]) == readers and name not in self.stored:
            return name
        copy = self._name(name)
        self.constants[copy] = add_initializer(self.model, self.constants[name], copy)
        return copy

    def _hold(self, scheme: Scheme) -> None:
        self.found.schemes[scheme.tensor] = scheme
        self.constants[scheme.tensor].CopyFrom(numpy_helper.from_array(scheme.real(), scheme.tensor))

    def _real(self, node: NodeProto, place: int, rule: Operator) -> str:
        """What the counterpart reads in place of the input `place`."""
        if place == rule.bias:
            return self._bias(node, rule)
        return self.reals[_key(node, place, rule)] if place in rule.places(node) else node.input[place]

    def _bias(self, node: NodeProto, rule: Operator) -> str:
        """The bias in real numbers; what other layers read, too, has another unit there."""
        name, (data, weight) = self._own(node.input[rule.bias], 1), rule.places(node)
        factor = values_of(self.constants[node.input[data + 1]]).reshape(-1)
        scales = values_of(self.constants[node.input[weight + 1]])
        integers, zero, of = values_of(self.constants[name]), np.zeros((), np.int32), self._real(node, weight, rule)
        self._hold(Scheme(name, name, "", "", integers, scales * factor[0], zero, 0, (), of, factor))
        return name

    def _quantized(self, node: NodeProto, real: NodeProto, rule: Operator) -> Iterator[NodeProto]:
        """Makes integers of what the counterpart makes, where the operator does."""
        if input_name(node, rule.made):
            real.output[0] = self._name(node.output[0])
            self.found.like[real.output[0]] = node.output[0]
            yield helper.make_node(
                "QuantizeLinear", [real.output[0], *node.input[rule.made : rule.made + 2]], node.output
            )

    def _name(self, value: str) -> str:
        name = free_name(f"{value}_real", self.taken)
        self.taken.add(name)
        return name


def _axis(node: NodeProto, rule: Operator) -> int:
    """Of a constant, that a scale per channel counts."""
    return 0 if node.op_type == "QGemm" and attribute(node, "transB", 0) else rule.axis


def _key(node: NodeProto, place: int, rule: Operator) -> Key:
    value, scale, zero = (input_name(node, place + i) for i in range(3))
    return value, scale, zero, _axis(node, rule) if place else -1
