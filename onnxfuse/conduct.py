"""What the operators that a group's channels pass through do to dead, scaled and equal channels.

HOMOGENEOUS  a channel that is a > 0 times another one stays so: f(a·x) = a·f(x)
PLAIN        equal channels stay equal, and a channel that hardly varies stays so
OTHER        nothing of the kind is known

What is not of the group and varies may meet all its channels alike: a gate for each sample, a mean that is added. Twins
stay twins then, but a constant channel becomes one that varies, unless it is zero and only multiplied (`foreign`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
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
MEETING: Mapping[str, slice] = {
    **dict.fromkeys("Add Sub Max Min Sum Mean Mul Div PRelu Clip".split(), slice(None)),
    **dict.fromkeys(("Pad", "Gemm"), slice(2, 3)),
}
"""Operator → its inputs whose numbers meet each number of a channel; others are sizes, places, or summed over."""


@dataclass(frozen=True)
class Touch:
    """A node, and a group whose channels it takes or makes.

    Attributes:
        node: the node.
        t: what is known of its inputs.
        data: numbers of its inputs that carry the group and are computed.
        tied: of its constants that follow it.
        makes: whether its outputs carry it.
    """

    node: Node
    t: Tracker
    data: frozenset[int]
    tied: frozenset[int]
    makes: bool

    def constant(self, i: int) -> bool:
        """Whether input `i` is one, or absent."""
        return not self.t.name(self.node, i) or self.t.is_constant(self.node, i)

    def zero(self, i: int) -> bool:
        """Whether input `i` is a constant without other numbers, or absent."""
        return self.constant(i) and not (
            self.t.name(self.node, i) and self.t.graph.array(self.t.name(self.node, i)).any()
        )

    @property
    def others(self) -> list[int]:
        """Inputs that meet the channels, but neither carry nor follow them."""
        meeting = range(len(self.node.inputs))[MEETING.get(self.node.op, slice(0))] if self.makes else range(0)
        return [i for i in meeting if i not in self.data | self.tied]

    @property
    def foreign(self) -> bool:
        """Whether one of these varies."""
        return not all(self.constant(i) for i in self.others)


Judge = Callable[[Touch], Conduct]


def _shift(touch: Touch) -> Conduct:
    """x + c: what is added must scale with the channel, so what all channels share must be zero."""
    return Conduct.HOMOGENEOUS if all(touch.zero(i) for i in touch.others) else Conduct.PLAIN


def _factor(touch: Touch) -> Conduct:
    """x · c is homogeneous; of x · y both would scale; 1 / x has no bound."""
    if touch.node.op == "Div" and 1 in touch.data:
        return Conduct.OTHER
    return Conduct.HOMOGENEOUS if len(touch.data) == 1 else Conduct.PLAIN


def _pad(touch: Touch) -> Conduct:
    """With zeros or with values of the channel itself."""
    zero = touch.zero(2) and not touch.node.attrs.get("value", 0)
    return Conduct.HOMOGENEOUS if zero else Conduct.PLAIN


def _cast(touch: Touch) -> Conduct:
    return Conduct.HOMOGENEOUS if touch.node.attrs["to"] in FLOATS else Conduct.OTHER


def _contraction(touch: Touch) -> Conduct:
    """Only with constant weights; to what is made nothing may be added that all channels share, as in `_shift`."""
    constant = all(touch.constant(i) for i in range(len(touch.node.inputs)) if i not in touch.data)
    if not touch.tied or (touch.data and not constant) or len(touch.data) > 1:
        return Conduct.OTHER
    return _shift(touch)


def _clip(touch: Touch) -> Conduct:
    """Without an upper bound, and from zero or −∞ on, as ReLU is."""
    low, high = (_bound(touch, i) for i in (1, 2))
    return Conduct.HOMOGENEOUS if low in (0, -np.inf) and high == np.inf else Conduct.PLAIN


def _bound(touch: Touch, i: int) -> float | None:
    """A bound of a Clip: an input, or an attribute up to opset 10; None if it is computed."""
    if name := touch.t.name(touch.node, i):
        return float(touch.t.graph.array(name)) if touch.constant(i) else None
    return float(touch.node.attrs.get(("min", "max")[i - 1], (-np.inf, np.inf)[i - 1]))


JUDGES: Mapping[str, Judge] = {
    **dict.fromkeys(("Add", "Sub", "Max", "Min", "Sum", "Mean"), _shift),
    **dict.fromkeys(("Mul", "Div", "PRelu"), _factor),
    **dict.fromkeys(CONTRACTIONS, _contraction),
    "Clip": _clip,
    "Pad": _pad,
    "Cast": _cast,
}


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a node does to a group.

    Attributes:
        group: whose channels it touches.
        node: its number.
        conduct: of the node.
        foreign: whether something that varies, and is none of the group's, meets all channels in it.
        values: names of its inputs that carry the group.
    """

    group: ChannelGroup
    node: int
    conduct: Conduct
    foreign: bool
    values: tuple[str, ...]


def conducts(groups: Iterable[ChannelGroup], judged: Iterable[Verdict]) -> dict[ChannelGroup, Conduct]:
    """For each group the least of what the operators on its way do."""
    found = dict.fromkeys(groups, Conduct.HOMOGENEOUS)
    for verdict in judged:
        found[verdict.group] = min(found[verdict.group], verdict.conduct)
    return found


def verdicts(channels: Channels) -> Iterator[Verdict]:
    """What each node does to each group whose channels it touches."""
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
        outputs = frozenset[int]().union(*(carried(value.name) for value in node.outputs))
        for number in outputs.union(*inputs):
            follow = [s for s in slots.get(position, []) if (owner[channels.classes[s.ids]] == number).any()]
            data = frozenset(i for i, groups in enumerate(inputs) if number in groups)
            touch = Touch(node, t, data, frozenset(s.edge.slot for s in follow), number in outputs)
            values = tuple(node.inputs[i].name for i in sorted(data))
            yield Verdict(channels.groups[number], position, _judge(touch, follow), touch.foreign, values)


def _judge(touch: Touch, slots: list[RawSlot]) -> Conduct:
    node = touch.node
    if node.domain not in (None, "", "ai.onnx"):
        return Conduct.OTHER
    if node.op == "Gather" and any(s.role is Role.PRODUCES for s in slots):
        return Conduct.HOMOGENEOUS  # an embedding
    if node.op in JUDGES:
        return JUDGES[node.op](touch)
    if node.op in HOMOGENEOUS:
        return Conduct.HOMOGENEOUS
    return Conduct.PLAIN if node.op in PLAIN else Conduct.OTHER
