"""Load the models of an ensemble, ready to be compared: constants as initializers, BatchNormalization folded.

A BatchNormalization that cannot be folded becomes a plain scale and shift, since statistics do not average:

    γ ← γ/√(σ²+ε)    β ← β − μγ/√(σ²+ε)    μ ← 0    σ² ← 1 − ε
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto

from .constants import densify
from .errors import ModelError, one_line
from .folding import Folded
from .graph import Graph
from .prepare import prepare
from .probe import Probe
from .protos import Edge, add_initializer, attribute, constant_tensors
from .quantized import lower
from .tensors import Array, set_values


@dataclass(frozen=True, eq=False)
class Parent:
    """One model of an ensemble.

    Attributes:
        name: of its file, or its number.
        graph: prepared.
        probe: a run of it.
        folded: its BatchNormalizations that were folded.
        unfolded: the constants it had before that.
    """

    name: str
    graph: Graph
    probe: Probe
    folded: tuple[Folded, ...]
    unfolded: Mapping[str, TensorProto]


def parent(name: str, model: ModelProto, run: Callable[[ModelProto], Probe]) -> Parent:
    """Prepare one model in place, by what `run` makes of it.

    Raises:
        ModelError: onnxruntime cannot run it, or it is quantized.
    """
    try:
        reference = run(model)
    except ModelError as error:
        raise ModelError(f"{name}: {one_line(error)}") from error
    densify(model)
    prepare(model, [""], reference.shapes)  # everything but the folding
    _initialize(model)
    unfolded = ModelProto()
    unfolded.CopyFrom(model)
    folded = prepare(model)
    lowered = lower(model)
    if lowered.schemes or lowered.operators:
        raise ModelError(f"{name}: is quantized, and rounded weights do not average; fuse the models it was made from")
    return Parent(name, Graph(model), reference, tuple(folded), constant_tensors(unfolded.graph))


def _initialize(model: ModelProto) -> None:
    """Constant nodes become initializers, so that nodes can be compared one by one."""
    graph, results = model.graph, {o.name for o in model.graph.output}
    for i in reversed(range(len(graph.node))):
        node = graph.node[i]
        tensor = attribute(node, "value") if node.op_type == "Constant" else None
        if tensor is not None and node.output[0] not in results:
            add_initializer(model, tensor, node.output[0])
            del graph.node[i]


def make_plain(graph: Graph, twin: dict[str, Array]) -> None:
    """Make every BatchNormalization of known parameters a scale and a shift, in place, and those of the twin likewise.

    Args:
        graph: of the model.
        twin: constants that have other values where the network is measured; more are added.
    """
    for i, node in enumerate(graph.protos):
        known = all(name in graph.constants for name in node.input[1:])
        if node.op_type != "BatchNormalization" or attribute(node, "training_mode", 0) or not known:
            continue
        for k in range(1, 5):
            if len(graph.edges[node.input[k]]) > 1:
                graph.clone(node.input[k], [Edge(i, k)])
        own = [graph.array(name) for name in node.input[1:5]]
        measured = [twin.get(name, values) for name, values in zip(node.input[1:5], own, strict=True)]
        epsilon = attribute(node, "epsilon", 1e-5)
        if any(name in twin for name in node.input[1:5]):
            twin |= dict(zip(node.input[1:5], _plain(measured, epsilon), strict=True))
        for name, values in zip(node.input[1:5], _plain(own, epsilon), strict=True):
            set_values(graph.constants[name], values)


def _plain(parameters: Sequence[Array], epsilon: float) -> list[Array]:
    """γ, β, μ, σ² of the same function, μ = 0 and σ² + ε = 1."""
    gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parameters)
    scale = gamma / np.sqrt(variance + epsilon)
    return [scale, beta - mean * scale, np.zeros_like(mean), np.full_like(mean, 1 - epsilon)]


def float_array(values: Array) -> Array:
    """In float32, or float64 if it is that: what coarser formats are computed in."""
    return values if values.dtype in (np.float32, np.float64) else np.asarray(values, np.float32)
