"""Small models to test with: `build(name)` for each name in `NAMES`, inputs for any model, and ways to run one."""

from __future__ import annotations

import importlib.util
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from .texts import TEXTS

Array = NDArray[Any]
NAMES = tuple(TEXTS)
ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
MODELS = ROOT / "models"
HEADER = '<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]>\ng'


def build(name: str) -> ModelProto:
    """The model of that name, always with the same weights."""
    return from_text(TEXTS[name])


def from_text(text: str, weights: Mapping[str, Array] | None = None, opset: int = 17) -> ModelProto:
    """A model from onnx's text form without its header; what nothing gives a value becomes a random initializer."""
    model = onnx.parser.parse_model(HEADER.format(opset=opset) + text)
    graph = model.graph
    made = {name for node in graph.node for name in node.output}
    for value in [v for v in graph.value_info if v.name not in made]:
        graph.value_info.remove(value)
        shape = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        given = weights[value.name] if weights and value.name in weights else random_weight(value.name, shape)
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        given = given if kind == np.float32 else random_integers(value.name, shape)
        graph.initializer.append(numpy_helper.from_array(given.astype(kind), value.name))
    for node in graph.node:
        node.name = node.output[0]
    onnx.checker.check_model(model, full_check=True)
    return model


def random_weight(name: str, shape: tuple[int, ...]) -> Array:
    """Numbers that suit a name: positive variances, scales around 1, matrices that keep an activation's size."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("_var"):
        return rng.uniform(0.5, 2, shape)
    if name.endswith("_scale"):
        return rng.uniform(0.5, 1.5, shape)
    size = float(np.sqrt(np.prod(shape[1:])))
    return np.asarray(rng.standard_normal(shape) / size * (2 if len(shape) > 1 else 0.5))


def random_integers(name: str, shape: tuple[int, ...]) -> Array:
    """What int8 can hold."""
    return np.random.default_rng(zlib.crc32(name.encode())).integers(-100, 100, shape)


def runs(model: ModelProto, feeds: Mapping[str, Array]) -> bool:
    """Whether the installed onnxruntime can: the last one for Python 3.10 lacks kernels that later ones have."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)
    except Exception:  # onnxruntime has no base class for what it raises
        return False
    return True


def inputs(model: ModelProto, seed: int = 0, batch: int = 3) -> dict[str, Array]:
    """Random inputs; of open dimensions the first gets the size `batch`, others 64."""
    rng = np.random.default_rng(seed)
    constants = {t.name for t in model.graph.initializer}
    feeds: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name not in constants:
            kind = value.type.tensor_type
            sizes = [d.dim_value for d in kind.shape.dim]
            shape = [d if d > 0 else (64 if axis else batch) for axis, d in enumerate(sizes)]
            dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
            whole = dtype.kind in "iub"
            values = rng.integers(0, 2, shape) if whole else rng.standard_normal(shape)
            feeds[value.name] = values.astype(dtype)
    return feeds


def run(model: ModelProto | Path, feeds: Mapping[str, Array] | None = None) -> list[Array]:
    """Outputs of a model in onnxruntime, optimizations off."""
    loaded = model if isinstance(model, ModelProto) else onnx.load(model)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(loaded.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(inputs(loaded) if feeds is None else feeds)))


def weights(model: ModelProto) -> dict[str, Array]:
    """Name → values of every initializer and Constant node."""
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            value = next(a for a in node.attribute if a.name.startswith("value"))
            found[node.output[0]] = np.asarray(
                numpy_helper.to_array(value.t) if value.name == "value" else helper.get_attribute_value(value)
            )
    return found


def dims(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """Name → shape of every initializer and Constant node."""
    return {name: array.shape for name, array in weights(model).items()}


def gap(a: list[Array], b: list[Array]) -> float:
    """Largest relative L2 difference of corresponding outputs."""
    pairs = [(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in zip(a, b, strict=True)]
    return max(float(np.linalg.norm(x - y) / (np.linalg.norm(x) or 1)) for x, y in pairs)


def model_files() -> list[Path]:
    """The models that the project ships."""
    return sorted(MODELS.rglob("*.onnx"))


def zoo(pattern: str) -> list[Path | str]:
    """Graphs of the zoo beside the repository whose name matches; where there is none, what can stand in."""
    found = sorted(p for p in (SHARED / "zoo").glob("*/*.onnx") if re.match(pattern, p.name))
    return [*found] or stand_ins()


def trained() -> list[Path | str]:
    """Trained models beside the repository; where there are none, what can stand in."""
    return [*sorted((SHARED / "assets" / "models").glob("*.onnx"))] or stand_ins()


def stand_ins() -> list[Path | str]:
    """The shipped models, or the small graphs."""
    return [*(model_files() or NAMES)]


def load(case: Path | str) -> tuple[ModelProto, dict[str, Array]]:
    """A runnable model and inputs for it, from a zoo graph (refilled), any other file, or a small graph's name."""
    if isinstance(case, str):
        model = build(case)
    elif SHARED / "zoo" in case.parents:
        return _refilled(case)
    else:
        model = onnx.load(case)
    return model, inputs(model)


def _refilled(path: Path) -> tuple[ModelProto, dict[str, Array]]:
    spec = importlib.util.spec_from_file_location("refill", SHARED / "zoo" / "refill.py")
    assert spec is not None
    assert spec.loader is not None
    refill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(refill)
    model = refill.refill(path)
    return model, refill.make_inputs(model)


def case_id(case: Path | str) -> str:
    """How pytest names a case."""
    return case if isinstance(case, str) else case.name
