"""Normalizations: per channel they are a scale and a shift; over the channels they lock them."""

from __future__ import annotations

from collections.abc import Callable

from ..model import Node
from ..tracker import Role, Tracker, expand, varying

BATCH_NORM = (Role.SCALE, Role.SHIFT, Role.SHIFT, Role.SCALE)
"""Roles of γ, β, mean and variance."""


def batch_normalization(node: Node, t: Tracker) -> None:
    """A BatchNormalization that could not be folded: a scale and a shift per channel."""
    per_channel(node, t, BATCH_NORM)


def instance_normalization(node: Node, t: Tracker) -> None:
    """Normalises each channel by itself."""
    per_channel(node, t, BATCH_NORM[:2])


def per_channel(node: Node, t: Tracker, roles: tuple[Role, ...]) -> None:
    """Inputs 1… are vectors over axis 1 of input 0."""
    ids = t.of(node)
    axis = min(1, ids.ndim - 1)
    ids = t.collapse(ids, (0, axis))
    if any(t.name(node, i) and not t.is_constant(node, i) for i in range(1, len(roles) + 1)):
        t.lock(ids, f"{node.op} with computed parameters")
    else:
        channels = t.collapse(ids, (axis,))
        vector = expand(channels, t.in_shape(node), (axis,)).ravel() if channels.shape[axis] > 1 else channels.ravel()
        for i, role in enumerate(roles, 1):
            t.slot(node, i, (0,), vector, role)
    t.put(node, ids)
    for i in range(1, len(node.outputs)):
        t.put(node, t.fixed(1), i)


def over_channels(node: Node, t: Tracker) -> None:
    """LRN, LpNormalization and the like: each output position depends on the whole channel axis."""
    ids = t.of(node)
    t.lock(ids, f"{node.op} over the channels")
    for i in range(len(node.outputs)):
        t.put(node, ids if i == 0 else t.fixed(len(t.out_shape(node, i))), i)


def layer_normalization(node: Node, t: Tracker) -> None:
    """LayerNormalization, RMSNormalization: removing channels they normalise over would change the statistics."""
    ids = t.of(node)
    axis = int(node.attrs.get("axis", -1)) % max(ids.ndim, 1)
    if any(a >= axis for a in varying(ids)):
        t.lock(ids, f"{node.op} over the channels")
    for i in range(len(node.outputs)):
        t.put(node, ids if i == 0 else t.fixed(len(t.out_shape(node, i))), i)


RULES: dict[str, Callable[[Node, Tracker], None]] = {
    "BatchNormalization": batch_normalization,
    "InstanceNormalization": instance_normalization,
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), layer_normalization),
    **dict.fromkeys(("LRN", "LpNormalization", "MeanVarianceNormalization", "GroupNormalization"), over_channels),
}
