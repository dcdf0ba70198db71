"""Channel shuffles as what they are: one Gather by a fixed permutation.

Reshape → Transpose → Reshape that splits an axis into factors, changes their order and joins them again permutes that
axis. Written so, channels can go only where all that stand beside them in the factors' grid go too, and a few shuffles
in a row tie a channel to dozens of others (in ShuffleNet V2 to every layer of a stage). Gather takes any channels in
any order, moves the same bytes and asks nothing of the other axes. Only a permutation that is proved for every size of
the inputs' open dimensions is rewritten.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from .protos import add_initializer, attribute, consumers, every_constant, free_name
from .sizes import Sizes, known_sizes
from .tensors import Array


def fold_shuffles(model: ModelProto, known: Mapping[str, Sizes]) -> None:
    """Make a Gather of every Reshape → Transpose → Reshape that permutes a channel axis, in place.

    Args:
        model: where they are.
        known: sizes of its values, if they were inferred already.
    """
    graph = model.graph
    chains = list(_chains(model))
    if not chains:
        return
    known, taken = known or known_sizes(model), {*every_constant(model), *consumers(graph)}
    gone: list[int] = []
    for first, middle, last in chains:
        found = _permutation(graph.node[first], graph.node[middle], graph.node[last], known)
        if found is None:
            continue
        node, (axis, order) = graph.node[last], found
        indices = add_initializer(model, numpy_helper.from_array(order), free_name(f"{node.output[0]}_order", taken))
        source, output, name = graph.node[first].input[0], node.output[0], node.name
        node.CopyFrom(helper.make_node("Gather", [source, indices.name], [output], name, axis=axis))
        gone += [first, middle]
    for i in sorted(gone, reverse=True):
        del graph.node[i]


def _chains(model: ModelProto) -> Iterator[tuple[int, int, int]]:
    """Positions of Reshape, Transpose and Reshape whose values nobody else reads."""
    nodes, uses = model.graph.node, consumers(model.graph)
    makers = {name: i for i, node in enumerate(nodes) for name in node.output}

    def made(name: str, kind: str) -> int | None:
        i = makers.get(name)
        return i if i is not None and _is(nodes[i], kind) and len(uses[name]) == 1 else None

    for last, node in enumerate(nodes):
        middle = made(node.input[0], "Transpose") if _is(node, "Reshape") else None
        first = None if middle is None else made(nodes[middle].input[0], "Reshape")
        if middle is not None and first is not None:
            yield first, middle, last


def _is(node: NodeProto, kind: str) -> bool:
    return node.op_type == kind and node.domain in ("", "ai.onnx")


def _permutation(
    first: NodeProto, middle: NodeProto, last: NodeProto, known: Mapping[str, Sizes]
) -> tuple[int, Array] | None:
    """The axis that the chain permutes and the order it makes of it; None if it does anything else."""
    names = (first.input[0], first.output[0], last.output[0])
    if any(name not in known for name in names):
        return None
    whole, parts, again = (list(known[name]) for name in names)
    extra = len(parts) - len(whole)
    order = list(attribute(middle, "perm", range(len(parts) - 1, -1, -1)))
    if extra < 1 or not _same(whole, again):
        return None
    for axis in {1, len(whole) - 1}:  # channels come first or last
        here = range(axis, axis + extra + 1)
        factors, rest = parts[axis : here.stop], parts[:axis] + parts[here.stop :]
        inside = order[axis : here.stop]
        stays = [*range(axis), *inside, *range(here.stop, len(parts))] == order and sorted(inside) == [*here]
        if stays and None not in factors and math.prod(factors) == whole[axis] and _same(whole, rest, axis):
            grid = np.arange(whole[axis], dtype=np.int64).reshape(factors)
            return axis, grid.transpose([a - axis for a in inside]).ravel()
    return None


def _same(sizes: Sequence[int | None], others: Sequence[int | None], skip: int | None = None) -> bool:
    """Whether values of these sizes agree along every axis: at most one is open, and the counts of elements are equal.

    Args:
        skip: an axis of `sizes` that `others` has not.
    """
    rest = [n for axis, n in enumerate(sizes) if axis != skip]
    return rest == list(others) and rest.count(None) < 2 and 0 not in rest


__all__ = ["fold_shuffles"]
