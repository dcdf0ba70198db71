"""Operators that pick, write or count positions by values that are known at run time only.

Where they work along another axis than the channels', the channels pass; where along theirs, they stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..graph import Node
from ..ids import Ids, varying
from ..tracker import Tracker

PLAIN = """Range NonZero NonMaxSuppression OneHot EyeLike Unique Multinomial RandomNormal RandomUniform Det
StringNormalizer TfIdfVectorizer HannWindow HammingWindow BlackmanWindow MelWeightMatrix""".split()


def plain(node: Node, t: Tracker) -> None:
    """The result has no channels, and what goes in must stay as it is: its positions are counted."""
    for i in range(len(node.inputs)):
        t.lock(t.of(node, i), f"{node.op} reads their positions")
    for i in range(len(node.outputs)):
        t.put(node, t.fixed(len(t.out_shape(node, i))), i)


def conditional(node: Node, t: Tracker) -> None:
    """If: its branches were tracked before it. Channels that both of them return, but for axes of length 1, go on; what
    each makes itself stays, as no sample shows both of what a weight behind them reads."""
    t.lock(t.of(node), "decides which branch of If runs")
    branches = [node.attrs[side].outputs for side in ("then_branch", "else_branch")]
    for i, pair in enumerate(zip(*branches, strict=True)):
        known = [(t.shape(value.name), t.ids[value.name]) for value in pair if value.name in t.ids]
        for shape, ids in known:
            if shape == t.out_shape(node, i):
                t.put(node, ids, i)
        bare = [_without_ones(shape, ids) for shape, ids in known]
        if len(bare) < 2 or not np.array_equal(bare[0], bare[1]):
            for _, ids in known:
                t.lock(ids, "feeds an output of If")


def _without_ones(shape: Sequence[int], ids: Ids) -> Ids:
    """Ids along the axes that are longer than 1."""
    return ids.squeeze(tuple(axis for axis, size in enumerate(shape) if size == 1))


def _along(node: Node, t: Tracker, ids: Ids, axes: Sequence[int]) -> Ids:
    """The ids, if they are constant along these axes; else they are locked and the result has none."""
    if any(a in axes for a in varying(ids)):
        t.lock(ids, f"{node.op} over the channels")
        return t.fixed(ids.ndim)
    return ids


def top_k(node: Node, t: Tracker) -> None:
    """TopK: values and indices, along one axis."""
    ids = t.of(node)
    ids = _along(node, t, ids, [int(node.attrs.get("axis", -1)) % max(ids.ndim, 1)])
    for i in range(len(node.outputs)):
        t.put(node, ids, i)


def cumulative_sum(node: Node, t: Tracker) -> None:
    """CumSum along one axis: over channels each would depend on those before it."""
    ids = t.of(node)
    axis = t.read(node, 1)
    t.put(node, _along(node, t, ids, range(ids.ndim) if axis is None else [int(axis.item().value) % ids.ndim]))


def trilu(node: Node, t: Tracker) -> None:
    """Trilu masks by the positions along the last two axes."""
    ids = t.of(node)
    t.put(node, _along(node, t, ids, [ids.ndim - 1, ids.ndim - 2]))


def reverse_sequence(node: Node, t: Tracker) -> None:
    """ReverseSequence turns parts of the time axis around, by sample."""
    ids = t.of(node)
    t.put(node, _along(node, t, ids, [int(node.attrs.get("time_axis", 0)), int(node.attrs.get("batch_axis", 1))]))


def compress(node: Node, t: Tracker) -> None:
    """Compress along one axis, or of the flattened tensor."""
    ids = t.of(node)
    axis = node.attrs.get("axis")
    ids = _along(node, t, ids, range(ids.ndim) if axis is None else [int(axis) % ids.ndim])
    t.put(node, t.fixed(1) if axis is None else ids)


def sample(node: Node, t: Tracker) -> None:
    """RoiAlign and GridSample: (N, C, …) is read at places that other inputs give; channels pass."""
    for i in range(1, len(node.inputs)):
        t.lock(t.of(node, i), f"{node.op} reads them as places")
    t.put(node, t.collapse(t.of(node), (1,)))


def gather_elements(node: Node, t: Tracker) -> None:
    """GatherElements: the indices have the result's shape, so their channels go with the data's."""
    ids = t.of(node)
    ids = _along(node, t, ids, [int(node.attrs.get("axis", 0)) % max(ids.ndim, 1)])
    t.unite(ids, t.of(node, 1))
    t.put(node, ids)


def scatter_elements(node: Node, t: Tracker) -> None:
    """ScatterElements: data, indices and updates agree on all axes but one, so their channels there go together."""
    axis = int(node.attrs.get("axis", 0)) % max(t.of(node).ndim, 1)
    data, indices, updates = (_along(node, t, t.of(node, i), [axis]) for i in range(3))
    t.unite(data, updates)
    t.unite(data, indices)
    t.unite(updates, indices)
    t.put(node, data)


def gather_nd(node: Node, t: Tracker) -> None:
    """GatherND: the last axis of the indices addresses the first axes of the data (after the batch axes)."""
    ids, indices = t.of(node), t.in_shape(node, 1)
    first = int(node.attrs.get("batch_dims", 0)) + indices[-1]
    ids = _along(node, t, ids, range(first))
    t.lock(t.of(node, 1), "GatherND reads them as places")
    t.put(node, ids.reshape((1,) * (len(indices) - 1) + ids.shape[first:]))


def scatter_nd(node: Node, t: Tracker) -> None:
    """ScatterND: updates have the indices' leading axes, then the data's axes that are not addressed."""
    ids, updates, indices = t.of(node), t.of(node, 2), t.in_shape(node, 1)
    ids = _along(node, t, ids, range(indices[-1]))
    updates = _along(node, t, updates, range(len(indices) - 1))
    t.lock(t.of(node, 1), "ScatterND reads them as places")
    whole = ids.reshape(ids.shape[indices[-1] :])
    t.unite(whole, updates.reshape(updates.shape[len(indices) - 1 :]))
    t.put(node, ids)


RULES: dict[str, Callable[[Node, Tracker], None]] = {
    **dict.fromkeys(PLAIN, plain),
    "If": conditional,
    "TopK": top_k,
    "CumSum": cumulative_sum,
    "Trilu": trilu,
    "ReverseSequence": reverse_sequence,
    "Compress": compress,
    **dict.fromkeys(("RoiAlign", "GridSample"), sample),
    "GatherElements": gather_elements,
    "ScatterElements": scatter_elements,
    "GatherND": gather_nd,
    "ScatterND": scatter_nd,
}
