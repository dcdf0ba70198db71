"""The weights of a node that makes channels, by the channel."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from .protos import attribute
from .tensors import Array


def out_axis(maker: NodeProto) -> int:
    """The axis of a weight that counts what its node makes (of a grouped ConvTranspose, in each group)."""
    if maker.op_type == "ConvTranspose" or is_matmul(maker):
        return 1
    return int(maker.op_type == "Gemm" and not attribute(maker, "transB", 0))


def is_matmul(node: NodeProto) -> bool:
    """Whether a node multiplies by a matrix (read, made) at input 1: MatMul, or Einsum of the form `…j,jk->…k`."""
    if node.op_type != "Einsum":
        return node.op_type == "MatMul"
    left, _, result = attribute(node, "equation").decode().replace(" ", "").partition("->")
    x, _, weight = left.partition(",")
    others, read, made = x[:-1], x[-1:], weight[1:]
    return weight == read + made and len(made) == 1 and result == others + made and not {read, made} & set(others)


def is_scaled(maker: NodeProto) -> bool:
    """Whether a Gemm multiplies its product or its bias by a factor of its own."""
    return maker.op_type == "Gemm" and (attribute(maker, "alpha", 1.0), attribute(maker, "beta", 1.0)) != (1.0, 1.0)


def shifted(bias: Array, more: Array) -> Array:
    """A bias with more added: of a recurrent operator, (D, 2gH), to the first half, which is added to what W makes."""
    result = bias.copy()
    own = result if more.size == bias.size else result[:, : more.size // len(bias)]
    own += more.reshape(own.shape).astype(bias.dtype)
    return result


def scaled_rows(maker: NodeProto, weight: Array, scale: Array) -> Array:
    """The weight with what makes output channel i multiplied by scale[i]."""
    factor, axis = scale.astype(weight.dtype), out_axis(maker)
    if maker.op_type == "ConvTranspose":
        groups = attribute(maker, "group", 1)
        blocks = weight.reshape(groups, -1, *weight.shape[1:])
        return np.asarray(blocks * factor.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))).reshape(weight.shape)
    return np.asarray(weight * np.expand_dims(factor, [a for a in range(weight.ndim) if a != axis]))
