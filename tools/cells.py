"""The cells of the accuracy benchmark, and a cache that can never be out of date.

It has two layers: a cell (model, options, sparsity, group) and the digest of onnxfuse's source give the digest of the
small model; that and the test data give the accuracy. A change of onnxfuse's source merges everything anew, which is
cheap, but only models whose bytes came out different are evaluated again.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from cases import Case
from common import ROOT, digest

from onnxfuse import NothingToMerge, fuse

CALIB = "calib"
"""The option that the benchmark gives as a number of samples."""


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        model, group, sparsity, method: the cell; group is empty for the whole network, method a key of `VARIANTS`.
        accuracy: in %; None if nothing could be merged.
        parameters, macs: of the small model, as % of the original's.
    """

    model: str
    group: str
    sparsity: float
    method: str
    accuracy: float | None
    parameters: float
    macs: float


@dataclass(frozen=True)
class Cell:
    """What is measured: a method (a key of `VARIANTS`) and its options on the whole network or one group."""

    method: str
    options: Mapping[str, Any]
    sparsity: float
    group: str = ""


class Cache:
    """JSON values by key, in a file that only grows; an interrupted run loses nothing."""

    def __init__(self, path: Path, fresh: bool) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [] if fresh or not path.exists() else path.read_text().splitlines()
        self.values: dict[str, Any] = dict(json.loads(line) for line in lines if line.endswith("]"))

    def get(self, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """The value of a key, made if it is not there yet."""
        name = json.dumps(key, sort_keys=True)
        if name not in self.values:
            self.values[name] = make()
            with self.path.open("a") as file:
                file.write(json.dumps([name, self.values[name]]) + "\n")
        return self.values[name]


def source_digest() -> str:
    """Of onnxfuse's code."""
    return digest(*(path.read_bytes() for path in sorted((ROOT / "onnxfuse").rglob("*.py"))))


class Bench:
    """Measures cells of one model."""

    def __init__(self, case: Case, cache: Cache, code: str) -> None:
        self.case, self.cache, self.code = case, cache, code
        self.model = digest(case.model)

    def dense(self) -> Row:
        """The row of the model as it is."""
        accuracy = self._accuracy(self.model, lambda: self.case.model)
        return Row(self.case.name, "", 0.0, "dense", accuracy, 100.0, 100.0)

    def __call__(self, cell: Cell) -> Row:
        """The row of one cell."""
        fused = functools.cache(lambda: self._fuse(cell))
        key = {"model": self.model, "code": self.code} | {k: v for k, v in asdict(cell).items() if k != "method"}
        if CALIB in cell.options:
            key["data"] = self.case.data
        small = self.cache.get(key, lambda: fused()[0])
        accuracy = self._accuracy(small["digest"], lambda: fused()[1]) if small["digest"] else None
        size = (small["parameters"], small["macs"])
        return Row(self.case.name, cell.group, cell.sparsity, cell.method, accuracy, *size)

    def _accuracy(self, model: str, made: Callable[[], bytes]) -> float:
        key = {"evaluated": model, "data": self.case.data, "onnxruntime": ort.__version__}
        return float(self.cache.get(key, lambda: round(self.case.score(made()), 2)))

    def _fuse(self, cell: Cell) -> tuple[dict[str, Any], bytes]:
        """What the first layer keeps, and the small model."""
        options = {"round_to": 1, **cell.options}  # the exact widths of the paper
        if CALIB in options:
            options[CALIB] = self.case.calibration(options[CALIB])
        options.setdefault("round_to", 1)  # exactly the sparsity asked for
        if cell.group:
            options["only"] = [f"^{re.escape(cell.group)}$"]
        try:
            result = fuse(onnx.load_from_string(self.case.model), sparsity=cell.sparsity, **options)
        except NothingToMerge:
            return {"digest": None, "parameters": 100.0, "macs": 100.0}, b""
        small, after, before = result.model.SerializeToString(), result.report.after, result.report.before
        share = {n: round(100 * getattr(after, n) / getattr(before, n), 2) for n in ("parameters", "macs")}
        return {"digest": digest(small), **share}, small
