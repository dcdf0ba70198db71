"""BatchNormalizations as anchors: the true mean and deviation of channels on training data, in their parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from onnx import NodeProto

from .folding import Folded
from .graph import Graph
from .moments import scaled_and_shifted, statistics
from .producers import scaled_rows
from .tensors import Array
from .walk import Walk

TINY = 1e-6


def anchors_of(graph: Graph, folded: Sequence[Folded]) -> Iterator[tuple[int, Folded]]:
    """(position, normalization) of the producers that took one over and whose weights are their own."""
    position = {o: i for i, node in enumerate(graph.protos) for o in node.output}
    for f in folded:
        node = graph.protos[position[f.output]]
        if all(len(graph.edges[name]) == 1 for name in node.input[1:3]):
            yield position[f.output], f


def anchor_producer(graph: Graph, twin: dict[str, Array], walk: Walk, node: NodeProto, norm: Folded) -> None:
    """Scale and shift what the producer makes to the normalization's mean and deviation; the twin's weights alike."""
    mean, deviation = statistics(walk.value(norm.output))
    scale = np.where(deviation > TINY, norm.deviation / np.maximum(deviation, TINY), 1)
    adjust(graph, twin, walk, node, scale, norm.mean - mean * scale)


def adjust(graph: Graph, twin: dict[str, Array], walk: Walk, node: NodeProto, scale: Array, shift: Array) -> None:
    """Scale and shift each channel of what a producer with a bias makes; the twin's weights alike."""
    weight, bias = node.input[1:3]
    twin[weight] = scaled_rows(node, graph.array(weight).astype(np.float32), scale)
    twin[bias] = graph.array(bias).astype(np.float64) * scale + shift
    walk.replace(node.output[0], scaled_and_shifted(walk.value(node.output[0]), scale, shift))


def free_norm(graph: Graph, node: NodeProto) -> bool:
    """A BatchNormalization that could not be folded, whose statistics are its own."""
    own = (n in graph.constants and len(graph.edges[n]) == 1 for n in node.input[3:5])
    return node.op_type == "BatchNormalization" and all(own)


def anchor_norm(graph: Graph, twin: dict[str, Array], walk: Walk, node: NodeProto) -> None:
    """Give a BatchNormalization that could not be folded the batch's own statistics."""
    mean, variance = node.input[3:5]
    measured, deviation = statistics(walk.value(node.input[0]))
    twin[mean], twin[variance] = measured, np.maximum(deviation**2, TINY)
