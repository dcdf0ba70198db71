"""`--lossless`: find the channels that nothing is lost without.

dead       what it varies by, times what reads it, is below float32's resolution, and so is its constant part
constant   the same, but a constant part is left, which goes into the biases of what reads it
duplicate  equal to another one, or a positive multiple of it where all operators between keep that so: what reads it
           reads the other one instead, that many times

Nothing is estimated from data: channels are judged by their weights, and constants are those that the channel has
when its own weights are set to zero. A channel that only some inputs leave dead is not dead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, helper
from scipy.sparse import csr_array

from .absorb import bias_of, columns, makes
from .channels import ChannelGroup, Channels, Slot
from .conduct import Conduct, conducts
from .findings import RawSlot, Role
from .ids import Ids
from .merge import Merge
from .probe import Probe
from .protos import every_constant
from .sessions import session
from .standin import in_float32
from .tensors import Array, set_values, values_of
from .weights import front, gather, others

KINDS = ("dead", "constant", "duplicate")
TINY = 1e-7
"""float32's resolution: a contribution of less than this share of the largest one is lost in the sum."""
EQUAL = 1e-6
"""Relative difference of channels that count as equal: some float32 operations apart."""
SKETCH, NEAR = 64, 1e-3
"""Random projections in which duplicates are looked for, and the distance there of a pair that is worth a look."""


@dataclass(frozen=True, eq=False)
class Free:
    """What can go.

    Attributes:
        merges: of the groups that shrink.
        shifts: bias → what it takes up of constants.
        counts: how many channels were dead, constant, duplicate.
    """

    merges: tuple[tuple[ChannelGroup, Merge], ...]
    shifts: Mapping[str, Array]
    counts: Mapping[str, int]


@dataclass(eq=False)
class _Found:
    """Channels of one group.

    Attributes:
        kinds: channel → what it is.
        into: duplicate → (the one it is a multiple of, the factor).
        shifts: channel → what goes into which bias without it.
    """

    kinds: dict[int, str] = field(default_factory=dict)
    into: dict[int, tuple[int, float]] = field(default_factory=dict)
    shifts: dict[int, list[tuple[str, Array]]] = field(default_factory=dict)


def find_free(channels: Channels, reference: Probe, providers: Sequence[str]) -> Free:
    """All channels that can go without a loss.

    Args:
        channels: of a graph that still has its own weights.
        reference: inputs for the run in which constants are read.
        providers: of onnxruntime for it.
    """
    graph = channels.tracker.graph
    able = {g: c for g, c in conducts(channels).items() if c is not Conduct.OTHER}
    rows = {g: {s: gather(graph.array(s.tensor), s).astype(np.float64) for s in g.slots} for g in able}
    still = {g: _still(r) for g, r in rows.items()} if graph.runs else {}  # what is read shows in a run only
    found = {g: _Found() for g in able}
    for group, channel, kind, taken in _constants(channels, still, reference, providers):
        found[group].kinds[channel], found[group].shifts[channel] = kind, taken
    for group, conduct in able.items():
        alive = others(np.array(list(found[group].kinds), np.int64), group.channels)
        found[group].into = duplicates(rows[group], alive, conduct is Conduct.HOMOGENEOUS)
        found[group].kinds |= dict.fromkeys(found[group].into, "duplicate")
    gone = _chosen(channels.groups, found)
    shifts: dict[str, Array] = {}
    for group, channel in [(g, c) for g, cs in gone.items() for c in cs]:
        for bias, value in found[group].shifts.get(channel, []):
            shifts[bias] = shifts.get(bias, 0) + value
    kinds = Counter(found[g].kinds[c] for g, cs in gone.items() for c in cs)
    merges = tuple((g, _merge(g.channels, cs, found[g])) for g, cs in gone.items())
    return Free(merges, shifts, {kind: kinds[kind] for kind in KINDS})


