"""The floor that any tool has on a model: load, check, run once, save; and the two programs to be measured against it.

python tools/floors.py MODEL OUT [--input-shape NAME:1,3,224,224]      the floor, once
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# onnx, onnxruntime and numpy are imported where they are used: on Linux a child's peak memory is never below that of
# its parent when it started, so the process that measures must stay small
from common import ROOT, ToolError, entry, module

if TYPE_CHECKING:
    from onnx import ModelProto

Shapes = Mapping[str, tuple[int, ...]]
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in one unit of ru_maxrss."""
FLOATS = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
"""onnxruntime's name of a type → NumPy's."""


@dataclass(frozen=True)
class Subject:
    """A model with weights on disk.

    Attributes:
        path: of the file.
        file_bytes: of the file and its external data.
        parameters: how many it has.
        shapes: input shapes to give to both programs.
    """

    path: Path
    file_bytes: int
    parameters: int
    shapes: Shapes


@dataclass(frozen=True)
class Run:
    """One process: wall-clock seconds, bytes of memory at its peak, and what it wrote to stderr."""

    seconds: float
    peak: int
    log: str


# --- the floor ------------------------------------------------------------------------------------------------------
def floor(model: Path, out: Path, shapes: Shapes) -> None:
    """The least that a tool must do that reads, checks, runs and writes a model."""
    import onnx
    import onnxruntime as ort

    loaded = onnx.load(model)
    onnx.checker.check_model(loaded, full_check=True)
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    session.run(None, {i.name: _random(i, shapes) for i in session.get_inputs()})
    onnx.save(loaded, out)


def _random(value: Any, shapes: Shapes) -> Any:
    """A random array for one input of a session: normal for floats, 0 or 1 for others; an open batch is 1."""
    import numpy as np

    dims = shapes.get(value.name) or (1 if isinstance(value.shape[0], str) else value.shape[0], *value.shape[1:])
    if not all(isinstance(d, int) for d in dims):
        raise ToolError(f"input {value.name} is {value.shape}; give --input-shape {value.name}:1,…")
    rng = np.random.default_rng(0)
    dtype = FLOATS.get(value.type)
    if dtype:
        return rng.standard_normal(dims).astype(dtype)
    return rng.integers(0, 2, dims).astype(value.type.removeprefix("tensor(").removesuffix(")"))


# --- preparation ----------------------------------------------------------------------------------------------------
def prepare(model: Path, shapes: Shapes, directory: Path, zoo: Path) -> Subject:
    """Refill a graph that was stripped of its weights; any other model is taken as it is.

    Raises:
        ToolError: the model cannot be read.
    """
    from onnxfuse import ModelError
    from onnxfuse.counts import parameters
    from onnxfuse.files import load

    try:
        loaded = load(model)
    except ModelError as error:
        raise ToolError(str(error)) from error  # a class that the small process knows
    if any(p.key == "zoo.weights" for p in loaded.model.metadata_props):
        return _of_the_zoo(loaded.model, model, directory / model.name, shapes, zoo)
    return Subject(model, loaded.file_bytes, parameters(loaded.model), shapes)


def _of_the_zoo(graph: ModelProto, path: Path, filled: Path, shapes: Shapes, zoo: Path) -> Subject:
    """A graph of the zoo at the input shapes recorded in it; `filled` is written if its weights are missing."""
    import onnx

    from onnxfuse.counts import parameters

    refill = module(zoo / "refill.py")
    recorded = {name: tuple(d["shape"]) for name, d in refill.meta(graph, "zoo.inputs", {}).items()}
    needed = {name: recorded[name] for name in _open_inputs(graph) if name in recorded}
    if any(refill.is_stub(tensor) for _, tensor in refill.walk_tensors(graph)):
        onnx.save(refill.refill(graph), filled)
        path = filled
    return Subject(path, path.stat().st_size, parameters(graph), {**needed, **shapes})


def _open_inputs(model: ModelProto) -> list[str]:
    """Names of the inputs with dimensions that the model leaves open."""
    return [v.name for v in model.graph.input if any(d.dim_value <= 0 for d in v.type.tensor_type.shape.dim)]


def apart(model: Path, shapes: Shapes, directory: Path, zoo: Path) -> Subject:
    """`prepare` in a process of its own, so that its memory is not counted."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(prepare, model, shapes, directory, zoo).result()


def _as_installed() -> Mapping[str, str]:
    """The environment, in which Python keeps compiled modules, as pip does: the run that is not counted writes them."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


# --- measuring ------------------------------------------------------------------------------------------------------
def run(command: Sequence[str]) -> Run:
    """Run a command and measure it.

    Raises:
        ToolError: it failed; with the last line that it wrote.
    """
    with tempfile.TemporaryFile("w+") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, cwd=ROOT, env=_as_installed())
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)  # or Popen would wait for it again
        log.seek(0)
        written = log.read()
    if process.returncode:
        lines = written.strip().splitlines() or ["no message"]
        raise ToolError(f"{' '.join(command)}: exit code {process.returncode}: {lines[-1]}")
    return Run(seconds, usage.ru_maxrss * RSS_UNIT, written)


def interleaved(a: Sequence[str], b: Sequence[str], runs: int) -> tuple[list[Run], list[Run]]:
    """`runs` measurements of both commands, A B A B, after one of each that fills the disk cache."""
    pairs = [(run(a), run(b)) for _ in range(runs + 1)][1:]
    return [x for x, _ in pairs], [y for _, y in pairs]


def commands(subject: Subject, options: Sequence[str], directory: Path) -> tuple[list[str], list[str]]:
    """onnxfuse's command line with these options, and the floor's."""
    given = [f"--input-shape={name}:{','.join(map(str, dims))}" for name, dims in subject.shapes.items()]
    model, out = str(subject.path.resolve()), str(directory / "out.onnx")
    fuse = [sys.executable, "-m", "onnxfuse", model, out, "--quiet", *options, *given]
    return fuse, [sys.executable, __file__, model, out, *given]


# --- command line ---------------------------------------------------------------------------------------------------
def parse_shapes(items: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """NAME:1,3,224,224 → {name: shape}.

    Raises:
        ToolError: not of that form.
    """
    shapes = {}
    for item in items:
        name, _, dims = item.rpartition(":")
        if not name or not all(d.isdigit() for d in dims.split(",")):
            raise ToolError(f"--input-shape {item!r} is not NAME:1,3,224,224")
        shapes[name] = tuple(int(d) for d in dims.split(","))
    return shapes


def main() -> None:
    """Be the floor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help=".onnx")
    parser.add_argument("out", type=Path, help="where to write")
    parser.add_argument("--input-shape", action="append", default=[], metavar="NAME:1,3,224,224", help="for open ones")
    args = parser.parse_args()
    floor(args.model, args.out, parse_shapes(args.input_shape))


if __name__ == "__main__":
    entry(main)
