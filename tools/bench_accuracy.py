"""Accuracy without fine-tuning: models × sparsities × methods on labelled test data.

python tools/bench_accuracy.py                               the models in models/
python tools/bench_accuracy.py --assets ../shared/assets     all assets: the README's tables
python tools/bench_accuracy.py --assets ../shared/assets --one-group --models vgg11_bn_cifar10
                                                             one channel group at a time, the others left alone

Every cell is kept in a cache (tools/.cache), so an interrupted run goes on where it was, and a run after a change
evaluates only what came out different. `--subset 500` gives a quick look. Results: a CSV file with a line for each
cell, tables and a plot beside it, the tables on stdout as well; the cells' progress goes to stderr.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import onnx
from accuracy_plot import plot
from accuracy_tables import GOALS, goals, group_tables, loss_table, mean_table, whole_table
from cases import NORMALISING, QUANTIZERS, Case, cases, of_bytes, quantized
from cells import Bench, Cache, Cell, Row, source_digest
from common import MODELS, RESULTS, ROOT, ToolError, entry, write_csv

from onnxfuse import OnnxFuseError, analyze
from onnxfuse.merge import METHODS

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
ONE_GROUP = (0.3, 0.5, 0.7)
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    **{method: {"method": method} for method in METHODS},
    "intra-fusion+global": {"method": "intra-fusion", "scope": "global"},
    "intra-fusion+energy256": {"method": "intra-fusion", "importance": "energy", "calib": 256},
    "fold+global": {"method": "fold", "scope": "global"},
    "fold+repair": {"method": "fold", "repair": True},
    "intra-fusion+repair": {"method": "intra-fusion", "repair": True},
    "auto+global": {"method": "auto", "scope": "global"},
    "auto+calib256": {"method": "auto", "calib": 256},
    "auto+global+calib256": {"method": "auto", "scope": "global", "calib": 256},
}
"""What is compared: a name, and the options it stands for. `calib` is a number of samples."""


def cells(case: Case, methods: Sequence[str], sparsities: Sequence[float], one_group: bool) -> Iterator[Cell]:
    """All cells of a model, the goals' included."""
    for name in groups(case) if one_group else [""]:
        for sparsity in sparsities:
            yield from (Cell(m, VARIANTS[m], sparsity, name) for m in methods)
    if not one_group:
        wanted = {(g.method, g.sparsity) for g in GOALS if g.model == case.name and g.method in methods}
        yield from (Cell(m, VARIANTS[m], s) for m, s in sorted(wanted) if s not in sparsities)


def groups(case: Case) -> list[str]:
    """Names of the groups, in graph order; one that stands for several is taken once."""
    return list(dict.fromkeys(group.name for group in analyze(onnx.load_from_string(case.model)).groups))


def measure(bench: Bench, todo: Sequence[Cell]) -> Iterator[Row]:
    """A row for each cell, the dense model's first."""
    name, width = bench.case.name, len(str(len(todo)))
    yield bench.dense()
    for number, cell in enumerate(todo, 1):
        start = time.perf_counter()
        row = bench(cell)
        shown = "nothing to merge" if row.accuracy is None else f"{row.accuracy:6.2f} %"
        label = " ".join(filter(None, (name, cell.group, cell.method, f"{cell.sparsity:.0%}")))
        print(f"{number:{width}}/{len(todo)} {label}: {shown}, {time.perf_counter() - start:.1f} s", file=sys.stderr)
        yield row


def chosen(names: Sequence[str] | None, known: Sequence[str], what: str) -> list[str]:
    """The names asked for, or all.

    Raises:
        ToolError: one is not known.
    """
    for name in names or []:
        if name not in known:
            raise ToolError(f"{what} {name!r} is not known; choose from {', '.join(known)}")
    return list(names or known)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, help="folder with evaluate.py, models/ and data/")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="these only")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help=f"of {', '.join(VARIANTS)} (default: all)")
    parser.add_argument("--sparsities", nargs="+", type=float, metavar="S", help="fractions of channels")
    parser.add_argument("--one-group", action="store_true", help="one channel group at a time")
    parser.add_argument("--quantized", choices=QUANTIZERS, help="the models quantized so, not as they are")
    parser.add_argument("--bytes", choices=NORMALISING, help="the models as such that normalise images of bytes there")
    parser.add_argument("--subset", type=int, metavar="N", help="test samples, evenly spaced (default: all)")
    parser.add_argument("--out", type=Path, help="CSV file (default: accuracy.csv or one_group.csv in tools/results)")
    parser.add_argument("--cache", type=Path, default=ROOT / "tools" / ".cache" / "accuracy.jsonl", help="of all cells")
    parser.add_argument("--fresh", action="store_true", help="measure every cell again")
    return parser.parse_args()


def main() -> None:
    """Read the arguments, measure, write the CSV file and the plot, print the tables."""
    a = arguments()
    methods = chosen(a.methods, list(VARIANTS), "method")
    sparsities = a.sparsities or (ONE_GROUP if a.one_group else SPARSITIES)
    found = {case.name: case for case in cases(MODELS, a.assets, a.subset)}
    out = a.out or RESULTS / ("one_group.csv" if a.one_group else "accuracy.csv")
    cache, code, rows = Cache(a.cache, a.fresh), source_digest(), list[Row]()
    for name in chosen(a.models, list(found), "model"):
        case = of_bytes(found[name], a.bytes) if a.bytes else found[name]
        bench = Bench(quantized(case, a.quantized) if a.quantized else case, cache, code)
        rows += measure(bench, list(cells(bench.case, methods, sparsities, a.one_group)))
        write_csv(out, [f.name for f in fields(Row)], map(astuple, rows))
    norms = {case.name for case in found.values() if case.keeps_norms}
    tables = (
        [*group_tables(rows), mean_table(rows)]
        if a.one_group
        else [whole_table(rows), loss_table(rows), *([] if a.quantized or a.bytes else goals(rows, norms))]
    )
    text = "\n\n".join(tables)
    out.with_suffix(".md").write_text(text + "\n")
    print(text)
    plot(rows, out.with_suffix(".png"))


if __name__ == "__main__":
    entry(main, OnnxFuseError)
