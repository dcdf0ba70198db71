"""Floors and latency: the smallest model that is good enough, the largest that is fast enough, and bad evaluators."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxfuse
from onnxfuse import search
from onnxfuse.latency import Latency
from onnxfuse.options import Options
from onnxfuse.search import CLOSE, find

from .graphs import Array, build, from_text, run
from .test_cli import call


# --- floors ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("floor", "value"), [("min_cosine", 0.8), ("max_error", 0.5)])
def test_floors_are_searched_for(floor: str, value: float) -> None:
    options: dict[str, Any] = {floor: value}
    report = onnxfuse.fuse(build("mlp"), method="fold", **options).report
    assert 0 < report.after.channels < report.before.channels
    worst = max(o.max_abs for o in report.comparison.outputs)
    assert report.comparison.cosine >= value if floor == "min_cosine" else worst <= value


class Floors:
    """Stands in for models and judge: a model is its place on the line, good enough within some intervals of it."""

    def __init__(self, *good: tuple[float, float]) -> None:
        self.good, self.trials = good, 0

    def make(self, room: float | None) -> Any:
        return type("Small", (), {"model": room})

    def missed(self, small: Any) -> str | None:
        self.trials += 1
        room = small.model
        return None if any(low <= room <= high for low, high in self.good) else "worse"


@pytest.mark.parametrize(
    ("good", "least", "trials"),
    [
        ([(0.3, 1)], 0.3, 10),
        ([(0.0, 1)], 0.0, 11),
        ([(0.98, 1)], 0.98, 10),
        ([(0.6, 1), (0.28, 0.45)], 0.28, 12),  # bisection alone ends at 0.6
        ([(0.6, 1), (0.44, 0.46)], 0.44, 13),
    ],
)
def test_a_line_that_is_not_monotone(good: list[tuple[float, float]], least: float, trials: int) -> None:
    floors = Floors(*good)
    found: Any = find(floors.make, floors, Options(min_cosine=0.5), lambda *_: None)  # type: ignore[arg-type]
    assert least <= found.model <= least + 0.03
    assert floors.trials <= trials


def test_no_model_is_that_good() -> None:
    """The message says how good the one is of which least is removed."""
    error = "no smaller model is as good as asked; of the largest .* output 'y' has an absolute error of .* above the"
    with pytest.raises(onnxfuse.NothingToMerge, match=error):
        onnxfuse.fuse(build("mlp"), max_error=0.0)


def test_a_trial_that_is_no_valid_model_is_no_matter_of_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    def invalid(*_: Any) -> None:
        raise onnxfuse.VerificationFailed("the result is not a valid model")

    monkeypatch.setattr(search, "verify", invalid)
    with pytest.raises(onnxfuse.VerificationFailed, match="not a valid model"):
        onnxfuse.fuse(build("mlp"), max_error=1.0)


def test_floors_check_a_given_size() -> None:
    with pytest.raises(onnxfuse.VerificationFailed, match=r"an absolute error of .* above the maximum 0.001"):
        onnxfuse.fuse(build("mlp"), target_macs=0.3, max_error=0.001)


# --- labelled data --------------------------------------------------------------------------------------------------
def data(folder: Path, **arrays: Array) -> Path:
    """A file that the model `mlp` is perfect on: its own classes are the labels."""
    x = np.random.default_rng(0).standard_normal((200, 6)).astype(np.float32)
    found = {"x": x, "y": run(build("mlp"), {"x": x})[0].argmax(axis=1), **arrays}
    path = folder / "data.npz"
    np.savez(path, **{k: v for k, v in found.items() if v.size})
    return path


def test_max_drop(tmp_path: Path) -> None:
    report = onnxfuse.fuse(build("mlp"), method="fold", max_drop=0.3, eval=data(tmp_path)).report
    assert report.quality is not None
    assert (report.quality.metric, report.quality.before) == ("top-1 accuracy", 1.0)
    assert report.quality.after >= 0.7
    assert report.after.macs < report.before.macs


def test_max_drop_checks_a_given_size(tmp_path: Path) -> None:
    with pytest.raises(onnxfuse.VerificationFailed, match=r"top-1 accuracy falls from 1.0000 to 0\.\d+, by more than"):
        onnxfuse.fuse(build("mlp"), sparsity=0.9, max_drop=0.0, eval=data(tmp_path))


METRICS = """
def mean_score(outputs, labels): return float(outputs["y"][range(len(labels)), labels].mean())
def broken(outputs, labels): raise KeyError("no such output")
def undefined(outputs, labels): return float("nan")
def wordy(outputs, labels): return "0.9"
def many(outputs, labels): return outputs["y"][0, :1]
def nothing(outputs, labels): pass
def leaving(outputs, labels): raise SystemExit("done")
constant = 3
"""


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of metrics in the working directory."""
    (tmp_path / "own_metrics.py").write_text(METRICS)
    monkeypatch.chdir(tmp_path)
    return "own_metrics"


