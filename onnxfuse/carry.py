"""Carry the weights of one model onto the channels of another one, of the same or of other widths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array, diags_array, eye_array

from .channels import ChannelGroup, Channels, Slot
from .errors import UsageError
from .findings import Role
from .graph import Graph
from .merge import per_row
from .parents import float_array
from .segments import Scaling, Segments
from .tensors import Array
from .topology import Pairing
from .weights import front, gather, others

Matrix = NDArray[np.float64]
SMALLEST = 1e-4
"""Of the largest channel of a segment: smaller ones count as that large, since dead ones have no scale."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """How the m channels of another model's group become the n of the first's.

    The plan, normalised on either side, is a permutation where both have equally many. A wider or narrower group's
    channels are averaged where they are made, and what reads them is shared out, so that copies of a channel merge
    without loss.

    Attributes:
        onto: (n, m), rows sum to 1.
        back: (m, n), rows sum to 1.
        sizes: segment → (n,) and (m,) how large the channels of both are; both become the first's.
    """

    onto: csr_array
    back: csr_array
    sizes: Mapping[int, tuple[Matrix, Matrix]] = field(default_factory=dict)

    def matrix(self, role: Role, scaling: Scaling) -> csr_array:
        """(n, m) what multiplies a slot of the other model."""
        base = csr_array(self.back.T) if role is Role.CONSUMES else self.onto
        left, right = np.ones(base.shape[0]), np.ones(base.shape[1])
        if scaling.makes is not None and scaling.makes in self.sizes:
            first, other = self.sizes[scaling.makes]
            left, right = left * first, right / other
        if scaling.reads is not None and scaling.reads in self.sizes:
            first, other = self.sizes[scaling.reads]
            left, right = left / first, right * other
        return csr_array(diags_array(left) @ base @ diags_array(right))


def from_plan(plan: csr_array, sizes: Mapping[int, tuple[Matrix, Matrix]]) -> Alignment:
    """The alignment of an (m, n) transport plan; mass that is but rounding is left out."""
    entries = coo_array(plan)
    real = entries.data > 1e-9 * entries.data.max(initial=0)
    clean = coo_array((entries.data[real], (entries.row[real], entries.col[real])), shape=plan.shape)
    return Alignment(per_row(csr_array(clean.T)), per_row(csr_array(clean)), sizes)


def in_place(first: ChannelGroup, other: ChannelGroup) -> Alignment:
    """Each channel answers to the one in its place.

    Raises:
        UsageError: there are not equally many.
    """
    n, m = first.channels, other.channels
    if n != m:
        why = f" ({first.select})" if first.select else "; align them by activations or weights"
        raise UsageError(f"{other.name} has {m} channels and {first.name} {n}, which only answer place by place{why}")
    return Alignment(eye_array(n, format="csr"), eye_array(n, format="csr"))


@dataclass(frozen=True, eq=False)
class Site:
    """One set of axes of a constant, and the groups that lie there.

    Attributes:
        parts: (number of the group, number of its slot, the slot in the first model, in the other).
    """

    parts: tuple[tuple[int, int, Slot, Slot], ...]


class Carrier:
    """Carries constants of another model, through the alignments that are known."""

    def __init__(self, first: Channels, other: Channels, pairing: Pairing, segments: Mapping[Any, Segments]) -> None:
        """Args:
        first, other: channels of both models.
        pairing: of their constants and groups.
        segments: of the first's groups.
        """
        self.first, self.other, self.pairing = first.tracker.graph, other.tracker.graph, pairing
        self.segments = [segments[a] for a, _ in pairing.groups]
        self.known: dict[int, Alignment] = {}
        self.sites: dict[str, list[Site]] = {}
        parts: dict[tuple[str, tuple[int, ...], int], list[tuple[int, int, Slot, Slot]]] = {}
        for i, (a, b) in enumerate(pairing.groups):
            for k, (s, twin) in enumerate(zip(a.slots, b.slots, strict=True)):
                parts.setdefault((s.tensor, s.axes, s.split), []).append((i, k, s, twin))
        for (tensor, _, _), found in parts.items():
            self.sites.setdefault(tensor, []).append(Site(tuple(found)))

    def keep_order(self) -> None:
        """Align every channel with the one in its place."""
        self.known = {number: in_place(a, b) for number, (a, b) in enumerate(self.pairing.groups)}

    def misfit(self, name: str) -> str | None:
        """Why a constant of the other model cannot take the first's shape; None if it can."""
        here, there = self.first.constants[name].dims, self.other.constants[self.pairing.tensors[name]].dims
        covered = {a for site in self.sites.get(name, ()) for a in _axes(site.parts[0][2])}
        same = len(here) == len(there) and all(
            h == t or a in covered for a, (h, t) in enumerate(zip(here, there, strict=True))
        )
        if same and all(self._fits(name, site) for site in self.sites.get(name, ())):
            return None
        return f"has shape {list(there)}, {list(here)}"

    def _fits(self, name: str, site: Site) -> bool:
        """Whether both have equally many positions there that belong to no group."""
        lengths = (_length(g.constants[n].dims, s) for g, n, s in self._sides(name, site))
        return len({n - len(p) for n, p in zip(lengths, _positions(site), strict=True)}) == 1

    def _sides(self, name: str, site: Site) -> Iterator[tuple[Graph, str, Slot]]:
        yield self.first, name, site.parts[0][2]
        yield self.other, self.pairing.tensors[name], site.parts[0][3]

    def other_array(self, name: str) -> Array:
        """What the other model has for the first's constant `name`."""
        return float_array(self.other.array(self.pairing.tensors[name]))

    def settled(self, name: str, but: Slot) -> bool:
        """Whether the alignments along all other axes of a constant than those of slot `but` are known."""
        return all(
            i in self.known
            for site in self.sites[name]
            if not any(s is but for _, _, s, _ in site.parts)
            for i, _, _, _ in site.parts
        )

    def rows(self, number: int, k: int) -> Array:
        """(m, d) what the other model's channels of a group have in its slot k, everything else carried."""
        first, twin = (group.slots[k] for group in self.pairing.groups[number])
        return gather(self.carried(first.tensor, self.other_array(first.tensor), first), twin)

    def carried(self, name: str, values: Array, but: Slot | None = None) -> Array:
        """`values` of the other model's constant, arranged as the first's; along the axes of slot `but` as they are."""
        for site in self.sites.get(name, ()):
            if not any(s is but for _, _, s, _ in site.parts):
                values = self._move(name, values, site)
        return values

    def _move(self, name: str, values: Array, site: Site) -> Array:
        """Carry `values` along the axes of one site."""
        _, _, here, there = site.parts[0]
        axes = len(here.axes)
        extents = front(np.broadcast_to(np.int8(0), tuple(self.first.constants[name].dims)), here).shape[:axes]
        old = front(values, there)
        flat = old.reshape(-1, *old.shape[axes:])
        new = np.zeros((int(np.prod(extents)), *flat.shape[1:]), values.dtype)
        for number, k, s, twin in site.parts:
            matrix = self.known[number].matrix(s.role, self.segments[number].slots[k]).astype(values.dtype)
            rows = flat[twin.positions]
            new[s.positions] = (matrix @ rows.reshape(len(rows), -1)).reshape(*s.positions.shape, *flat.shape[1:])
        stay, came = (_left(p, n) for p, n in zip(_positions(site), (len(new), len(flat)), strict=True))
        new[stay] = flat[came]
        back = np.moveaxis(new.reshape(*extents, *old.shape[axes:]), range(axes), here.axes)
        return back.reshape(-1, *back.shape[2:]) if here.split > 1 else back


def _axes(slot: Slot) -> set[int]:
    """The axes of the constant itself, not of its view, on which a slot lies."""
    return {max(a - 1, 0) for a in slot.axes} if slot.split > 1 else set(slot.axes)


def _length(dims: Sequence[int], slot: Slot) -> int:
    """Positions along the axes of a slot."""
    return int(np.prod(front(np.broadcast_to(np.int8(0), tuple(dims)), slot).shape[: len(slot.axes)]))


def _positions(site: Site) -> tuple[Array, Array]:
    """All positions of channels in the first and in the other model."""
    here, there = zip(*((s.positions.ravel(), twin.positions.ravel()) for _, _, s, twin in site.parts), strict=True)
    return np.concatenate(here), np.concatenate(there)


def _left(positions: Array, n: int) -> Array:
    """Positions that no channel of a group has: they stay where they are."""
    return others(positions, n)
