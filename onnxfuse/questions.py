"""What the probing run is asked for beside the model's outputs.

A shape that shape inference proves needs no question; the others are told by a Shape node each, so that no intermediate
tensor is kept. Small integers, what branches of If take from outside, and what is picked by value become outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import GraphProto, ModelProto, TensorProto, TypeProto, helper

from .errors import ModelError, one_line
from .picking import compared, picked
from .protos import outer_names, subgraphs
from .sizes import forget, inferred_sizes

PREFIX = "__onnxfuse_"
INTEGERS = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
WINDOWED = frozenset("Conv ConvTranspose MaxPool AveragePool LpPool Resize Upsample".split())
"""Operators whose sizes are rounded, in a way on which a version of onnx and one of onnxruntime may differ: asked for
even where inference proves them."""
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Questions:
    """What was asked, by names of values.

    Attributes:
        proved: shapes that inference finds, whatever the inputs are.
        shapes: of these values; their outputs have `PREFIX` before their names.
        integers: of rank 0 or 1, which became outputs.
        captured: outputs that branches of If take from outside.
        noted: outputs that are picked by value, or that picks read.
    """

    proved: Mapping[str, Shape]
    shapes: Sequence[str]
    integers: Sequence[str]
    captured: Sequence[str]
    noted: Sequence[str]


def ask(model: ModelProto, skeleton: ModelProto, trusting: bool) -> Questions:
    """Add outputs to the skeleton of a model.

    Args:
        model: not changed.
        skeleton: a copy of it without weights.
        trusting: whether a shape that inference proves needs no question.

    Raises:
        ModelError: an operator is unknown or contradicts its types.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton).graph
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"onnx cannot infer the model's types: {one_line(error)}; repair the model first") from error
    types = {v.name: v.type for v in [*inferred.value_info, *inferred.output]}
    proved = _proved(skeleton, inferred) if trusting else {}
    questions = Questions(
        proved, _open_shapes(model, types, proved), _small_integers(model, types), _captured(model), _noted(model)
    )
    _answer(skeleton, questions, types)
    return questions


def _answer(skeleton: ModelProto, questions: Questions, types: Mapping[str, TypeProto]) -> None:
    graph = skeleton.graph
    for name in questions.shapes:
        graph.node.append(helper.make_node("Shape", [name], [PREFIX + name]))
        graph.output.append(helper.make_tensor_value_info(PREFIX + name, TensorProto.INT64, None))
    for name in questions.integers:
        graph.output.append(helper.make_tensor_value_info(name, types[name].tensor_type.elem_type, None))
    have = {o.name for o in graph.output}
    more = [n for n in dict.fromkeys([*questions.captured, *questions.noted]) if n not in have]
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in more)


def _proved(skeleton: ModelProto, inferred: GraphProto) -> dict[str, Shape]:
    """Shapes that inference finds without those that are recorded, which `inferred` may have believed."""
    bare = ModelProto()
    bare.CopyFrom(skeleton)
    if forget(bare.graph):
        inferred = onnx.shape_inference.infer_shapes(bare).graph
    return {name: tuple(sizes) for name, sizes in inferred_sizes(inferred).items() if None not in sizes}


def _open_shapes(model: ModelProto, types: Mapping[str, TypeProto], proved: Mapping[str, Shape]) -> list[str]:
    """Tensors that a node makes whose shapes must be asked for."""
    return [
        name
        for node in model.graph.node
        for name in node.output
        if name and (name not in proved or node.op_type in WINDOWED) and _may_be_tensor(types.get(name))
    ]


def _may_be_tensor(kind: TypeProto | None) -> bool:
    return kind is None or kind.WhichOneof("value") in ("tensor_type", None)


def _small_integers(model: ModelProto, types: Mapping[str, TypeProto]) -> list[str]:
    outputs = {o.name for o in model.graph.output}
    made = (name for node in model.graph.node for name in node.output if name and name not in outputs)
    return [name for name in made if name in types and _is_small_integer(types[name])]


def _is_small_integer(kind: TypeProto) -> bool:
    tensor = kind.tensor_type
    return tensor.elem_type in INTEGERS and (not tensor.HasField("shape") or len(tensor.shape.dim) < 2)


def _captured(model: ModelProto) -> list[str]:
    """The values that branches of If take from outside."""
    made = {name for node in model.graph.node for name in node.output if name}
    conditional = [node for node in model.graph.node if node.op_type == "If"]
    return sorted(made & {name for node in conditional for branch in subgraphs(node) for name in outer_names(branch)})


def _noted(model: ModelProto) -> list[str]:
    """What is picked by value and, if anything is, what models with the same picks are compared in."""
    picks = picked(model.graph)
    return list(dict.fromkeys([*picks, *compared(model.graph)])) if picks else []
