"""Budgets, speed and floors, measured: does a model get what was asked for, and what is that worth?

python tools/bench_budgets.py budgets    every budget on every model: what was asked for and what came out
python tools/bench_budgets.py latency    the same for --target-latency, with one thread
python tools/bench_budgets.py speed      latency at twelve budgets, rounded and exact, against the MACs saved
python tools/bench_budgets.py scope      accuracy of --scope local and global at equal multiply-accumulates
python tools/bench_budgets.py drop       multiply-accumulates saved by --max-drop 0.01

Each writes tools/results/budgets_NAME.csv, row by row, and prints a table. Latency is a median of interleaved runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from cases import QUANTIZERS, cases, quantized
from common import ASSETS, MODELS, RESULTS, ZOO, ToolError, entry, markdown, module, write_csv
from onnx import ModelProto

from onnxfuse import FuseResult, OnnxFuseError, UsageError, fuse
from onnxfuse.latency import in_turns
from onnxfuse.probe import probe
from onnxfuse.providers import PROVIDERS

Row = list[Any]
CPU = PROVIDERS["cpu"]
GRAPHS = ("resnet50.ts17", "mobilenet_v2.ts17", "densenet121.ts17", "vgg11_bn.ts17", "efficientnet_b0.ts17")
BUDGETS = (("macs", 0.5), ("macs", 0.3), ("params", 0.5), ("size", 0.5))
FIELDS = {"macs": "macs", "params": "parameters", "size": "file_bytes"}
SPEED_GRAPHS = ("resnet18.ts17", "resnet50.ts17", "vgg11_bn.ts17", "resnet20_fmnist", "svhn", "crepe_tiny", "ppocr_cls")
SHARES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.4, 0.3)
SPARSITIES = (0.1, 0.2, 0.3, 0.5)
METHODS: Mapping[str, tuple[str, int]] = {
    "fold": ("fold", 0),
    "intra-fusion": ("intra-fusion", 0),
    "auto": ("auto", 0),
    "auto+calib256": ("auto", 256),
}
"""What is compared: a name, the method, and on how many unlabelled samples it measures."""


def graph(name: str) -> ModelProto:
    """A graph of the zoo, its weights filled in."""
    return module(ZOO / "refill.py").refill(ZOO / "torchvision" / f"{name}.onnx")  # type: ignore[no-any-return]


def models(names: Sequence[str]) -> Iterator[tuple[str, ModelProto]]:
    """The zoo's graphs and the trained assets of these names; `GRAPHS` and all assets if there are none."""
    for name in names or (*GRAPHS, *(path.stem for path in sorted((ASSETS / "models").glob("*.onnx")))):
        asset = ASSETS / "models" / f"{name}.onnx"
        yield name, onnx.load(asset) if asset.exists() else graph(name)


def budgets(args: argparse.Namespace) -> Iterator[Row]:
    """A row for each model and budget: the share that is left, and by how much it misses the budget."""
    for name, model in models(args.models):
        for resource, share in BUDGETS:
            yield met(name, model, resource, share)


def latency(args: argparse.Namespace) -> Iterator[Row]:
    """The same for a latency of 0.6 times the original's, confirmed by a measurement of the result."""
    for name, model in models(args.models):
        yield met(name, model, "latency", 0.6, threads=1)


def met(name: str, model: ModelProto, resource: str, share: float, **options: Any) -> Row:
    """What is left of a resource under a budget for it."""
    asked: dict[str, Any] = {f"target_{resource}": f"{share}x", **options}
    try:
        report = fuse(model, method="drop", **asked).report
    except OnnxFuseError as error:
        return [name, resource, share, "", "", str(error)]
    if report.latency is not None:
        left = report.latency.after / report.latency.before
    else:
        left = getattr(report.after, FIELDS[resource]) / getattr(report.before, FIELDS[resource])
    return [name, resource, share, round(left, 4), round(100 * (left / share - 1), 2), ""]


def speed(args: argparse.Namespace) -> Iterator[Row]:
    """A row for each model, rounding and share of the multiply-accumulates: measured speed-up against the possible.

    All models of a rounding, and the original, are timed in turns: only so can one be said to be slower than another.
    """
    found = integers(args.models, args.quantized) if args.quantized else models(args.models or SPEED_GRAPHS)
    for name, model in found:
        feeds = probe(model, [CPU]).inputs
        for round_to in ("auto", 1):
            made = dict(within_reach(model, {"scope": "local", "method": "drop", "round_to": round_to}))
            (before, *after), _ = in_turns([model, *(m.model for m in made.values())], feeds, [CPU], threads=1)
            for (share, result), ms in zip(made.items(), after, strict=True):
                up, possible = before / ms, result.report.before.macs / result.report.after.macs
                sizes = (round(before, 2), round(ms, 2), round(up, 3), round(possible, 3), round(up / possible, 3))
                yield [name, share, round_to, *sizes]


def within_reach(model: ModelProto, asked: Mapping[str, Any]) -> Iterator[tuple[float, FuseResult]]:
    """Share of the multiply-accumulates → what is made for it, of those that can be had."""
    for share in SHARES:
        try:
            yield share, fuse(model, target_macs=share, **asked)
        except UsageError as error:
            print(f"{share}: {error}", file=sys.stderr)


def integers(names: Sequence[str], kind: str) -> Iterator[tuple[str, ModelProto]]:
    """The labelled assets of these names as onnxruntime's quantizer writes them."""
    for case in cases(MODELS, ASSETS, None):
        if case.name in names:
            yield f"{case.name}, {kind}", onnx.load_from_string(quantized(case, kind).model)


