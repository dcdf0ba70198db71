"""Which widths each family of groups may have: what the user wishes for single layers, and what kernels like."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .allocate import kept_count
from .channels import ChannelGroup, Channels
from .earlier import planned
from .families import Families
from .findings import Role
from .options import Options
from .patterns import check_matches, ratios
from .resources import Widths, family_places
from .rounding import Blocks, blocks


def makers(group: ChannelGroup) -> tuple[str, ...]:
    """Names of the layers that make a group's channels: what `--keep` and `--ratio` match."""
    return tuple(dict.fromkeys([group.name, *(s.node for s in group.slots if s.role is Role.PRODUCES)]))


def families(channels: Channels, options: Options) -> Families:
    """The families of the groups and the widths they may have.

    Raises:
        UsageError: a pattern or a plan's group matches nothing.
    """
    groups = channels.groups
    _check(groups, options)
    places = family_places(groups)
    units = np.zeros(len(places), np.int64)
    for g in groups:
        units[places[g.family]] = g.unit
    allowed = [np.arange(1, unit + 1) for unit in units.tolist()]
    finer, billed = list(allowed), [np.arange(unit + 1) for unit in units.tolist()]
    for g, block in blocks(channels, options).items():
        place, share = places[g.family], g.channels // g.unit
        allowed[place] = _those(block.fill, allowed[place], share)
        finer[place] = _those(block.suit, finer[place], share)
        billed[place] = np.maximum(billed[place], _billed(block, units[place], share))
    least = np.ones(len(places), np.int64)
    for place, wish in _wishes(groups, places, units, options):
        allowed[place] = finer[place] = np.array([wish], np.int64)
        least[place] = wish
    return Families(places, units, tuple(allowed), tuple(finer), tuple(billed), least)


def _billed(block: Blocks, unit: int, share: int) -> Widths:
    """(unit + 1,) the widths, of `share` channels each, that take as long as the widths 0 … unit."""
    return np.ceil(block.billed(np.arange(unit + 1) * share) / share).astype(np.int64)


def _those(fit: Callable[[Widths], NDArray[np.bool_]], widths: Widths, share: int) -> Widths:
    """The widths, of `share` channels each, that fit, and the one that keeps everything."""
    those: Widths = widths[fit(widths * share) | (widths == widths[-1])]
    return those


def _check(groups: Sequence[ChannelGroup], options: Options) -> None:
    if groups:
        check_matches("only", options.only, "group", [g.name for g in groups])
        only = " with this --only" if options.only else ""
        may = _may_shrink(groups, options)
        layers, open_layers = (sorted({name for g in some for name in makers(g)}) for some in (groups, may))
        check_matches("keep", options.keep, "layer whose channels may shrink", layers)
        check_matches("ratio", [p for p, _ in ratios(options)], f"layer whose channels may shrink{only}", open_layers)


def _may_shrink(groups: Sequence[ChannelGroup], options: Options) -> list[ChannelGroup]:
    """Those that `--only` names, and their families; whatever else is asked for, no others shrink."""
    named = {g.family for g in groups if _matches(options.only or ("",), [g.name])}
    return [g for g in groups if g.family in named]


def _wishes(
    groups: Sequence[ChannelGroup], places: dict[int, int], units: Widths, options: Options
) -> Iterator[tuple[int, int]]:
    """(place of a family, the one width it may have), later ones over earlier ones."""
    asked = (
        options.sparsity is not None
        or options.budgets
        or options.target_latency is not None
        or (options.floors and not options.sized)
    )
    may = _may_shrink(groups, options)
    yield from ((places[g.family], g.unit) for g in groups if not asked or g not in may)
    yield from ((places[g.family], width) for g, width in planned(groups, options.from_plan) if g in may)
    for pattern, ratio in ratios(options):
        yield from ((places[g.family], kept_count(g.unit, ratio)) for g in may if _matches([pattern], makers(g)))
    yield from ((places[g.family], g.unit) for g in groups if _matches(options.keep, makers(g)))


def _matches(patterns: Sequence[str], names: Sequence[str]) -> bool:
    return any(re.search(p, name) for p in patterns for name in names)
