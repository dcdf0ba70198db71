"""Time of onnxfuse's `drop` against rivals that drop channels, on the same graphs, and what each of them achieves.

python tools/bench_rivals.py FOLDER|MODEL [--only REGEX] [--sparsity 0.5] [--runs 3] [--out FILE.csv]

onnxfuse runs as its command line does, checks and proof included; a rival runs as its documentation says: read, prune,
write. All are fresh processes, in turn, with the floor of `floors.py` beside them, after one run of each that is
not counted. Rivals that are not installed are left out; no rival is a dependency: `pip install onnxsim torch-pruning
torchvision onnxscript`. Torch-Pruning prunes networks of PyTorch, not files: it gets torchvision's network of the
file's name, untrained, and exports it. A rival's result runs if onnxruntime takes it with all optimizations off.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from common import RESULTS, ZOO, ToolError, entry, markdown, write_csv
from floors import Shapes, Subject, apart, run
from floors import commands as both

from onnxfuse import ModelError
from onnxfuse.counts import macs
from onnxfuse.files import load
from onnxfuse.probe import probe
from onnxfuse.providers import provider_list

CLASSES = 1000
"""Outputs of torchvision's classifiers."""
HEADER = ("graph", "tool", "median s", "times the floor", "MACs removed %", "remark")
Rival = Callable[[Path, Path, float], None]
Row = list[str]


def onnxsim(model: Path, out: Path, sparsity: float) -> None:
    """`apply_structured_pruning`: L2 norms, chains of one producer and one consumer."""
    import onnx

    pruning = importlib.import_module("onnxsim.pruning")
    onnx.save(pruning.apply_structured_pruning(onnx.load(model), sparsity=sparsity), out)


def torch_pruning(model: Path, out: Path, sparsity: float) -> None:
    """L1 norms over its dependency graph, the classifier left alone; torchvision builds, PyTorch exports."""
    torch, networks, tp = map(importlib.import_module, ("torch", "torchvision.models", "torch_pruning"))
    network, example = networks.get_model(model.name.split(".")[0]).eval(), torch.randn(1, 3, 224, 224)
    last = [m for m in network.modules() if isinstance(m, torch.nn.Linear) and m.out_features == CLASSES]
    importance = tp.importance.MagnitudeImportance(p=1)
    tp.pruner.BasePruner(network, example, importance, pruning_ratio=sparsity, ignored_layers=last).step()
    torch.onnx.export(network, (example,), out, dynamo=False)


RIVALS: Mapping[str, Rival] = {"onnxsim": onnxsim, "torch_pruning": torch_pruning}
"""Name of the package → how it prunes a file."""


def measured(subject: Subject, sparsity: float, runs: int, directory: Path) -> list[Row]:
    """A row for each tool on one graph."""
    fuse, floor = both(subject, [f"--sparsity={sparsity}", "--method=drop"], directory)
    commands = {"floor": floor, "onnxfuse": fuse}
    for name in (n for n in RIVALS if importlib.util.find_spec(n)):
        out = str(directory / f"{name}.onnx")
        commands[name] = [sys.executable, __file__, str(subject.path), "--rival", name, out, f"--sparsity={sparsity}"]
    times: dict[str, list[float]] = {name: [] for name in commands}
    failed: dict[str, str] = {}
    for _ in range(runs + 1):
        for name in (n for n in commands if n not in failed):
            try:
                times[name].append(run(commands[name]).seconds)
            except ToolError as error:
                failed[name] = str(error).rpartition("exit code")[2]
    before = _macs(subject.path, subject.shapes)
    results = {name: directory / ("out.onnx" if name == "onnxfuse" else f"{name}.onnx") for name in commands}
    run(fuse)  # once more, for the floor writes to the same file
    base = median(times["floor"][1:])
    return [
        _row(subject, name, times[name][1:], base, failed.get(name) or _achieved(results[name], subject.shapes, before))
        for name in commands
        if name != "floor"
    ]


def _row(subject: Subject, name: str, seconds: Sequence[float], base: float, achieved: str | float) -> Row:
    if isinstance(achieved, str) and not seconds:
        return [subject.path.name, name, "", "", "", achieved]
    time = [f"{median(seconds):.2f}", f"{median(seconds) / base:.2f}"]
    share = ["", achieved] if isinstance(achieved, str) else [f"{achieved:.1f}", ""]
    return [subject.path.name, name, *time, *share]


def _macs(path: Path, shapes: Shapes) -> int:
    model = load(path).model
    return macs(model, probe(model, provider_list("cpu"), shapes).shapes)


def _achieved(result: Path, shapes: Shapes, before: int) -> float | str:
    """Multiply-accumulates removed, in %; or why the result does not run."""
    try:
        return 100 * (1 - _macs(result, shapes) / before)
    except ModelError as error:
        return f"the result does not run: {error}"[:160]


def main() -> None:
    """Read the arguments; be a rival, or measure all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", type=Path, help=".onnx, or a folder of them, searched to any depth")
    parser.add_argument("--only", default="", metavar="REGEX", help="files whose name matches")
    parser.add_argument("--sparsity", type=float, default=0.5, help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=3, help="of each program (default: %(default)s)")
    parser.add_argument("--zoo", type=Path, default=ZOO, help="folder with refill.py")
    parser.add_argument("--out", type=Path, default=RESULTS / "rivals.csv", help="CSV file")
    parser.add_argument("--rival", nargs=2, metavar=("NAME", "OUT"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.rival:
        RIVALS[a.rival[0]](a.graphs, Path(a.rival[1]), a.sparsity)
        return
    graphs = sorted(a.graphs.rglob("*.onnx")) if a.graphs.is_dir() else [a.graphs]
    rows: list[Row] = []
    for graph in (g for g in graphs if re.search(a.only, g.name)):
        with tempfile.TemporaryDirectory() as name:
            rows += measured(apart(graph, {}, Path(name), a.zoo), a.sparsity, a.runs, Path(name))
        write_csv(a.out, HEADER, rows)
        print(*("  ".join(row) for row in rows[-1 - len(RIVALS) :]), sep="\n", file=sys.stderr)
    if not rows:
        raise ToolError(f"{a.graphs}: no .onnx file matches")
    print(markdown(HEADER, rows))


if __name__ == "__main__":
    entry(main)
