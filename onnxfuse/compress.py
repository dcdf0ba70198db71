"""Make a prepared graph small: settle how many channels each group keeps, merge group by group, rewrite."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from onnx import ModelProto

from .activations import measure
from .budget import absolute, choose
from .calibdata import Batches
from .calibrate import Study
from .channels import ChannelGroup, Channels, Locked, Slot
from .constants import densify
from .counts import file_bytes, macs, parameters
from .errors import ModelError, NothingToMerge
from .extents import shrunk_shape
from .findings import Lock, Role
from .folding import Folded
from .gradients import Salience, products
from .graph import Graph
from .grouping import find_channels
from .importance import GroupView, Scores, importance
from .linear import linear
from .lossless import Free, find_free
from .measuring import repair_notes, survey
from .merge import Merge, Task, TransportOptions, drop, strategy
from .options import Options
from .plan import Plan
from .prepare import prepare
from .probe import Probe
from .protos import Edge
from .providers import provider_list
from .quantized import lowered_graph
from .repair import Repair, repair
from .report import GroupRow, Size
from .requantize import kept_scales, restore
from .rewrite import Removal, conflicts, record_constants, removed_mask, rewrite, shorten
from .rounding import rounding_notes
from .schedule import blas_for_one_of_two, in_order
from .scheme import Lowered
from .scores import feature_of, function_of
from .surgeon import Source, View
from .tensors import Array, set_values
from .tracker import Permit
from .weights import Weights, gather, side_by_side
from .wishes import families

LARGE = 1 << 28
"""Bytes of weights from which on a group is merged alone, with as few copies as can be."""
Studies = dict[tuple[tuple[Edge, str], ...], Study | None]
"""What was measured, by the constants that it tells of: a lock may leave a shared one whole that was cloned before."""
Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how many of its steps are done, and how many there are."""


@dataclass(frozen=True, eq=False)
class Small:
    """A model after merging, and what the report says of it."""

    model: ModelProto
    before: Size
    after: Size
    groups: tuple[GroupRow, ...]
    locked: tuple[Locked, ...]
    plan: Plan
    notes: tuple[str, ...] = ()
    free: Mapping[str, int] | None = None


def untouched(original: ModelProto, reference: Probe, options: Options) -> Small:
    size = Size(0, parameters(original), macs(original, reference.shapes), 0)
    return Small(original, size, size, (), (), Plan(options.recorded()))


def compress(
    model: ModelProto,
    reference: Probe,
    options: Options,
    transport: TransportOptions,
    tell: Progress,
    room: float | None = None,
    batches: Batches | None = None,
    studies: Studies | None = None,
) -> Small:
    """Prepare, track, merge group by group from the output to the input, rewrite. `model` becomes small in place.

    `room` is how much of the multiply-accumulates that could go may stay, 0 to 1, for a search. Its trials share
    `studies`: what the first has measured of the whole model is not measured again.
    """
    studies = {} if studies is None else studies
    densify(model)
    before = (parameters(model), macs(model, reference.shapes))
    given = None if options.gradients is None else products(model, options.gradients)
    uses = {"params": lambda: before[0], "macs": lambda: before[1], "size": lambda: file_bytes(model)}
    options = absolute(options, uses)
    folded = prepare(model, options.exclude)
    graph, lowered = lowered_graph(model)
    if options.lossless:
        return _lossless(graph, reference, options, before, folded, lowered)

    def look(channels: Channels) -> Study | None:
        constants = tuple((s.edge, s.tensor) for s in channels.slots)
        if constants not in studies:
            tell("measure", 0, 1)
            with blas_for_one_of_two():
                studies[constants] = survey(channels, folded, options, batches, before, lowered)
        return studies[constants]

    channels, keep, measured = settle(graph, reference, options, room, look)
    salience = None if given is None else Salience(given, folded, graph.clones)
    energies = _measured(channels, options, batches, tell)
    repairs: list[Repair] = []
    with blas_for_one_of_two():
        merges, weights = _merge_all(channels, keep, options, transport, tell, salience, energies, measured)
        if measured is not None and options.repairs:
            weights, repairs = repair(channels, merges, measured, partial(tell, "repair"))
    rewrite(channels, weights, [Removal(g, m.kept) for g, m in merges])
    return _finish(channels, merges, repairs, before, folded, lowered, options, measured, room)


