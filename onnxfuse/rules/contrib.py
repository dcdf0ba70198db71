"""onnxruntime's own operators (domain com.microsoft): what its optimizer fuses, as far as it is clear."""

from __future__ import annotations

from collections.abc import Callable

from ..findings import Role
from ..graph import Node
from ..tracker import Tracker
from .attention import locked, multi_head_attention, projected_attention
from .contraction import of_activations, times_matrix
from .elementwise import broadcast, unary
from .normalization import over_channels


def fused_matmul(node: Node, t: Tracker) -> None:
    """FusedMatMul: α · A′B′, each matrix transposed or not, its second last axis before those of the batch or not."""
    turned = bool(node.attrs.get("transA", 0)), bool(node.attrs.get("transB", 0))
    rows_first = bool(node.attrs.get("transBatchA", 0)), bool(node.attrs.get("transBatchB", 0))
    left, right = t.is_constant(node, 0), t.is_constant(node, 1)
    if not (left or right):
        of_activations(node, t, turned, rows_first)
    elif left or any(rows_first) or len(t.in_shape(node, 1)) != 2 or len(t.in_shape(node)) < 2:
        locked(node, t, "FusedMatMul of this form has no rule")
    else:
        times_matrix(node, t, turned)


def skip_layer_normalization(node: Node, t: Tracker) -> None:
    """SkipLayerNormalization of x + skip (+ bias): over the channels; output 3 is the sum."""
    x = t.of(node)
    t.unite(x, t.of(node, 1))
    over_channels(node, t)
    t.put(node, x, 3)


RULES: dict[str, Callable[[Node, Tracker], None]] = {
    **dict.fromkeys(("Gelu", "QuickGelu"), unary),
    **dict.fromkeys(("BiasGelu", "FastGelu"), broadcast(Role.SHIFT)),
    "FusedMatMul": fused_matmul,
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), skip_layer_normalization),
    "MultiHeadAttention": multi_head_attention,
    "Attention": projected_attention,
}
