"""Labelled models to measure accuracy on: those in models/, or all of an assets folder."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from common import ToolError, digest, module
from evaluate import load_data, load_images, score, session
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxfuse.prepare import prepare

Array = NDArray[Any]
EVERY = 1 << 20
"""More calibration samples than any asset has."""
FOLDED = ("resnet20_fmnist", "vgg11_bn_cifar10")
"""Assets measured with their BatchNormalization folded, too: their own NAME_folded.onnx, or what onnxfuse folds."""


@dataclass(frozen=True, eq=False)
class Case:
    """One model.

    Attributes:
        name: of the model.
        model: its bytes.
        data: what it is measured on, for the cache: a change of it must change this name.
        keeps_norms: whether it has BatchNormalization.
        score: the metric, in %, of a model's bytes.
        calibration: that many unlabelled samples, by input name.
    """

    name: str
    model: bytes
    data: str
    keeps_norms: bool
    score: Callable[[bytes], float]
    calibration: Callable[[int], dict[str, Array]]


def cases(models: Path, assets: Path | None, subset: int | None) -> list[Case]:
    """All models to measure.

    Args:
        models: folder of MODEL_DATA.onnx with DATA_test.npz and DATA_calib.npz.
        assets: folder with evaluate.py, models/ and data/, taken instead.
        subset: measure on this many samples, evenly spaced; None for all.

    Raises:
        ToolError: no models, or one without data.
    """
    found = _assets(assets, subset) if assets else [_shipped(m, subset) for m in sorted(models.glob("*.onnx"))]
    if not found:
        raise ToolError(f"{models}: no models; make them with tools/make_models.py")
    return found


def quantized(case: Case, kind: str) -> Case:
    """The model as onnxruntime's quantizer writes it: 8-bit weights, and activations by one of `QUANTIZERS`."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "in.onnx", Path(folder) / "out.onnx"
        path.write_bytes(case.model)
        QUANTIZERS[kind](case, path, out)
        return replace(case, model=out.read_bytes())


def _dynamically(case: Case, path: Path, out: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(path, out)


def _statically(form: str, case: Case, path: Path, out: Path) -> None:
    """With BatchNormalization folded and ranges of `RANGES` calibration samples, as onnxruntime's manual has it."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(path, ready := path.with_name("ready.onnx"), skip_symbolic_shape=True)
    feeds = [{n: a[i : i + 1] for n, a in case.calibration(RANGES).items()} for i in range(RANGES)]
    how = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(ready, out, _Reader(feeds), QuantFormat[form], **how)


class _Reader:
    """What onnxruntime's quantizer takes samples from."""

    def __init__(self, feeds: Sequence[dict[str, Array]]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> dict[str, Array] | None:
        """The next sample, or None."""
        return next(self.feeds, None)


RANGES = 64
"""Samples that tell a static quantizer the range of each activation."""
QUANTIZERS: Mapping[str, Callable[[Case, Path, Path], None]] = {
    "dynamic": _dynamically,
    "qdq": functools.partial(_statically, "QDQ"),
    "qoperator": functools.partial(_statically, "QOperator"),
}
"""By the activations: quantized as they come, or by fixed scales, between nodes or in integer operators."""


def of_bytes(case: Case, where: str) -> Case:
    """The model as one that takes images from 0 to 255, and normalises them itself in one of `NORMALISING`.

    Of images of mean 0 and deviation 1 it makes what it made of them before, but at padded edges: what is not there is
    black there, and grey before.
    """
    model = onnx.load_from_string(case.model)
    NORMALISING[where](model)

    def measure(small: bytes) -> float:
        """Of a file that takes such images, fed with them."""
        fed = onnx.load_from_string(small)
        _before(fed, ("Mul", DEVIATION), ("Add", MEAN))
        return case.score(fed.SerializeToString())

    def calibration(count: int) -> dict[str, Array]:
        return {n: np.asarray(v * DEVIATION + MEAN, v.dtype) for n, v in case.calibration(count).items()}

    data = f"{case.data}:bytes"
    return replace(case, model=model.SerializeToString(), data=data, score=measure, calibration=calibration)


def _before(model: onnx.ModelProto, *steps: tuple[str, float]) -> None:
    """Put operators, each with its constant, between a model's input and what reads it."""
    graph, name = model.graph, model.graph.input[0].name
    made = [name, *(f"{name}_after_{operator}" for operator, _ in steps)]
    for node in graph.node:
        node.input[:] = [made[-1] if read == name else read for read in node.input]
    for i, (operator, value) in reversed(list(enumerate(steps))):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), f"{name}_{operator}"))
        graph.node.insert(0, helper.make_node(operator, [made[i], f"{name}_{operator}"], [made[i + 1]]))


