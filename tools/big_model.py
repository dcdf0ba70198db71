"""Make a large model and measure how onnxfuse copes: python tools/big_model.py --gigabytes 3 --sparsity 0.5

The model is a stack of residual MLP blocks 4,096 → 11,008 → 4,096 (the sizes of a 7-billion-parameter language model)
with external data. Peak memory is that of a fresh process, mapped files included, against the size of the input.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import RESULTS, ROOT, ToolError, entry, write_csv
from onnx import ModelProto, TensorProto, helper

HEADER = (
    "blocks",
    "width",
    "hidden",
    "file_gb",
    "sparsity",
    "result_gb",
    "seconds",
    "s_per_gb",
    "peak_gb",
    "peak/file",
)


def make(path: Path, blocks: int, width: int, hidden: int, seed: int = 0) -> None:
    """Write a model of that many blocks, its weights tensor by tensor. Hidden units come in families of eight."""
    rng = np.random.default_rng(seed)
    nodes, stubs, value = [], [], "x"
    with path.with_name(f"{path.name}.data").open("wb") as file:
        for i in range(blocks):
            for name, shape in ((f"up{i}", (width, hidden)), (f"down{i}", (hidden, width))):
                tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
                tensor.data_location = TensorProto.EXTERNAL
                length = 4 * width * hidden
                for key, entry_ in (("location", f"{path.name}.data"), ("offset", file.tell()), ("length", length)):
                    tensor.external_data.add(key=key, value=str(entry_))
                stubs.append(tensor)
                file.write(_weights(rng, shape))
            nodes += [
                helper.make_node("MatMul", [value, f"up{i}"], [f"h{i}"], f"up{i}"),
                helper.make_node("Relu", [f"h{i}"], [f"a{i}"], f"relu{i}"),
                helper.make_node("MatMul", [f"a{i}", f"down{i}"], [f"m{i}"], f"down{i}"),
                helper.make_node("Add", [value, f"m{i}"], [f"y{i}"], f"add{i}"),
            ]
            value = f"y{i}"
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", width]) for n in ("x", value)]
    graph = helper.make_graph(nodes, "big", ends[:1], ends[1:])
    graph.initializer.extend(stubs)
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def _weights(rng: np.random.Generator, shape: tuple[int, int]) -> bytes:
    hidden = max(shape)
    centres = rng.standard_normal((hidden // 8 + 1, min(shape)), dtype=np.float32)
    rows = centres[np.arange(hidden) // 8]
    rows += 0.5 * rng.standard_normal(rows.shape, dtype=np.float32)
    rows *= np.float32(0.5 / np.sqrt(shape[0]))
    return np.ascontiguousarray(rows if shape[0] == hidden else rows.T).tobytes()


def measure(model: Path, result: Path, sparsity: float, extra: list[str]) -> tuple[float, float]:
    """Seconds and peak bytes of one run of the command line in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "onnxfuse",
        str(model),
        str(result),
        "--sparsity",
        str(sparsity),
        *extra,
    ]
    start = time.perf_counter()
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    if done.returncode:
        raise ToolError(f"onnxfuse ended with exit code {done.returncode}")
    return time.perf_counter() - start, 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def _bytes(path: Path) -> int:
    return sum(f.stat().st_size for f in (path, path.with_name(f"{path.name}.data")) if f.exists())


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--gigabytes", type=float, default=3.0)
    p.add_argument("--width", type=int, default=4096)
    p.add_argument("--hidden", type=int, default=11008)
    p.add_argument("--sparsity", type=float, default=0.5)
    p.add_argument("--folder", type=Path, help="where to keep the files (default: a temporary folder)")
    p.add_argument("--results", type=Path, default=RESULTS / "big_model.csv")
    a, extra = p.parse_known_args()
    blocks = max(1, round(a.gigabytes * 1e9 / (8 * a.width * a.hidden)))
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        model, result = Path(folder) / "big.onnx", Path(folder) / "small.onnx"
        make(model, blocks, a.width, a.hidden)
        seconds, peak = measure(model, result, a.sparsity, extra)
        size, small = _bytes(model) / 1e9, _bytes(result) / 1e9
        row = (
            blocks, a.width, a.hidden, f"{size:.2f}", a.sparsity, f"{small:.2f}", f"{seconds:.0f}",
            f"{seconds / size:.0f}", f"{peak / 1e9:.2f}", f"{peak / 1e9 / size:.2f}",
        )  # fmt: skip
    write_csv(a.results, HEADER, [row])
    print("\n".join(f"{name:>10}  {value}" for name, value in zip(HEADER, row, strict=True)))


if __name__ == "__main__":
    entry(main)
