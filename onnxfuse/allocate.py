"""How many channels each group keeps."""

from __future__ import annotations

from collections.abc import Sequence

from .channels import ChannelGroup
from .errors import UsageError

ROUNDING = 1e-9
"""Guards int() against products such as 10 · (1 − 0.9) = 0.9999999999999998."""


def kept_count(n: int, sparsity: float) -> int:
    """The paper's int(n(1 − s)), but at least one channel.

    Raises:
        UsageError: `sparsity` is not in [0, 1).
    """
    if not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:  # NaN compares false
        shown = f"{sparsity:g}" if isinstance(sparsity, (int, float)) else repr(sparsity)
        raise UsageError(f"sparsity {shown} is not a fraction of channels; give 0 ≤ sparsity < 1")
    return max(1, int(n * (1 - sparsity) + ROUNDING))


def allocate(groups: Sequence[ChannelGroup], sparsity: float) -> list[int]:
    """Channels that each group keeps at the same `sparsity`; a family's groups keep the same fraction."""
    return [g.channels // g.unit * kept_count(g.unit, sparsity) for g in groups]