def test_own_metric(metrics: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnx.save(build("mlp"), tmp_path / "in.onnx")
    flags = ["--sparsity", 0.3, "--eval", data(tmp_path), "--metric", f"{metrics}:mean_score", "--json", "-"]
    code, out, err = call(capfd, "in.onnx", "out.onnx", *flags)
    assert (code, err) == (0, "")
    quality = json.loads(out)["quality"]
    assert quality["metric"] == "own_metrics:mean_score"
    assert quality["before"] != quality["after"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (":broken", "raised KeyError: 'no such output'"),
        (":undefined", "returned nan; it must return a finite number"),
        (":wordy", "metric own_metrics:wordy returned '0.9'; it must return a finite number"),
        (":many", "returned a value of type ndarray"),
        (":nothing", "returned None"),
        (":leaving", "metric own_metrics:leaving raised SystemExit: done"),
        (":none", "AttributeError: module 'own_metrics' has no attribute 'none'"),
        (":constant", "is not module:function"),
        ("", "is not module:function"),
        ("s:x", "ModuleNotFoundError: No module named 'own_metricss'"),
    ],
)
def test_bad_metrics(function: str, message: str, metrics: str, tmp_path: Path) -> None:
    with pytest.raises(onnxfuse.UsageError) as caught:
        onnxfuse.fuse(build("mlp"), max_drop=0.1, eval=data(tmp_path), metric=metrics + function)
    assert message in str(caught.value)


X = np.zeros((5, 6), np.float32)
BAD: list[tuple[dict[str, Array], str]] = [
    ({"y": np.zeros(0)}, "has no labels; name them 'y' (it has x)"),
    ({"x": np.zeros(0)}, "has no 'x', which the model takes"),
    ({"x": X.astype(np.float64), "y": np.zeros(5, int)}, "'x' is float64 (5, 6), the model takes float32 (?, 6)"),
    ({"x": X.T, "y": np.zeros(6, int)}, "'x' is float32 (6, 5), the model takes float32 (?, 6)"),
    ({"x": X, "y": np.zeros(4, int)}, "'x' has 5 samples, 'y' has 4"),
    ({"x": X, "y": np.zeros((5, 2))}, "top-1 accuracy needs whole-number labels (N,) and scores (N, classes)"),
    ({"y": np.array(3)}, "'y' is a single int64; give one label for each sample"),
    ({"x": X, "y": np.array([0, 1, 2, 9, 0])}, "label 9 of sample 3 is no class of the model, which has 0 to 2"),
    ({"x": X, "y": np.array([0, -1, 9, 9, 0])}, "label -1 of sample 1 is no class"),
    (
        {"x": np.where(np.arange(5)[:, None] > 1, np.float32("inf"), X), "y": np.zeros(5, int)},
        "'x' has a nan or an infinity in sample 2",
    ),
    (
        {"x": np.full((9, 2, 2), 1e300), "mean": X[0, :1], "std": 1 + X[0, :1], "layout": np.array("NCHW")},
        "x has values that are not finite, or that float32 cannot hold with mean and std",
    ),
    ({"mean": X[0], "std": X[0], "layout": np.array("NCWH")}, "are not images (N, H, W, C)"),
    (
        {"x": np.ones((9, 2, 2), np.uint8), "mean": X[0, :1], "std": 0 * X[0, :1], "layout": np.array("NCHW")},
        "std above 0",
    ),
]


