"""What onnxruntime's optimizer fused, taken apart: a convolution or product, a sum, an activation.

Whatever is known of a Conv or Gemm holds of them then, and the result is of standard operators; onnxruntime fuses them
again where it runs. A file that it saved with its "extended" optimizations has such nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from .protos import add_initializer, attribute, free_name, graphs, opset_of, proto_label

FUSED: Mapping[str, str] = {"FusedConv": "Conv", "FusedGemm": "Gemm"}
"""Operators of com.microsoft, and what they do first."""
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys("Identity Relu Sigmoid Tanh Softplus Softsign".split(), ()),
    **dict.fromkeys(("Elu", "LeakyRelu", "ThresholdedRelu"), ("alpha",)),
    "HardSigmoid": ("alpha", "beta"),
    "Selu": ("alpha", "gamma"),
    "Clip": ("min", "max"),
}
"""What they may do last: activations, and the order in which FusedConv has their numbers."""
SUMMAND = 3
"""Input of FusedConv that is added before."""
CLIP_INPUTS = 11
"""Opset from which on Clip has its bounds as inputs."""


def unfuse(model: ModelProto) -> None:
    """Take every fused node apart, in place, but for those with an activation that has no entry in `PARAMETERS`."""
    found = {n for graph in graphs(model) for node in graph.node for n in (*node.input, *node.output)}
    taken = found | {t.name for graph in graphs(model) for t in graph.initializer}
    opset = opset_of(model)
    for graph in graphs(model):
        if opset and any(_is_fused(node) for node in graph.node):
            nodes = [part for node in graph.node for part in _parts(model, node, taken, opset)]
            del graph.node[:]
            graph.node.extend(nodes)


def _is_fused(node: NodeProto) -> bool:
    known = node.domain == "com.microsoft" and node.op_type in FUSED
    return known and attribute(node, "activation", b"Identity").decode() in PARAMETERS


def _parts(model: ModelProto, node: NodeProto, taken: set[str], opset: int) -> Iterator[NodeProto]:
    """The nodes that do what this one does; itself if it is not fused."""
    if not _is_fused(node):
        yield node
        return
    made = free_name(node.output[0], taken)
    first = helper.make_node(FUSED[node.op_type], node.input[:SUMMAND], [made], proto_label(node))
    first.attribute.extend(a for a in node.attribute if not a.name.startswith("activation"))
    yield first
    taken.add(made)
    if len(node.input) > SUMMAND and node.input[SUMMAND]:
        total = free_name(node.output[0], taken)
        yield helper.make_node("Add", [made, node.input[SUMMAND]], [total])
        taken.add(total)
        made = total
    yield _activation(model, node, made, taken, opset)


def _activation(model: ModelProto, node: NodeProto, source: str, taken: set[str], opset: int) -> NodeProto:
    kind = attribute(node, "activation", b"Identity").decode()
    numbers = dict(zip(PARAMETERS[kind], attribute(node, "activation_params", ()), strict=False))
    numbers |= {n: a.f for a in node.attribute for n in PARAMETERS[kind] if a.name == f"activation_{n}"}
    inputs = [source]
    if kind == "Clip" and opset >= CLIP_INPUTS:
        for name in PARAMETERS[kind]:
            bound = numpy_helper.from_array(np.array(numbers[name], np.float32))
            inputs.append(add_initializer(model, bound, free_name(f"{node.output[0]}_{name}", taken)).name)
            taken.add(inputs[-1])
        numbers = {}
    return helper.make_node(kind, inputs, node.output, **numbers)
