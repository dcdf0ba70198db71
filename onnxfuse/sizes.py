"""Sizes that never change: what a Shape node tells of them is a constant of the model.

An exporter that traces `x.shape[1] // heads`, `chunk(2)` or `1 / sqrt(d)` writes a chain of nodes that starts with
Shape. Where shape inference proves the size, whatever the inputs' open dimensions are, the chain is a number that the
trained model holds; only as such can it be edited (a Reshape's target) or stay (an attention's scale).

    Shape                      → initializer, if all sizes are known
    Shape → Gather, Slice or Split    → initializer, if those it selects are
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .protos import add_initializer, attribute, consumers, every_constant, free_name, graphs, nodes_of, opset_of
from .sessions import skeleton_of
from .tensors import Array

Sizes = NDArray[Any]
"""Object array of sizes, of one value's axes or what was selected of them; None for an open one."""


SHAPED_LIKE: Mapping[str, str] = {
    **dict.fromkeys(("Gelu", "QuickGelu", "FastGelu"), "Identity"),
    **dict.fromkeys(("BiasGelu", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), "Add"),
}
"""Operators of com.microsoft, which shape inference knows nothing of, and ones of the standard whose output 0 has the
same shape."""
PRODUCT = "FusedMatMul"
"""Another one, which is an Einsum (opset 12)."""


def asks_for_sizes(model: ModelProto) -> bool:
    """Whether a Shape node does."""
    return any(node.op_type == "Shape" for node in nodes_of(model.graph))


def fold_sizes(model: ModelProto, known: Mapping[str, Sizes]) -> bool:
    """Make initializers of all that Shape nodes tell of known sizes, in branches of If, too; whether there was any."""
    if not known:
        return False
    constants = {name: tensor for name, tensor in every_constant(model).items() if len(tensor.dims) < 2}
    taken = {name for node in nodes_of(model.graph) for name in (*node.input, *node.output)}
    vectors: dict[str, Sizes] = {}
    folded = [_fold_in(graph, model, known, constants, vectors, taken) for graph in graphs(model)]
    return any(folded)


def _fold_in(
    graph: GraphProto,
    model: ModelProto,
    known: Mapping[str, Sizes],
    constants: Mapping[str, TensorProto],
    vectors: dict[str, Sizes],
    taken: set[str],
) -> bool:
    """`fold_sizes` of one of the model's graphs; `vectors` are the sizes that its nodes, and those around it, hold."""
    uses, outputs = consumers(graph), {o.name for o in graph.output}
    gone, folded = [], 0
    for i, node in enumerate(graph.node):
        made = dict(enumerate(_sizes(node, known, vectors, constants)))
        for k, sizes in made.items():
            vectors[node.output[k]] = sizes
        whole = [k for k, sizes in made.items() if None not in sizes.ravel() and node.output[k] not in outputs]
        settled = [k for k in whole if uses[node.output[k]]]
        for k in settled:
            name = node.output[k]
            add_initializer(model, numpy_helper.from_array(np.asarray(made[k], np.int64)), name)
            node.output[k] = free_name(name, taken)
            taken.add(node.output[k])
        folded += len(settled)
        gone += [i] if settled and len(settled) == len(node.output) else []
    for i in reversed(gone):
        del graph.node[i]
    return bool(folded)


def known_sizes(model: ModelProto) -> Mapping[str, Sizes]:
    """Every value's sizes as far as inference proves them; shapes recorded in the file prove nothing."""
    skeleton = skeleton_of(model)[0]
    forget(skeleton.graph)
    opset = opset_of(model)
    for node in skeleton.graph.node:
        if node.domain == "com.microsoft" and (
            node.op_type in SHAPED_LIKE or (node.op_type == PRODUCT and opset >= 12)
        ):
            node.CopyFrom(_stand_in(node))
    return inferred_sizes(onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph)


def _stand_in(node: NodeProto) -> NodeProto:
    """A node of the standard whose output has the same shape."""
    if node.op_type == PRODUCT:
        return helper.make_node("Einsum", node.input[:2], node.output[:1], equation=_equation(node))
    kind = SHAPED_LIKE[node.op_type]
    return helper.make_node(kind, node.input[: 2 if kind == "Add" else 1], node.output[:1])


def _equation(node: NodeProto) -> str:
    """What a FusedMatMul does, but for its factor."""
    terms = []
    for side, (rows, columns) in (("A", "mk"), ("B", "kn")):
        first, last = (columns, rows) if attribute(node, f"trans{side}", 0) else (rows, columns)
        terms.append(f"{first}...{last}" if attribute(node, f"transBatch{side}", 0) else f"...{first}{last}")
    return f"{terms[0]},{terms[1]}->...mn"


def inferred_sizes(graph: GraphProto) -> Mapping[str, Sizes]:
    """The sizes of values in a graph that shape inference made, but for the graph's outputs."""
    kinds = {v.name: v.type.tensor_type for v in [*graph.input, *graph.value_info]}
    known = {n: [d.dim_value or None for d in k.shape.dim] for n, k in kinds.items() if k.HasField("shape")}
    return {name: np.array(sizes, dtype=object) for name, sizes in known.items()}


def forget(graph: GraphProto) -> bool:
    """Forget recorded shapes, and sizes of inputs below 1, by which exporters mean that they are open; whether any."""
    dims = [dim for value in graph.input for dim in value.type.tensor_type.shape.dim]
    wrong = [dim for dim in dims if dim.HasField("dim_value") and dim.dim_value < 1]
    for dim in wrong:
        dim.Clear()
    recorded = bool(graph.value_info or wrong)
    graph.ClearField("value_info")
    return recorded


def _sizes(
    node: NodeProto, known: Mapping[str, Sizes], vectors: Mapping[str, Sizes], constants: Mapping[str, TensorProto]
) -> list[Sizes]:
    """What each output of a node has of sizes, None in place of open ones; none if it is no Shape, nor reads one's."""
    if node.domain not in ("", "ai.onnx"):
        return []
    if node.op_type == "Shape" and node.input[0] in known:
        sizes = known[node.input[0]]
        return [sizes[attribute(node, "start", 0) : attribute(node, "end", len(sizes))]]
    if node.op_type in ("Gather", "Slice", "Split") and node.input[0] in vectors and all(node.output):
        operands = [name for name in node.input[1:] if name]
        if all(name in constants for name in operands):
            return _selected(node, vectors[node.input[0]], [numpy_helper.to_array(constants[n]) for n in operands])
    return []


def _selected(node: NodeProto, sizes: Sizes, operands: Sequence[Array]) -> list[Sizes]:
    if sizes.ndim != 1:
        return []
    if node.op_type == "Gather":
        return [np.asarray(sizes[operands[0]], dtype=object)]
    if node.op_type == "Split":
        each = operands[0] if operands else attribute(node, "split", [-(-len(sizes) // len(node.output))])
        ends = np.cumsum(np.resize(each, len(node.output)))
        return list(np.split(sizes, ends[:-1].clip(max=len(sizes))))
    start, end = (int(v.ravel()[0]) for v in _bounds(node, operands))
    step = int(operands[3].ravel()[0]) if len(operands) > 3 else 1
    return [sizes[start:end:step]] if step > 0 else []


def _bounds(node: NodeProto, operands: Sequence[Array]) -> Iterator[Array]:
    """Start and end of a Slice: inputs, or attributes up to opset 9."""
    for i, name in enumerate(("starts", "ends")):
        yield operands[i] if i < len(operands) else np.array(attribute(node, name))
