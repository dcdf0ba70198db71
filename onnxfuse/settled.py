"""Which sizes of a probing run are those of every run.

A size can change from run to run only with an open size of an input, or with a value that an operator makes a size of.
Where neither is behind it, what one run has seen is what the model is: no inference has to find it step by step.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto

from .constants import EVALUATED
from .protos import attribute, constant_tensors
from .sizes import Sizes

BY_ALL = frozenset("ConstantOfShape Range".split())
"""Operators whose output has sizes that the values of their inputs say."""
BY_OPERANDS = frozenset(
    """Expand OneHot Pad ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare Reshape Resize Slice Split Squeeze Tile TopK Unsqueeze Upsample""".split()
)
"""Those where all inputs but the first do."""
BY_SIZES = EVALUATED - BY_ALL - BY_OPERANDS | frozenset(
    """Acos Acosh ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BitShift Celu Constant Conv
    ConvInteger ConvTranspose Cosh DepthToSpace DequantizeLinear Dropout DynamicQuantizeLinear Einsum Elu Erf GRU
    GatherElements Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization HardSigmoid HardSwish
    Hardmax InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu LogSoftmax LpNormalization
    LpPool MatMulInteger MaxPool MeanVarianceNormalization Mish PRelu QLinearConv QLinearMatMul QuantizeLinear RNN
    RMSNormalization ScatterElements Selu Sinh Softmax Softplus Softsign SpaceToDepth Tan ThresholdedRelu""".split()
)
"""Those where sizes follow from sizes; what is in none of these tables may make any size."""


def settled_sizes(model: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Sizes]:
    """Sizes of the main graph's values that are the same in every run.

    Args:
        model: the model.
        shapes: what a run of it has seen.
    """
    graph = model.graph
    constants = set(constant_tensors(graph))
    sized, valued = set(constants), set(constants)  # values whose sizes, and that themselves, are settled
    for value in graph.input:
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(d.dim_value > 0 for d in kind.shape.dim):
            sized.add(value.name)
    for node in graph.node:
        if node.domain in ("", "ai.onnx") and _has_settled_sizes(node, sized, valued):
            sized.update(node.output)
            if node.op_type in ("Shape", "Size") or valued.issuperset(filter(None, node.input)):
                valued.update(node.output)
    return {name: np.array(shapes[name], dtype=object) for name in sized if name in shapes}


def _has_settled_sizes(node: NodeProto, sized: set[str], valued: set[str]) -> bool:
    inputs = [name for name in node.input if name]
    if not sized.issuperset(inputs) or _rounds(node):
        return False
    if node.op_type in BY_SIZES:
        return True
    deciding = inputs if node.op_type in BY_ALL else inputs[1:] if node.op_type in BY_OPERANDS else None
    return deciding is not None and valued.issuperset(deciding)


def _rounds(node: NodeProto) -> bool:
    """Whether onnx and onnxruntime may differ on a size: as a constant it would contradict what the checker infers."""
    scaled = node.op_type == "Upsample" or (node.op_type == "Resize" and len(node.input) < 4)
    return scaled or bool(attribute(node, "ceil_mode", 0))


def borne_out(known: Mapping[str, Sizes], shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Sizes]:
    """Sizes that inference finds, without those of values that a run has seen otherwise.

    Of pools with ceil_mode, and where sizes are scaled and rounded, onnx and onnxruntime differ.
    """
    return {name: sizes for name, sizes in known.items() if name not in shapes or _agree(sizes, shapes[name])}


def _agree(sizes: Sizes, seen: tuple[int, ...]) -> bool:
    return len(sizes) == len(seen) and all(a is None or a == b for a, b in zip(sizes, seen, strict=True))
