"""Which inputs of a model are states of recurrent operators, and whether its samples are steps of one sequence."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import ModelProto, NodeProto, ValueInfoProto

from .protos import consumers

STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
"""Inputs of recurrent operators that are states before the first step."""
MOVING = "Cast Identity Expand Reshape Unsqueeze Squeeze Transpose Slice Split Gather Pad".split()
"""Operators through which an input is followed to what reads it."""


def readers_of(model: ModelProto, name: str) -> Iterator[tuple[NodeProto, int]]:
    """(node, which input of it) for what reads an input as it is, or moved about."""
    uses, queue, seen = consumers(model.graph), [name], {name}
    while queue:
        for edge in [e for e in uses.get(queue.pop(), []) if e.node >= 0]:
            node = model.graph.node[edge.node]
            yield node, edge.slot
            if node.op_type in MOVING and edge.slot == 0:
                queue += set(node.output) - seen
                seen |= set(node.output)


def is_state(model: ModelProto, name: str) -> bool:
    """Whether an input is the state in which a recurrent operator starts."""
    return any(slot in STATES.get(node.op_type, ()) for node, slot in readers_of(model, name))


def batch_is_open(value: ValueInfoProto) -> bool:
    """Whether the size of an input's first axis is left open."""
    dims = value.type.tensor_type.shape.dim
    return bool(dims) and dims[0].dim_value <= 0


def steps_first(model: ModelProto) -> bool:
    """Whether the open first axis of a model's inputs counts steps of a sequence.

    So it is if a recurrent operator's state is an input that leaves no size open, and so as many sequences as it has at
    a time are fixed.
    """
    constants = {t.name for t in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in constants]
    fixed = {v.name for v in inputs if all(d.dim_value > 0 for d in v.type.tensor_type.shape.dim)}
    return any(is_state(model, name) for name in fixed) and any(batch_is_open(v) for v in inputs)
