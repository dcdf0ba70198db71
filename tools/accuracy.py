"""Whole-network accuracy on labelled test data: models × sparsities × methods.

python tools/accuracy.py [--assets ../shared/assets]

Takes every MODEL_DATA.onnx in models/ with its DATA_test.npz and, with --assets, the VGG11-BN on CIFAR-10 there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path

from common import MODELS, RESULTS, ToolError, asset_score, entry, markdown, write_csv
from evaluate import accuracy

from onnxfuse import OnnxFuseError, fuse

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
METHODS = ("drop", "intra-fusion", "barycentric", "fold")
ASSET = "vgg11_bn_cifar10"


@dataclass(frozen=True)
class Case:
    """A model, and what measures its accuracy in %."""

    model: Path
    score: Callable[[bytes], float]


@dataclass(frozen=True)
class Row:
    """One measurement; accuracy in %, parameters and MACs of the small model as % of the original's."""

    model: str
    sparsity: float
    method: str
    accuracy: float
    parameters: float
    macs: float


def cases(models: Path, assets: Path | None) -> list[Case]:
    """All models to measure.

    Raises:
        ToolError: a model without test data, or no models.
    """
    found = [Case(model, partial(_percent, data=_data(model))) for model in sorted(models.glob("*.onnx"))]
    if not found:
        raise ToolError(f"{models}: no models; make them with tools/make_models.py")
    if assets:
        found.append(Case(assets / "models" / f"{ASSET}.onnx", asset_score(assets, ASSET)))
    return found


def _data(model: Path) -> Path:
    """The test data that the last part of a model's name tells."""
    data = model.with_name(f"{model.stem.rpartition('_')[2]}_test.npz")
    if not data.is_file():
        raise ToolError(f"{model}: has no test data {data.name} beside it")
    return data


def _percent(model: bytes, data: Path) -> float:
    return 100 * accuracy(model, data)


def measure(case: Case) -> Iterator[Row]:
    """The dense model's row, then one for each sparsity and method."""
    print(case.model.name, file=sys.stderr)
    yield Row(case.model.stem, 0.0, "dense", round(case.score(case.model.read_bytes()), 2), 100.0, 100.0)
    for sparsity in SPARSITIES:
        for method in METHODS:
            result = fuse(case.model, sparsity=sparsity, method=method)
            right, size, dense = case.score(result.model.SerializeToString()), result.report.after, result.report.before
            weights, work = 100 * size.parameters / dense.parameters, 100 * size.macs / dense.macs
            yield Row(case.model.stem, sparsity, method, round(right, 2), round(weights, 2), round(work, 2))


def table(rows: Sequence[Row]) -> str:
    """A line for each model and method, a column for each sparsity."""
    at = {(r.model, r.method, r.sparsity): f"{r.accuracy:.2f}" for r in rows}
    names = dict.fromkeys(r.model for r in rows)
    body = [[n, m, at[n, "dense", 0.0], *(at[n, m, s] for s in SPARSITIES)] for n in names for m in METHODS]
    return markdown(["model", "method", "dense", *(f"{s:.0%}" for s in SPARSITIES)], body)


def main() -> None:
    """Read the arguments, measure, write the CSV file, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of models and their test data")
    parser.add_argument("--assets", type=Path, help="folder with evaluate.py, models/ and data/")
    parser.add_argument("--out", type=Path, default=RESULTS / "accuracy.csv", help="CSV file")
    args = parser.parse_args()
    rows = [row for case in cases(args.models, args.assets) for row in measure(case)]
    write_csv(args.out, [f.name for f in fields(Row)], [astuple(r) for r in rows])
    print(table(rows))


if __name__ == "__main__":
    entry(main, OnnxFuseError)
