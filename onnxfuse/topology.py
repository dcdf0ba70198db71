"""Whether models are of one architecture, and which constants and channel groups of theirs answer to each other.

Initializers and nodes may have other names, and layers other widths; the first other difference is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from .channels import ChannelGroup, Channels, Slot
from .errors import ModelError
from .findings import RawSlot
from .graph import Graph
from .parents import Parent
from .protos import Edge, proto_label
from .tensors import FLOATS

ADVICE = "an ensemble takes models of one architecture"


@dataclass(frozen=True, eq=False)
class Pairing:
    """What of another model answers to what of the first.

    Attributes:
        tensors: constant of the first → constant of the other.
        groups: the first's and the other's, in graph order.
    """

    tensors: dict[str, str]
    groups: tuple[tuple[ChannelGroup, ChannelGroup], ...]


# --- before anything is prepared ------------------------------------------------------------------------------------
def check_interface(name: str, model: ModelProto, first: str, reference: ModelProto) -> None:
    """Opsets, inputs and outputs must be the same.

    Raises:
        ModelError: with the first difference.
    """
    mine, theirs = _opsets(model), _opsets(reference)
    for domain in sorted(mine.keys() | theirs.keys()):
        if mine.get(domain) != theirs.get(domain):
            what = f"opset of domain {domain or 'ai.onnx'!r}"
            raise ModelError(
                f"{name}: {what} is {mine.get(domain)}, in {first} {theirs.get(domain)}; export both with the same"
            )
    for kind in ("input", "output"):
        pairs = zip_longest(_values(model, kind), _values(reference, kind))
        for i, (a, b) in enumerate(pairs):
            if a is None or b is None or not _alike(a, b):
                named = a and b and _alike(a, b, named=False)
                advice = "give both the same name" if named else ADVICE
                raise ModelError(f"{name}: {kind} {i} is {_said(a)}, in {first} {_said(b)}; {advice}")


def _opsets(model: ModelProto) -> dict[str, int]:
    used = {node.domain for node in model.graph.node} | {""}
    return {o.domain.replace("ai.onnx", "", 1) if o.domain == "ai.onnx" else o.domain: o.version
            for o in model.opset_import if o.domain in used or o.domain == "ai.onnx"}  # fmt: skip


def _values(model: ModelProto, kind: str) -> list[ValueInfoProto]:
    constants = {t.name for t in model.graph.initializer}
    return [v for v in getattr(model.graph, kind) if kind == "output" or v.name not in constants]


def _sizes(value: ValueInfoProto) -> list[int]:
    return [max(d.dim_value, 0) for d in value.type.tensor_type.shape.dim]


def _alike(a: ValueInfoProto, b: ValueInfoProto, named: bool = True) -> bool:
    same = (a.name == b.name or not named) and a.type.tensor_type.elem_type == b.type.tensor_type.elem_type
    return same and _sizes(a) == _sizes(b)


def _said(value: ValueInfoProto | None) -> str:
    if value is None:
        return "missing"
    kind = _type_name(value.type.tensor_type.elem_type)
    return f"{value.name!r} {kind} [{', '.join(str(d or '?') for d in _sizes(value))}]"


def _type_name(element: int) -> str:
    return str(TensorProto.DataType.Name(element)).lower()


# --- nodes ----------------------------------------------------------------------------------------------------------
def check_nodes(other: Parent, first: Parent) -> None:
    """Operators and what is connected to what must be the same.

    Raises:
        ModelError: with the first difference.
    """
    values = {v.name: v.name for v in first.graph.model.graph.input}
    pairs = zip_longest(other.graph.protos, first.graph.protos)
    for i, (mine, theirs) in enumerate(pairs):
        if mine is None or theirs is None or (mine.op_type, mine.domain) != (theirs.op_type, theirs.domain):
            a, b = ("missing" if n is None else f"{n.op_type} ({proto_label(n)})" for n in (mine, theirs))
            raise ModelError(f"{other.name}: node {i} is {a}, in {first.name} it is {b}; {ADVICE}")
        where = f"{other.name}: node {i} ({proto_label(mine)})"
        for k, (a, b) in enumerate(zip_longest(mine.input, theirs.input, fillvalue="")):
            constant = a in other.graph.constants, b in first.graph.constants
            if constant[0] != constant[1] or (not constant[0] and values.get(a, a and None) != b):
                raise ModelError(f"{where} reads {a or 'nothing'!r} as input {k}, in {first.name} {b!r}; {ADVICE}")
        values |= dict(zip(mine.output, theirs.output, strict=False))


def unshare_alike(graphs: Sequence[Graph]) -> None:
    """Give uses of a constant in one graph their own copies where another graph has two constants.

    Exporters merge equal constants, and which are equal differs from model to model.
    """
    held: dict[Edge, list[str]] = {}
    for graph in graphs:
        for name in graph.constants:
            for edge in graph.edges.get(name, []):
                if edge.node >= 0:
                    held.setdefault(edge, []).append(name)
    for graph in graphs:
        for name in list(graph.constants):
            kinds: dict[tuple[str, ...], list[Edge]] = {}
            for edge in graph.edges.get(name, []):
                kinds.setdefault(tuple(held.get(edge, ())), []).append(edge)
            for edges in list(kinds.values())[1:]:
                if all(e.node >= 0 for e in edges):
                    graph.clone(name, edges)


# --- channels and constants -----------------------------------------------------------------------------------------
def pair(other: Parent, mine: Channels, first: Parent, theirs: Channels) -> Pairing:
    """The pairs of constants and groups.

    Raises:
        ModelError: a constant or a group has no counterpart; the message has the first.
    """
    tensors = dict(_tensors(other, first))
    _check_attributes(other, first, theirs)
    if len(mine.groups) != len(theirs.groups):
        counts = f"{len(mine.groups)} channel groups, {first.name} {len(theirs.groups)}"
        raise ModelError(f"{other.name}: has {counts}; {ADVICE}")
    groups = tuple(zip(theirs.groups, mine.groups, strict=True))
    for a, b in groups:
        if [_place(s, tensors) for s in a.slots] != [_place(s, {}) for s in b.slots]:
            raise ModelError(
                f"{other.name}: the channels of {b.name} lie in other weights than those of {a.name} in {first.name}; "
                + ADVICE
            )
    found = Pairing(tensors, groups)
    _check_constants(other, first, theirs, found)
    return found


def _place(slot: Slot, names: dict[str, str]) -> tuple[Any, ...]:
    return names.get(slot.tensor, slot.tensor), slot.axes, slot.role, slot.positions.shape[1]


def _tensors(other: Parent, first: Parent) -> Iterator[tuple[str, str]]:
    for name in first.graph.constants:
        edge = next((e for e in first.graph.edges.get(name, []) if e.node >= 0), None)
        if edge is not None:
            yield name, other.graph.protos[edge.node].input[edge.slot]


def _check_attributes(other: Parent, first: Parent, channels: Channels) -> None:
    """Attributes are the same, but for those that count channels."""
    counts = {(p.node, p.where) for p in (d.number.place for d in channels.tracker.demands) if p is not None}
    pairs = zip(other.graph.protos, first.graph.protos, strict=True)
    for i, (mine, theirs) in enumerate(pairs):
        a, b = ({x.name: helper.get_attribute_value(x) for x in n.attribute} for n in (mine, theirs))
        for name in sorted(a.keys() | b.keys()):
            branch = mine.op_type == "If"  # its nodes are among those compared
            if not branch and (i, name) not in counts and not _equal(a.get(name), b.get(name)):
                raise ModelError(
                    f"{other.name}: {name} of node {i} ({proto_label(mine)}) is {_short(a.get(name))}, in {first.name} "
                    f"{_short(b.get(name))}; {ADVICE}"
                )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (onnx.GraphProto, onnx.TensorProto)) and isinstance(b, type(a)):
        return bool(a.SerializeToString(deterministic=True) == b.SerializeToString(deterministic=True))
    return bool(a == b)


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) < 60 else text[:59] + "…"


def _check_constants(other: Parent, first: Parent, channels: Channels, pairing: Pairing) -> None:
    """Types and ranks are the same, integers equal unless they count channels, and other axes equally long."""
    t = channels.tracker
    counts = {Edge(p.node, p.where) for p in (d.number.place for d in t.demands) if p and isinstance(p.where, int)}
    counts |= {p.edge for p in t.picks}
    for name, twin in pairing.tensors.items():
        a, b = other.graph.constants[twin], first.graph.constants[name]
        where = f"{other.name}: constant {twin!r} of {_user(other, first, name)}"
        if a.data_type != b.data_type:
            raise ModelError(f"{where} is {_type_name(a.data_type)}, in {first.name} {_type_name(b.data_type)}")
        if b.data_type in FLOATS or counts & set(first.graph.edges[name]):
            continue
        if a.dims != b.dims or not np.array_equal(other.graph.array(twin), first.graph.array(name)):
            raise ModelError(f"{where} has other values than {name!r} in {first.name}; {ADVICE}")


def _user(other: Parent, first: Parent, name: str) -> str:
    return proto_label(other.graph.protos[first.graph.edges[name][0].node])


def raw_of(channels: Channels, slot: Slot) -> list[RawSlot]:
    """Every use of a constant that a group's slot stands for."""
    return [s for s in channels.slots if (s.tensor, s.axes, s.split) == (slot.tensor, slot.axes, slot.split)]
