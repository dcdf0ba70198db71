"""The branches of If: made fit for tracking.

    names that another graph of the model has, too        → names of their own
    If with a constant condition         → the nodes of the branch that runs

The nodes of a branch are then tracked like any other (`graph.Graph`): what lies within it may shrink, and so may what
it takes from outside; what it makes itself and returns stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import GraphProto, ModelProto, NodeProto, helper

from .protos import attribute, branches, every_constant, free_name, graphs, subgraphs
from .tensors import values_of


def name_apart(model: ModelProto) -> None:
    """Rename, in place, what a branch of If makes under a name that was used before: then/else may share names."""
    taken = {value.name for value in model.graph.input} | set(_made(model.graph))
    for branch in branches(model.graph):
        names = {name: free_name(name, taken | set(_made(branch))) for name in _made(branch) if name in taken}
        if names:
            _rename(branch, names)
        taken |= set(_made(branch))


def _made(graph: GraphProto) -> Iterator[str]:
    """Names that a graph gives to constants and to what its nodes make."""
    yield from (tensor.name for tensor in graph.initializer)
    yield from (name for node in graph.node for name in node.output if name)


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Use other names for values, in a graph and all that its nodes hold."""
    for node in graph.node:
        for values in (node.input, node.output):
            for i, name in enumerate(values):
                values[i] = names.get(name, name)
        for inner in subgraphs(node):
            _rename(inner, names)
    for item in (*graph.initializer, *graph.output, *graph.value_info):
        item.name = names.get(item.name, item.name)


def choose_branches(model: ModelProto) -> bool:
    """Put the branch that runs in the place of every If whose condition is constant; whether there was one."""
    constants = every_constant(model)
    for graph in graphs(model):
        for i, node in enumerate(graph.node):
            if node.op_type == "If" and node.input[0] in constants:
                holds = bool(values_of(constants[node.input[0]]).all())
                _put_in_place(graph, i, attribute(node, "then_branch" if holds else "else_branch"))
                choose_branches(model)  # what the branch holds may be chosen, too
                return True
    return False


def _put_in_place(graph: GraphProto, position: int, branch: GraphProto) -> None:
    """Replace an If by one of its branches."""
    before, node, after = graph.node[:position], graph.node[position], graph.node[position + 1 :]
    nodes = [_copy(n) for n in (*before, *branch.node, *_returned(branch, node), *after)]
    for old, new in ((graph.initializer, branch.initializer), (graph.value_info, branch.value_info)):
        old.extend(list(new))
    del graph.node[:]
    graph.node.extend(nodes)


def _returned(branch: GraphProto, node: NodeProto) -> Iterator[NodeProto]:
    for inner, outer in zip(branch.output, node.output, strict=True):
        if outer:
            yield helper.make_node("Identity", [inner.name], [outer], f"{node.name}_{outer}" if node.name else "")


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
