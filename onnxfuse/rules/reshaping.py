"""Operators that arrange the positions of one value anew, which their rules do to the id array itself."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import numpy as np

from ..graph import Node
from ..ids import Ids, compact, expand, varying
from ..tracker import Tracker


def reshape(node: Node, t: Tracker) -> None:
    """Reshape: its constant target is demanded to follow the channels it spells out."""
    out = t.out_shape(node)
    ids = reshaped(t.of(node), t.in_shape(node), out)
    numbers = t.operand(node, 1, "shape")
    if numbers is None or numbers.size != len(out):
        t.lock(ids, "Reshape to a computed shape")
    else:
        for axis, number in enumerate(numbers):
            if number.dims or number.value > 0:
                t.demand(number, ids, out[axis], axis)
    t.put(node, ids)


def flatten(node: Node, t: Tracker) -> None:
    t.put(node, reshaped(t.of(node), t.in_shape(node), t.out_shape(node)))


def reshaped(ids: Ids, old: Sequence[int], new: Sequence[int]) -> Ids:
    """Row-major reshape of ids from shape `old` to `new`, broadcasting only along axes that need it."""
    common = _common(old, new)
    if common == list(new):
        return compact(_rearranged(ids, old, new))
    return _rearranged(compact(_rearranged(ids, old, common)), common, new)  # axes laid together differ if one did


def _common(old: Sequence[int], new: Sequence[int]) -> list[int]:
    """The shape that parts each axis of both, such as (32, 8, 50) of (32, 400) and (256, 50): ids that vary along the
    32 are not laid out along the 400. Where an axis would be parted in two ways, it is that of `new`."""
    common: list[int] = []
    for before, after in _aligned(old, new):
        olds, news = [old[a] for a in before], [new[a] for a in after]
        ends = sorted({1, *accumulate(olds, operator.mul), *accumulate(news, operator.mul)})
        parted = 0 not in ends and all(b % a == 0 for a, b in pairwise(ends))
        common += [b // a for a, b in pairwise(ends)] if parted else news
    return common


def _rearranged(ids: Ids, old: Sequence[int], new: Sequence[int]) -> Ids:
    source, target = list(ids.shape), [1] * len(new)
    for before, after in _aligned(old, new):
        if any(ids.shape[a] > 1 for a in before):
            for a in before:
                source[a] = old[a]
            for a in after:
                target[a] = new[a]
    return np.broadcast_to(ids, source).reshape(target)


def _aligned(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes with equal products, such as (2, 3, 4) → (6, 4): ([0, 1], [0]), ([2], [1])."""
    if 0 in old or 0 in new:
        return [(list(range(len(old))), list(range(len(new))))]
    runs, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        before, after = [i] if i < len(old) else [], [j] if j < len(new) else []
        a, b = (old[i] if before else 1), (new[j] if after else 1)
        i, j = i + len(before), j + len(after)
        while a != b:
            if a < b:
                before.append(i)
                a, i = a * old[i], i + 1
            else:
                after.append(j)
                b, j = b * new[j], j + 1
        runs.append((before, after))
    return runs


def squeeze(node: Node, t: Tracker) -> None:
    """Squeeze and Unsqueeze move no position; the result's shape tells which axes they touch."""
    t.put(node, reshaped(t.of(node), t.in_shape(node), t.out_shape(node)))


def transpose(node: Node, t: Tracker) -> None:
    rank = len(t.in_shape(node))
    order = list(node.attrs.get("perm") or range(rank - 1, -1, -1))
    t.put(node, transposed(t, t.of(node), order))


def transposed(t: Tracker, ids: Ids, order: Sequence[int]) -> Ids:
    """Transpose; where it changes the order of two varying axes, the same channels must go in every block.

    Only then are the kept positions in the order in which the small graph will hold them. The longest
    varying axis stays the channel axis.
    """
    differ = varying(ids)
    if len(differ) > 1 and [a for a in order if a in differ] != differ:
        longest = max(differ, key=lambda a: ids.shape[a])
        ids = np.broadcast_to(t.collapse(ids, (longest,)), ids.shape)
    return np.transpose(ids, order)


def depth_to_space(node: Node, t: Tracker) -> None:
    """(N, C·b², H, W) → (N, C, H·b, W·b), as its definition: reshape, transpose, reshape. Whole channels of it go."""
    n, c, h, w = t.in_shape(node)
    b, crd = int(node.attrs["blocksize"]), node.attrs.get("mode", "DCR") == "CRD"
    parts = (n, c // b**2, b, b, h, w) if crd else (n, b, b, c // b**2, h, w)
    ids = reshaped(t.of(node), (n, c, h, w), parts)
    ids = transposed(t, ids, (0, 1, 4, 2, 5, 3) if crd else (0, 3, 4, 1, 5, 2))
    t.put(node, t.collapse(reshaped(ids, (n, c // b**2, h, b, w, b), t.out_shape(node)), (1,)))


def space_to_depth(node: Node, t: Tracker) -> None:
    """(N, C, H, W) → (N, b²·C, H/b, W/b)."""
    n, c, h, w = t.in_shape(node)
    b = int(node.attrs["blocksize"])
    ids = reshaped(t.of(node), (n, c, h, w), (n, c, h // b, b, w // b, b))
    ids = expand(ids, (n, c, h // b, b, w // b, b), (1, 3, 5))
    ids = np.transpose(ids, (0, 3, 5, 1, 2, 4))
    t.put(node, reshaped(ids, (n, b, b, c, h // b, w // b), t.out_shape(node)))


RULES: dict[str, Callable[[Node, Tracker], None]] = {
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": squeeze,
    "Transpose": transpose,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
}
