"""What the operators that a group's channels pass through do to dead, scaled and equal channels.

HOMOGENEOUS  a channel that is a > 0 times another one stays so: f(a·x) = a·f(x)
PLAIN        equal channels stay equal, and a channel that hardly varies stays so
OTHER        nothing of the kind is known
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum

import numpy as np

from .channels import ChannelGroup, Channels
from .findings import RawSlot, Role
from .graph import Node
from .tensors import FLOATS
from .tracker import Tracker


class Conduct(IntEnum):
    """In order of what may be concluded."""

    OTHER = 0
    PLAIN = 1
    HOMOGENEOUS = 2


CONTRACTIONS = frozenset("Conv ConvTranspose Gemm MatMul Einsum".split())
HOMOGENEOUS = frozenset(
    """Abs Neg Identity Dropout Relu LeakyRelu Reshape Flatten Squeeze Unsqueeze Transpose DepthToSpace SpaceToDepth
    Concat Split Slice Gather Expand Tile Resize Upsample AveragePool MaxPool LpPool GlobalAveragePool GlobalMaxPool
    GlobalLpPool ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum BatchNormalization Shape Size""".split()
)
PLAIN = frozenset(
    "Atan Celu Cos Elu Erf Gelu HardSigmoid HardSwish Mish Selu Sigmoid Sin Softplus Softsign Swish Tanh".split()
)
"""Lipschitz functions of one channel."""
Judge = Callable[[Node, Tracker, frozenset[int], frozenset[int]], Conduct]
"""Of a node, the numbers of its data inputs that carry the group, and those of its constants that follow it."""


def _shift(node: Node, t: Tracker, data: frozenset[int], tied: frozenset[int]) -> Conduct:
    """x + c: the constant must scale with the channel, so one that all channels share must be zero."""
    shared = [i for i in range(len(node.inputs)) if t.is_constant(node, i) and i not in tied]
    zero = not any(t.graph.array(t.name(node, i)).any() for i in shared)
    alone = all(i in data for i in range(len(node.inputs)) if not t.is_constant(node, i))
    return Conduct.HOMOGENEOUS if zero and alone else Conduct.PLAIN


def _factor(node: Node, t: Tracker, data: frozenset[int], tied: frozenset[int]) -> Conduct:
    """x · c is homogeneous; of x · y both would scale; 1 / x has no bound."""
    if node.op == "Div" and 1 in data:
        return Conduct.OTHER
    return Conduct.HOMOGENEOUS if len(data) == 1 else Conduct.PLAIN


def _pad(node: Node, t: Tracker, data: frozenset[int], tied: frozenset[int]) -> Conduct:
    """With zeros or with values of the channel itself."""
    known = not t.name(node, 2) or t.is_constant(node, 2)
    zero = known and not node.attrs.get("value", 0) and not (t.name(node, 2) and t.graph.array(t.name(node, 2)).any())
    return Conduct.HOMOGENEOUS if zero else Conduct.PLAIN


def _cast(node: Node, t: Tracker, data: frozenset[int], tied: frozenset[int]) -> Conduct:
    return Conduct.HOMOGENEOUS if node.attrs["to"] in FLOATS else Conduct.OTHER


def _contraction(node: Node, t: Tracker, data: frozenset[int], tied: frozenset[int]) -> Conduct:
    """Only with constant weights."""
    constant = all(t.is_constant(node, i) or not t.name(node, i) for i in range(len(node.inputs)) if i not in data)
    return Conduct.HOMOGENEOUS if tied and (constant or not data) and len(data) < 2 else Conduct.OTHER


def _clip(node: Node, t: Tracker, data: frozenset[int], tied: frozenset[int]) -> Conduct:
    """Without an upper bound, and from zero or −∞ on, as ReLU is."""
    low, high = (_bound(node, t, i) for i in (1, 2))
    return Conduct.HOMOGENEOUS if low in (0, -np.inf) and high == np.inf else Conduct.PLAIN


def _bound(node: Node, t: Tracker, i: int) -> float | None:
    """A bound of a Clip: an input, or an attribute up to opset 10; None if it is computed."""
    if t.name(node, i):
        return float(t.graph.array(t.name(node, i))) if t.is_constant(node, i) else None
    return float(node.attrs.get(("min", "max")[i - 1], (-np.inf, np.inf)[i - 1]))


JUDGES: Mapping[str, Judge] = {
    **dict.fromkeys(("Add", "Sub", "Max", "Min", "Sum", "Mean"), _shift),
    **dict.fromkeys(("Mul", "Div", "PRelu"), _factor),
    **dict.fromkeys(CONTRACTIONS, _contraction),
    "Clip": _clip,
    "Pad": _pad,
    "Cast": _cast,
}


def conducts(channels: Channels) -> dict[ChannelGroup, Conduct]:
    """For each group the least of what the operators on its way do."""
    found = dict.fromkeys(channels.groups, Conduct.HOMOGENEOUS)
    for group, _, verdict in verdicts(channels):
        found[group] = min(found[group], verdict)
    return found


def verdicts(channels: Channels) -> Iterator[tuple[ChannelGroup, int, Conduct]]:
    """What each node does to each group whose channels it touches: (group, number of the node, conduct)."""
    t = channels.tracker
    owner = np.full(int(channels.classes.max()) + 1, -1)
    for number, group in enumerate(channels.groups):
        owner[group.classes] = number
    slots: dict[int, list[RawSlot]] = {}
    for slot in channels.slots:
        slots.setdefault(slot.edge.node, []).append(slot)

    def carried(name: str) -> frozenset[int]:
        ids = t.ids.get(name)
        return frozenset() if ids is None else frozenset(np.unique(owner[channels.classes[ids]]).tolist()) - {-1}

    for position, node in enumerate(t.graph.nodes):
        inputs = [carried(value.name) for value in node.inputs]
        outputs = [carried(value.name) for value in node.outputs]
        for number in frozenset().union(*inputs, *outputs):
            data = frozenset(i for i, groups in enumerate(inputs) if number in groups)
            follow = [s for s in slots.get(position, []) if (owner[channels.classes[s.ids]] == number).any()]
            tied = frozenset(s.edge.slot for s in follow)
            yield channels.groups[number], position, _judge(node, t, data, tied, follow)


def _judge(node: Node, t: Tracker, data: frozenset[int], tied: frozenset[int], slots: list[RawSlot]) -> Conduct:
    if node.domain not in (None, "", "ai.onnx"):
        return Conduct.OTHER
    if node.op == "Gather" and any(s.role is Role.PRODUCES for s in slots):
        return Conduct.HOMOGENEOUS  # an embedding
    if node.op in JUDGES:
        return JUDGES[node.op](node, t, data, tied)
    if node.op in HOMOGENEOUS:
        return Conduct.HOMOGENEOUS
    return Conduct.PLAIN if node.op in PLAIN else Conduct.OTHER
