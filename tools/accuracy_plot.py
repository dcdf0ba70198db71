"""The plot of the accuracy benchmark: a panel for each model, a line for each method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cells import Row
from common import ToolError

COLUMNS = 3


def plot(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against sparsity (with one group at a time, the mean over groups).

    Raises:
        ToolError: matplotlib is not there.
    """
    figure_class = _figure()
    models = list(dict.fromkeys(r.model for r in rows))
    methods = list(dict.fromkeys(r.method for r in rows if r.method != "dense"))
    lines = math.ceil(len(models) / COLUMNS)
    figure = figure_class(figsize=(4.5 * COLUMNS, 3.2 * lines), layout="constrained")
    panels = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
    for panel, model in zip(panels, models, strict=False):
        for method in methods:
            panel.plot(*_line(rows, model, method), marker=".", label=method)
        panel.set_title(model)
        panel.set_ylabel("accuracy, %")
        panel.set_xlabel("channels removed, %")
        panel.grid(alpha=0.3)
    for panel in panels[len(models) :]:
        panel.axis("off")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(methods))
    figure.savefig(path, dpi=90, metadata={"Software": None})


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ToolError("the plot needs matplotlib: pip install matplotlib (the CSV file is written)") from error
    return Figure


def _line(rows: Sequence[Row], model: str, method: str) -> tuple[list[float], list[float]]:
    """Sparsities in % and mean accuracies, the dense model's first."""
    at: dict[float, list[float]] = {}
    for r in rows:
        if r.model == model and r.method in ("dense", method) and r.accuracy is not None:
            at.setdefault(100 * r.sparsity, []).append(r.accuracy)
    return sorted(at), [float(np.mean(at[s])) for s in sorted(at)]
