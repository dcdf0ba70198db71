"""The paper's picture: merge one channel group at a time, all others left alone, and measure the accuracy.

python tools/one_group.py                                                    the assets' VGG11-BN on CIFAR-10
python tools/one_group.py models/svhn.onnx --data models/svhn_test.npz       any model with labelled images
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
from common import ASSETS, RESULTS, asset_score, entry, markdown, write_csv
from evaluate import accuracy

from onnxfuse import ChannelGroup, NothingToMerge, OnnxFuseError, analyze, fuse

SPARSITIES = (0.3, 0.5, 0.7)
METHODS = ("drop", "intra-fusion", "barycentric", "fold")
SHOWN = ("drop", "intra-fusion")
"""Methods with a column for each sparsity; the means are shown of all."""


@dataclass(frozen=True)
class Row:
    """One measurement; accuracy in %."""

    group: str
    channels: int
    sparsity: float
    method: str
    accuracy: float


Score = Callable[[bytes], float]


def measure(model: Path, groups: Sequence[ChannelGroup], score: Score) -> Iterator[Row]:
    """A row for each group, sparsity and method."""
    for number, group in enumerate(groups, 1):
        print(f"group {number} of {len(groups)}: {group.name}", file=sys.stderr)
        pattern = f"^{re.escape(group.name)}$"
        for sparsity in SPARSITIES:
            for method in METHODS:
                small = fuse(model, sparsity=sparsity, method=method, importance="l1", only=[pattern]).model
                right = round(score(small.SerializeToString()), 2)
                yield Row(group.name, group.channels, sparsity, method, right)


def named_groups(model: Path) -> list[ChannelGroup]:
    """The groups of a model that can be told apart by name, in graph order.

    Raises:
        NothingToMerge: there is none.
    """
    found = {group.name: group for group in reversed(analyze(model).groups)}
    if not found:
        raise NothingToMerge(f"{model}: no channel group may shrink")
    return list(found.values())[::-1]


# --- tables ---------------------------------------------------------------------------------------------------------
def group_table(rows: Sequence[Row]) -> str:
    """A line for each group, their mean, and the number of groups on which intra-fusion is above drop."""
    at = {(r.group, r.sparsity, r.method): r.accuracy for r in rows}
    channels = {r.group: r.channels for r in rows}
    columns = [(s, m) for s in SPARSITIES for m in SHOWN]
    body = [[g, str(n), *(f"{at[g, s, m]:.2f}" for s, m in columns)] for g, n in channels.items()]
    means = [f"{_mean(rows, s, m):.2f}" for s, m in columns]
    above = []
    for s in SPARSITIES:
        wins = sum(at[g, s, "intra-fusion"] > at[g, s, "drop"] for g in channels)
        above += ["", f"{wins} of {len(channels)}"]
    head = ["group", "channels", *(f"{m} {s:.0%}" for s, m in columns)]
    return markdown(head, [*body, ["mean", "", *means], ["intra-fusion above drop", "", *above]])


def mean_table(rows: Sequence[Row]) -> str:
    """Means over groups: a line for each method, a column for each sparsity."""
    body = [[m, *(f"{_mean(rows, s, m):.2f}" for s in SPARSITIES)] for m in METHODS]
    return markdown(["mean over groups", *(f"{s:.0%}" for s in SPARSITIES)], body)


def _mean(rows: Sequence[Row], sparsity: float, method: str) -> float:
    return float(np.mean([r.accuracy for r in rows if (r.sparsity, r.method) == (sparsity, method)]))


# --- command line ---------------------------------------------------------------------------------------------------
def main() -> None:
    """Read the arguments, measure, write the CSV file, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help=".onnx; default: the asset's own")
    parser.add_argument("--data", type=Path, help=".npz with labels, as for evaluate.py; default: the asset's")
    parser.add_argument("--key", default="vgg11_bn_cifar10", help="asset that measures (default: %(default)s)")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder with evaluate.py, models/ and data/")
    parser.add_argument("--out", type=Path, help="CSV file; default: tools/results/one_group_MODEL.csv")
    args = parser.parse_args()
    model = args.model or args.assets / "models" / f"{args.key}.onnx"
    score = (lambda m: 100 * accuracy(m, args.data)) if args.data else asset_score(args.assets, args.key)
    groups = named_groups(model)
    dense = score(model.read_bytes())
    rows = list(measure(model, groups, score))
    out = args.out or RESULTS / f"one_group_{model.stem}.csv"
    write_csv(out, [f.name for f in fields(Row)], [astuple(r) for r in rows])
    print(f"{model.name}: dense {dense:.2f} %; accuracy in % with one group merged\n")
    print(group_table(rows), mean_table(rows), sep="\n\n")


if __name__ == "__main__":
    entry(main, OnnxFuseError)
