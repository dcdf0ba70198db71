"""Quantization of activations. (Quantized weights are real numbers by now: see `quantized.lower`.)"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..findings import Role
from ..graph import Node
from ..ids import expand
from ..tracker import Tracker


def quantize(node: Node, t: Tracker) -> None:
    """QuantizeLinear and DequantizeLinear: by one scale they act position by position; scales per channel are tied."""
    ids, shape = t.of(node), t.out_shape(node)
    if t.is_constant(node, 0) and len(shape) > 1:
        t.leave_alone(shape[-1] if len(shape) == 2 else shape[0], "its weights are quantized in blocks or below 8 bits")
    if int(np.prod(t.in_shape(node, 1))) > 1:
        ids = t.collapse(ids, (axis := int(node.attrs.get("axis", 1)) % ids.ndim,))
        if node.attrs.get("block_size", 0) or not _same_zero(node, t):
            t.lock(ids, f"{node.op} by blocks, or by zero points or scales that differ or are computed")
        else:
            vector = expand(ids, t.in_shape(node), (axis,)).ravel() if ids.shape[axis] > 1 else ids.ravel()
            for i in (1, 2):
                t.slot(node, i, (0,), vector, Role.SCALE) if t.name(node, i) else None
    t.put(node, ids)


def _same_zero(node: Node, t: Tracker) -> bool:
    """Whether scale and zero point are constants and the zero point is the same for all channels."""
    if not t.is_constant(node, 1) or (t.name(node, 2) and not t.is_constant(node, 2)):
        return False
    return not t.name(node, 2) or len(np.unique(t.graph.array(t.name(node, 2)))) == 1


def dynamic_quantize(node: Node, t: Tracker) -> None:
    """DynamicQuantizeLinear: its range always has 0 in it, which is what channels that went would hold."""
    t.put(node, t.of(node))
    for i in (1, 2):
        t.put(node, t.fixed(0), i)


RULES: dict[str, Callable[[Node, Tracker], None]] = {
    "QuantizeLinear": quantize,
    "DequantizeLinear": quantize,
    "DynamicQuantizeLinear": dynamic_quantize,
}