@pytest.mark.parametrize(("arrays", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_data(arrays: dict[str, Array], message: str, tmp_path: Path) -> None:
    with pytest.raises(onnxfuse.UsageError) as caught:
        onnxfuse.fuse(build("mlp"), sparsity=0.5, eval=data(tmp_path, **arrays))
    assert message in str(caught.value)


def test_channel_order_is_explained(tmp_path: Path) -> None:
    images = data(tmp_path, x=np.zeros((4, 8, 8, 3), np.float32), y=np.zeros(4, int))
    with pytest.raises(onnxfuse.UsageError, match=r"takes float32 \(\?, 3, 8, 8\); transpose it with \(0, 3, 1, 2\)"):
        onnxfuse.fuse(build("residual"), sparsity=0.5, eval=images)


def test_images_say_how_they_are_read(tmp_path: Path) -> None:
    """uint8 images are normalised and turned; a model with a fixed batch gets full ones."""
    text = "(float[2,3,4,4] x) => (float[2,5] y) <float[8,3,1,1] w1, float[8,5] w2> {\n"
    text += "c = Conv(x, w1)\nr = Relu(c)\ng = GlobalAveragePool(r)\nf = Flatten(g)\ny = MatMul(f, w2)\n}"
    rng = np.random.default_rng(1)
    x, mean, std = (
        rng.integers(0, 256, (5, 4, 4, 3), np.uint8),
        np.array([9, 8, 7], np.float32),
        np.array([3, 4, 5], np.float32),
    )
    real = ((x - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    pairs = [run(from_text(text), {"x": real[[i, j]]})[0] for i, j in ((0, 1), (2, 3), (4, 4))]
    labels = np.concatenate(pairs)[:5].argmax(axis=1)
    images = data(tmp_path, x=x, y=labels, mean=mean, std=std, layout=np.array("NCHW"))
    report = onnxfuse.fuse(from_text(text), sparsity=0.25, eval=images).report
    assert report.quality is not None
    assert report.quality.before == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": 0.1}, "--max-drop needs --eval"),
        ({"sparsity": 0.5, "metric": "a:b"}, "--metric needs --eval"),
        ({"max_drop": -1.0, "eval": "data.npz"}, "max-drop -1.0 is not a loss"),
        ({"max_error": float("nan")}, "max-error nan is not an error"),
        ({"sparsity": 0.5, "eval": "none.npz"}, "--eval none.npz: no such file"),
        ({"sparsity": 0.5, "eval": __file__}, "is not an .npz file"),
        ({"sparsity": 0.5, "eval": "/dev/null"}, "--eval /dev/null: is not a file; give an .npz file"),
        ({"sparsity": 0.5, "threads": 0}, "threads 0 is not a number of threads"),
        ({"sparsity": 0.5, "round_to": "nine"}, "round-to 'nine' is not known; choose from auto, 1, 8, 16"),
        ({"target_latency": "4 weeks"}, "--target-latency '4 weeks' is not an amount"),
        ({"sparsity": 0.5, "target_latency": 0.5}, "--sparsity and --target-latency contradict each other"),
        ({"target_latency": "1e-9us"}, "--target-latency 1e-9us is out of reach: the fastest possible here takes"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(onnxfuse.UsageError) as caught:
        onnxfuse.fuse(build("mlp"), **options)
    assert message in str(caught.value)


# --- latency --------------------------------------------------------------------------------------------------------
def test_latency_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnx.save(build("mlp"), tmp_path / "in.onnx")
    code, out, _ = call(capfd, tmp_path / "in.onnx", "--dry-run", "--sparsity", 0.5, "--threads", 1)
    assert code == 0
    assert "interleaved runs of each, 1 thread, CPUExecutionProvider" in out
    report = onnxfuse.fuse(tmp_path / "in.onnx", sparsity=0.5, latency=True).report
    assert report.latency is not None
    assert min(report.latency.before, report.latency.after) > 0
    assert report.latency.runs >= 7


@dataclass(frozen=True)
class Place:
    """Stands in for a model: its place on the line."""

    model: float
    notes: tuple[str, ...] = ()


class Clock:
    """Stands in for the judge: a model takes 2 + 8·room ms, in steps; at `jump` 2 ms more."""

    def __init__(self, jump: float = 2.0) -> None:
        self.trials, self.jump = 0, jump

    def latency(self, room: Any) -> Latency:
        self.trials += 1
        return Latency(10.0, 2 + np.ceil(room * 40) / 5 + 2 * (room >= self.jump), 9, 1, "")

    def find(self, target: str) -> Place:
        return find(Place, self, Options(target_latency=target), lambda *_: None)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("target", ["8ms", "0.3x", "5500us", "0.9"])
def test_latency_is_searched_for(target: str) -> None:
    clock, times = Clock(), {"8ms": 8, "0.3x": 3, "5500us": 5.5, "0.9": 9}
    found = clock.find(target)
    assert CLOSE * times[target] <= clock.latency(found.model).after <= times[target]
    assert clock.trials <= 5
    assert not found.notes


def test_what_no_model_takes_is_told() -> None:
    """Kernels take channels in blocks: where no widths take the time that is asked for, it stays unused."""
    clock = Clock(jump=0.5)
    found = clock.find("0.7x")
    assert 5.5 < clock.latency(found.model).after <= 6
    assert found.notes == ("it takes 0.60 of the original's time; of what was tried the next larger model takes 0.82",)
    assert not Clock().find("1.5x").notes
