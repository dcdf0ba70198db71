"""Samples that nothing is fitted to: which they are, and that results are compared and floors held on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxfuse
from onnxfuse.calibdata import Batches, Samples, calibration
from onnxfuse.cli import main
from onnxfuse.comparison import difference, floor_missed, of_numbers
from onnxfuse.fidelity import fidelity
from onnxfuse.heldout import parted
from onnxfuse.probe import probe

from .graphs import MODELS, Array, from_text, run
from .test_calibdata import CPU, joined, model_of, normal
from .test_picking import ORDERED, TEXT
from .test_repair import images

RESNET = MODELS / "resnet20_fmnist.onnx"
WIDE = """(float[N,16] x) => (float[N,10] y)
    <float[64,16] w1, float[64] b1, float[64,64] w2, float[64] b2, float[10,64] w3> {
    h = Gemm<transB=1>(x, w1, b1)
    r = Relu(h)
    i = Gemm<transB=1>(r, w2, b2)
    s = Relu(i)
    y = Gemm<transB=1>(s, w3)
}"""


def wide() -> onnx.ModelProto:
    """A network with more channels than its samples, which have three dimensions of sixteen, need."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (64, 16), "b1": (64,), "w2": (64, 64), "b2": (64,), "w3": (10, 64)}
    return from_text(WIDE, {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})


def flat(count: int) -> Array:
    rng = np.random.default_rng(1)
    axes, places = rng.standard_normal((3, 16)), rng.standard_normal((count, 3))
    return (places @ axes).astype(np.float32)