def _measured(
    channels: Channels, options: Options, batches: Batches | None, tell: Progress
) -> Mapping[ChannelGroup, Scores]:
    """What the metric wants to know of the activations, if it does."""
    feature = feature_of(options.importance)
    if feature is None or batches is None:
        return {}
    return measure(channels, batches, feature, provider_list(options.provider), partial(tell, "measure activations"))


def _lossless(
    graph: Graph,
    reference: Probe,
    options: Options,
    before: tuple[int, int],
    folded: Sequence[Folded],
    lowered: Lowered,
) -> Small:
    """`compress` of what nothing is lost without."""
    channels, found = settle_lossless(graph, reference, options)
    for bias, shift in found.shifts.items():
        set_values(graph.constants[bias], graph.array(bias) + shift)
    weights = Weights(graph)
    for group, merge in found.merges:
        weights.apply(group.slots, merge, {})
    rewrite(channels, weights, [Removal(g, m.kept) for g, m in found.merges])
    small = _finish(channels, found.merges, (), before, folded, lowered, options, None, None)
    return replace(small, plan=replace(small.plan, shifts=found.shifts), free=found.counts)


def settle_lossless(graph: Graph, reference: Probe, options: Options) -> tuple[Channels, Free]:
    """The channel groups and what they lose for nothing."""
    found: list[Free] = []

    def choose(channels: Channels) -> list[int]:
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
        seen[:] = [look(channels)] if options.spreads else []
        keep = kept_channels(channels, options, room, *seen)
        lenient = options.budgets or room is not None  # what is small enough already stays as it is
        if not lenient and not any(k < g.channels for k, g in zip(keep, channels.groups, strict=True)):
            raise NothingToMerge(_nothing(channels))
        return keep

    channels, keep = follow(graph, reference, options.exclude, choose_some, options.permit)
    return channels, keep, seen[0] if seen else look(channels)


def kept_channels(
    channels: Channels, options: Options, room: float | None = None, measured: Study | None = None
) -> list[int]:
    """How many channels each group keeps."""
    choices = families(channels, options)
    widths = choose(channels, choices, options, room, measured)
    return [choices.channels(g, widths) for g in channels.groups]


def follow(
    graph: Graph,
    reference: Probe,
    exclude: Sequence[str],
    choose: Callable[[Channels], list[int]],
    permit: Permit | None = None,
) -> tuple[Channels, list[int]]:
    """`choose` how many channels each group keeps, again and again until all shape constants can follow."""
    locks: list[Lock] = []
    while True:
        channels = find_channels(graph, reference, exclude, locks, permit)
        keep = choose(channels)
        trial = [Removal(g, np.arange(k)) for g, k in zip(channels.groups, keep, strict=True)]
        found = conflicts(channels, removed_mask(channels, trial))
        if not found:
            return channels, keep
        locks += found


def _nothing(channels: Channels) -> str:
    reasons = dict.fromkeys(f"{row.reason} ({row.name})" for row in channels.locked)
    listed = "; ".join(list(reasons)[:5]) + (f"; and {len(reasons) - 5} more" if len(reasons) > 5 else "")
    if channels.groups:
        largest = max(g.unit for g in channels.groups)
        listed = f"at this sparsity no group of at most {largest} channels loses one; raise --sparsity" + (
            f"; {listed}" if listed else ""
        )
    return f"nothing to merge: {listed or 'no Conv, ConvTranspose, Gemm, MatMul or embedding with constant weights'}"


