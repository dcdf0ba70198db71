"""What `--lossless` finds in each model: dead, constant and duplicate channels, the error without them, the accuracy.

python tools/bench_lossless.py                               the models in models/
python tools/bench_lossless.py --assets ../shared/assets     all assets
"""

from __future__ import annotations

import argparse
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import onnx
from cases import Case, cases
from common import MODELS, RESULTS, entry, markdown, write_csv

from onnxfuse import NothingToMerge, OnnxFuseError, fuse


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        dead, constant, duplicate: channels removed.
        error: largest relative L2 error of an output, on the run's own input.
        max_abs: largest absolute one.
        macs: of the small model, as % of the original's.
        dense, small: accuracy in %.
    """

    model: str
    dead: int
    constant: int
    duplicate: int
    error: float
    max_abs: float
    macs: float
    dense: float
    small: float


def measure(case: Case) -> Row:
    """The row of one model."""
    dense = round(case.score(case.model), 2)
    try:
        result = fuse(onnx.load_from_string(case.model), lossless=True)
    except NothingToMerge:
        return Row(case.name, 0, 0, 0, 0.0, 0.0, 100.0, dense, dense)
    report, outputs = result.report, result.report.comparison.outputs
    free = report.free or {}
    return Row(
        case.name,
        free["dead"],
        free["constant"],
        free["duplicate"],
        max(o.relative for o in outputs),
        max(o.max_abs for o in outputs),
        round(100 * report.after.macs / report.before.macs, 2),
        dense,
        round(case.score(result.model.SerializeToString()), 2),
    )


def main() -> None:
    """Read the arguments, measure, write the CSV file, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, help="folder with evaluate.py, models/ and data/")
    parser.add_argument("--subset", type=int, metavar="N", help="test samples, evenly spaced (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS / "lossless.csv", help="CSV file")
    args = parser.parse_args()
    rows = [measure(case) for case in cases(MODELS, args.assets, args.subset)]
    names = [f.name for f in fields(Row)]
    write_csv(args.out, names, map(astuple, rows))
    print(markdown(names, [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in astuple(r)] for r in rows]))


if __name__ == "__main__":
    entry(main, OnnxFuseError)
