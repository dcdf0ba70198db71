"""Merge all groups, two at a time where they share no weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from .calibrate import Study
from .channels import ChannelGroup, Channels, Slot
from .findings import Role
from .gradients import Salience
from .graph import Graph
from .importance import GroupView, Scores, importance
from .linear import linear
from .merge import Merge, Task, TransportOptions, balanced, drop, strategy
from .options import Options
from .paired import paired
from .rewrite import Removal, shorten
from .schedule import WORKERS, in_order
from .scores import function_of
from .surgeon import View
from .tensors import Array
from .trust import Source
from .weights import Weights, gather, side_by_side

LARGE = 1 << 28
"""Bytes of weights from which on a group is merged alone, with as few copies as can be."""
SMALL = 1 << 15
"""Bytes of weights for each slot, on average, up to which one thread is faster than several that take turns."""


def merge_all(
    channels: Channels,
    keep: Sequence[int],
    options: Options,
    transport: TransportOptions,
    tell: Callable[[int, int], None],
    salience: Salience | None,
    energies: Mapping[ChannelGroup, Scores],
    measured: Study | None,
) -> tuple[list[tuple[ChannelGroup, Merge]], Weights]:
    """Merge every group, the last in the graph first: later plans see the weights that earlier ones left.

    Groups that share no weight tensor do not see each other, so two are merged at a time. A tensor whose groups are all
    merged is shortened at once, if nothing will ask for its old size.
    """
    weights = Weights(channels.tracker.graph, keep=measured is not None)
    method, score = strategy(options.method), function_of(options.importance, channels)
    todo = [(g, k) for g, k in zip(channels.groups, keep, strict=True) if k < g.channels][::-1]
    done = _Done([g for g, _ in todo])
    mixing, pairs = set() if measured is None else linear(channels), paired(channels)

    def merge(number: int) -> Merge:
        group, k = todo[number]
        rows = {s: weights.gather(s) for s in group.slots if s.role in (Role.PRODUCES, Role.CONSUMES)}
        rng = np.random.default_rng([options.seed, number])
        products = {} if salience is None else {s: gather(salience[s.tensor], s) for s in rows}
        scores = importance(score, GroupView(group, rows, rng, products, energies.get(group), group in pairs))
        seen = _seen(measured, rows, group in mixing)
        joined = side_by_side(list(rows.values()))
        if joined.nbytes > LARGE:
            rows.clear()  # gathered again when they are needed
        name, how = ("drop", drop) if group.select else (options.method, method)
        result = how(Task(joined, scores, k, transport, *seen, options.scored))
        result = replace(balanced(result) if group in pairs else result, method=result.method or name)
        del joined
        weights.apply(group.slots, result, rows)
        done.add(number, result, weights)
        return result

    groups = [g for g, _ in todo]
    workers = 1 if _bytes(groups, weights.graph) < SMALL * sum(len(g.slots) for g in groups) else WORKERS
    wait = _shared_tensors(groups, weights.graph)
    merges = in_order(merge, wait, lambda count: tell(count, len(todo)), workers)
    return [(g, m) for (g, _), m in zip(todo, merges, strict=True)], weights


class _Done:
    """The groups that are merged, and by that the constants that can be shortened."""

    def __init__(self, groups: Sequence[ChannelGroup]) -> None:
        self.groups = groups
        self.removals: dict[int, Removal] = {}
        self.holders: dict[str, list[int]] = {}  # constant → the groups that have channels in it
        for number, group in enumerate(groups):
            for tensor in {s.tensor for s in group.slots}:
                self.holders.setdefault(tensor, []).append(number)

    def add(self, number: int, result: Merge, weights: Weights) -> None:
        """One more is merged."""
        self.removals[number] = Removal(self.groups[number], result.kept)
        if weights.keep:
            return
        tensors = sorted({s.tensor for s in self.groups[number].slots})
        whole = [t for t in tensors if all(i in self.removals for i in self.holders[t])]
        concerned = sorted({i for t in whole for i in self.holders[t]})
        shorten(weights.graph, weights, [self.removals[i] for i in concerned], whole)


def _seen(measured: Study | None, rows: Mapping[Slot, Array], mixes: bool) -> tuple[list[View], Source, bool]:
    """What a strategy knows of a group's consumers; its channels are mixed only if all of these will be repaired."""
    if measured is None:
        return [], Source.OTHER, False
    views = measured.views(rows)
    return views, measured.source, mixes and len(views) == sum(s.role is Role.CONSUMES for s in rows)


def _shared_tensors(groups: Sequence[ChannelGroup], graph: Graph) -> list[set[int]]:
    """For each group the earlier ones that it must wait for: those that change a tensor it reads.

    A large group waits for the large one before it, too: the memory of one is enough.
    """
    last: dict[str, list[int]] = {}
    before: list[set[int]] = []
    large: list[int] = []
    for number, group in enumerate(groups):
        tensors = {slot.tensor for slot in group.slots}
        before.append({i for t in tensors for i in last.get(t, [])})
        if _bytes([group], graph) > LARGE:
            before[-1].update(large[-1:])
            large.append(number)
        for t in tensors:
            last.setdefault(t, []).append(number)
    return before


def _bytes(groups: Sequence[ChannelGroup], graph: Graph) -> int:
    """Of the weights that make or read the groups, as float32."""
    return sum(4 * math.prod(graph.constants[name].dims) for name in {s.tensor for g in groups for s in g.slots})
