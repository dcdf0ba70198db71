"""onnxruntime's own operators (domain com.microsoft): what its optimizer fuses, as far as it is clear."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..findings import Role
from ..graph import Node
from ..ids import Ids, expand
from ..symbols import Place, constant
from ..tracker import Tracker
from .contraction import conv, of_activations, times_matrix
from .elementwise import broadcast, unary
from .normalization import over_channels

BIAS, KEY_MASK, PAST = 3, 4, 6
"""Inputs of MultiHeadAttention; from PAST on it keeps keys and values from call to call."""


def fused_conv(node: Node, t: Tracker) -> None:
    """FusedConv: a Conv, a sum with input 3, an activation."""
    conv(node, t)
    if t.name(node, 3):
        t.unite(t.ids[node.outputs[0].name], t.of(node, 3))


def fused_matmul(node: Node, t: Tracker) -> None:
    """FusedMatMul: α · A′B′, each matrix transposed or not."""
    first, second = (bool(node.attrs.get(f"trans{x}", 0)) for x in "AB")
    if node.attrs.get("transBatchA", 0) or node.attrs.get("transBatchB", 0) or t.is_constant(node, 0):
        _locked(node, t, "FusedMatMul of this form has no rule")
    elif t.is_constant(node, 1):
        if first or len(t.in_shape(node, 1)) != 2:
            _locked(node, t, "FusedMatMul of this form has no rule")
        else:
            times_matrix(node, t, transposed=second)
    else:
        of_activations(node, t, first, second)


def skip_layer_normalization(node: Node, t: Tracker) -> None:
    """SkipLayerNormalization of x + skip (+ bias): over the channels; output 3 is the sum."""
    x = t.of(node)
    t.unite(x, t.of(node, 1))
    over_channels(node, t)
    t.put(node, x, 3)


def multi_head_attention(node: Node, t: Tracker) -> None:
    """MultiHeadAttention of (N, L, H·d) queries, keys and values: d shrinks equally in every head, or whole heads go.

    Its scale is 1/√d of the original model: where it was left implicit, it is written down.
    """
    heads = int(node.attrs["num_heads"])
    later = [i for i in range(KEY_MASK, len(node.inputs)) if t.name(node, i)]
    if any(len(t.in_shape(node, i)) != 3 for i in range(3)) or (later and (max(later) >= PAST or t.permit.heads)):
        _locked(node, t, "MultiHeadAttention of this form has no rule")
        return
    q, k, v = (_heads(node, t, i, heads) for i in range(3))
    t.unite(q, k)
    if t.permit.heads:
        for ids in (q, k, v):
            t.unite(ids, q[:, :1])
        t.demand(constant(heads, Place(t.position, "num_heads", 0)), q[:, 0], heads, 0)
    else:
        t.pair(q, k)
        for ids in (q, v):
            t.grids.append(ids)
            t.pin(ids, 0)
    if t.is_constant(node, BIAS):
        t.slot(node, BIAS, (0,), np.concatenate([q.ravel(), k.ravel(), v.ravel()]), Role.SHIFT)
    if "scale" not in node.attrs and q.any():
        t.settings.append((t.position, "scale", float(1 / np.sqrt(q.shape[1]))))
    t.put(node, v.reshape(1, 1, -1))


def _heads(node: Node, t: Tracker, i: int, heads: int) -> Ids:
    """(H, d) the ids of input `i`."""
    return expand(t.collapse(t.of(node, i), (2,)), t.in_shape(node, i), (2,)).reshape(heads, -1)


def _locked(node: Node, t: Tracker, reason: str) -> None:
    for i in range(len(node.inputs)):
        t.lock(t.of(node, i), reason)
    for i in range(len(node.outputs)):
        t.put(node, t.fixed(len(t.out_shape(node, i))), i)


RULES: dict[str, Callable[[Node, Tracker], None]] = {
    **dict.fromkeys(("Gelu", "QuickGelu"), unary),
    **dict.fromkeys(("BiasGelu", "FastGelu"), broadcast(Role.SHIFT)),
    "FusedConv": fused_conv,
    "FusedMatMul": fused_matmul,
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), skip_layer_normalization),
    "MultiHeadAttention": multi_head_attention,
}
