"""Without samples of the user's a result is compared on synthetic ones: others than those that it was fitted to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxfuse
from onnxfuse.cli import main
from onnxfuse.comparison import OutputError
from onnxfuse.fidelity import Fidelity, fidelity_on_drawn
from onnxfuse.probe import probe
from onnxfuse.providers import provider_list
from onnxfuse.report import blindness, doubt
from onnxfuse.samples import others_count, synthetic

from .graphs import Array, from_text, run

CPU = provider_list("cpu")
SMALL = """(float[N,3,16,16] x) => (float[N,5] y)
    <float[16,3,3,3] w1, float[16] b1, float[16,16,3,3] w2, float[16] b2, float[16,5] w3> {
    c = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(c)
    d = Conv<pads=[1,1,1,1]>(r, w2, b2)
    s = Relu(d)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    y = Gemm(f, w3)
}"""


def on_drawn(found: onnxfuse.Report) -> Fidelity:
    assert found.synthetic is not None
    return found.synthetic


def test_samples_that_nothing_was_fitted_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = from_text(SMALL)
    result = onnxfuse.fuse(model, sparsity=0.5, seed=3)
    found, fitted = on_drawn(result.report), synthetic(model, probe(model, CPU), 256, 3)
    others = synthetic(model, probe(model, CPU), 32, (3, 1))
    seen = {row.tobytes() for batch in fitted for row in batch["x"]}
    assert not any(row.tobytes() in seen for batch in others for row in batch["x"])
    before, after = (np.concatenate([run(m, b)[0].astype(np.float64) for b in others]) for m in (model, result.model))
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    assert (found.samples, found.held_out) == (32, True)
    assert found.cosine == pytest.approx(float(np.mean(np.sum(before * after, axis=1) / norms)), abs=1e-5)
    assert found.outputs[0].max_abs == pytest.approx(float(np.abs(after - before).max()), rel=1e-3)
    onnx.save(model, tmp_path / "m.onnx")
    arguments = [
        tmp_path / "m.onnx",
        tmp_path / "o.onnx",
        "--sparsity",
        0.5,
        "--seed",
        3,
        "--json",
        tmp_path / "r.json",
    ]
    assert main([str(a) for a in arguments]) == 0
    line = f"on 32 synthetic samples, others than it was fitted to: cosine {found.cosine:.4f}, max abs error "
    assert any(s.startswith(line) for s in capsys.readouterr().out.splitlines())
    assert json.loads((tmp_path / "r.json").read_text())["synthetic"]["cosine"] == found.cosine


def test_none_where_nothing_was_fitted_to_such() -> None:
    data: dict[str, Array] = {"x": np.random.default_rng(0).standard_normal((64, 3, 16, 16)).astype(np.float32)}
    for options in ({"method": "drop"}, {"calib": data}, {"method": "fold"}):
        chosen: dict[str, Any] = options
        assert onnxfuse.fuse(from_text(SMALL), sparsity=0.5, **chosen).report.synthetic is None
    assert [others_count(macs) for macs in (0, 10**8, 10**9, 4 * 10**9 + 1)] == [32, 32, 4, 0]


def test_the_lower_of_both_is_what_is_told() -> None:
    """PP-OCR without 10% of its channels: 0.97 on random input, 0.4 on synthetic samples, 60% of the lines right."""
    report = onnxfuse.fuse(from_text(SMALL), sparsity=0.1).report
    one, alike = replace(report.comparison, outputs=(OutputError("y", 0.97, 1, 1),)), on_drawn(report)
    better, worse, undefined = (replace(alike, cosine=c) for c in (0.99, 0.4, float("nan")))
    of = [replace(report, comparison=one, synthetic=found) for found in (better, worse, undefined)]
    assert [r.likeness for r in of[:2]] == [(0.97, "on random input"), (0.4, "on synthetic samples")]
    assert of[2].likeness[1] == "on synthetic samples"
    assert not doubt(of[0])
    assert all("on synthetic samples" in doubt(r)[0] for r in of[1:])


BOUNDED = """(float[N,6] x, float low, float high) => (float[N,3] y, int64 n)
    <float[6,8] w1, float[8,3] w2, float nothing = {-1000000}> {
    h = MatMul(x, w1)
    r = Relu(h)
    z = MatMul(r, w2)
    above = Less(z, high)
    below = Greater(z, low)
    within = And(above, below)
    y = Where(within, z, nothing)
    n = Size(x)
}"""
"""Of what does not lie between two bounds nothing is told."""


def test_what_is_the_same_for_all_samples_tells_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As where bounds are the wrong way round. That the number of values is the same says nothing of the rest."""
    model, x = from_text(BOUNDED), np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    either: list[dict[str, Array]] = [
        {"x": x, "low": np.float32(low), "high": np.float32(-low)}  # type: ignore[dict-item]
        for low in (1e6, -1e6)
    ]
    of = [onnxfuse.fuse(model, sparsity=0.5, calib=data).report for data in either]
    assert [r.fidelity and r.fidelity.still for r in of] == [("y",), ()]
    assert [len(blindness(r)) for r in of] == [1, 0]
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", **either[0])  # type: ignore[arg-type]
    files = [str(tmp_path / name) for name in ("m.onnx", "o.onnx", "c.npz")]
    assert main([*files[:2], "--calib", files[2], "--sparsity", "0.5"]) == 0
    assert "nothing is known of 'y': give other samples by --calib" in capsys.readouterr().out


def test_a_floor_holds_on_them() -> None:
    report = onnxfuse.fuse(from_text(SMALL), sparsity=0.5).report
    on_noise, worst = report.comparison.outputs[0].max_abs, on_drawn(report).outputs[0].max_abs
    assert on_noise < worst
    with pytest.raises(
        onnxfuse.VerificationFailed, match=r"^on 32 synthetic samples output '\S+' has an absolute error"
    ):
        onnxfuse.fuse(from_text(SMALL), sparsity=0.5, max_error=(on_noise + worst) / 2)


def test_the_smallest_model_that_holds_a_floor_on_them() -> None:
    report = onnxfuse.fuse(from_text(SMALL), min_cosine=0.98).report
    assert report.after.channels < report.before.channels
    assert min(report.comparison.cosine, on_drawn(report).cosine) >= 0.98


def test_where_a_model_does_not_run_on_them() -> None:
    """The original: nothing is told. The result alone: it is not sound."""
    runs, fails = (
        from_text("(float[N,4] x) => (float[N,4] y) { y = Neg(x) }"),
        from_text("(float[N,4] x) => (float[N,M] y) <int64[2] shape = {7, 1}> { y = Reshape(x, shape) }"),
    )
    drawn = [{"x": np.ones((2, 4), np.float32)}]
    assert fidelity_on_drawn(runs, runs, drawn, CPU, probe(runs, CPU)) is not None
    assert fidelity_on_drawn(fails, runs, drawn, CPU, probe(runs, CPU)) is None
    with pytest.raises(onnxfuse.VerificationFailed, match="the result does not run on the samples"):
        fidelity_on_drawn(runs, fails, drawn, CPU, probe(runs, CPU))


def test_what_is_picked_by_value_is_not_compared_on_them() -> None:
    text = """(float[N,9] x) => (float[N,5] v) <int64[1] k = {5}> { v, i = TopK(x, k) }"""
    model, drawn = from_text(text), [{"x": np.ones((2, 9), np.float32)}]
    assert fidelity_on_drawn(model, model, drawn, CPU, probe(model, CPU)) is None
