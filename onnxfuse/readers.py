"""The weights that read channels, and the biases that are added to what they make."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto

from .channels import Channels
from .classes import Classes
from .findings import RawSlot, Role
from .graph import Graph
from .ids import Ids
from .picking import behind_picks
from .producers import is_matmul, is_scaled, out_axis
from .protos import attribute, proto_label
from .rules.recurrent import GATES
from .tensors import FLOATS

Key = tuple[str, tuple[int, ...], int]
"""Initializer, axes, split."""
INNER = {**dict.fromkeys(GATES, 3), "Attention": 2}
"""Operators that project what they read for their own use, which is no value, and the input that has the bias."""
WIDEST = 4096
"""Readers of more channels than this are left as their merge makes them: their moments would be too large."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A weight that reads channels.

    Attributes:
        slot: its axis of d positions.
        value, axis: where they arrive.
        bias: the initializer that is added to what it makes, one number for each output, or None.
        made: what it makes, the bias included; empty if that is no value, as what goes into gates, or has no axis of
            channels, as what a vector makes.
        layout: (n, q) the q positions of each of the n channels it reads (several behind a Flatten).
        taps: of its kernel: weights with which one output reads one position.
    """

    slot: RawSlot
    value: str
    axis: int
    bias: str | None
    made: str
    layout: Ids
    taps: int

    @property
    def key(self) -> Key:
        """What tells it from other readers."""
        return self.slot.tensor, self.slot.axes, self.slot.split


def readers(channels: Channels, exclude: Sequence[re.Pattern[str]]) -> list[Reader]:
    """Every weight that reads channels, at its only use, in graph order, but for those of excluded nodes.

    Nor those behind an operator that picks by value: what the original and the result see there are other things.
    """
    graph, found = channels.tracker.graph, []
    picked = behind_picks(graph.model.graph)
    for s in channels.slots:
        if s.role is Role.CONSUMES and s.data and not _hindrance(channels, s, picked):
            node, layout = graph.protos[s.edge.node], _layout(channels.classes[s.ids], s.split)
            if any(p.search(proto_label(node)) for p in exclude):
                continue
            dims, value = graph.constants[s.tensor].dims, node.input[s.data[0]]
            kernel = dims[2:] if node.op_type in ("Conv", "ConvTranspose") else ()
            made = own_bias(graph, node) if len(dims) > 1 else (None, "")
            found.append(Reader(s, value, s.data[1], *made, layout, math.prod(kernel)))
    return sorted(found, key=lambda r: r.slot.edge.node)


def hindered(channels: Channels) -> dict[Key, str]:
    """The weights that read channels but are no `readers`, each with the reason."""
    picked = behind_picks(channels.tracker.graph.model.graph)
    slots = [s for s in channels.slots if s.role is Role.CONSUMES]
    found = {(s.tensor, s.axes, s.split): _hindrance(channels, s, picked) for s in slots}
    return {key: reason for key, reason in found.items() if reason}


def _hindrance(channels: Channels, slot: RawSlot, picked: set[str]) -> str:
    """Why a weight that reads channels cannot be measured and refitted; '' if it can."""
    graph = channels.tracker.graph
    if len(graph.edges[slot.tensor]) != 1:
        return "weights used more than once"
    if graph.constants[slot.tensor].data_type not in FLOATS:
        return "weights that are no floats"
    if slot.data is None:
        return "no axis has just the channels that they read"
    if len(_layout(channels.classes[slot.ids], slot.split)) > WIDEST:
        return f"more than {WIDEST} channels"
    value = graph.protos[slot.edge.node].input[slot.data[0]]
    if value in graph.constants:
        return "they read a constant"
    return "they read what was picked by value" if value in picked else ""


def depthwise_readers(channels: Channels, exclude: Sequence[re.Pattern[str]]) -> list[Reader]:
    """Every depthwise kernel of several taps, at its only use, as that of a grouped convolution with blocks of one.

    But for those of excluded nodes, and those behind an operator that picks by value.
    """
    graph, found = channels.tracker.graph, list[Reader]()
    picked = behind_picks(graph.model.graph)
    for slot in channels.slots:
        tensor, node = graph.constants[slot.tensor], graph.protos[slot.edge.node]
        own = len(graph.edges[slot.tensor]) == 1 and tensor.data_type in FLOATS
        if not own or slot.edge.node < 0:
            continue
        if slot.role is not Role.SCALE or node.op_type != "Conv" or node.input[1] != slot.tensor:
            continue
        n, taps = tensor.dims[0], math.prod(tensor.dims[2:])
        excluded = any(p.search(proto_label(node)) for p in exclude)
        alone = len(slot.ids) == n == attribute(node, "group", 1)  # else a channel is read by several kernels
        if alone and taps > 1 and node.input[0] not in picked and not excluded:
            block = replace(slot, axes=(0, 2), split=n, role=Role.CONSUMES, data=(0, 1))
            found.append(Reader(block, node.input[0], 1, *own_bias(graph, node), np.arange(n)[:, None], taps))
    return found


def _layout(classes: Classes, split: int) -> Ids:
    """(n, q) the positions of each class, by its first; (d, 1) if not all of them have equally many, or if one lies in
    several of the `split` blocks of a grouped convolution, each of which reads its own."""
    alone = np.arange(len(classes))[:, None]
    _, counts = np.unique(classes, return_counts=True)
    if (counts != counts[0]).any():
        return alone
    layout = np.argsort(classes, kind="stable").reshape(len(counts), -1)
    block = layout // (len(classes) // split)
    return layout[np.argsort(layout[:, 0])] if (block == block[:, :1]).all() else alone


def own_bias(graph: Graph, node: NodeProto) -> tuple[str | None, str]:
    """The constant that is added to each output of a node, if nothing else uses it, and the value that has it added."""
    if node.op_type in INNER:
        return _inner_bias(graph, node), ""
    made = node.output[0]
    if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2:
        return None if is_scaled(node) else _vector_of(graph, node), made
    if node.op_type == "Einsum" and not is_matmul(node):
        return None, ""
    added = graph.added(made, rounded=True)
    weight = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
    if weight is not None and added is not None:
        shapes = {"Conv": [*weight.dims[:1], *[1] * (len(weight.dims) - 2)]}
        bias = _own(graph, added[0], weight.dims[-1:] if is_matmul(node) else shapes.get(node.op_type, [0]))
        return bias, added[1] if bias else made
    return None, made


def _vector_of(graph: Graph, node: NodeProto) -> str | None:
    """The bias of a convolution or Gemm, at its only use; a Gemm may add one number to all that it makes."""
    bias = graph.own_vector(node.input[2])
    made = graph.constants[node.input[1]].dims[out_axis(node)] if node.op_type == "Gemm" else 0
    return None if bias and made and graph.constants[bias].dims[0] != made else bias


def _inner_bias(graph: Graph, node: NodeProto) -> str | None:
    at = INNER[node.op_type]
    name = node.input[at] if len(node.input) > at else ""
    return _own(graph, name, graph.constants[name].dims) if name in graph.constants else None


def _own(graph: Graph, name: str, shape: Sequence[int]) -> str | None:
    """A constant of this shape, but for axes of length 1 in front, that one node uses."""
    tensor = graph.constants.get(name)
    if tensor is None or len(graph.edges[name]) != 1:
        return None
    dims = [1] * (len(shape) - len(tensor.dims)) + list(tensor.dims)
    more = len(dims) - len(shape)
    return name if dims[more:] == list(shape) and set(dims[:more]) <= {1} else None
