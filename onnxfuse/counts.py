"""How much a model is: its parameters and multiply-accumulates."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto

from .files import too_large
from .protos import attribute, every_constant, graphs
from .rules.einsum import einsum_terms
from .tensors import PACKED

Shape = tuple[Any, ...]
"""Extents of a tensor: integers, or whatever stands for them."""
Products = Sequence[Shape]
"""A sum of products of extents."""
Shapes = Mapping[str, tuple[int, ...]]
WEIGHTS = frozenset(
    number for name, number in TensorProto.DataType.items()
    if "FLOAT" in name or name in ("DOUBLE", "INT16", "UINT16", "INT8", "UINT8", *PACKED)
)  # fmt: skip
"""Element types of constants that hold weights: real numbers, and quantized ones; sizes and biases have wider ones."""
WEIGHT_INPUTS = (0, 1, 3)
"""Inputs on which the operators of `MACS` may have their weight; the others hold scales and biases."""


def parameters(model: ModelProto) -> int:
    """Elements of all constants of a type in `WEIGHTS`, but for those in bodies of loops."""
    tensors = every_constant(model).values()
    return sum(math.prod(t.dims) for t in tensors if t.data_type in WEIGHTS)


def file_bytes(model: ModelProto) -> int:
    """Of the serialized model; without what protobuf adds, above the 2 GB that it can count."""
    if not too_large(model):
        return int(model.ByteSize())
    graph = model.graph
    return sum(item.ByteSize() for part in (graph.node, graph.initializer, graph.value_info) for item in part)


def macs(model: ModelProto, shapes: Shapes) -> int:
    """Multiply-accumulates of the nodes whose operator is in `MACS`, given all shapes; of an If all branches count."""
    constants = {name: tuple(t.dims) for name, t in every_constant(model).items()}
    return sum(math.prod(p) for _, products in mac_products(model, {**shapes, **constants}) for p in products)


def weight_macs(model: ModelProto, shapes: Shapes) -> dict[str, int]:
    """Constant → multiply-accumulates of the nodes that multiply by it."""
    found: Counter[str] = Counter()
    constants = {name: tuple(t.dims) for name, t in every_constant(model).items()}
    for node, products in mac_products(model, {**shapes, **constants}):
        recurrent = MACS[node.op_type] is _recurrent
        weights = [i for k, i in enumerate(node.input) if k in ((1, 2) if recurrent else WEIGHT_INPUTS)]
        pairs = zip(weights, products, strict=True) if recurrent else ((i, p) for p in products for i in weights)
        for name, product in pairs:
            if name in constants:
                found[name] += math.prod(product)
    return dict(found)


def mac_products(model: ModelProto, shapes: Mapping[str, Shape]) -> list[tuple[NodeProto, Products]]:
    """Each node that multiplies, and its multiply-accumulates as a sum of products of extents."""
    found = []
    for node in (node for graph in graphs(model) for node in graph.node):
        made = [shapes[name] for name in node.output if name in shapes]  # a branch that cannot be run makes nothing
        if node.op_type in MACS and made:
            ins = [shapes.get(name, ()) for name in node.input]
            found.append((node, MACS[node.op_type](node, ins, made[0])))
    return found


def multiplied(model: ModelProto) -> set[str]:
    """Names of all values that nodes of `mac_products` read or make."""
    nodes = (node for graph in graphs(model) for node in graph.node if node.op_type in MACS)
    return {name for node in nodes for name in (*node.input, *node.output)}


def _conv(node: NodeProto, ins: Sequence[Shape], out: Shape) -> Products:
    return [(*out, *ins[1][1:])]


def _conv_transpose(node: NodeProto, ins: Sequence[Shape], out: Shape) -> Products:
    return [(*ins[0], *ins[1][1:])]


def _gemm(node: NodeProto, ins: Sequence[Shape], out: Shape) -> Products:
    return [(*out, ins[0][0 if attribute(node, "transA", 0) else -1])]


def _matmul(node: NodeProto, ins: Sequence[Shape], out: Shape) -> Products:
    return [(*out, ins[0][-1])] if ins[0] else []


def _fused_matmul(node: NodeProto, ins: Sequence[Shape], out: Shape) -> Products:
    """With transBatchA the first axis comes before those of the batch."""
    turned = attribute(node, "transA", 0)
    return [(*out, ins[0][-1 if not turned else 0 if attribute(node, "transBatchA", 0) else -2])]


def _einsum(node: NodeProto, ins: Sequence[Shape], out: Shape) -> Products:
    """Operand by operand, as onnxruntime does it: an axis ends once no later operand and not the result has it."""
    terms, result = einsum_terms(attribute(node, "equation").decode(), [len(shape) for shape in ins])
    extents: dict[str, Any] = {}
    for letter, extent in zip("".join(terms), itertools.chain(*ins), strict=True):
        if extents.get(letter, 1) == 1:  # where an ellipsis broadcasts
            extents[letter] = extent
    products, left = [], terms[0]
    for i, term in enumerate(terms[1:], 2):
        labels = dict.fromkeys(left + term)
        products.append(tuple(extents[c] for c in labels))
        left = "".join(c for c in labels if c in result or any(c in later for later in terms[i:]))
    return products


def _attention(node: NodeProto, ins: Sequence[Shape], out: Shape) -> Products:
    """Queries (…, L, d) meet keys (…, S, d), and their weights values; com.microsoft's Attention projects x first."""
    if node.op_type == "Attention" and node.domain == "com.microsoft":
        sizes = attribute(node, "qkv_hidden_sizes") or [out[-1]]
        return [(*ins[0], ins[1][-1]), (*out[:-1], sizes[0], ins[0][-2]), (*out, ins[0][-2])]
    keys = ins[1] if len(ins) > 1 else ()
    return [(*ins[0], keys[-2]), (*out, keys[-2])] if len(keys) in (3, 4) else []


def _recurrent(node: NodeProto, ins: Sequence[Shape], out: Shape) -> Products:
    """Every step multiplies the input by W (D, gH, I) and the state by R (D, gH, H)."""
    return [(*ins[0][:2], *ins[1]), (*ins[0][:2], *ins[2])]


Counting = Callable[[NodeProto, Sequence[Shape], Shape], Products]


def _fourth(count: Counting) -> Counting:
    """The same for an operator whose weight is its fourth input."""
    return lambda node, ins, out: count(node, (ins[0], ins[3]), out)


MACS: Mapping[str, Counting] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "DeformConv": _conv,
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "FusedMatMul": _fused_matmul,
    "Einsum": _einsum,
    "Attention": _attention,
    "MultiHeadAttention": _attention,
    "ConvInteger": _conv,
    "MatMulInteger": _matmul,
    "MatMulIntegerToFloat": _matmul,
    "DynamicQuantizeMatMul": _matmul,
    "QLinearConv": _fourth(_conv),
    "QLinearMatMul": _fourth(_matmul),
    "QGemm": _fourth(_gemm),
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "DynamicQuantizeLSTM": _recurrent,
}
"""Operator → its multiply-accumulates, from the shapes of its inputs and its output."""