# --- dead and constant ----------------------------------------------------------------------------------------------
def _still(rows: Mapping[Slot, Array]) -> Ids:
    """Channels that hardly vary, or whose varying is hardly read."""
    made = [_relative(r) for s, r in rows.items() if s.role is Role.PRODUCES]
    read = [_relative(r) for s, r in rows.items() if s.role is Role.CONSUMES]
    if not made or not read:
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.max(made, axis=0) * np.max(read, axis=0) <= TINY)


def _relative(rows: Array) -> Array:
    """(n,) norms over the largest of them."""
    norms = np.linalg.norm(rows, axis=1)
    return np.asarray(norms / (norms.max() or 1))


Effect = tuple[str, Array] | None
"""Bias and what it takes up; None if no bias can."""


def _constants(
    channels: Channels, still: Mapping[ChannelGroup, Ids], reference: Probe, providers: Sequence[str]
) -> Iterator[tuple[ChannelGroup, int, str, list[tuple[str, Array]]]]:
    """(group, channel, kind, what goes into biases) of the candidates that can go."""
    owner: dict[int, tuple[ChannelGroup, int]] = {}
    for group, candidates in still.items():
        owner |= {int(group.classes[i]): (group, int(i)) for i in candidates}
    wanted = np.array(list(owner), np.int64)
    readers = [r for r in channels.slots if r.role is Role.CONSUMES and np.isin(channels.classes[r.ids], wanted).any()]
    values = _values(channels, still, [r for r in readers if r.data], reference, providers) if readers else {}
    effects: dict[int, list[Effect]] = {c: [] for c in owner}
    for reader in readers:
        classes = channels.classes[reader.ids]
        positions = np.flatnonzero(np.isin(classes, wanted))
        for position, effect in zip(positions, _effects(channels, reader, values, positions), strict=True):
            effects[int(classes[position])] += effect
    for number, parts in effects.items():
        shifts = [part for part in parts if part is not None]
        if len(shifts) == len(parts):
            yield (*owner[number], "constant" if shifts else "dead", shifts)


def _values(
    channels: Channels,
    still: Mapping[ChannelGroup, Ids],
    readers: Sequence[RawSlot],
    reference: Probe,
    providers: Sequence[str],
) -> dict[str, Array]:
    """What the readers see when the candidates' own weights are zero."""
    model = ModelProto()
    model.CopyFrom(channels.tracker.graph.model)
    constants = every_constant(model)
    for group, candidates in still.items():
        for slot in group.slots:
            if slot.role is Role.PRODUCES and len(candidates):
                values = np.array(values_of(constants[slot.tensor]))
                view = front(values, slot)
                view[np.unravel_index(slot.positions[candidates], view.shape[: len(slot.axes)])] = 0
                set_values(constants[slot.tensor], values)
    names = sorted({_seen(channels, r) for r in readers})
    have = {o.name for o in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names if n not in have)
    runs = in_float32(model) if reference.stand_in else model
    return dict(zip(names, session(runs, providers).run(names, dict(reference.inputs)), strict=True))


def _seen(channels: Channels, reader: RawSlot) -> str:
    """The value that a reader reads."""
    assert reader.data is not None
    return str(channels.tracker.graph.model.graph.node[reader.edge.node].input[reader.data[0]])


def _effects(
    channels: Channels, reader: RawSlot, values: Mapping[str, Array], positions: Ids
) -> Iterator[list[Effect]]:
    """For each of these positions of a reader what its constant does to the biases; nothing if it is negligible."""
    if reader.data is None:
        for _ in positions:
            yield [None]
        return
    graph = channels.tracker.graph
    read, bias = columns(graph, reader), bias_of(graph, reader)
    seen = np.moveaxis(values[_seen(channels, reader)], reader.data[1], -1).reshape(-1, len(read)).astype(np.float64)
    size = np.linalg.norm(read.reshape(len(read), -1), axis=1)
    least = TINY * (np.sqrt((seen**2).mean(axis=0)) * size).max()
    for p in positions:
        value = float(seen[:, p].mean())
        if abs(seen[:, p]).max() * size[p] <= least:
            yield []
        elif bias is not None and np.ptp(seen[:, p]) * size[p] <= least:
            yield [(bias, makes(read, p, value, reader.split))]
        else:
            yield [None]


