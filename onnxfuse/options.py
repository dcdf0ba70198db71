"""What a run is asked to do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .images import images_in
from .merge import MEASURING
from .scores import Importance, feature_of
from .sources import Source
from .tracker import Permit

BUDGETS = ("macs", "params", "size")
"""What a budget can be on, besides the latency."""


@dataclass(frozen=True)
class Options:
    """How to merge; `keywords.py` says what each field means.

    Patterns are tuples here, paths strings. Fields that only apply to some methods are None unless given.
    """

    sparsity: float | None = None
    method: str = "auto"
    importance: Importance = "l1"
    source_mass: str | None = None
    target_mass: str | None = None
    target: str | None = None
    cost_norm: int | None = None
    exclude: tuple[str, ...] = ()
    input_shapes: Mapping[str, tuple[int, ...]] | None = None
    provider: str = "cpu"
    seed: int = 0
    min_cosine: float | None = None
    only: tuple[str, ...] = ()
    gradients: Source | None = None
    scope: str | None = None
    target_macs: str | float | None = None
    target_params: str | float | None = None
    target_size: str | float | None = None
    ratio: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    round_to: str | int = "auto"
    from_plan: str | None = None
    latency: bool = False
    threads: int | None = None
    target_latency: str | float | None = None
    max_error: float | None = None
    max_drop: float | None = None
    eval: str | None = None
    metric: str | None = None
    lossless: bool = False
    repair: bool | None = None
    calib: Source | None = None
    calib_preprocess: str | None = None
    external_data: bool = False
    allow_norm: bool = False
    prune_heads: bool = False
    input_ranges: Mapping[str, tuple[float, ...]] | None = None

    @property
    def permit(self) -> Permit:
        """What may change beyond what leaves every layer's arithmetic as it was."""
        return Permit(self.allow_norm, self.prune_heads)

    @property
    def budgets(self) -> dict[str, str | float]:
        """Resource → the budget for it, where there is one."""
        given = {name: getattr(self, f"target_{name}") for name in BUDGETS}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def timed(self) -> bool:
        """Whether the original and the result are to be timed."""
        return self.latency or self.threads is not None or self.target_latency is not None

    @property
    def files(self) -> list[Path]:
        """The files that are read besides the model, those in a folder of images among them."""
        scores = [self.importance] if str(self.importance).endswith(".npz") else []
        given = (self.calib, self.gradients, self.eval, self.from_plan, *scores)
        paths = [Path(source) for source in given if isinstance(source, (str, os.PathLike))]
        return [file for path in paths for file in (path, *images_in(path))]

    @property
    def floors(self) -> bool:
        """Whether anything says how good the result must be."""
        return any(value is not None for value in (self.min_cosine, self.max_error, self.max_drop))

    @property
    def sized(self) -> bool:
        """Whether anything but a floor says how small the result should be."""
        given = self.sparsity is not None or self.target_latency is not None
        return bool(given or self.budgets or self.ratio or self.from_plan or self.lossless)

    @property
    def wishes(self) -> bool:
        """Whether anything is said of single layers."""
        return bool(self.ratio or self.from_plan or self.keep or self.only)

    @property
    def spreads(self) -> bool:
        """Whether groups may lose different shares of their channels, those most that cost least."""
        return self.scope == "global" or (self.scope is None and self.sparsity is None)

    @property
    def scored(self) -> bool:
        """Whether another importance than the default was asked for."""
        return not (isinstance(self.importance, str) and self.importance == "l1")

    @property
    def repairs(self) -> bool:
        """Whether consumers are repaired."""
        if self.repair is not None:
            return self.repair
        given = self.calib is not None and feature_of(self.importance) is None  # not for the metric alone
        return self.method in MEASURING or given

    @property
    def may_go_without_repair(self) -> bool:
        """Whether consumers are repaired only because the method does so, on samples that are not the user's."""
        return self.repair is None and self.repairs and self.calib is None

    def recorded(self) -> dict[str, Any]:
        """The options as JSON values: a function by its name, arrays only as such."""
        return {f.name: _recorded(getattr(self, f.name)) for f in fields(self)}


def _recorded(value: Any) -> Any:
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping) and not all(isinstance(v, tuple) for v in value.values()):  # no shapes
        return f"arrays: {', '.join(value)}"
    return value
