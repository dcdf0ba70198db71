"""Attention in one node: queries meet keys, and what comes of it weighs values.

The channels of a head shrink equally in every head, or whole heads go. The scale is 1/√d of the original model: where
it was left implicit, it is written down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..findings import Role
from ..graph import Node
from ..ids import Ids, expand
from ..symbols import Place, constant
from ..tracker import Tracker
from .contraction import summed_row

BIAS, KEY_MASK, PAST = 3, 4, 6
"""Inputs of MultiHeadAttention; from PAST on it keeps keys and values from call to call."""
EARLIER, ADDED, LENGTH = 4, 5, 6
"""Inputs of com.microsoft's Attention: keys and values of earlier calls, what logits have added, a length of those."""
MASK = 3
"""Input of the standard's Attention; behind it are keys and values of earlier calls."""


def multi_head_attention(node: Node, t: Tracker) -> None:
    """MultiHeadAttention (com.microsoft) of (N, L, H·d) queries, keys and values."""
    heads = int(node.attrs["num_heads"])
    later = [i for i in range(KEY_MASK, len(node.inputs)) if t.name(node, i)]
    if any(len(t.in_shape(node, i)) != 3 for i in range(3)) or (later and (max(later) >= PAST or t.permit.heads)):
        locked(node, t, "MultiHeadAttention of this form has no rule")
        return
    q, k, v = (_heads(node, t, i, heads) for i in range(3))
    _meet(node, t, (q, k, v), ("num_heads",))
    if t.is_constant(node, BIAS):
        t.slot(node, BIAS, (0,), np.concatenate([q.ravel(), k.ravel(), v.ravel()]), Role.SHIFT)
    t.put(node, v.reshape(1, 1, -1))


def projected_attention(node: Node, t: Tracker) -> None:
    """Attention (com.microsoft) of (N, L, C), of which W (C, Q + K + V) and b make queries, keys and values."""
    past = any(t.name(node, i) for i in (EARLIER, LENGTH)) or any(o.name for o in node.outputs[1:])
    computed = any(t.name(node, i) and not t.is_constant(node, i) for i in (1, 2))
    mask_of_heads = t.permit.heads and t.name(node, ADDED)
    if past or computed or mask_of_heads or node.attrs.get("do_rotary", 0) or len(t.in_shape(node)) != 3:
        t.leave_alone(t.out_shape(node)[-1], "Attention of this form has no rule")
        locked(node, t, "Attention of this form has no rule")
        return
    heads, wide = int(node.attrs["num_heads"]), t.in_shape(node, 1)[1]
    sizes = [int(size) for size in node.attrs.get("qkv_hidden_sizes", [wide // 3] * 3)]
    made = t.fresh(wide)
    t.slot(node, 1, (0,), summed_row(node, t, t.of(node), 0, 2), Role.CONSUMES, data=(0, 2))
    t.slot(node, 1, (1,), made, Role.PRODUCES)
    t.slot(node, 2, (0,), made, Role.SHIFT) if t.name(node, 2) else None
    q, k, v = (ids.reshape(heads, -1) for ids in np.split(made, np.cumsum(sizes)[:2]))
    _meet(node, t, (q, k, v), ("num_heads",))
    t.settings.append((t.position, "qkv_hidden_sizes", sizes))
    for i, ids in enumerate((q, k, v)):
        t.demand(constant(ids.size, Place(t.position, "qkv_hidden_sizes", i)), ids.ravel(), ids.size, 0)
    t.put(node, v.reshape(1, 1, -1))


def attention(node: Node, t: Tracker) -> None:
    """Attention (opset 23) of (N, L, H·d) or (N, H, L, d) queries, keys and values; several queries may share a key."""
    past = any(t.name(node, i) for i in range(MASK + 1, len(node.inputs))) or any(o.name for o in node.outputs[1:])
    if past or any(t.is_constant(node, i) for i in range(3)) or len({len(t.in_shape(node, i)) for i in range(3)}) > 1:
        locked(node, t, "Attention of this form has no rule")
        return
    flat, names = len(t.in_shape(node)) == 3, ("q_num_heads", "kv_num_heads")
    heads = [int(node.attrs[names[min(i, 1)]]) if flat else t.in_shape(node, i)[1] for i in range(3)]
    q, k, v = (_heads(node, t, i, n) for i, n in enumerate(heads))
    _meet(node, t, (q, k, v), names if flat else ())
    if t.name(node, MASK):
        t.lock(t.of(node, MASK), "masks attention")
    made = np.repeat(v, len(q) // len(k), axis=0)
    t.put(node, made.reshape(1, 1, -1) if flat else made[None, :, None])


def _heads(node: Node, t: Tracker, i: int, heads: int) -> Ids:
    """(H, d) the ids of input `i`, which has heads on an axis of their own or together with their channels."""
    axes = (2,) if len(t.in_shape(node, i)) == 3 else (1, 3)
    return expand(t.collapse(t.of(node, i), axes), t.in_shape(node, i), axes).reshape(heads, -1)


def _meet(node: Node, t: Tracker, operands: tuple[Ids, Ids, Ids], names: Sequence[str]) -> None:
    """Unite queries (H, d) with keys (K, d), each of which meets H/K of them; attributes `names` count both."""
    q, k, v = operands
    t.unite(q.reshape(len(k), -1, q.shape[1]), k[:, None])
    if t.permit.heads:
        for ids in (q.reshape(len(k), -1), k, v):
            t.unite(ids, k[:, :1])
        for name, ids in zip(names, (q, k), strict=False):
            t.demand(constant(len(ids), Place(t.position, name, 0)), ids[:, 0], len(ids), 0)
    else:
        t.pair(q, k)
        for ids in (q, v):
            t.grids.append(ids)
            t.pin(ids, 0)
    if "scale" not in node.attrs and q.any():
        t.settings.append((t.position, "scale", float(1 / np.sqrt(q.shape[1]))))


def locked(node: Node, t: Tracker, reason: str) -> None:
    """All that enters stays, and nothing is known of what comes out."""
    for i in range(len(node.inputs)):
        t.lock(t.of(node, i), reason)
    for i in range(len(node.outputs)):
        t.put(node, t.fixed(len(t.out_shape(node, i))), i)


RULES: dict[str, Callable[[Node, Tracker], None]] = {"Attention": attention}