# --- which ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("units", "each", "fitted", "held"),
    [
        (64, 1, 56, 8),  # an eighth of few
        (192, 1, 180, 12),
        (256, 1, 240, 16),
        (512, 1, 480, 32),
        (2000, 1, 512, 32),  # of so many nothing is withheld
        (16, 8, 15, 1),
        (80, 8, 64, 4),
        (7, 16, 7, 0),  # a run of seven would be too much
    ],
)
def test_a_sixteenth_is_held_out(units: int, each: int, fitted: int, held: int) -> None:
    a, b = parted(units, each, 512 // each, 1)
    assert (len(a), len(b)) == (fitted, held)
    assert not set(a) & set(b)
    assert set(a) | set(b) <= set(range(units))
    assert held <= 1 or np.ptp(np.diff(b)) <= 1  # evenly, as files are sorted


@pytest.mark.parametrize(("units", "fitted", "held"), [(100, 92, 8), (512, 480, 32), (5000, 512, 128)])
def test_the_end_of_a_sequence_is_held_out(units: int, fitted: int, held: int) -> None:
    a, b = parted(units, 1, 512, 128)
    assert len(a) == fitted
    np.testing.assert_array_equal(b, np.arange(units - held, units))
    assert a.max() < b.min()


def samples_of(name: str, **arrays: Array) -> Samples:
    model = model_of(name)
    return calibration(arrays, None, model, probe(model, CPU), CPU, hold_out=True)


def test_samples_are_fitted_to_or_held_out() -> None:
    data = np.repeat(np.arange(70, dtype=np.float32), 6).reshape(-1, 6)
    samples = samples_of("state", x=data, state=normal(1, 4))
    assert joined(samples.held)[:, 0].tolist() == [4, 13, 21, 30, 39, 48, 56, 65]
    assert sorted(joined(samples.held)[:, 0].tolist() + joined(samples.fitted)[:, 0].tolist()) == list(range(70))
    assert all((b["state"] == normal(1, 4)).all() for b in samples.held)


@pytest.mark.parametrize("spread", [np.tile, np.repeat])
def test_no_copy_of_what_is_fitted_to_is_held_out(spread: Callable[..., Array]) -> None:
    data = np.repeat(spread(np.arange(70, dtype=np.float32), 4), 6).reshape(-1, 6)
    samples = samples_of("state", x=data, state=normal(1, 4))
    held, fitted = (joined(part)[:, 0].tolist() for part in (samples.held, samples.fitted))
    assert sorted(held + fitted) == list(range(70))
    assert len(held) == 8


def test_runs_of_a_fixed_batch_size_are_held_out_whole() -> None:
    data = np.arange(80, dtype=np.float32)[:, None, None, None] + np.zeros((1, 3, 8, 8), np.float32)
    samples = samples_of("fixed", x=data)  # 20 runs of 4 samples
    assert [b["x"][:, 0, 0, 0].tolist() for b in samples.held] == [[20, 21, 22, 23], [60, 61, 62, 63]]
    assert len(samples.fitted) == 18


def test_samples_given_twice_are_as_good_as_once() -> None:
    data = flat(96)
    once, twice = (onnxfuse.fuse(wide(), sparsity=0.3, calib={"x": x}) for x in (data, np.repeat(data, 2, axis=0)))
    assert once.model == twice.model
    assert once.report.fidelity == twice.report.fidelity


def test_what_is_held_out_is_not_looked_at() -> None:
    """Whatever these samples are, the result is the same."""
    data = flat(192)
    held = ((np.arange(12) + 0.5) * 16).astype(int)
    other = data.copy()
    other[held] = 3 * other[held[::-1]] + 1
    first, second = (onnxfuse.fuse(wide(), sparsity=0.3, calib={"x": x}).model for x in (data, other))
    assert first == second


# --- what results are compared on -----------------------------------------------------------------------------------
def test_likeness_on_the_users_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random input says little of what a network does to images; the report has both, the table the samples."""
    data = images(192)["input"]
    result = onnxfuse.fuse(RESNET, sparsity=0.7, calib={"input": data})
    found = result.report.fidelity
    assert found is not None
    assert (found.samples, found.held_out) == (12, True)
    feeds = {"input": data[((np.arange(12) + 0.5) * 16).astype(int)]}
    before, after = (run(m, feeds)[0].astype(np.float64) for m in (onnx.load(RESNET), result.model))
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    assert found.cosine == pytest.approx(float(np.mean(np.sum(before * after, axis=1) / norms)), abs=1e-4)
    assert found.same_top == np.mean(before.argmax(axis=1) == after.argmax(axis=1))
    (output,) = found.outputs
    gap = after - before
    assert output.max_abs == pytest.approx(np.abs(gap).max(), rel=1e-3)
    assert output.relative == pytest.approx(np.linalg.norm(gap) / np.linalg.norm(before), rel=1e-3)
    assert found.cosine > result.report.comparison.cosine
    np.savez(tmp_path / "calib.npz", input=data)
    options = ["--sparsity", "0.7", "--calib", str(tmp_path / "calib.npz")]
    assert main([str(RESNET), str(tmp_path / "o.onnx"), *options]) == 0
    *_, verified, likeness, last = [s for s in capsys.readouterr().out.splitlines() if s and "resemble" not in s]
    assert verified.startswith("verified in onnxruntime: optimizations off/on differ by ")
    tops = round(12 * (found.same_top or 0))
    assert likeness == (
        f"on 12 of your samples, held out from fitting: cosine {found.cosine:.4f}, max abs error "
        f"{output.max_abs:.3g}, the same class on top for {tops} of them"
    )
    assert last.startswith("PASSED")
    assert f"cosine {found.cosine:.4f} on your samples" in last
    assert onnxfuse.fuse(RESNET, sparsity=0.2, method="drop").report.fidelity is None


LINEAR = (
    "(float[40,6] x) => (float[40,4] y) <float[6,8] a, float[8,4] b> { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }"
)


def test_of_few_runs_none_is_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs of 40 samples: half of them would be missing, so the line says what they were used for."""
    onnx.save(from_text(LINEAR), tmp_path / "m.onnx")
    np.savez(tmp_path / "calib.npz", x=normal(80, 6))
    options = ["--sparsity", "0.5", "--calib", str(tmp_path / "calib.npz")]
    assert main([str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx"), *options]) == 0
    assert "on 40 of your samples, which it was fitted to: cosine " in capsys.readouterr().out


def scaled(gain: float) -> onnx.ModelProto:
    return from_text(f"(float[N,2] x) => (float[N,2] y) <float g = {{{gain}}}> {{ y = Mul(x, g) }}")


def test_errors_over_several_runs_are_those_of_all_samples() -> None:
    runs: Batches = [{"x": np.array([[3, 4]], np.float32)}, {"x": np.array([[0, 5], [0, 0]], np.float32)}]
    found = fidelity(scaled(1), scaled(1.5), Samples([], runs), CPU, probe(scaled(1), CPU))
    assert (found.samples, found.cosine, found.same_top) == (3, 1.0, 1.0)
    assert (found.outputs[0].max_abs, found.outputs[0].relative) == (2.5, 0.5)
    infinite: Batches = [{"x": np.array([[np.inf, 1]], np.float32)}]
    assert fidelity(scaled(1), scaled(1), Samples([], infinite), CPU, probe(scaled(1), CPU)).outputs[0].max_abs == 0
    turned = from_text("(float[N,2] x) => (float[M,K] y) { y = Transpose(x) }")
    other = fidelity(scaled(1), turned, Samples([], runs), CPU, probe(scaled(1), CPU))
    assert other.cosine == pytest.approx(np.mean([9 / 25, 0, 0])), "what the one has and the other has not is zero"
    assert floor_missed(other.outputs, 0.5, None) == "output 'y' has cosine similarity 0.12, below the minimum 0.5"
    assert floor_missed(other.outputs, None, 99) == "output 'y' has an absolute error of inf, above the maximum 99"


def test_outputs_of_other_sizes_are_alike_as_far_as_both_go() -> None:
    """As of a decoder that ends later; but nothing is lossless about them, not if what one has is zeros."""
    longer = difference("y", np.array([[3.0, 4.0]]), np.array([[3.0, 4.0], [0.0, 5.0]]))
    assert longer.cosine == pytest.approx(np.sqrt(0.5))
    assert (longer.max_abs, longer.relative) == (np.inf, np.inf)
    assert difference("y", np.ones((1, 2)), np.pad(np.ones((1, 2)), 1)).relative == np.inf
    assert difference("y", np.ones((1 << 18, 1)), np.ones((1, 1 << 18))).cosine == pytest.approx(
        2.0**-18
    )  # not filled up
    assert np.isnan(difference("y", np.ones(2), np.ones((1, 2))).cosine)
    assert np.isnan(difference("y", np.array([1.0, np.inf]), np.ones(3)).cosine)


SCORE = """(float[N,64] x) => (float[N,1] y) <float[32,64] w1, float[32] b1, float[1,32] w2, float[1] b2> {
    h = Gemm<transB=1>(x, w1, b1)
    r = Relu(h)
    y = Gemm<transB=1>(r, w2, b2)
}"""


def test_a_score_far_from_zero_is_not_alike_for_being_positive() -> None:
    """Of one number for each sample a cosine over its own values is 1, whatever the number."""
    rng = np.random.default_rng(0)
    values = {n: rng.standard_normal(s).astype(np.float32) for n, s in (("w1", (32, 64)), ("w2", (1, 32)))}
    values |= {"b1": np.zeros(32, np.float32), "b2": np.full(1, 1000, np.float32)}
    options: dict[str, Any] = {"sparsity": 0.8, "calib": {"x": normal(128, 64)}}
    report = onnxfuse.fuse(from_text(SCORE, values), **options).report
    assert report.fidelity is not None
    assert report.fidelity.cosine < 0.9
    with pytest.raises(onnxfuse.VerificationFailed, match=r"cosine similarity 0\.\d+, below the minimum 0\.95"):
        onnxfuse.fuse(from_text(SCORE, values), min_cosine=0.95, **options)


@pytest.mark.parametrize(
    ("original", "result", "alike"),
    [
        ([3, 4, 5], [3, 4, 5], 1),
        ([3, 4, 5], [4, 4, 4], 0),  # constant
        ([3, 4, 5], [0, 0, 0], 0),
        ([3, 4, 5], [5, 4, 3], -1),
        ([3, 5], [6, 8], 1 / np.sqrt(10)),  # shifted: (-1, 1) and (2, 4)
        ([2, 2], [1, 1], 0.5),  # the original does not vary
        ([2], [9], -1),
        ([0], [1], -1),
    ],
)
def test_likeness_of_single_numbers(original: list[float], result: list[float], alike: float) -> None:
    assert of_numbers(np.array(original, float), np.array(result, float)) == pytest.approx(alike)


# --- floors ---------------------------------------------------------------------------------------------------------
def test_a_floor_holds_on_the_samples() -> None:
    samples: dict[str, Any] = {"calib": {"x": flat(192)}}
    report = onnxfuse.fuse(wide(), sparsity=0.7, **samples).report
    assert report.fidelity is not None
    on_samples, on_noise, worst = report.fidelity.cosine, report.comparison.cosine, report.fidelity.outputs[0].max_abs
    floors: dict[str, Any] = {"min_cosine": (on_samples + on_noise) / 2, "max_error": 1.01 * worst}
    onnxfuse.fuse(wide(), sparsity=0.7, **samples, **floors)  # noise alone would not hold it
    for floor, value in (("min_cosine", on_samples + 1e-3), ("max_error", 0.99 * worst)):
        options: dict[str, Any] = {floor: value}
        with pytest.raises(onnxfuse.VerificationFailed, match=r"^on 12 of your samples output 'y' has "):
            onnxfuse.fuse(wide(), sparsity=0.7, **samples, **options)


def test_the_smallest_model_that_holds_a_floor_on_the_samples() -> None:
    report = onnxfuse.fuse(wide(), min_cosine=0.97, calib={"x": flat(192)}).report
    assert report.fidelity is not None
    assert 0.97 <= report.fidelity.cosine < 0.995
    assert report.comparison.cosine < 0.97  # of random input, which a search would have stopped at before


def test_what_is_picked_by_value_is_compared_with_the_same_picks() -> None:
    data: dict[str, Array] = {"x": normal(64, 3, 16, 16)}
    options: dict[str, Any] = {"sparsity": 0.5, "method": "drop", "calib": data}
    assert onnxfuse.fuse(from_text(ORDERED), min_cosine=0.8, **options).report.fidelity is None
    found = onnxfuse.fuse(from_text(TEXT), **options).report.fidelity
    assert found is not None
    assert [o.name for o in found.outputs] == ["z"]


def test_picks_have_no_class_on_top() -> None:
    """The best five scores in falling order: the first of them is the first one, whatever it stands for."""
    model = from_text("""(float[N,9] x) => (float[N,5] v, float[N,9] y) <int64[1] k = {5}> {
        y = Relu(x)
        v, i = TopK(y, k)
    }""")
    found = fidelity(model, model, Samples([], [{"x": normal(4, 9)}]), CPU, probe(model, CPU))
    assert (found.same_top, [o.name for o in found.outputs]) == (None, ["y"])