def scope(args: argparse.Namespace) -> Iterator[Row]:
    """A row for each labelled model, method and sparsity: accuracy in %, at equal multiply-accumulates."""
    for case in cases(MODELS, ASSETS if args.assets else None, args.subset):
        if args.models and case.name not in args.models:
            continue
        dense = round(case.score(case.model), 2)
        for name in args.methods:
            for sparsity in SPARSITIES:
                found, options = [], given(name, case.calibration)
                for where in ("local", "global"):
                    result = fuse(onnx.load_from_string(case.model), sparsity=sparsity, scope=where, **options)
                    share = result.report.after.macs / max(1, result.report.before.macs)
                    found += [round(case.score(result.model.SerializeToString()), 2), round(100 * share, 1)]
                yield [case.name, name, sparsity, dense, *found]


def given(name: str, calibration: Callable[[int], Any]) -> dict[str, Any]:
    """The options of one of `METHODS`."""
    method, samples = METHODS[name]
    return {"method": method, **({"calib": calibration(samples)} if samples else {})}


def drop(args: argparse.Namespace) -> Iterator[Row]:
    """A row for each classifier and method: what is left within one point of accuracy."""
    calibration = {case.name: case.calibration for case in cases(MODELS, ASSETS if args.assets else None, args.subset)}
    for name, model, data, metric in classifiers(args.assets, args.models):
        for method in args.methods:
            try:
                report = fuse(model, max_drop=0.01, eval=data, metric=metric, **given(method, calibration[name])).report
            except OnnxFuseError as error:
                yield [name, method, "", "", "", "", str(error)]
                continue
            assert report.quality is not None
            left = [100 * getattr(report.after, f) / getattr(report.before, f) for f in ("macs", "parameters")]
            accuracy = [round(100 * report.quality.before, 2), round(100 * report.quality.after, 2)]
            yield [name, method, *accuracy, *(round(x, 1) for x in left), ""]


def classifiers(assets: bool, names: list[str] | None) -> Iterator[tuple[str, ModelProto, Path, str | None]]:
    """Models, data files for --eval and metrics: of the shipped models and, with `assets`, the classifiers there."""
    for path in sorted(MODELS.glob("*.onnx")):
        if not names or path.stem in names:
            yield path.stem, onnx.load(path), MODELS / f"{path.stem.rpartition('_')[2]}_test.npz", None
    if not assets:
        return
    shared = module(ASSETS / "evaluate.py")
    makers: Mapping[str, tuple[str, Callable[[Any], tuple[Any, Any]], str | None]] = {
        "vgg11_bn_cifar10": ("cifar10_test", lambda d: (shared.cifar(d["x"])["input"], d["y"]), None),
        "magika": ("magika_test", lambda d: (d["x"].astype(np.int32), d["y"]), None),
        "ppocr_cls": ("ppocr_cls_test", lambda d: _turned(shared.text_lines(d["x"], d["w"])), None),
        "crepe_tiny": ("crepe_test", lambda d: (d["x"], d["midi"]), "metrics:pitch"),
        "effnet_tux": ("effnet_tux_test", lambda d: (shared.jpegs(d), d["y"]), "metrics:any_of"),
    }
    with tempfile.TemporaryDirectory() as folder:
        for key, (data, make, metric) in makers.items():
            if not names or key in names:
                x, y = make(shared.data(data))
                np.savez(Path(folder) / f"{key}.npz", x=x, y=y)
                yield key, onnx.load(shared.model_path(key)), Path(folder) / f"{key}.npz", metric


def _turned(lines: Any) -> tuple[Any, Any]:
    """Text lines, each upright and turned, and which they are."""
    return lines, np.tile([0, 1], len(lines) // 2)


BUDGET_COLUMNS = ("model", "budget", "asked", "left", "off by %", "error")
PARTS: Mapping[str, tuple[Callable[[argparse.Namespace], Iterator[Row]], tuple[str, ...]]] = {
    "budgets": (budgets, BUDGET_COLUMNS),
    "latency": (latency, BUDGET_COLUMNS),
    "speed": (
        speed,
        ("model", "asked", "round to", "before ms", "after ms", "speed-up", "MACs ratio", "speed-up / MACs ratio"),
    ),
    "scope": (scope, ("model", "method", "sparsity", "dense", "local", "local MACs %", "global", "global MACs %")),
    "drop": (drop, ("model", "method", "dense", "accuracy", "MACs left %", "parameters left %", "error")),
}
"""Part → its rows, and their columns."""


def main() -> None:
    """Read the arguments, measure, write the CSV file row by row, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME", help="only these")
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", choices=METHODS, default=list(METHODS), help="only these"
    )
    parser.add_argument("--assets", action="store_true", help="the models of ../shared/assets in place of models/")
    parser.add_argument("--quantized", choices=QUANTIZERS, help="speed: the assets of --models quantized so")
    parser.add_argument("--subset", type=int, help="samples to measure accuracy on")
    parser.add_argument("--out", type=Path, help="CSV file")
    args = parser.parse_args()
    if (args.part in ("budgets", "latency", "speed") or args.assets) and not ZOO.is_dir():
        raise ToolError(f"{ZOO}: not there; this part needs its graphs")
    measure, columns = PARTS[args.part]
    rows: list[Row] = []
    for row in measure(args):
        rows.append(row)
        print(*row, file=sys.stderr, flush=True)
        write_csv(args.out or RESULTS / f"budgets_{args.part}.csv", columns, rows)
    print(markdown(columns, [[str(v) for v in row] for row in rows]))


if __name__ == "__main__":
    entry(main, OnnxFuseError)
