"""What a graph tells of its inputs: which are states, whether samples are steps of one sequence, which numbers choose
between branches, which are sound, and whether images are lines of writing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from .protos import attribute, every_constant, nodes_of, subgraphs
from .tensors import values_of

STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
"""Inputs of recurrent operators that are states before the first step."""
INTEGERS = (TensorProto.INT64, TensorProto.INT32)
REAL = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
MOVING = "Cast Identity Expand Reshape Unsqueeze Squeeze Transpose Slice Split Gather Pad".split()
"""Operators through which an input is followed to what reads it."""
FLATTER = 2
"""Layers that make images lower than they make them narrower, more than the other way round, of networks that read."""


def readers_of(model: ModelProto, name: str) -> Iterator[tuple[NodeProto, int]]:
    """(node, which input of it) for what reads an input as it is, or moved about, in branches of If, too."""
    uses: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
    returned = dict[str, str]()
    for node in nodes_of(model.graph):
        for slot, read in enumerate(node.input):
            uses[read].append((node, slot))
        for branch in subgraphs(node) if node.op_type == "If" else ():
            returned |= {value.name: made for value, made in zip(branch.output, node.output, strict=True)}
    queue, seen = [name], {name}
    while queue:
        moved = {returned[at]} if (at := queue.pop()) in returned else set()
        for node, slot in uses[at]:
            yield node, slot
            moved |= set(node.output) if node.op_type in MOVING and slot == 0 else set()
        queue += moved - seen
        seen |= moved


def compared_with(model: ModelProto) -> dict[str, int]:
    """Input → the first single integer that it is compared with, as a sampling rate by which a branch is chosen."""
    constants, found = every_constant(model), dict[str, int]()
    for value in model.graph.input:
        kind = value.type.tensor_type
        single = kind.elem_type in INTEGERS and kind.HasField("shape") and all(d.dim_value == 1 for d in kind.shape.dim)
        for node, slot in readers_of(model, value.name) if single and value.name not in constants else ():
            other = constants.get(node.input[1 - slot]) if node.op_type == "Equal" else None
            if other is not None and math.prod(other.dims) == 1:
                found.setdefault(value.name, int(values_of(other).item()))
    return found


def cast_to_integers(model: ModelProto) -> set[str]:
    """Inputs of real numbers that are made integers: codes, as of bytes or letters.

    What else reads them may ask only which are a certain one, as a mask of what is padded does, or how many there are.
    """
    found = {v.name for v in model.graph.input if v.type.tensor_type.elem_type in REAL}
    cast = set[str]()
    for node in nodes_of(model.graph):
        if node.op_type == "Cast" and attribute(node, "to") in INTEGERS:
            cast.add(node.input[0])
        elif node.op_type not in ("Equal", "Shape", "Size"):
            found -= set(node.input)
    return found & cast


def is_state(model: ModelProto, name: str) -> bool:
    """Whether an input is the state in which a recurrent operator starts, or one by its name."""
    uses = list(readers_of(model, name))
    recurrent = any(slot in STATES.get(node.op_type, ()) for node, slot in uses)
    data = any(node.op_type == "Conv" and slot == 0 for node, slot in uses)  # a convolution's state stands beside that
    return recurrent or (_comes_back(model, name) and not data)


def _comes_back(model: ModelProto, name: str) -> bool:
    """Whether an output has an input's type and as many axes, and a name that begins with the input's, as `state` and
    `stateN`; no image's, nor that of a model's only real numbers."""
    inputs = {v.name: v.type.tensor_type for v in model.graph.input if v.type.tensor_type.elem_type in REAL}
    named = [o.type.tensor_type for o in model.graph.output if o.name.startswith(name)]
    if name not in inputs or not named or len(inputs.keys() - {t.name for t in model.graph.initializer}) < 2:
        return False
    rank = len(inputs[name].shape.dim)
    alike = (o for o in named if o.elem_type == inputs[name].elem_type and len(o.shape.dim) == rank)
    return rank not in (0, 4) and any(alike)


def waveforms(model: ModelProto) -> set[str]:
    """Inputs of one channel that a convolution reads along one axis: sound as it was recorded."""
    constants = every_constant(model)
    weights = {
        value.name: [constants[n.input[1]].dims for n, slot in readers_of(model, value.name)
                     if n.op_type == "Conv" and slot == 0 and n.input[1] in constants]
        for value in model.graph.input
    }  # fmt: skip
    return {name for name, all_dims in weights.items() if any(_along_one_axis(dims) for dims in all_dims)}


def _along_one_axis(dims: Sequence[int]) -> bool:
    return dims[1] == 1 and sum(size > 1 for size in dims[2:]) == 1


def reads_lines(model: ModelProto) -> bool:
    """Whether images get lower, but hardly narrower: what is written in them is read from left to right."""
    strides = (attribute(node, "strides", ()) for node in nodes_of(model.graph))
    more: list[int] = [s[0] - s[1] for s in strides if len(s) == 2]
    return sum(m > 0 for m in more) - sum(m < 0 for m in more) >= FLATTER


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
