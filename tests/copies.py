"""Copies of a model that compute the same with other weights: channels in another order, larger, smaller."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, helper, numpy_helper

import onnxfuse

from .graphs import Array, weights


def with_weights(model: ModelProto, values: dict[str, Array]) -> ModelProto:
    """A copy with these initializers."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in values:
            kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name].astype(kind), tensor.name))
    return copy


def shuffled(model: ModelProto, seed: int, scaled: bool = True, kernel: tuple[str, ...] = ()) -> ModelProto:
    """Every group in another order and, if `scaled`, each channel larger or smaller by a factor of its own.

    Args:
        model: without BatchNormalization, each constant an initializer that is used once.
        seed: of orders and factors.
        scaled: only true for models whose activations are homogeneous.
        kernel: a depthwise kernel, its bias and what reads it: channels between them get other factors yet.
    """
    rng, values = np.random.default_rng(seed), {k: np.array(v) for k, v in weights(model).items()}
    for group in onnxfuse.analyze(model, allow_norm=True):
        order, factor = rng.permutation(group.channels), np.ones(group.channels)
        if scaled:
            factor = np.exp(rng.uniform(-1.5, 1.5, group.channels))
        for slot in group.slots:
            array = values[slot.tensor]
            view = array.reshape(slot.split, -1, *array.shape[1:]) if slot.split > 1 else array
            view = np.moveaxis(view, slot.axes, range(len(slot.axes)))
            index = np.unravel_index(slot.positions, view.shape[: len(slot.axes)])
            times = {"produces": factor, "shift": factor, "consumes": 1 / factor}.get(slot.role.value, factor**0)
            rows = view[index][order]
            view[index] = rows * times.reshape(-1, *(1,) * (rows.ndim - 1))
    if kernel:
        made, bias, read = kernel
        between = np.exp(rng.uniform(-1.5, 1.5, len(values[bias])))
        values[made] *= between.reshape(-1, *(1,) * (values[made].ndim - 1))
        values[bias] *= between
        values[read] /= between.reshape(1, -1, *(1,) * (values[read].ndim - 2))
    return with_weights(model, values)


def renamed(model: ModelProto) -> ModelProto:
    """A copy with other names for all initializers, nodes and inner values."""
    copy = ModelProto()
    copy.CopyFrom(model)
    outside = {v.name for v in [*copy.graph.input, *copy.graph.output]}
    for node in copy.graph.node:
        node.name = f"other {node.name}"
        for names in (node.input, node.output):
            names[:] = [n if n in outside or not n else f"other_{n}" for n in names]
    for tensor in copy.graph.initializer:
        tensor.name = f"other_{tensor.name}"
    del copy.graph.value_info[:]
    return copy
