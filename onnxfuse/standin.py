"""A stand-in in float32 for a model in a number format that onnxruntime has no kernels for.

onnxruntime's CPU provider runs few operators on bfloat16 and no convolution on float64. Such a model is probed and
verified through a copy in which every such number is a float32; the file itself is checked by the ONNX checker.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, TypeProto, numpy_helper

from .tensors import values_of

FORMATS = (TensorProto.BFLOAT16, TensorProto.DOUBLE)
"""Element types that become float32."""
TYPES = ("to", "dtype", "output_dtype")
"""Attributes that name an element type."""


def needs_stand_in(model: ModelProto) -> bool:
    """Whether any constant, input or output of the model is in such a format."""
    return any(t.data_type in FORMATS for t in _tensors(model.graph)) or any(
        t.elem_type in FORMATS for t in _types(model.graph)
    )


def in_float32(model: ModelProto) -> ModelProto:
    """A copy of the model in float32."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in _tensors(copy.graph):
        if tensor.data_type in FORMATS:
            values = values_of(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for kind in _types(copy.graph):
        if kind.elem_type in FORMATS:
            kind.elem_type = TensorProto.FLOAT
    for a in _attributes(copy.graph):
        if a.name in TYPES and a.i in FORMATS:
            a.i = TensorProto.FLOAT
    return copy


def _attributes(graph: GraphProto) -> Iterator[AttributeProto]:
    for node in graph.node:
        for a in node.attribute:
            yield a
            for inner in [a.g] * a.HasField("g") + list(a.graphs):
                yield from _attributes(inner)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for a in _attributes(graph):
        yield from [a.g] * a.HasField("g") + list(a.graphs)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    for part in _graphs(graph):
        yield from part.initializer
        yield from (sparse.values for sparse in part.sparse_initializer)
    for a in _attributes(graph):
        yield from [a.t] * a.HasField("t") + list(a.tensors)


def _types(graph: GraphProto) -> Iterator[TypeProto.Tensor]:
    for part in _graphs(graph):
        for value in [*part.input, *part.output, *part.value_info]:
            if value.type.HasField("tensor_type"):
                yield value.type.tensor_type
