"""What a model draws at random, which makes every run another one."""

from __future__ import annotations

from onnx import ModelProto, NodeProto, TensorProto

from .protos import attribute, every_constant, graphs, input_name, proto_label
from .tensors import values_of

DRAWING = frozenset("Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split())
TRAINING = 2
"""Input of Dropout: whether it drops anything."""
DRAWN = (
    "{} at random in every run: how far the outputs are from the original's tells little; "
    "to compare them, give the attribute seed to such nodes of the original"
)


def drawn(model: ModelProto) -> tuple[str, ...]:
    """A note on the nodes that draw without a seed, if there are any."""
    constants = every_constant(model)
    nodes = (node for graph in graphs(model) for node in graph.node)
    labels = [f"{node.op_type} ({proto_label(node)})" for node in nodes if _draws(node, constants)]
    more = len(labels) - 1
    others = f" and {more} other{'s' if more > 1 else ''}" if more else ""
    return (DRAWN.format(f"{labels[0]}{others} draw{'' if others else 's'}"),) if labels else ()


def _draws(node: NodeProto, constants: dict[str, TensorProto]) -> bool:
    if attribute(node, "seed") is not None:
        return False
    if node.op_type == "Dropout":
        training = input_name(node, TRAINING)
        return bool(training) and (training not in constants or bool(values_of(constants[training]).any()))
    return node.op_type in DRAWING
