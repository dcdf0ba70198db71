"""Quality on labelled data: `--max-drop 0.01 --eval DATA.npz`, by top-1 accuracy or a metric of the user's own."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, helper

from .errors import UsageError, one_line, shown
from .sessions import session
from .sources import LABELS, arrays_of, by_input
from .tensors import Array

Metric = Callable[[Mapping[str, Array], Array], float]
"""(outputs by name, labels) → how good they are; more is better."""
BATCH = 64
"""Samples at a time, if the model leaves that open."""
CHANNEL_ORDERS = ((0, 3, 1, 2), (0, 2, 3, 1))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Labelled data and how to score a model on it.

    Attributes:
        feeds: (N, …) for each input of the model.
        labels: (N, …).
        metric: from outputs and labels.
        name: of the metric.
        batch: samples at a time; `full` if the model takes no fewer.
    """

    feeds: Mapping[str, Array]
    labels: Array
    metric: Metric
    name: str
    batch: int
    full: bool

    def score(self, model: ModelProto, providers: Sequence[str]) -> float:
        """The metric's value for a model.

        Raises:
            UsageError: the metric raises, or returns no finite number.
        """
        opened = session(model, providers)
        names, count = [o.name for o in opened.get_outputs()], len(self.labels)
        parts = [self._run(opened, names, start) for start in range(0, count, self.batch)]
        outputs = {n: np.concatenate([p[i] for p in parts]) for i, n in enumerate(names) if np.ndim(parts[0][i])}
        try:
            found: Any = self.metric(outputs, self.labels)
        except (UsageError, KeyboardInterrupt):
            raise
        except BaseException as error:  # it is the user's, and may call sys.exit
            raise UsageError(f"--metric {self.name} raised {type(error).__name__}: {one_line(error)}") from error
        return self._finite(found)

    def _finite(self, found: Any) -> float:
        """What the metric returned, if it is a number: anything that has no axes and can be a float, but no text."""
        try:
            value = math.nan if isinstance(found, (str, bytes)) or np.ndim(found) else float(found)
        except (TypeError, ValueError):
            value = math.nan
        if math.isfinite(value):
            return value
        raise UsageError(
            f"--metric {self.name} returned {shown(found)}; it must return a finite number, more for better"
        )

    def _run(self, opened: ort.InferenceSession, names: Sequence[str], start: int) -> list[Array]:
        stop = min(start + self.batch, len(self.labels))
        at = np.arange(start, start + self.batch if self.full else stop)
        feeds = {name: values[np.minimum(at, len(self.labels) - 1)] for name, values in self.feeds.items()}
        outputs: list[Array] = opened.run(list(names), feeds)
        return [o[: stop - start] if np.ndim(o) else o for o in outputs]


def top1(outputs: Mapping[str, Array], labels: Array) -> float:
    """The share of samples whose largest score in the first output is at their label."""
    scores = next(iter(outputs.values()))
    if scores.ndim != 2 or scores.shape[:1] != labels.shape or labels.dtype.kind not in "iu":
        raise UsageError(
            f"top-1 accuracy needs whole-number labels (N,) and scores (N, classes), not {labels.shape} "
            f"{labels.dtype} and {scores.shape}; give --metric module:function"
        )
    outside = (labels < 0) | (labels >= scores.shape[1])
    if outside.any():
        at, last = int(outside.argmax()), scores.shape[1] - 1
        raise UsageError(
            f"--eval: label {labels[at]} of sample {at} is no class of the model, which has 0 to {last}; correct "
            "it, or give --metric module:function"
        )
    return float((scores.argmax(axis=1) == labels).mean())


def load_evaluation(path: Path, metric: str | None, model: ModelProto) -> Evaluation:
    """The data of an .npz file: `y` has the labels, the others the model's inputs by name, or `x` its only input.

    uint8 images `x` (N, H, W) or (N, H, W, C) with `mean` and `std` per channel in units of x, and `layout`, are
    normalised first.

    Raises:
        UsageError: the file or the metric cannot be read, or the data do not fit the model; the message says what do.
    """
    arrays = arrays_of(path, "--eval")
    if LABELS not in arrays:
        has = ", ".join(arrays) or "nothing"
        raise UsageError(f"--eval {path}: has no labels; name them {LABELS!r} (it has {has})")
    labels = arrays.pop(LABELS)
    if not labels.ndim:
        raise UsageError(f"--eval {path}: {LABELS!r} is a single {labels.dtype}; give one label for each sample")
    constants = {t.name for t in model.graph.initializer}
    inputs = {v.name: v.type.tensor_type for v in model.graph.input if v.name not in constants}
    arrays = by_input(arrays, list(inputs), f"--eval {path}")
    missing = [name for name in inputs if name not in arrays]
    if missing:
        raise UsageError(f"--eval {path}: has no {', '.join(map(repr, missing))}, which the model takes")
    for name, kind in inputs.items():
        _check_fit(path, name, arrays[name], kind, len(labels))
    fixed = [k.shape.dim[0].dim_value for k in inputs.values() if k.shape.dim and k.shape.dim[0].dim_value > 0]
    feeds = {name: arrays[name] for name in inputs}
    return Evaluation(feeds, labels, *_metric(metric), batch=fixed[0] if fixed else BATCH, full=bool(fixed))


def _check_fit(path: Path, name: str, values: Array, kind: Any, count: int) -> None:
    wanted = [d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim]
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    takes = f"the model takes {dtype} ({', '.join(str(w or '?') for w in wanted)})"
    has = f"--eval {path}: {name!r} is {values.dtype} {values.shape}, {takes}"
    if values.dtype != dtype:
        raise UsageError(f"{has}; convert it with astype")
    if not _fits(values.shape, wanted):
        order = next((o for o in CHANNEL_ORDERS if values.ndim == 4 and _turned_fits(values, o, wanted)), None)
        raise UsageError(has + (f"; transpose it with {order}" if order else ""))
    if len(values) != count:
        raise UsageError(f"--eval {path}: {name!r} has {len(values)} samples, {LABELS!r} has {count}")
    if not count:
        raise UsageError(f"--eval {path}: has no samples")
    _check_finite(path, name, values)


def _check_finite(path: Path, name: str, values: Array) -> None:
    if values.dtype.kind != "f":
        return
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        raise UsageError(
            f"--eval {path}: {name!r} has a nan or an infinity in sample {finite.argmin()}; the model takes finite "
            "numbers: correct that sample or leave it out"
        )


def _turned_fits(values: Array, order: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return _fits(tuple(values.shape[i] for i in order), wanted)


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    """Whether a shape, its batch aside, is one that an input takes."""
    return len(shape) == len(wanted) > 0 and all(w in (None, s) for s, w in zip(shape[1:], wanted[1:], strict=True))


def _metric(given: str | None) -> tuple[Metric, str]:
    """'module:function', looked up from the working directory, too.

    Raises:
        UsageError: there is none.
    """
    if given is None:
        return top1, "top-1 accuracy"
    module, _, function = given.partition(":")
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), function) if module and function else None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the user's module raises, sys.exit included
        raise UsageError(f"--metric {given}: {type(error).__name__}: {one_line(error)}") from error
    finally:
        sys.path.remove("")
    if not callable(found):
        raise UsageError(f"--metric {given!r} is not module:function")
    return found, given
