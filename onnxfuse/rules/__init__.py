"""What each ONNX operator does to channel ids: one function an operator, one table.

A rule reads the ids of its inputs from the tracker, says what it finds (slots, unions, demands, locks) and puts
the ids of its outputs. An operator without a rule locks all it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..graph import Node
from ..tracker import Tracker
from . import (
    attention,
    contraction,
    contrib,
    einsum,
    elementwise,
    normalization,
    quantization,
    recurrent,
    reduction,
    repeating,
    reshaping,
    selection,
    slicing,
)

Rule = Callable[[Node, Tracker], None]

RULES: Mapping[str, Rule] = {
    **attention.RULES,
    **contraction.RULES,
    **einsum.RULES,
    **elementwise.RULES,
    **normalization.RULES,
    **quantization.RULES,
    **recurrent.RULES,
    **reduction.RULES,
    **repeating.RULES,
    **reshaping.RULES,
    **selection.RULES,
    **slicing.RULES,
}
"""Operator of the standard domain → its rule."""


NO_RULE: Mapping[str, str] = {
    "com.microsoft.nchwc": "onnxruntime optimized it for one kind of CPU: give the model as it was before that",
}
"""Domain → why none of its operators has a rule."""


def unknown(node: Node, t: Tracker) -> None:
    """An operator without a rule: every channel that enters it stays, and so do those that its weights make."""
    _lock_all(node, t, NO_RULE.get(node.domain or "", f"{node.op} has no rule"))


def unseen(node: Node, t: Tracker) -> None:
    """A node that the probing run does not reach, so that nothing is known of its sizes."""
    _lock_all(node, t, "it does not run on the probing input")


def _lock_all(node: Node, t: Tracker, reason: str) -> None:
    for i in range(len(node.inputs)):
        t.lock(t.of(node, i), reason)
    if made := _made(node, t):
        t.leave_alone(made, reason)
    for i in range(len(node.outputs)):
        t.put(node, t.fixed(len(t.out_shape(node, i))), i)


def _made(node: Node, t: Tracker) -> int:
    """How many channels an operator's weights make, as far as shapes tell; 0 if it has none.

    They lie along an axis of its output that is as long as one of a weight's. If the output's shape is not known, they
    are the last axis of a matrix, the first of a kernel.
    """
    shapes = [t.in_shape(node, i) for i in range(len(node.inputs)) if t.is_constant(node, i)]
    weights, out = [s for s in shapes if len(s) > 1], t.out_shape(node)
    if not out:
        return next((s[-1] if len(s) == 2 else s[0] for s in weights), 0)
    return next((size for size in out[1:] if any(size in s for s in weights)), 0)


def rule_for(node: Node) -> Rule:
    """The rule of a node; `unknown` for operators of other domains and those not in a table."""
    tables = {"": RULES, "ai.onnx": RULES, "com.microsoft": contrib.RULES}
    return tables.get(node.domain or "", {}).get(node.op, unknown)