# --- duplicates -----------------------------------------------------------------------------------------------------
def duplicates(rows: Mapping[Slot, Array], alive: Ids, scaled: bool) -> dict[int, tuple[int, float]]:
    """Channel → the earlier one that it equals, and how many times that one it is.

    Args:
        rows: the (n, d) weights of every slot.
        alive: the channels to compare.
        scaled: a positive multiple of a channel counts, too.
    """
    made = [r for s, r in rows.items() if s.role in (Role.PRODUCES, Role.SHIFT)]
    tied = [r for s, r in rows.items() if s.role is Role.SCALE]
    into: dict[int, tuple[int, float]] = {}
    for i, j in _near(np.concatenate(made, axis=1), alive, scaled):
        if i not in into and j not in into:
            a, b = (np.concatenate([r[k] for r in made]) for k in (i, j))
            factor = float(a @ b) / float(a @ a) if scaled else 1.0
            if factor > 0 and _equal(made, i, j, factor) and _equal(tied, i, j, 1.0):
                into[j] = (i, factor)
    return into


def _near(features: Array, alive: Ids, scaled: bool) -> list[tuple[int, int]]:
    """Pairs i < j of channels that may be equal, by random projections of their weights."""
    from scipy.spatial.distance import cdist  # dear to import, and only needed here

    sketch = features[alive] @ np.random.default_rng(0).standard_normal((features.shape[1], SKETCH))
    norms = np.linalg.norm(sketch, axis=1, keepdims=True)
    sketch = sketch / np.where(norms == 0, 1, norms) if scaled else sketch / (norms.max(initial=0) or 1)
    pairs = np.argwhere(np.triu(cdist(sketch, sketch) < NEAR, 1))
    keep = norms[pairs[:, 0], 0] > 0
    return [(int(alive[i]), int(alive[j])) for i, j in pairs[keep]]


def _equal(rows: Sequence[Array], i: int, j: int, factor: float) -> bool:
    """Whether channel j is `factor` times channel i in every slot."""
    return all(
        np.linalg.norm(r[j] - factor * r[i]) <= EQUAL * max(np.linalg.norm(r[j]), factor * np.linalg.norm(r[i]))
        for r in rows
    )


# --- what goes ------------------------------------------------------------------------------------------------------
def _chosen(groups: Sequence[ChannelGroup], found: Mapping[ChannelGroup, _Found]) -> dict[ChannelGroup, list[int]]:
    """The channels that go: a family's groups lose the same fraction, and none its last channel."""
    steps: dict[int, int] = {}
    for group in groups:
        free = len(found[group].kinds) if group in found else 0
        most = min(free * group.unit // group.channels, group.unit - 1)
        steps[group.family] = min(most, steps.get(group.family, most))
    return {g: list(found[g].kinds)[: steps[g.family] * g.channels // g.unit] for g in groups if steps[g.family] > 0}


def _merge(n: int, gone: Sequence[int], found: _Found) -> Merge:
    """Nothing is mixed; what reads a duplicate reads the one that is left."""
    kept = others(np.array(gone, np.int64), n)
    place = {int(channel): k for k, channel in enumerate(kept)}
    moved = [(j, place[found.into[j][0]], found.into[j][1]) for j in gone if j in found.into]
    entries = [*((int(i), k, 1.0) for i, k in place.items()), *moved]
    row, column, value = zip(*entries, strict=True)
    select = csr_array((np.ones(len(kept)), (np.arange(len(kept)), kept)), shape=(len(kept), n))
    return Merge(kept, select, csr_array((value, (row, column)), shape=(n, len(kept))))
