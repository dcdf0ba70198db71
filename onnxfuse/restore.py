"""Give the channels of an averaged network the mean and deviation that they have in its parents.

Averaged weights make channels that vary less than their parents' do: what the parents disagree on cancels, and layer
after layer that adds up until the network is silent (*variance collapse*). So each layer's weights and bias are scaled
and shifted, first to last, until what it makes has the parents' mean and deviation, averaged (REPAIR: Jordan et al.,
ICLR 2023). What is measured on synthetic samples is measured in the twins (`calibrate`), and their ratio counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from .calibdata import Batches
from .carry import Carrier
from .folding import FOLDABLE
from .graph import Graph
from .moments import scaled_and_shifted, statistics
from .parents import Parent
from .producers import is_scaled, scaled_rows
from .tensors import FLOATS, Array
from .walk import Walk

Vector = NDArray[np.float64]
GAIN = 10.0
"""No channel is made larger or smaller by more than this factor."""
SILENT = 1e-3
"""Channels that vary less than this, relative to what they should, are left alone."""


@dataclass(frozen=True)
class Maker:
    """A node whose weights make channels, each with a bias of its own.

    Attributes:
        position: of the node.
        weight, bias: initializers that nothing else uses.
        axis: of its output that counts channels.
        apart: whether the bias is added by a node of its own.
    """

    position: int
    weight: str
    bias: str
    axis: int
    apart: bool


def makers(graph: Graph) -> Iterator[Maker]:
    """In graph order."""
    for i, node in ((i, node) for i, node in enumerate(graph.protos) if i not in graph.inner):
        if node.op_type in (*FOLDABLE, "BatchNormalization") and len(node.input) > 2:
            if not is_scaled(node) and _own(graph, node.input[1]) and _own_vector(graph, node.input[2]):
                yield Maker(i, node.input[1], node.input[2], 1, False)
        elif node.op_type == "MatMul" and _own(graph, node.input[1]) and len(graph.array(node.input[1]).shape) == 2:
            added = graph.added(node.output[0])
            if added is not None and _own_vector(graph, added[0]):
                yield Maker(i, node.input[1], added[0], -1, True)


def _own(graph: Graph, name: str) -> bool:
    tensor = graph.constants.get(name)
    return tensor is not None and len(graph.edges[name]) == 1 and tensor.data_type in FLOATS


def _own_vector(graph: Graph, name: str) -> bool:
    return _own(graph, name) and len(graph.constants[name].dims) == 1


@dataclass(frozen=True, eq=False)
class Share:
    """What one parent adds to the average.

    Attributes:
        weight: its share.
        parent: the model.
        twin: constants of it that differ where it is measured.
        carrier: how its channels become the first's; None for the first itself.
    """

    weight: float
    parent: Parent
    twin: Mapping[str, Array]
    carrier: Carrier | None

    def carried(self, name: str, values: Array) -> Array:
        """What its constant that answers to the first's `name` holds, in the first's order."""
        return values if self.carrier is None else self.carrier.carried(name, values)

    def own_name(self, name: str) -> str:
        """Its constant that answers to the first's `name`."""
        return name if self.carrier is None else self.carrier.pairing.tensors[name]


def restore(
    real: MutableMapping[str, Array], twin: MutableMapping[str, Array], shares: Sequence[Share], batches: Batches
) -> int:
    """Scale and shift the averaged weights in place; returns how many layers there were.

    Args:
        real: the average of the parents' constants, by the first's names.
        twin: the average of the twins'; may be `real` itself.
        shares: the parents, the first one first.
        batches: the samples.
    """
    first = shares[0].parent
    walks = [Walk(s.parent.graph, s.parent.probe.stand_in, s.twin, batches) for s in shares]
    after = Walk(first.graph, first.probe.stand_in, twin, batches)
    count = 0
    for maker in makers(first.graph):
        wanted = [_carried(s, w, maker) for s, w in zip(shares, walks, strict=True)]
        mean, deviation = (sum(s.weight * v[i] for s, v in zip(shares, wanted, strict=True)) for i in (0, 1))
        node = first.graph.protos[maker.position]
        chunks = after.value(node.output[0])
        is_mean, is_deviation = statistics(chunks, maker.axis)
        alive = is_deviation > SILENT * deviation
        gain = np.where(alive, np.clip(deviation / np.where(alive, is_deviation, 1), 1 / GAIN, GAIN), 1)
        offset = np.where(alive, mean - gain * is_mean, 0)
        for weights in (real,) if real is twin else (real, twin):
            _scale(weights, maker, node, gain, offset)
        after.replace(node.output[0], scaled_and_shifted(chunks, gain, offset, maker.axis))
        count += 1
    return count


def _carried(share: Share, walk: Walk, maker: Maker) -> tuple[Vector, Vector]:
    """Mean and deviation of what a parent makes there, in the first's order."""
    output = share.parent.graph.protos[maker.position].output[0]
    mean, deviation = statistics(walk.value(output), maker.axis)
    return share.carried(maker.bias, mean), share.carried(maker.bias, deviation)


def _scale(weights: MutableMapping[str, Array], maker: Maker, node: NodeProto, gain: Vector, offset: Vector) -> None:
    bias, weight = weights[maker.bias], weights[maker.weight]
    weights[maker.weight] = scaled_rows(node, weight, gain) if weight.ndim > 1 else weight * gain
    weights[maker.bias] = (bias * (1 if maker.apart else gain) + offset).astype(bias.dtype)
