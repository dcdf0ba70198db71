"""Settle how many channels each group keeps, so that all that is computed from their counts can follow."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from .allocate import kept_count
from .budget import choose, unmeasured
from .calibrate import Study
from .channels import Channels, held
from .errors import ModelError, NothingToMerge
from .findings import Lock
from .graph import Graph
from .grouping import find_channels
from .ids import FIXED, counted
from .lossless import Free, find_free
from .options import Options
from .probe import Probe
from .providers import provider_list
from .rewrite import Removal, conflicts, removed_mask
from .tracker import Permit
from .weights import check_finite
from .wishes import families


def settle_lossless(graph: Graph, reference: Probe, options: Options) -> tuple[Channels, Free]:
    """The channel groups and what they lose for nothing."""
    found: list[Free] = []

    def choose(channels: Channels) -> list[int]:
        check_finite(channels)
        found.append(find_free(channels, reference, provider_list("cpu")))
        kept = {group: len(merge.kept) for group, merge in found[-1].merges}
        if not kept:
            raise NothingToMerge("nothing to merge: no channel is dead, constant or a duplicate of another one")
        return [kept.get(group, group.channels) for group in channels.groups]

    channels, _ = follow(graph, reference, options.exclude, choose)
    return channels, found[-1]


def settle(
    graph: Graph, reference: Probe, options: Options, room: float | None, look: Callable[[Channels], Study | None]
) -> tuple[Channels, list[int], Study | None]:
    """The channel groups, how many each keeps, and what `look` has measured of them.

    Every group is locked that a shape constant could not follow.
    """
    seen: list[Study | None] = []

    def choose_some(channels: Channels) -> list[int]:
        def measured() -> Study | None:
            seen[:] = [look(channels)]
            return seen[0]

        seen.clear()
        keep = kept_channels(channels, options, room, measured if options.spreads else unmeasured)
        lenient = options.budgets or options.sparsity == 0 or room is not None  # what is small enough stays as it is
        if not lenient and not any(k < g.channels for k, g in zip(keep, channels.groups, strict=True)):
            raise NothingToMerge(_nothing(channels, options))
        return keep

    channels, keep = follow(graph, reference, options.exclude, choose_some, options.permit)
    return channels, keep, seen[0] if seen else look(channels)


def kept_channels(
    channels: Channels,
    options: Options,
    room: float | None = None,
    measured: Callable[[], Study | None] = unmeasured,
) -> list[int]:
    """How many channels each group keeps; nothing is `measured` for what cannot be had.

    Raises:
        NothingToMerge: the smallest model of a quality is asked for, and nothing may shrink.
    """
    choices = families(channels, options)
    if options.floors and not options.sized and not (choices.narrowest < choices.units).any():
        raise NothingToMerge(_nothing(channels, options))
    widths = choose(channels, choices, options, room, measured)
    return [choices.channels(g, widths) for g in channels.groups]


def follow(
    graph: Graph,
    reference: Probe,
    exclude: Sequence[str],
    choose: Callable[[Channels], list[int]],
    permit: Permit | None = None,
) -> tuple[Channels, list[int]]:
    """`choose` how many channels each group keeps, again and again until all shape constants can follow.

    Every round locks channels that none has locked before, so there is a last one.

    Raises:
        ModelError: a shape constant could not follow though all that it depends on is locked.
    """
    locks: list[Lock] = []
    held: set[int] = {FIXED}
    while True:
        channels = find_channels(graph, reference, exclude, locks, permit)
        keep = choose(channels)
        trial = [Removal(g, np.arange(k)) for g, k in zip(channels.groups, keep, strict=True)]
        found = conflicts(channels, removed_mask(channels, trial))
        if not found:
            return channels, keep
        new = {i for lock in found for i in counted(lock.ids)[0].tolist()} - held
        if not new:
            node = found[0].node
            raise ModelError(f"{node}: {found[0].reason}; leave it alone with --exclude {re.escape(node)!r}")
        locks, held = locks + found, held | new


def _nothing(channels: Channels, options: Options) -> str:
    listed = held(channels.locked)
    if channels.groups:
        largest = max(g.unit for g in channels.groups)
        wishes = options.sparsity is None or options.wishes
        rounded = not wishes and any(kept_count(g.unit, options.sparsity or 0) < g.unit for g in channels.groups)
        few = f"at this sparsity no group of at most {largest} channels loses "
        few += "what kernels take at a time; raise --sparsity, or --round-to 1" if rounded else "one; raise --sparsity"
        few = few if largest > 1 else "of no group's channels can a part go: they stay together"
        asked = "what is asked for takes no channel from any group" if wishes else few
        listed = f"{asked}; {listed}" if listed else asked
    return f"nothing to merge: {listed or 'no Conv, ConvTranspose, Gemm, MatMul or embedding with constant weights'}"
