"""What a report without samples tells of a result, beside what real samples and labels tell of it.

python tools/bench_likeness.py                               the models in models/
python tools/bench_likeness.py --assets ../shared/assets     all assets

Cosine similarities to the original's outputs on random input, on synthetic samples that nothing was fitted to, and on
calibration samples; and the points of accuracy that are lost.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import onnx
from cases import Case, cases
from common import MODELS, RESULTS, entry, markdown, write_csv

from onnxfuse import OnnxFuseError, fuse
from onnxfuse.calibdata import calibration
from onnxfuse.fidelity import fidelity
from onnxfuse.probe import probe
from onnxfuse.providers import provider_list

SAMPLES = 64
"""Calibration samples."""


@dataclass(frozen=True)
class Row:
    """One model at one sparsity; similarities as a report has them, NaN where it has none."""

    model: str
    sparsity: float
    random: float
    synthetic: float
    real: float
    lost: float


def measure(case: Case, sparsity: float) -> Row:
    """One row, by the default method."""
    model, cpu = onnx.load_from_string(case.model), provider_list("cpu")
    result = fuse(model, sparsity=sparsity)
    report, reference = result.report, probe(model, cpu)
    samples = calibration(case.calibration(SAMPLES), None, model, reference, cpu, hold_out=False)
    real = fidelity(model, result.model, samples, cpu, reference).cosine
    drawn = np.nan if report.synthetic is None else report.synthetic.cosine
    lost = case.score(case.model) - case.score(result.model.SerializeToString())
    random, drawn, real = (round(float(x), 3) for x in (report.comparison.cosine, drawn, real))
    return Row(case.name, sparsity, random, drawn, real, round(lost, 2))


def rows(found: list[Case], sparsities: list[float]) -> Iterator[Row]:
    """All of them, printed as they are measured."""
    for case in found:
        for sparsity in sparsities:
            row = measure(case, sparsity)
            print(*astuple(row), flush=True)
            yield row


def main() -> None:
    """Read the arguments, measure, write the CSV file, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, help="folder with evaluate.py, models/ and data/")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4, 0.5])
    parser.add_argument("--subset", type=int, metavar="N", help="test samples, evenly spaced (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS / "likeness.csv", help="CSV file")
    args = parser.parse_args()
    found = list(rows(cases(MODELS, args.assets, args.subset), args.sparsities))
    names = [f.name for f in fields(Row)]
    write_csv(args.out, names, map(astuple, found))
    print(markdown(names, [[str(v) for v in astuple(row)] for row in found]))


if __name__ == "__main__":
    entry(main, OnnxFuseError)
