"""Constants in one form, and computed in advance where all that they are computed from is constant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from .protos import add_initializer, consumers, copies, every_constant, graphs, redirect
from .sessions import skeleton_of
from .tensors import FLOATS, Array, values_of

EVALUATED = frozenset(
    """Abs Add And BatchNormalization Cast CastLike Ceil Clip Concat ConstantOfShape Cos CumSum Div Einsum Equal Erf Exp
    Expand Flatten Floor Gather GatherND Greater GreaterOrEqual Identity InstanceNormalization LayerNormalization Less
    LessOrEqual Log LpNormalization MatMul Max Min Mod Mul Neg Not Or Pad Pow Range Reciprocal ReduceL1 ReduceL2
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round ScatterND Shape Sigmoid Sign
    Sin Size Slice Softmax Softplus Split Sqrt Squeeze Sub Sum Tanh Tile Transpose Trilu Unsqueeze Where Xor""".split()
)
"""Operators that are evaluated when all their inputs are constant."""
GROWING = frozenset("ConstantOfShape Expand Range Tile".split())
"""Those of them that make much of little."""
NUMBERS = TensorProto(data_type=TensorProto.INT64)
"""Stands for what a node will make."""
GROWTH = 1 << 16
"""Bytes by which a folded constant may be larger than what it was computed from."""

Computed = tuple[str | bytes, ...]
"""How a constant is computed: operator, what it is computed from, attributes."""


def densify(model: ModelProto) -> None:
    """Hold every constant as a dense tensor, in place: merged channels leave few zeros."""
    for sparse in model.graph.sparse_initializer:
        add_initializer(model, numpy_helper.from_array(_dense(sparse)), sparse.values.name)
    del model.graph.sparse_initializer[:]
    for node in (node for graph in graphs(model) for node in graph.node):
        if node.op_type == "Constant":
            _as_tensor(node)


def _dense(sparse: SparseTensorProto) -> Array:
    dense = np.zeros(sparse.dims, helper.tensor_dtype_to_np_dtype(sparse.values.data_type))
    places = values_of(sparse.indices)
    index = tuple(places.T) if places.ndim == 2 else np.unravel_index(places, dense.shape)
    dense[index] = values_of(sparse.values)
    return dense


def _as_tensor(node: NodeProto) -> None:
    """Give a Constant that holds numbers as an attribute of another kind the tensor that they stand for."""
    for a in node.attribute:
        if a.name in ("value_float", "value_floats", "value_int", "value_ints", "sparse_value"):
            dtype = np.float32 if "float" in a.name else np.int64
            sparse = a.name == "sparse_value"
            values = _dense(a.sparse_tensor) if sparse else np.array(onnx.helper.get_attribute_value(a), dtype)
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("value", numpy_helper.from_array(values)))
            return


def fold_constants(model: ModelProto) -> None:
    """Evaluate, with onnx's reference implementation, every node whose inputs are all constant.

    Weights behind an Identity or Transpose and shapes that were never computed from the input come to light.
    Quantized weights are left behind their DequantizeLinear, and nothing is folded that would grow the model. What
    several nodes compute from one weight alike stays one weight.
    """
    constants, shared = every_constant(model), dict[Computed, str]()
    types = _element_types(model) if any(n.op_type == "CastLike" for n in model.graph.node) else {}
    for graph in graphs(model):
        found = _fold_constants_of(graph, constants, types, model)
        names: dict[str, str] = {}
        for node in found:
            _keep(model, node, constants, shared, names)
        redirect(model.graph, names)


def _keep(
    model: ModelProto,
    node: NodeProto,
    constants: dict[str, TensorProto],
    shared: dict[Computed, str],
    names: dict[str, str],
) -> None:
    """Make what a node computes initializers, or add to `names` those that hold the same weights."""
    operands = (_operand(names.get(n, n), constants) for n in node.input)
    how = (node.op_type, *operands, *(a.SerializeToString() for a in node.attribute))
    for i, name in enumerate(node.output):
        if not name:
            continue
        if constants[name].data_type not in FLOATS:
            same = name  # of two sizes one may change
        elif node.op_type == "Identity":
            same = names.get(node.input[0], node.input[0])
        else:
            same = shared.setdefault((str(i), *how), name)
        if same == name:
            constants[name] = add_initializer(model, constants[name], name)
        else:
            names[name] = same


def _operand(name: str, constants: Mapping[str, TensorProto]) -> str | bytes:
    """What stands for a constant where another is computed from it: weights are themselves, axes and sizes a value."""
    if name not in constants or constants[name].data_type in FLOATS:
        return name
    value = values_of(constants[name])
    return f"{value.dtype}{value.shape}".encode() + value.tobytes()


def tied_weights(model: ModelProto) -> list[NodeProto]:
    """Copies of the nodes that make a weight of one that others read, too, as a head does of an embedding."""
    constants, uses = every_constant(model), consumers(model.graph)
    alone = [n for n in model.graph.node if len(n.output) == 1 and _can_evaluate(n, constants, {})]
    found = [n for n in alone if len(uses[n.input[0]]) > 1]
    return list(copies(*(n for n in found if constants[n.input[0]].data_type in FLOATS)))


def put_back(model: ModelProto, nodes: Sequence[NodeProto], changed: Set[str]) -> None:
    """Let `tied_weights` be computed again, in place, that stayed what they were; those `changed` by a plan stay."""
    constants, uses = {t.name: t for t in model.graph.initializer}, consumers(model.graph)
    back = []
    for node in nodes:
        name = node.output[0]
        apart = name in changed or name not in constants or not all(n in constants and uses[n] for n in node.input)
        if not apart and np.array_equal(evaluate([node], constants, {}, model)[name], values_of(constants[name])):
            model.graph.initializer.remove(constants[name])
            back.append(node)
    others = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*back, *others])


def _fold_constants_of(
    graph: GraphProto, constants: dict[str, TensorProto], types: dict[str, int], model: ModelProto
) -> list[NodeProto]:
    """Take out of a graph the nodes that compute constants, which join `constants`; returns them."""
    outputs, found, tried = {o.name for o in graph.output}, list[int](), set[int]()
    while batch := _evaluable(graph, constants, types, outputs, tried):
        results = evaluate([graph.node[i] for i in batch], constants, types, model)
        for i in batch:
            node = graph.node[i]
            given = sum(values_of(constants[n]).nbytes for n in node.input if n in constants)
            made = {name: results[name] for name in node.output if name}
            if _can_evaluate(node, constants, types) and sum(a.nbytes for a in made.values()) <= GROWTH + given:
                found.append(i)
                constants |= {n: numpy_helper.from_array(np.asarray(a, order="C")) for n, a in made.items()}
        tried.update(batch)
        if not any(graph.node[i].op_type in GROWING for i in batch):
            break
    folded = list(copies(*(graph.node[i] for i in sorted(found))))
    for i in sorted(found, reverse=True):
        del graph.node[i]
    return folded


def _evaluable(
    graph: GraphProto, constants: dict[str, TensorProto], types: dict[str, int], outputs: set[str], tried: set[int]
) -> list[int]:
    """Positions of nodes that can be evaluated one after the other; what may grow must become a constant first."""
    found, known = list[int](), dict(constants)
    for i, node in enumerate(graph.node):
        if i not in tried and _can_evaluate(node, known, types) and not outputs & set(node.output):
            found.append(i)
            if node.op_type not in GROWING:
                known |= dict.fromkeys(node.output, NUMBERS)
    return found


def _element_types(model: ModelProto) -> dict[str, int]:
    """Value name → element type, as far as shape inference finds it."""
    graph = onnx.shape_inference.infer_shapes(skeleton_of(model)[0]).graph
    return {v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.value_info, *graph.output]}


def _can_evaluate(node: NodeProto, constants: dict[str, TensorProto], types: dict[str, int]) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type not in EVALUATED or not node.input:
        return False
    data = node.input[:1] if node.op_type == "CastLike" else node.input
    typed = all(n in constants or n in types for n in node.input if n)
    return typed and all(n in constants and constants[n].data_type != TensorProto.STRING for n in data if n)


def evaluate(
    nodes: Sequence[NodeProto], constants: dict[str, TensorProto], types: dict[str, int], model: ModelProto
) -> dict[str, Array]:
    """What the nodes make, by name."""
    from onnx.reference import ReferenceEvaluator  # dear to import, and few models need it

    names = [name for node in nodes for name in node.output if name]
    feeds: dict[str, Array] = {}
    for n in {n: None for node in nodes for n in node.input if n}:
        if n in constants:
            feeds[n] = values_of(constants[n])
        elif n not in names:  # CastLike wants to know a type only
            dtype: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(types[n])
            feeds[n] = np.zeros(0, dtype)
    inputs, made = (
        [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in side] for side in (feeds, names)
    )
    small = helper.make_model(
        helper.make_graph(nodes, "constants", inputs, made),
        opset_imports=[o for o in model.opset_import if o.domain in ("", "ai.onnx")],
    )
    with np.errstate(all="ignore"):  # an exporter's masks hold log(0) on purpose
        outputs: Any = ReferenceEvaluator(small).run(None, feeds)
    return {name: np.asarray(value) for name, value in zip(names, outputs, strict=True)}
