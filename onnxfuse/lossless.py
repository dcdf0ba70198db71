"""`--lossless`: find the channels that nothing is lost without.

dead       what it varies by, times what reads it, is below float32's resolution, and so is its constant part
constant   the same, but a constant part is left, which goes into the biases of what reads it
duplicate  equal to another one, or a positive multiple of it where all operators between keep that so: what reads it
           reads the other one instead, that many times

Nothing is estimated from data: channels are judged by their weights (`still`, `duplicates`). A channel that only some
inputs leave dead is not dead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_array

from .channels import ChannelGroup, Channels, Slot
from .conduct import Conduct, conducts, verdicts
from .findings import Role
from .ids import Ids
from .merge import Merge
from .probe import Probe
from .still import constants
from .tensors import Array
from .weights import gather, others

KINDS = ("dead", "constant", "duplicate")
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
    judged = list(verdicts(channels))
    able = {g: c for g, c in conducts(channels.groups, judged).items() if c is not Conduct.OTHER}
    rows = {g: {s: gather(graph.array(s.tensor), s).astype(np.float64) for s in g.slots} for g in able}
    found = {g: _Found() for g in able}
    exact = {g for g in able if not any(s.tensor in graph.held for s in g.slots if s.role is Role.CONSUMES)}
    shown = {g: rows[g] for g in exact}
    for group, channel, kind, taken in constants(channels, shown, judged, reference, providers):
        found[group].kinds[channel], found[group].shifts[channel] = kind, taken
    for group, conduct in able.items():
        alive = others(np.array(list(found[group].kinds), np.int64), group.channels)
        if group in exact:  # sums of integers' columns would be rounded
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
