"""Operators that pick, and order, by value: behind them a rounding, or a merge, can change what is there at all.

So two models that pick are compared with the same picks: those that the original makes are *given* to both, as inputs.
What is left to compare is then of one shape everywhere, and what the picks read is compared beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper

from .protos import nodes_of, outer_names, subgraphs
from .tensors import Array

PICKING = frozenset(("Compress", "NonMaxSuppression", "NonZero", "TopK", "Unique"))
"""Operators whose result's size or order depends on values."""
COMPARING = frozenset(("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Xor"))
"""What stands between real numbers and the truth values that are picked by."""
COMPARED = 1 << 24
"""Numbers to compare for the order of an output's rows; masks of whole images are not looked at for it."""


def reads(node: NodeProto) -> set[str]:
    """Names of all values that a node reads, its subgraphs included."""
    inner = {name for graph in subgraphs(node) for name in outer_names(graph)}
    return {name for name in node.input if name} | inner


def picks(node: NodeProto) -> bool:
    """Whether a node, or one of its subgraphs, picks by value."""
    return node.op_type in PICKING or any(picks(inner) for graph in subgraphs(node) for inner in graph.node)


def behind_picks(graph: GraphProto) -> set[str]:
    """Values that depend on what such a node makes."""
    found: set[str] = set()
    for node in nodes_of(graph):
        if picks(node) or not found.isdisjoint(reads(node)):
            found.update(name for name in node.output if name)
    return found


def picked(graph: GraphProto) -> list[str]:
    """The values that such nodes make."""
    return [name for node in graph.node if picks(node) for name in node.output if name]


def with_outputs(model: ModelProto, names: list[str]) -> ModelProto:
    """A copy that has these values as its outputs."""
    part = ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    part.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    _drop_unread(part.graph)
    return part


def compared(graph: GraphProto) -> list[str]:
    """What two models with the same picks are compared in: their outputs, and what the picks read."""
    return list(dict.fromkeys([*(o.name for o in graph.output), *_read_by_picks(graph)]))


def with_picks(model: ModelProto, given: Mapping[str, Array]) -> ModelProto:
    """A copy that takes what it picks as inputs; what the picks would have read are outputs beside its own.

    Outputs that are picks themselves go: there is nothing to compare. What is read is what was compared, in place of a
    comparison's result.
    """
    wanted = [name for name in compared(model.graph) if name not in given]
    part = ModelProto()
    part.CopyFrom(model)
    graph, mine = part.graph, [name for name in picked(model.graph) if name in given]
    for node in graph.node:
        for i, name in enumerate(node.output):
            if name in given:
                node.output[i] = f"{name}__unused"
    noted = [v for v in graph.value_info if v.name not in given]
    del graph.value_info[:], graph.output[:]
    graph.value_info.extend(noted)
    for name in mine:
        kind = helper.np_dtype_to_tensor_dtype(given[name].dtype)
        graph.input.append(helper.make_tensor_value_info(name, kind, [None] * given[name].ndim))
    typed = {o.name: o for o in model.graph.output}
    graph.output.extend(typed.get(name) or helper.make_empty_tensor_value_info(name) for name in wanted)
    _drop_unread(graph)
    return part


def feeds_of(part: ModelProto, inputs: Mapping[str, Array], given: Mapping[str, Array]) -> dict[str, Array]:
    """What `with_picks` takes."""
    return {**inputs, **{v.name: given[v.name] for v in part.graph.input if v.name in given}}


def numeric(values: Mapping[str, Array]) -> dict[str, Array]:
    """Those that are tensors of numbers or truth values."""
    return {n: a for n, a in values.items() if isinstance(a, np.ndarray) and a.dtype.kind in "fiub"}


def in_order_of(one: Mapping[str, Array], other: Mapping[str, Array]) -> dict[str, Array]:
    """`other` with its rows in the order of those of `one`, where each has another one nearest to it.

    Picks whose scores are the same but for a rounding change places, in all outputs at once.
    """
    result, numbers = dict(other), numeric(one)
    for count in sorted({len(a) for a in numbers.values() if a.ndim} - {0}):
        names = [n for n, a in numbers.items() if a.shape[:1] == (count,) and other[n].shape == a.shape]
        order = None if count**2 > COMPARED else _nearest([(one[n], other[n]) for n in names], count)
        if order is not None:
            result |= {n: other[n][order] for n in names}
    return result


def _nearest(pairs: Sequence[tuple[Array, Array]], count: int) -> NDArray[np.int64] | None:
    """(count,) the row of the second array that is nearest to each of the first's, over all pairs of (count, …) arrays;
    None if one is nearest to two."""
    apart = np.zeros((count, count))
    for a, b in pairs:
        x, y = (np.asarray(v, np.float64).reshape(count, -1) for v in (a, b))
        if count * x.size <= COMPARED:
            apart += np.abs(x[:, None] - y).sum(axis=2) / (np.abs(x).max(initial=0) or 1)
    order = apart.argmin(axis=1)
    return order if len(np.unique(order)) == count else None


def _read_by_picks(graph: GraphProto) -> Iterator[str]:
    """What the nodes read that some node makes; what is compared, in place of a comparison."""
    makers = {name: node for node in graph.node for name in node.output}
    queue = [name for node in graph.node if picks(node) for name in sorted(reads(node))]
    while queue:
        maker = makers.get(name := queue.pop(0))
        if maker is not None and maker.op_type in COMPARING:
            queue += maker.input
        elif maker is not None:
            yield name


def _drop_unread(graph: GraphProto) -> None:
    needed = {o.name for o in graph.output}
    for i in reversed(range(len(graph.node))):
        if needed.isdisjoint(graph.node[i].output):
            del graph.node[i]
        else:
            needed |= reads(graph.node[i])
