"""Dead and constant channels: those that hardly vary by themselves, or whose varying is hardly read.

The constants are those that channels have in a run on the probe input, their own weights set to zero. That they have
them on every input follows from the operators on the way (`conduct`): what does not vary stays so. Where something that
varies, but is none of the channel's, meets it (a gate for each sample, a mean that is added), only zeros stay what they
are, and only where they are multiplied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from onnx import ModelProto, helper

from .absorb import bias_of, columns, makes
from .channels import ChannelGroup, Channels, Slot
from .conduct import Conduct, Verdict
from .findings import RawSlot, Role
from .ids import Ids
from .probe import Probe
from .protos import every_constant
from .sessions import session
from .standin import in_float32
from .tensors import Array, set_values, values_of
from .weights import front

TINY = 1e-7
"""float32's resolution: a contribution of less than this share of the largest one is lost in the sum."""
Effect = tuple[str, Array] | None
"""Bias and what it takes up; None if no bias can."""
Values = Mapping[str, Array]


def constants(
    channels: Channels,
    rows: Mapping[ChannelGroup, Mapping[Slot, Array]],
    judged: Iterable[Verdict],
    reference: Probe,
    providers: Sequence[str],
) -> Iterator[tuple[ChannelGroup, int, str, list[tuple[str, Array]]]]:
    """(group, channel, kind, what goes into biases) of what is dead or constant.

    Args:
        channels: of a graph that still has its own weights.
        rows: the groups to look at, and the (n, d) weights of their slots.
        judged: what nodes do to them.
        reference: inputs for the run.
        providers: of onnxruntime for it.
    """
    candidates = {group: np.flatnonzero(_made(r) * _read(r) <= TINY) for group, r in rows.items()}
    met = [v for v in judged if v.foreign and len(candidates.get(v.group, ()))]
    owner: dict[int, tuple[ChannelGroup, int]] = {}
    for group, numbers in candidates.items():
        owner |= {int(group.classes[i]): (group, int(i)) for i in numbers}
    wanted = np.array(list(owner), np.int64)
    readers = [r for r in channels.slots if r.role is Role.CONSUMES and np.isin(channels.classes[r.ids], wanted).any()]
    seen = {place[0] for r in readers if (place := _seen(channels, r))}
    seen.update(name for v in met if _keeps(channels, v) for name in v.values)
    values = _values(channels, candidates, seen, reference, providers) if readers else {}
    # what varies by something foreign and is read by nobody is dead all the same
    unread = {int(c) for v in met for c in v.group.classes[_read(rows[v.group]) <= TINY]}
    vary = {c for v in met for c in _varying(channels, v, values)} - unread
    effects: dict[int, list[Effect]] = {c: [] for c in owner if c not in vary}
    wanted = np.array(list(effects), np.int64)
    for reader in readers:
        classes = channels.classes[reader.ids]
        positions = np.flatnonzero(np.isin(classes, wanted))
        for position, effect in zip(positions, _effects(channels, reader, values, positions), strict=True):
            effects[int(classes[position])] += effect
    for number, parts in effects.items():
        shifts = [part for part in parts if part is not None]
        if len(shifts) == len(parts):
            yield (*owner[number], "constant" if shifts else "dead", shifts)


def _made(rows: Mapping[Slot, Array]) -> Array:
    """(n,) the size of what makes each channel, over the largest; NaN if no weight does."""
    return _largest([r for s, r in rows.items() if s.role is Role.PRODUCES])


def _read(rows: Mapping[Slot, Array]) -> Array:
    """(n,) the same of what reads it."""
    return _largest([r for s, r in rows.items() if s.role is Role.CONSUMES])


def _largest(rows: Sequence[Array]) -> Array:
    norms = [np.linalg.norm(r, axis=1) for r in rows]
    return np.asarray(np.max([n / (n.max() or 1) for n in norms], axis=0) if norms else np.nan)


def _keeps(channels: Channels, verdict: Verdict) -> bool:
    """Whether a node leaves zeros what they are, whatever meets them, in a place where they can be seen."""
    seen = verdict.node not in channels.tracker.graph.inner
    return verdict.conduct is Conduct.HOMOGENEOUS and bool(verdict.values) and seen


def _varying(channels: Channels, verdict: Verdict, values: Values) -> Iterable[int]:
    """The classes of a group that vary behind this node, where something that varies meets them."""
    if not _keeps(channels, verdict):
        return map(int, verdict.group.classes)
    found: set[int] = set()
    for name in verdict.values:
        value = values[name].astype(np.float64)
        zero = np.abs(value) <= TINY * np.sqrt((value**2).mean())
        classes = np.broadcast_to(channels.classes[channels.tracker.ids[name]], value.shape)
        found.update(np.unique(classes[~zero]).tolist())
    return found


def _values(
    channels: Channels,
    candidates: Mapping[ChannelGroup, Ids],
    seen: Iterable[str],
    reference: Probe,
    providers: Sequence[str],
) -> Values:
    """What these values are when the candidates' own weights are zero."""
    model = ModelProto()
    model.CopyFrom(channels.tracker.graph.model)
    tensors = every_constant(model)
    for group, numbers in candidates.items():
        for slot in group.slots:
            if slot.role is Role.PRODUCES and len(numbers):
                values = np.array(values_of(tensors[slot.tensor]))
                view = front(values, slot)
                view[np.unravel_index(slot.positions[numbers], view.shape[: len(slot.axes)])] = 0
                set_values(tensors[slot.tensor], values)
    names = sorted(seen)
    have = {o.name for o in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names if n not in have)
    runs = in_float32(model) if reference.stand_in else model
    return dict(zip(names, session(runs, providers).run(names, dict(reference.inputs)), strict=True))


def _seen(channels: Channels, reader: RawSlot) -> tuple[str, int] | None:
    """The value that a reader reads, and the axis; None if a run cannot tell, as it cannot of branches of If."""
    graph = channels.tracker.graph
    if reader.data is None or reader.edge.node in graph.inner:
        return None
    return str(graph.protos[reader.edge.node].input[reader.data[0]]), reader.data[1]


def _effects(channels: Channels, reader: RawSlot, values: Values, positions: Ids) -> Iterator[list[Effect]]:
    """For each of these positions of a reader what its constant does to the biases; nothing if it is negligible."""
    place = _seen(channels, reader)
    if place is None:
        for _ in positions:
            yield [None]
        return
    graph, (name, axis) = channels.tracker.graph, place
    read, bias = columns(graph, reader), bias_of(graph, reader)
    seen = np.moveaxis(values[name], axis, -1).reshape(-1, len(read)).astype(np.float64)
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
