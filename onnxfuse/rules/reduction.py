"""Pooling and reductions: they pass channels on as long as they do not reduce over them."""

from __future__ import annotations

from collections.abc import Callable

from ..findings import Norm
from ..graph import Node
from ..ids import Ids, varying
from ..tracker import Tracker
from .normalization import over_reason, whole

POOLS = "AveragePool MaxPool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool".split()
REDUCTIONS = """ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare""".split()


MEANS = ("ReduceMean", "ReduceL2")
"""What layer, RMS and cosine normalizations are made of, when they are spelled out."""


def pool(node: Node, t: Tracker) -> None:
    """(N, C, …): windows mix positions, so ids that differ there unite."""
    ids = t.collapse(t.of(node), (0, 1))
    for i in range(len(node.outputs)):
        t.put(node, ids, i)
    if len(node.outputs) > 1 and node.outputs[1].name:
        t.lock(ids, "MaxPool's indices depend on the channel count")


def reduce(node: Node, t: Tracker) -> None:
    """Reductions over axes where ids are constant; over channels they lock, since the result would change.

    Means over channels may be permitted; see `whole` for what is no obstacle.
    """
    rank, ids = len(t.in_shape(node)), t.of(node)
    axes = _axes(node, t, rank)
    if axes is None:
        t.lock(ids, f"{node.op} over the channels")
        t.put(node, t.fixed(len(t.out_shape(node))))
        return
    ids = whole(t, ids, axes)
    if any(ids.shape[a] > 1 for a in axes):
        _over_channels(node, t, ids, axes)
        ids = t.fixed(rank)
    t.put(node, _without(ids, axes, bool(node.attrs.get("keepdims", 1))))


def _over_channels(node: Node, t: Tracker, ids: Ids, axes: list[int]) -> None:
    if node.op not in MEANS or not t.permit.norms:
        blocks = not t.permit.heads and any(a not in axes for a in varying(ids))
        other = (
            f"{node.op} within blocks of channels, without --prune-heads" if blocks else f"{node.op} over the channels"
        )
        t.lock(ids, over_reason(node) if node.op in MEANS else other)
        return
    t.norms.append(Norm(t.position, ids, tuple(axes)))
    for axis in varying(ids):
        if axis not in axes:
            t.pin(ids, axis)


def arg_reduce(node: Node, t: Tracker) -> None:
    """ArgMax and ArgMin, over one axis."""
    ids = t.of(node)
    axis = int(node.attrs.get("axis", 0)) % max(ids.ndim, 1)
    if ids.shape[axis] > 1:
        t.lock(ids, f"{node.op} over the channels")
        ids = t.fixed(ids.ndim)
    t.put(node, _without(ids, [axis], bool(node.attrs.get("keepdims", 1))))


def _axes(node: Node, t: Tracker, rank: int) -> list[int] | None:
    numbers = t.operand(node, 1, "axes")
    if t.name(node, 1) and numbers is None:
        return None
    if numbers is None or numbers.size == 0:
        return [] if node.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    return [int(n.value) % rank for n in numbers]


def _without(ids: Ids, axes: list[int], keepdims: bool) -> Ids:
    return ids if keepdims else ids.reshape([s for a, s in enumerate(ids.shape) if a not in axes])


def softmax(node: Node, t: Tracker) -> None:
    """Softmax, LogSoftmax, Hardmax over channels lock them. Before opset 13 they cover all axes from `axis` on."""
    ids = t.of(node)
    rank = max(ids.ndim, 1)
    new = t.graph.opset >= 13
    axis = int(node.attrs.get("axis", -1 if new else 1)) % rank
    axes = [axis] if new else list(range(axis, rank))
    ids = whole(t, ids, axes)
    if any(a in axes for a in varying(ids)):
        t.lock(ids, f"{node.op} over the channels")
    t.put(node, ids)


RULES: dict[str, Callable[[Node, Tracker], None]] = {
    **dict.fromkeys(POOLS, pool),
    **dict.fromkeys(REDUCTIONS, reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), arg_reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
}
