"""Make a prepared graph small: settle how many channels each group keeps, merge group by group, rewrite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from onnx import ModelProto, NodeProto

from .activations import measure
from .budget import absolute
from .calibdata import Batches
from .calibrate import Study
from .channels import ChannelGroup, Channels, Locked
from .constants import densify, put_back, tied_weights
from .counts import file_bytes, macs, parameters
from .extents import shrunk_shape
from .folding import Folded
from .gradients import Salience, products
from .graph import Graph
from .importance import Scores
from .measuring import repair_notes, survey
from .merge import Merge, TransportOptions
from .merging import merge_all
from .options import Options
from .picking import behind_picks
from .plan import Plan
from .prepare import prepare
from .probe import Probe
from .protos import Edge
from .providers import provider_list
from .quantized import lowered_graph
from .repair import Repair, repair
from .report import GroupRow, Size
from .requantize import kept_scales, restore
from .rewrite import Removal, record_constants, removed_mask, rewrite
from .rounding import rounding_notes
from .schedule import blas_for_one_of_two
from .scheme import Lowered
from .scores import feature_of
from .settle import settle, settle_lossless
from .tensors import set_values
from .trust import Source
from .unshare import rejoin
from .weights import Weights, check_finite

Studies = dict[tuple[tuple[Edge, str], ...], Study | None]
"""What was measured, by the constants that it tells of: a lock may leave a shared one whole that was cloned before."""
Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how many of its steps are done, and how many there are."""


@dataclass(frozen=True, eq=False)
class Small:
    """A model after merging, and what the report says of it.

    Attributes:
        others: synthetic samples that nothing was fitted to, if it was fitted to such.
        read: whether the network reads, or finds, what is written in these: random input tells nothing beside them.
    """

    model: ModelProto
    before: Size
    after: Size
    groups: tuple[GroupRow, ...]
    locked: tuple[Locked, ...]
    plan: Plan
    notes: tuple[str, ...] = ()
    free: Mapping[str, int] | None = None
    others: Batches = field(default_factory=list)
    read: bool = False


@dataclass(frozen=True, eq=False)
class Prepared:
    """A graph ready for tracking.

    Attributes:
        graph: its model is what becomes small.
        before: parameters and multiply-accumulates of the file.
        folded: its BatchNormalizations.
        lowered: how quantized parts were replaced.
        tied: nodes that computed a weight from one that others read, too.
    """

    graph: Graph
    before: tuple[int, int]
    folded: Sequence[Folded]
    lowered: Lowered
    tied: Sequence[NodeProto]


def untouched(original: ModelProto, reference: Probe, options: Options) -> Small:
    size = Size(0, parameters(original), macs(original, reference.shapes), 0)
    return Small(original, size, size, (), (), Plan(options.recorded()))


def compress(
    model: ModelProto,
    reference: Probe,
    options: Options,
    transport: TransportOptions,
    tell: Progress,
    room: float | None,
    batches: Batches | None,
    studies: Studies,
) -> Small:
    """Prepare, track, merge group by group from the output to the input, rewrite. `model` becomes small in place.

    `room` is how much of the multiply-accumulates that could go may stay, 0 to 1, for a search. Its trials share
    `studies`: what the first has measured of the whole model is not measured again.
    """
    tell("find channel groups", 0, 1)
    densify(model)
    before = (parameters(model), macs(model, reference.shapes))
    given = None if options.gradients is None else products(model, options.gradients)
    uses = {"params": lambda: before[0], "macs": lambda: before[1], "size": lambda: file_bytes(model)}
    options = absolute(options, uses)
    tied = tied_weights(model)
    folded = prepare(model, options.exclude, reference.shapes)
    graph, lowered, reference = lowered_graph(model, reference)
    prepared = Prepared(graph, before, folded, lowered, tied)
    if options.lossless:
        return _lossless(prepared, reference, options)

    def look(channels: Channels) -> Study | None:
        constants = tuple((s.edge, s.tensor) for s in channels.slots)
        if constants not in studies:
            check_finite(channels)
            tell("measure", 0, 1)
            with blas_for_one_of_two():
                studies[constants] = survey(channels, folded, options, batches, before)
        return studies[constants]

    channels, keep, measured = settle(graph, reference, options, room, look)
    salience = None if given is None else Salience(given, folded, graph.clones)
    energies = _measured(channels, options, batches, tell)
    repairs: list[Repair] = []
    with blas_for_one_of_two():
        merges, weights = merge_all(
            channels, keep, options, transport, partial(tell, "merge"), salience, energies, measured
        )
    if measured is not None and options.repairs:
        weights, repairs = repair(channels, merges, measured, partial(tell, "repair"))
    tell("rewrite", 0, 1)
    rewrite(channels, weights, [Removal(g, m.kept) for g, m in merges])
    return _finish(channels, merges, repairs, prepared, options, measured, room)


