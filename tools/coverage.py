"""What onnxfuse makes of every graph of a folder: the whole pipeline and the zero-padding oracle, a row a graph.

python tools/coverage.py FOLDER [--sparsity 0.5] [--only REGEX] [--skip REGEX] [--jobs 1] [--option NAME=VALUE]

Each graph runs in a process of its own, under a time and a memory limit. The CSV holds one row for each graph and set
of options; rows that are there already are not run again (delete some to have them run anew). Graphs whose weights
were stripped are refilled by the refill.py above them.

Status: ok; nothing to merge; refused (the input cannot be read or run); wrong (the oracle or a check of the result
fails); crashed (anything else, the limits included).
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

# onnxfuse is imported by the workers only: a child's peak memory is never below that of its parent when it started
from common import RESULTS, ROOT, ToolError, entry, markdown, module, write_csv

if TYPE_CHECKING:
    from onnx import ModelProto

    from onnxfuse import FuseResult

FIELDS = """graph options status macs_removed parameters_removed oracle prepared agreement strict groups locked seconds
peak_mb reasons""".split()
TOLERANCE = 1e-4
"""Relative L2 error above which the oracle's verdict is `wrong`."""
Row = dict[str, str]


# --- one graph, in the worker ---------------------------------------------------------------------------------------
def work(path: Path, options: Mapping[str, Any], refill: Path) -> Row:
    """Fuse one graph and ask the oracle."""
    from onnxfuse import ModelError, NothingToMerge, VerificationFailed

    model, feeds = read(path, refill)
    start = time.perf_counter()
    try:
        result = fused(model, feeds, options)
    except NothingToMerge as error:
        return {"status": "nothing to merge", "reasons": str(error)}
    except ModelError as error:
        return {"status": "refused", "reasons": str(error)}
    except VerificationFailed as error:
        return {"status": "wrong", "reasons": str(error)}
    return judged(model, feeds, result) | {"seconds": f"{time.perf_counter() - start:.1f}"}


def read(path: Path, refill: Path) -> tuple[ModelProto, dict[str, Any]]:
    """A runnable model, and the inputs that are recorded in it (none for an ordinary file)."""
    from onnxfuse.files import load

    model = load(path).model
    if not any(p.key == "zoo.weights" for p in model.metadata_props):
        return model, {}
    shared = module(refill)
    return shared.refill(model), shared.make_inputs(model)


def fused(model: ModelProto, feeds: Mapping[str, Any], options: Mapping[str, Any]) -> FuseResult:
    """`fuse` at a batch size of its own choice, so that the oracle sees another; else at the recorded sizes."""
    import onnxfuse

    dims = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    shapes = {name: array.shape for name, array in feeds.items()}
    if all(all(dims[name][1:]) for name in shapes):
        try:
            return onnxfuse.fuse(model, **options)
        except onnxfuse.ModelError as error:
            if "--input-shape" not in str(error) or not feeds:
                raise
    return onnxfuse.fuse(model, **options, input_shapes=shapes)


def judged(model: ModelProto, feeds: Mapping[str, Any], result: FuseResult) -> Row:
    """The row of a graph that was fused and passed onnxfuse's own checks."""
    from onnxfuse.oracle import oracle_error
    from onnxfuse.probe import probe
    from onnxfuse.providers import provider_list

    shapes = {name: values.shape for name, values in feeds.items()}
    own = probe(model, provider_list("cpu"), shapes, seed=7)
    inputs = {**(feeds or own.inputs), **{name: own.inputs[name] for name in own.ranges}}  # in the range that it takes
    error, report, changed = oracle_error(model, result, inputs), result.report, preparation_error(model, inputs)
    before, after = report.before, report.after
    return {
        "status": "ok" if max(error, changed) < TOLERANCE else "wrong",
        "macs_removed": _percent(before.macs, after.macs),
        "parameters_removed": _percent(before.parameters, after.parameters),
        "oracle": f"{error:.1e}",
        "prepared": f"{changed:.1e}",
        "agreement": f"{report.comparison.agreement:.1e}",
        "strict": _strict(model, result.model),
        "groups": str(len(report.groups)),
        "locked": str(sum(row.channels for row in report.locked)),
        "reasons": "; ".join(f"{reason} ({n})" for reason, _, n in report.reasons()),
    }


def preparation_error(model: ModelProto, inputs: Mapping[str, Any]) -> float:
    """Largest relative L2 error of any output that folding constants and BatchNormalization makes, before any merge."""
    from onnxfuse.comparison import compare
    from onnxfuse.prepare import inline, prepare
    from onnxfuse.runs import run

    prepared = type(model)()
    prepared.CopyFrom(inline(model))
    prepare(prepared)
    outputs = [run(m, inputs, ["CPUExecutionProvider"], optimized=False) for m in (model, prepared)]
    return max((e.relative for e in compare(*outputs)), default=0.0)


def _percent(before: int, after: int) -> str:
    return f"{100 * (1 - after / before):.1f}" if before else ""


def _strict(original: ModelProto, result: ModelProto) -> str:
    """Whether the result passes strict shape inference; if it does not, whether the original does."""
    from onnxfuse import VerificationFailed
    from onnxfuse.verify import check

    for model, verdict in ((result, "yes"), (original, "neither")):
        try:
            check(model)
        except VerificationFailed:
            continue
        return verdict if model is result else "no"
    return "neither"


