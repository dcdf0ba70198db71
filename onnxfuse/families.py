"""What there is to choose: the widths that each family of groups may have, and how much of a resource they may use."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .channels import ChannelGroup
from .resources import Resource, Widths

Vector = NDArray[np.float64]
ROUNDING = 1e-9
"""Guards int() against products such as 10 · (1 − 0.9) = 0.9999999999999998, and limits against sums of floats."""


@dataclass(frozen=True, eq=False)
class Families:
    """What there is to choose: one width for each family of groups.

    Attributes:
        places: number of a family (`ChannelGroup.family`) → its place in all that follows.
        units: (families,) the width that keeps everything.
        allowed: for each family the widths it may have, ascending.
        finer: those, and more to choose from where they are too coarse for a budget.
        billed: for each family the widths that take as long as its widths 0 … unit: a part of a block as a whole one.
        least: (families,) the smallest widths that the user's wishes leave, whatever kernels like.
    """

    places: dict[int, int]
    units: Widths
    allowed: tuple[Widths, ...]
    finer: tuple[Widths, ...]
    billed: tuple[Widths, ...]
    least: Widths

    @property
    def widest(self) -> Widths:
        """(families,) the largest allowed widths."""
        return np.array([a[-1] for a in self.allowed], np.int64)

    @property
    def narrowest(self) -> Widths:
        """(families,) the smallest allowed widths."""
        return np.array([a[0] for a in self.allowed], np.int64)

    def finest(self) -> Families:
        """The same with all of the finer widths allowed."""
        return replace(self, allowed=self.finer)

    def bill(self, widths: Widths) -> Widths:
        """The widths that take as long as these."""
        return np.array([b[w] for b, w in zip(self.billed, widths, strict=True)], np.int64)

    def near(self, place: int, width: int) -> Widths:
        """All finer widths of a family from one allowed width below `width` to one above it."""
        allowed, finer = self.allowed[place], self.finer[place]
        at = int(np.searchsorted(allowed, width))
        low, high = allowed[max(at - 1, 0)], allowed[min(at + 1, len(allowed) - 1)]
        between: Widths = finer[(low <= finer) & (finer <= high) & (finer != width)]
        return between

    def channels(self, group: ChannelGroup, widths: Widths) -> int:
        """How many channels a group keeps at these widths."""
        return group.channels // group.unit * int(widths[self.places[group.family]])

    def allow(self, widths: Widths) -> bool:
        """Whether every family may have its width."""
        return all(width in allowed for width, allowed in zip(widths, self.allowed, strict=True))

    def around(self, widths: Widths) -> Families:
        """Only the next allowed width on either side of each width; and the next that takes no longer than any wider
        one, if that is another."""
        pairs = []
        for allowed, billed, width in zip(self.allowed, self.billed, widths, strict=True):
            taken = billed[allowed]
            quick = allowed[taken <= np.minimum.accumulate(taken[::-1])[::-1]]
            pairs.append(np.union1d(_beside(allowed, int(width)), _beside(quick, int(width))))
        return replace(self, allowed=tuple(pairs))


def _beside(allowed: Widths, width: int) -> Widths:
    """The nearest of these widths on either side of one, which may be itself."""
    above = min(int(np.searchsorted(allowed, width)), len(allowed) - 1)
    below = max(int(np.searchsorted(allowed, width, "right")) - 1, 0)
    return allowed[[below, above]]


@dataclass(frozen=True)
class Limit:
    """A resource, and how much of it may be used.

    `saved_by` counts what a step saves where that is not the resource itself: among the ways to keep a limit on
    multiply-accumulates the one that takes least time is wanted. Of that, the share `in_blocks` is saved only once
    kernels have whole blocks less to do. Where no widths come near `most` from below, it may be exceeded by the share
    `over`.
    """

    resource: Resource
    most: float
    saved_by: Resource | None = None
    in_blocks: float = 0.0
    over: float = 0.0

    @property
    def by(self) -> Resource:
        """What a step is valued by."""
        return self.saved_by or self.resource

    def in_whole_blocks(self, share: float) -> Limit:
        """The same where this share of what is saved is time that only whole blocks save; itself if it is not time."""
        return replace(self, in_blocks=share) if self.saved_by else self

    def exceeded(self) -> Limit:
        """The same, exceeded as far as it may be."""
        return replace(self, most=self.most * (1 + self.over))

    def gradient(self, widths: Widths) -> Vector:
        """(families,) what one unit less of each family saves."""
        return self.by.gradient(widths)

    def holds(self, widths: Widths) -> bool:
        """Whether these widths keep it; float rounding forgiven."""
        return self.resource(widths) <= self.most * (1 + ROUNDING)