def _measured(
    channels: Channels, options: Options, batches: Batches | None, tell: Progress
) -> Mapping[ChannelGroup, Scores]:
    """What the metric wants to know of the activations, if it does."""
    feature = feature_of(options.importance)
    if feature is None or batches is None:
        return {}
    return measure(channels, batches, feature, provider_list(options.provider), partial(tell, "measure activations"))


def _lossless(prepared: Prepared, reference: Probe, options: Options) -> Small:
    """`compress` of what nothing is lost without."""
    graph = prepared.graph
    channels, found = settle_lossless(graph, reference, options)
    for bias, shift in found.shifts.items():
        set_values(graph.constants[bias], graph.array(bias) + shift)
    weights = Weights(graph)
    for group, merge in found.merges:
        weights.apply(group.slots, merge, {})
    rewrite(channels, weights, [Removal(g, m.kept) for g, m in found.merges])
    small = _finish(channels, found.merges, (), prepared, options, None, None)
    return replace(small, plan=replace(small.plan, shifts=found.shifts), free=found.counts)


def _finish(
    channels: Channels,
    merges: Sequence[tuple[ChannelGroup, Merge]],
    repairs: Sequence[Repair],
    prepared: Prepared,
    options: Options,
    measured: Study | None,
    room: float | None,
) -> Small:
    t, lowered, removals = channels.tracker, prepared.lowered, [Removal(g, m.kept) for g, m in merges]
    kept = removed_mask(channels, removals)
    shapes = {name: shrunk_shape(channels, kept, name) for name in t.probe.shapes}
    after = {g: len(m.kept) for g, m in merges}
    by = {g: m.method for g, m in merges}
    rows = tuple(
        GroupRow(g.name, g.channels, after.get(g, g.channels), g.nodes, by.get(g, "")) for g in channels.groups
    )
    model = t.graph.model
    left = macs(model, shapes)
    changed = {s.tensor for g, _ in merges for s in g.slots} | _refitted(repairs)
    rejoin(t.graph, changed)
    restore(t.graph, lowered, kept_scales(t.graph, lowered, removals))
    put_back(model, prepared.tied, changed)
    record_constants(model)
    sizes = (
        Size(sum(r.before for r in rows), *prepared.before, 0),
        Size(sum(r.after for r in rows), parameters(model), left, 0),
    )
    settled = options if room is None else replace(options, target_macs=max(1.5, sizes[1].macs))
    plan = Plan(settled.recorded(), tuple(prepared.folded), t.graph.clones, tuple(merges), repairs=tuple(repairs))
    notes = rounding_notes(channels, {g: after.get(g, g.channels) for g in channels.groups}, options)
    merged = [g for g, _ in merges]
    notes += repair_notes(model, repairs, options, measured, merged) + _selection_notes(merged)
    notes += _budget_notes(options, merges)
    small = Small(model, *sizes, rows, channels.locked, plan, notes)
    if measured is None:
        return small
    read = measured.source is Source.READ and not behind_picks(model.graph)  # what is picked is compared elsewhere
    return replace(small, others=measured.others, read=read)


def _refitted(repairs: Sequence[Repair]) -> set[str]:
    """The constants that they changed."""
    return {name for r in repairs for name in (r.reader.slot.tensor, r.reader.bias) if name is not None}


def _budget_notes(options: Options, merges: Sequence[object]) -> tuple[str, ...]:
    """That there was nothing to do."""
    return ("nothing was merged: the original is within the budget",) if options.budgets and not merges else ()


def _selection_notes(groups: Sequence[ChannelGroup]) -> tuple[str, ...]:
    """Which groups lost channels without a merge, by reason."""
    reasons = Counter(g.select for g in groups if g.select)
    return tuple(f"selected, not merged in {n} group{'s' * (n > 1)}: {reason}" for reason, n in reasons.items())