# --- all graphs -----------------------------------------------------------------------------------------------------
def run_one(graph: Path, a: argparse.Namespace, options: str) -> Row:
    """One worker's row; whatever ends it early is the row's reason."""
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        str(graph),
        "--worker",
        options,
        "--refill",
        str(a.refill),
    ]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (a.memory << 30, a.memory << 30))

    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=a.time, cwd=ROOT, preexec_fn=limit)
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        row: Row = json.loads(done.stdout) if done.returncode == 0 else _crash(lines, done.returncode)
    except subprocess.TimeoutExpired:
        row = {"status": "crashed", "reasons": f"not done after {a.time} s"}
    return {"graph": _name(graph, a.folder), "options": options} | row


def _crash(lines: Sequence[str], code: int) -> Row:
    return {"status": "crashed", "reasons": lines[-1] if lines else f"exit code {code}"}


def _name(graph: Path, folder: Path) -> str:
    return str(graph.relative_to(folder)) if folder.is_dir() else graph.name


def _rows(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def sweep(a: argparse.Namespace, options: str) -> list[Row]:
    """Run what the CSV lacks; returns the rows of these options. The CSV is written after every graph."""
    graphs = sorted(a.folder.rglob("*.onnx")) if a.folder.is_dir() else [a.folder]
    chosen = [g for g in graphs if re.search(a.only, g.name) and not (a.skip and re.search(a.skip, g.name))]
    if not chosen:
        raise ToolError(f"{a.folder}: no .onnx file matches")
    rows = {(r["graph"], r["options"]): r for r in _rows(a.out)}
    todo = [g for g in chosen if (_name(g, a.folder), options) not in rows]
    with ThreadPoolExecutor(a.jobs) as pool:
        for done, row in enumerate(pool.map(lambda g: run_one(g, a, options), todo), 1):
            rows[row["graph"], options] = row
            write_csv(a.out, FIELDS, ([rows[k].get(f, "") for f in FIELDS] for k in sorted(rows)))
            print(f"{done}/{len(todo)} {row['graph']}: {row['status']} {row.get('macs_removed', '')}", file=sys.stderr)
    return [rows[key] for g in chosen if (key := (_name(g, a.folder), options)) in rows]


def summary(rows: Sequence[Row]) -> str:
    """How often each status occurs, what is not ok, and the reasons by the number of graphs that give them."""
    count = Counter(r["status"] for r in rows)
    parts = [markdown(["status", "graphs"], [[s, str(n)] for s, n in count.most_common()])]
    bad = [[r["graph"], r["status"], r.get("reasons", "")[:200]] for r in rows if r["status"] != "ok"]
    parts += [markdown(["graph", "status", "because"], bad)] if bad else []
    reasons = Counter(re.sub(r" \(\d+\)$", "", x) for r in rows if r["status"] == "ok" for x in _split(r))
    parts += [markdown(["left alone because", "graphs"], [[s, str(n)] for s, n in reasons.most_common()])]
    return "\n\n".join(parts)


def _split(row: Row) -> list[str]:
    return [x for x in row.get("reasons", "").split("; ") if x]


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path, help="of .onnx files, searched to any depth; or one file")
    p.add_argument("--sparsity", type=float, default=0.5)
    p.add_argument("--method", default="auto")
    p.add_argument(
        "--option", action="append", default=[], metavar="NAME[=VALUE]", help="of fuse, such as allow-norm, round-to=1"
    )
    p.add_argument("--only", default="", metavar="REGEX", help="files whose name matches")
    p.add_argument("--skip", default="", metavar="REGEX", help="but not these")
    p.add_argument("--jobs", type=int, default=1)
    p.add_argument("--time", type=int, default=900, help="seconds a graph may take (default: %(default)s)")
    p.add_argument("--memory", type=int, default=14, help="GB a graph may take (default: %(default)s)")
    p.add_argument("--refill", type=Path, help="refill.py (default: the one in FOLDER or above it)")
    p.add_argument("--out", type=Path, default=RESULTS / "coverage.csv")
    p.add_argument("--worker", metavar="OPTIONS", help=argparse.SUPPRESS)
    return p.parse_args()


def _option(text: str) -> tuple[str, Any]:
    """The name and value of `NAME` (turned on) or `NAME=VALUE`, a JSON value."""
    name, _, value = text.partition("=")
    try:
        return name.replace("-", "_"), json.loads(value or "true")
    except json.JSONDecodeError as error:
        raise ToolError(f"--option {text}: the value is not JSON ({error})") from error


def main() -> None:
    a = arguments()
    a.folder = a.folder.resolve()
    if a.refill is None:
        places = [a.folder, *a.folder.parents][:3]
        a.refill = next((f for p in places if (f := p / "refill.py").is_file()), a.folder / "refill.py")
    if a.worker is not None:
        row = work(a.folder, json.loads(a.worker), a.refill)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 10)
        print(json.dumps(row | {"peak_mb": f"{peak:.0f}"}))
        return
    options = {"sparsity": a.sparsity, "method": a.method, **dict(_option(text) for text in a.option)}
    print(summary(sweep(a, json.dumps(options))))


if __name__ == "__main__":
    entry(main)