def _in_weights(model: onnx.ModelProto) -> None:
    """Into the first convolution, which must have a bias: W (x − m) / s + b = (W / s) x + (b − ΣW m / s)."""
    tensors = {t.name: t for t in model.graph.initializer}
    first = next((n for n in model.graph.node if n.op_type == "Conv"), None)
    if first is None or len(first.input) < 3 or any(name not in tensors for name in first.input[1:]):
        raise ToolError("the first layer is no convolution with a bias; fold its BatchNormalization first")
    kernel, bias = (numpy_helper.to_array(tensors[name]) for name in first.input[1:])
    kernel = kernel / DEVIATION
    for name, values in zip(first.input[1:], (kernel, bias - MEAN * kernel.sum(axis=(1, 2, 3))), strict=True):
        tensors[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))


MEAN, DEVIATION = 114.75, 63.75
"""Of images from 0 to 255."""
NORMALISING: Mapping[str, Callable[[onnx.ModelProto], None]] = {
    "nodes": lambda model: _before(model, ("Sub", MEAN), ("Div", DEVIATION)),
    "weights": _in_weights,
}
"""Where a model normalises its images."""


def spread(n: int, subset: int | None) -> NDArray[np.int64]:
    """Positions of `subset` of n samples, evenly spaced; all of them if there are no more."""
    return np.arange(n) if subset is None or subset >= n else np.linspace(0, n - 1, subset).round().astype(np.int64)


def _case(
    name: str,
    model: bytes,
    data: str,
    score: Callable[[bytes], float],
    calibration: Callable[[int], dict[str, Array]],
) -> Case:
    norms = any(node.op_type == "BatchNormalization" for node in onnx.load_from_string(model).graph.node)
    return Case(name, model, data, norms, score, calibration)


def _version(files: Sequence[Path], subset: int | None) -> str:
    """A name that changes with the content of these files and with the samples taken from them."""
    return f"{digest(*(f.read_bytes() for f in files))}:{subset or 'all'}"


# --- models/ --------------------------------------------------------------------------------------------------------
def _shipped(path: Path, subset: int | None) -> Case:
    data = path.stem.rpartition("_")[2]
    test = path.with_name(f"{data}_test.npz")
    labelled = load_data(test)
    at = spread(len(labelled.x), subset)
    part = replace(labelled, x=labelled.x[at], y=labelled.y[at])

    def measure(model: bytes) -> float:
        return 100 * score(session(model), part, path.stem)

    def calibration(count: int) -> dict[str, Array]:
        images = load_images(path.with_name(f"{data}_calib.npz"))
        return {session(path).get_inputs()[0].name: images.batch(spread(len(images.x), count))}

    return _case(
        path.stem,
        path.read_bytes(),
        _version([test, path.with_name(f"{data}_calib.npz")], subset) + ":spread",
        measure,
        calibration,
    )


# --- assets ---------------------------------------------------------------------------------------------------------
def _assets(folder: Path, subset: int | None) -> list[Case]:
    os.environ.setdefault("THREADS", "1")  # evaluate.py's: sums in another order can turn a prediction
    ort.set_default_logger_severity(3)  # the assets' sessions warn of every constant that nothing uses
    shared: Any = module(folder / "evaluate.py")
    shared.data = functools.cache(functools.partial(_thinned, shared.data, subset))
    data = _version([folder / "evaluate.py", *sorted((folder / "data").iterdir())], subset)
    found = []
    for key in shared.ASSETS:
        path = Path(shared.model_path(key))
        found.append(_asset(shared, key, key, path.read_bytes(), data))
        if key in FOLDED:
            found.append(_asset(shared, f"{key}_folded", key, _folded(path), data))
    return found


def _asset(shared: Any, name: str, key: str, model: bytes, data: str) -> Case:
    def measure(small: bytes) -> float:
        return 100 * float(next(iter(shared.evaluate(key, small).values())))  # the first metric is the one to report

    def calibration(count: int) -> dict[str, Array]:
        """Evenly spaced: some files are sorted by class."""
        arrays = shared.calibration(key, EVERY)
        if len(arrays) > 1:  # a signal cut into steps, with a state: one sequence
            return dict(arrays)
        return {n: v[spread(len(v), count)] for n, v in arrays.items()}

    return _case(name, model, f"{key}:{data}:spread", measure, calibration)


def _folded(path: Path) -> bytes:
    ready = path.with_name(f"{path.stem}_folded.onnx")
    if ready.is_file():
        return ready.read_bytes()
    model = onnx.load(path)
    prepare(model)
    return bytes(model.SerializeToString())


def _thinned(load: Callable[[str], Any], subset: int | None, name: str) -> dict[str, Array]:
    """An asset's data file in memory; of a test file `subset` samples only."""
    arrays = dict(load(name))
    if not name.endswith("_test"):
        return arrays
    count = len(arrays["off"]) - 1 if "off" in arrays else len(next(iter(arrays.values())))
    at = spread(count, subset)
    thin = {k: a[at] if len(a) == count else a for k, a in arrays.items()}
    if "off" in arrays:  # files one after the other, and where each begins
        thin |= _joined([arrays["jpg"][arrays["off"][i] : arrays["off"][i + 1]] for i in at])
    return thin


def _joined(files: Sequence[Array]) -> dict[str, Array]:
    return {"jpg": np.concatenate(files), "off": np.cumsum([0, *map(len, files)])}