def _merge_all(
    channels: Channels,
    keep: Sequence[int],
    options: Options,
    transport: TransportOptions,
    tell: Progress,
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
    mixing = set() if measured is None else linear(channels)

    def merge(number: int) -> Merge:
        group, k = todo[number]
        rows = {s: weights.gather(s) for s in group.slots if s.role in (Role.PRODUCES, Role.CONSUMES)}
        _check_finite(rows)
        rng = np.random.default_rng([options.seed, number])
        products = {} if salience is None else {s: gather(salience[s.tensor], s) for s in rows}
        scores = importance(score, GroupView(group, rows, rng, products, energies.get(group)))
        seen = _seen(measured, rows, group in mixing)
        joined = side_by_side(list(rows.values()))
        if joined.nbytes > LARGE:
            rows.clear()  # gathered again when they are needed
        result = (drop if group.select else method)(Task(joined, scores, k, transport, *seen))
        del joined
        weights.apply(group.slots, result, rows)
        done.add(number, result, weights)
        return result

    wait = _shared_tensors([g for g, _ in todo], weights.graph)
    merges = in_order(merge, wait, lambda count: tell("merge", count, len(todo)))
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
        return [], Source.SYNTHETIC, False
    views = measured.views(rows)
    return views, measured.source, mixes and len(views) == sum(s.role is Role.CONSUMES for s in rows)


def _check_finite(rows: Mapping[Slot, Array]) -> None:
    for slot, values in rows.items():
        if not np.isfinite(values).all():
            raise ModelError(
                f"weight {slot.tensor!r} of {slot.node} has values that are not finite; repair the model first"
            )


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
        if _bytes(group, graph) > LARGE:
            before[-1].update(large[-1:])
            large.append(number)
        for t in tensors:
            last.setdefault(t, []).append(number)
    return before


def _bytes(group: ChannelGroup, graph: Graph) -> int:
    """Of the weights that make or read the group, as float32."""
    return sum(4 * math.prod(graph.constants[name].dims) for name in {s.tensor for s in group.slots})


def _finish(
    channels: Channels,
    merges: Sequence[tuple[ChannelGroup, Merge]],
    repairs: Sequence[Repair],
    before: tuple[int, int],
    folded: Sequence[Folded],
    lowered: Lowered,
    options: Options,
    measured: Study | None,
    room: float | None,
) -> Small:
    t, removals = channels.tracker, [Removal(g, m.kept) for g, m in merges]
    kept = removed_mask(channels, removals)
    shapes = {name: shrunk_shape(channels, kept, name) for name in t.probe.shapes}
    after = {g: len(m.kept) for g, m in merges}
    rows = tuple(GroupRow(g.name, g.channels, after.get(g, g.channels), g.nodes) for g in channels.groups)
    model = t.graph.model
    left = macs(model, shapes)
    restore(t.graph, lowered, kept_scales(t.graph, lowered, removals))
    record_constants(model)
    sizes = (
        Size(sum(r.before for r in rows), *before, 0),
        Size(sum(r.after for r in rows), parameters(model), left, 0),
    )
    settled = options if room is None else replace(options, target_macs=max(1.5, sizes[1].macs))
    plan = Plan(settled.recorded(), tuple(folded), t.graph.clones, tuple(merges), repairs=tuple(repairs))
    notes = rounding_notes(channels, {g: after.get(g, g.channels) for g in channels.groups}, options)
    notes += repair_notes(repairs, options, measured) + _selection_notes([g for g, _ in merges])
    return Small(model, *sizes, rows, channels.locked, plan, notes)


def _selection_notes(groups: Sequence[ChannelGroup]) -> tuple[str, ...]:
    """Which groups lost channels without a merge, by reason."""
    reasons = Counter(g.select for g in groups if g.select)
    return tuple(f"selected, not merged in {n} group{'s' * (n > 1)}: {reason}" for reason, n in reasons.items())
