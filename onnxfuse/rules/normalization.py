"""Normalizations: per channel they are a scale and a shift; over the channels they lock them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..findings import Norm, Role
from ..graph import Node
from ..ids import Ids, compact, expand, varying
from ..symbols import Place, constant
from ..tracker import Tracker
from .elementwise import tie

BATCH_NORM = (Role.SCALE, Role.SHIFT, Role.SHIFT, Role.SCALE)
"""Roles of γ, β, mean and variance."""


def batch_normalization(node: Node, t: Tracker) -> None:
    """A BatchNormalization that could not be folded: a scale and a shift per channel."""
    per_channel(node, t, BATCH_NORM)


def instance_normalization(node: Node, t: Tracker) -> None:
    """Normalises each row of axis 1 by itself: a channel, or a group of them if it stands for a GroupNormalization.

    Whole groups may go, unless there is but one; channels within groups may if norms may shrink.
    """
    ids = t.of(node)
    inner = [a for a in varying(ids) if a > 1]
    if inner and t.permit.norms:
        normalised(node, t, ids, range(2, ids.ndim))
        t.pin(ids, 1)
        t.put(node, ids)
        return
    if inner and t.in_shape(node)[1] == 1:
        t.lock(ids, over_reason(node))
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
    """LRN and the like: each output position depends on the whole channel axis."""
    _over(node, t, range(t.of(node).ndim))


def _over(node: Node, t: Tracker, axes: Sequence[int]) -> None:
    """A normalization along `axes`, which locks channels that lie there."""
    ids = whole(t, t.of(node), axes)
    if any(a in axes for a in varying(ids)):
        t.lock(ids, f"{node.op} over the channels")
    for i in range(len(node.outputs)):
        t.put(node, ids if i == 0 else t.fixed(len(t.out_shape(node, i))), i)


def lp_normalization(node: Node, t: Tracker) -> None:
    """LpNormalization along one axis."""
    _over(node, t, [int(node.attrs.get("axis", -1)) % max(t.of(node).ndim, 1)])


def mean_variance_normalization(node: Node, t: Tracker) -> None:
    """MeanVarianceNormalization; by default each channel by itself."""
    _over(node, t, [int(a) % t.of(node).ndim for a in node.attrs.get("axes", (0, 2, 3))])


def layer_normalization(node: Node, t: Tracker) -> None:
    """LayerNormalization, RMSNormalization: removing channels they normalise over changes the statistics.

    If that is permitted, γ and β are tied to the channels that are left. Heads that are normalised may go as a whole.
    """
    ids = t.of(node)
    axis = int(node.attrs.get("axis", -1)) % max(ids.ndim, 1)
    ids = whole(t, ids, range(axis, ids.ndim))
    differ = [a for a in varying(ids) if a >= axis]
    known = all(t.is_constant(node, i) for i in (1, 2) if t.name(node, i))
    if differ and t.permit.norms and known:
        normalised(node, t, ids, range(axis, ids.ndim))
        for i, role in ((1, Role.SCALE), (2, Role.SHIFT)):
            if t.name(node, i):
                tie(node, t, i, ids, t.in_shape(node), role)
    elif differ:
        t.lock(ids, over_reason(node) if known else f"{node.op} with computed parameters")
    for i in range(len(node.outputs)):
        t.put(node, ids if i == 0 else t.fixed(len(t.out_shape(node, i))), i)


def whole(t: Tracker, ids: Ids, axes: Sequence[int]) -> Ids:
    """Ids that are the same along `axes`, if what lies along them may stay or go as a whole.

    Whole heads may, if that is permitted; and what is made several times, such as the branches of selective kernels and
    split attention: there `axes` come before those of the channels, which go from all of the branches.
    """
    others, own = ([a for a in varying(ids) if (a in axes) == inside] for inside in (False, True))
    if not others or not (t.permit.heads or (own and max(own) < min(others))):
        return ids
    apart = any(a in others for a in varying(compact(ids)))  # else all would be one
    return t.collapse(ids, others) if apart else ids


def over_reason(node: Node) -> str:
    """Why channels stay that a norm or a mean runs over, which the user could permit."""
    return f"{node.op} over the channels, without --allow-norm"


def normalised(node: Node, t: Tracker, ids: Ids, axes: Sequence[int]) -> None:
    """Note a permitted norm: all that it runs over shrinks equally wherever it is taken."""
    t.norms.append(Norm(t.position, ids, tuple(axes)))


def group_normalization(node: Node, t: Tracker) -> None:
    """GroupNormalization: whole groups may go, and `num_groups` with them. γ and β are per group up to opset 20."""
    ids, n = t.of(node), t.in_shape(node)[1]
    groups = int(node.attrs["num_groups"])
    ids = t.collapse(ids, (1,))
    if ids.shape[1] > 1:
        blocks = ids.reshape(groups, -1)
        t.unite(blocks, blocks[:, :1])
        for i, role in ((1, Role.SCALE), (2, Role.SHIFT)):
            if not t.is_constant(node, i):
                t.lock(ids, f"{node.op} with computed parameters")
            else:
                t.slot(node, i, (0,), ids.ravel() if t.in_shape(node, i) == (n,) else blocks[:, 0], role)
        t.demand(constant(groups, Place(t.position, "num_groups", 0)), blocks[:, 0], groups, 0)
    t.put(node, ids)


RULES: dict[str, Callable[[Node, Tracker], None]] = {
    "BatchNormalization": batch_normalization,
    "InstanceNormalization": instance_normalization,
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), layer_normalization),
    "LRN": over_channels,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "GroupNormalization": group_normalization,
}
