"""The plot of `split_data.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

matplotlib.use("Agg")
COLOURS = {"whole data": "#4c566a", "fuse and prune": "#0f8b8d", "prune and fuse": "#e76f51"}
PAPER_WAYS = {"whole data": "whole data", "FaP": "fuse and prune", "PaF": "prune and fuse"}


def plot(ours: Sequence[tuple[str, str, float]], paper: Sequence[tuple[str, float, float, float]], path: Path) -> None:
    """Bars of (net, way, accuracy) at 65% weight sparsity, beside the paper's curves."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    nets = list(dict.fromkeys(net for net, _, _ in ours))
    for k, (way, colour) in enumerate(COLOURS.items()):
        values = [next(a for n, w, a in ours if n == net and w.startswith(way)) for net in nets]
        places = [i + 0.27 * (k - 1) for i in range(len(nets))]
        left.bar(places, values, 0.25, color=colour, label=way)
        for x, y in zip(places, values, strict=True):
            left.text(x, y + 0.1, f"{y:.1f}", ha="center", fontsize=8)
    left.set_xticks(range(len(nets)), nets)
    left.set_ylim(min(a for _, _, a in ours) - 3, max(a for _, _, a in ours) + 1.5)
    left.set_title("onnxfuse, Fashion-MNIST, 65% of weights removed, fine-tuned")
    left.set_ylabel("test accuracy, %")
    left.legend(fontsize=8, loc="upper left")
    for label, *values in paper:
        net, way = label.split(", ")
        style = "-" if net.startswith("VGG") else "--"
        right.plot([65, 90, 95], values, style, marker="o", color=COLOURS[PAPER_WAYS[way]], label=label)
    right.set_title("the paper, CIFAR-10 (read off its chart)")
    right.set_xlabel("weight sparsity, %")
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
