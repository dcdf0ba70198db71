"""Top-1 accuracy of image classifiers on labelled images.

python tools/evaluate.py models/resnet20_fmnist.onnx models/fmnist_test.npz

The data file says itself how it is read: x uint8 (N, H, W) or (N, H, W, C), y labels, mean and std per channel in
units of x, layout NCHW or NHWC.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from common import ToolError, entry
from numpy.typing import NDArray

BATCH = 100
"""Images at a time, if the model leaves that open."""
LAYOUTS = {"NCHW": (0, 3, 1, 2), "NHWC": (0, 1, 2, 3)}
"""Layout the model wants → the order of axes that makes it from (N, H, W, C)."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images, and how a model reads them.

    Attributes:
        x: (N, H, W, C) uint8.
        mean, std: (C,) float32.
        layout: of the model's input.
    """

    x: NDArray[np.uint8]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    layout: str

    def batch(self, at: NDArray[np.integer]) -> NDArray[np.float32]:
        """The model's input for the images at these positions."""
        pixels = (self.x[at].astype(np.float32) - self.mean) / self.std
        return np.ascontiguousarray(pixels.transpose(LAYOUTS[self.layout]))


@dataclass(frozen=True, eq=False)
class Labelled(Images):
    """Images with labels: y (N,)."""

    y: NDArray[np.integer]


def load_data(path: Path) -> Labelled:
    """Read a data file with labels.

    Raises:
        ToolError: it is not one, or has no labels.
    """
    arrays = _arrays(path, "x", "y", "mean", "std", "layout")
    images, y = _images(path, arrays), arrays["y"]
    if y.shape != (len(images.x),):
        raise ToolError(f"{path}: x {images.x.shape} and y {y.shape} are not images with labels")
    return Labelled(images.x, images.mean, images.std, images.layout, y)


def load_images(path: Path) -> Images:
    """Read a data file, with or without labels.

    Raises:
        ToolError: it is not one.
    """
    return _images(path, _arrays(path, "x", "mean", "std", "layout"))


def _images(path: Path, arrays: dict[str, NDArray[Any]]) -> Images:
    x, layout = arrays["x"], str(arrays["layout"])
    if layout not in LAYOUTS:
        raise ToolError(f"{path}: layout {layout!r} is not known; use {' or '.join(LAYOUTS)}")
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4 or not len(x):
        raise ToolError(f"{path}: x {x.shape} is not a list of images")
    if not arrays["mean"].shape == arrays["std"].shape == x.shape[3:]:
        raise ToolError(f"{path}: mean and std are not one number for each of {x.shape[3]} channels")
    return Images(x, arrays["mean"], arrays["std"], layout)


def _arrays(path: Path, *needed: str) -> dict[str, NDArray[Any]]:
    if not zipfile.is_zipfile(path):
        raise ToolError(f"{path}: {'is not an .npz file' if path.exists() else 'no such file'}")
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise ToolError(f"{path}: has no {', '.join(missing)}")
    return arrays


def session(model: str | Path | bytes) -> ort.InferenceSession:
    """An onnxruntime session on the CPU.

    Raises:
        ToolError: onnxruntime cannot load the model.
    """
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise ToolError(f"{model}: no such file")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what is wrong comes as an exception, too
    try:
        return ort.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its exceptions have no common base
        raise ToolError(f"{_name(model)}: onnxruntime cannot load it: {error}") from error


def _name(model: str | Path | bytes) -> str:
    return "model" if isinstance(model, bytes) else str(model)


def check_fit(run: ort.InferenceSession, data: Labelled) -> None:
    """Check that the model takes such images.

    Raises:
        ToolError: it does not.
    """
    inputs, shape = run.get_inputs(), data.batch(np.arange(1)).shape
    wanted = inputs[0].shape
    fits = len(wanted) == 4 and all(
        not isinstance(w, int) or w == s for w, s in zip(wanted[1:], shape[1:], strict=True)
    )
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or not fits:
        takes = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        raise ToolError(f"takes {takes}, the images are float {['N', *shape[1:]]}")


def predictions(run: ort.InferenceSession, data: Labelled) -> NDArray[np.int64]:
    """The class of every image.

    Raises:
        ToolError: the first output is not one row of scores for each image.
    """
    feed, fixed = run.get_inputs()[0].name, run.get_inputs()[0].shape[0]
    size = fixed if isinstance(fixed, int) else BATCH
    best = []
    for at in _positions(len(data.x), size, isinstance(fixed, int)):
        scores = run.run([run.get_outputs()[0].name], {feed: data.batch(at)})[0]
        if scores.ndim != 2 or len(scores) != len(at) or scores.shape[1] <= data.y.max():
            raise ToolError(f"output {scores.shape} does not score {len(at)} images of {data.y.max() + 1} classes")
        best.append(scores.argmax(axis=1))
    return np.concatenate(best)[: len(data.x)]


def _positions(count: int, size: int, full: bool) -> Iterator[NDArray[np.int64]]:
    """Positions of each batch; the last one is filled up with the last image if all must be full."""
    for start in range(0, count, size):
        stop = start + size if full else min(start + size, count)
        yield np.minimum(np.arange(start, stop), count - 1)


def accuracy(model: str | Path | bytes, data: str | Path) -> float:
    """The fraction of images in the data file that the model (a file, or its bytes) gets right.

    Raises:
        ToolError: model or data cannot be read, or do not fit each other.
    """
    labelled, run = load_data(Path(data)), session(model)
    return score(run, labelled, _name(model))


def score(run: ort.InferenceSession, data: Labelled, name: str) -> float:
    """The fraction of images that a session gets right."""
    try:
        check_fit(run, data)
        return float((predictions(run, data) == data.y).mean())
    except ToolError as error:
        raise ToolError(f"{name}: {error}") from error


def main() -> None:
    """Read the arguments, print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help=".onnx")
    parser.add_argument("data", type=Path, metavar="DATA", help=".npz with labels")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each model")
    args = parser.parse_args()
    data, width = load_data(args.data), max(len(m.name) for m in args.models)
    for model in args.models:
        right = score(session(model), data, str(model))
        if args.json:
            print(json.dumps({"model": str(model), "accuracy": right, "images": len(data.x)}))
        else:
            print(f"{model.name:<{width}}  {100 * right:6.2f} %  of {len(data.x)} images")


if __name__ == "__main__":
    entry(main, zipfile.BadZipFile)
