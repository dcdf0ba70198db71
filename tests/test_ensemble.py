"""Several models become one: copies in disguise give their outputs back, trained ones beat their plain average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnxfuse
from onnxfuse.calibdata import Batches
from onnxfuse.channels import Channels
from onnxfuse.segments import Segments
from onnxfuse.traces import traces

from .copies import renamed, shuffled, with_weights
from .graphs import Array, build, dims, from_text, gap, inputs, run, weights
from .hard_texts import SHRINKS

PLAIN = """(float[N,3,8,8] x) => (float[N,5] y)
    <float[8,3,3,3] w1, float[8] b1, float[12,8,3,3] w2, float[12] b2, float[5,12] w3, float[5] b3> {
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r1 = Relu(c1)
    m1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1)
    c2 = Conv(m1, w2, b2)
    r2 = LeakyRelu(c2)
    p = GlobalAveragePool(r2)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w3, b3)
}"""
RESIDUAL = """(float[N,3,6,6] x) => (float[N,4,6,6] y)
    <float[8,3,3,3] w1, float[8] b1, float[6,8,3,3] w2, float[6] b2, float[8,6,1,1] w3, float[8] b3,
     float[10,8,3,3] w4, float[10] b4, float[8,10,1,1] w5, float[8] b5, float[4,8,1,1] w6> {
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
    s1 = Relu(c1)
    c2 = Conv<pads=[1,1,1,1]>(s1, w2, b2)
    r2 = Relu(c2)
    c3 = Conv(r2, w3, b3)
    a1 = Add(s1, c3)
    s2 = Relu(a1)
    c4 = Conv<pads=[1,1,1,1]>(s2, w4, b4)
    r4 = Relu(c4)
    c5 = Conv(r4, w5, b5)
    a2 = Add(s2, c5)
    y = Conv(a2, w6)
}"""
DEPTHWISE = """(float[N,3,6,6] x) => (float[N,4,6,6] y)
    <float[8,3,1,1] w1, float[8] b1, float[8,1,3,3] w2, float[8] b2, float[6,8,1,1] w3, float[6] b3,
     float[4,6,1,1] w4> {
    c1 = Conv(x, w1, b1)
    r1 = Relu(c1)
    c2 = Conv<group=8, pads=[1,1,1,1]>(r1, w2, b2)
    r2 = Relu(c2)
    c3 = Conv(r2, w3, b3)
    r3 = Relu(c3)
    y = Conv(r3, w4)
}"""
CONCAT = """(float[N,3,6,6] x) => (float[N,4,6,6] y)
    <float[5,3,3,3] w1, float[5] b1, float[7,5,3,3] w2, float[7] b2, float[6,12,1,1] w3, float[6] b3,
     float[4,18,1,1] w4> {
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r1 = Relu(c1)
    c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)
    r2 = Relu(c2)
    d1 = Concat<axis=1>(r1, r2)
    c3 = Conv(d1, w3, b3)
    r3 = Relu(c3)
    d2 = Concat<axis=1>(d1, r3)
    y = Conv(d2, w4)
}"""
TRANSFORMER = """(float[N,5,8] x) => (float[N,5,8] y)
    <float[8,12] w0, float[12] b0, float[12] g_scale, float[12] g_bias, float[12,24] w1, float[24] b1,
     float[24,12] w2, float[12] b2, float[12,8] w3> {
    m0 = MatMul(x, w0)
    s0 = Add(m0, b0)
    n = LayerNormalization(s0, g_scale, g_bias)
    m1 = MatMul(n, w1)
    h1 = Add(m1, b1)
    r1 = Relu(h1)
    m2 = MatMul(r1, w2)
    h2 = Add(m2, b2)
    s1 = Add(s0, h2)
    y = MatMul(s1, w3)
}"""
SMOOTH = PLAIN.replace("Relu(c1)", "Sigmoid(c1)").replace("LeakyRelu(c2)", "Tanh(c2)")
GRAPHS = {"plain": PLAIN, "residual": RESIDUAL, "depthwise": DEPTHWISE, "concat": CONCAT, "transformer": TRANSFORMER}


def disguised(name: str, seed: int) -> tuple[ModelProto, ModelProto]:
    """A graph with random weights, and a copy of it in disguise, with other names, that computes the same."""
    model = from_text(GRAPHS[name])
    kernel = ("w2", "b2", "w3") if name == "depthwise" else ()
    if name == "transformer":  # the norm lets only the order change, the MLP's own channels their size, too
        values = weights(shuffled(model, seed, scaled=False))
        factor = np.exp(np.random.default_rng(seed).uniform(-1.5, 1.5, 24))
        values |= {"w1": values["w1"] * factor, "b1": values["b1"] * factor, "w2": values["w2"] / factor[:, None]}
        copy = with_weights(model, values)
    else:
        copy = shuffled(model, seed, kernel=kernel)
    return model, renamed(copy)


def max_error(a: ModelProto, b: ModelProto) -> float:
    feeds = inputs(a, seed=9, batch=4)
    return max(float(np.abs(x - y).max()) for x, y in zip(run(a, feeds), run(b, feeds), strict=True))


# --- copies in disguise ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("align", ["activations", "weights"])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_copy_in_disguise_gives_its_own_outputs_back(name: str, align: str) -> None:
    model, copy = disguised(name, seed=1)
    assert max_error(model, copy) < 1e-4
    assert gap(list(weights(model).values()), list(weights(copy).values())) > 0.1
    result = onnxfuse.ensemble([model, copy], align=align, calib=inputs(model, batch=64))
    assert max_error(model, result.model) < 1e-4


@pytest.mark.parametrize("name", GRAPHS)
def test_three_copies(name: str) -> None:
    model, copy = disguised(name, seed=1)
    models, samples = [model, copy, disguised(name, seed=2)[1]], inputs(model, batch=64)
    result = onnxfuse.ensemble(models, weights=[0.2, 0.5, 0.3], calib=samples)
    assert max_error(model, result.model) < 1e-4


def test_in_place_the_copy_is_another_network() -> None:
    """What alignment is for: plain averaging of the same two models gives neither."""
    model, copy = disguised("residual", seed=1)
    plain = onnxfuse.ensemble([model, copy], align="none", restore=False).model
    assert gap(run(model, inputs(model)), run(plain, inputs(model))) > 0.3


def test_where_size_means_something_it_is_left_alone() -> None:
    """Sigmoid and Tanh are not homogeneous: the order may change, the size may not."""
    model = from_text(SMOOTH)
    result = onnxfuse.ensemble([model, shuffled(model, 3, scaled=False)], align="weights", restore=False)
    assert max_error(model, result.model) < 1e-5


def test_models_of_bytes_are_run_on_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without data: images from 0 to 255, for a graph that divides by 255."""
    text = PLAIN.replace("<float[8", "<float[] k, float[8", 1).replace(">(x, w1", ">(s, w1")
    given = {**weights(from_text(PLAIN)), "k": np.array(255)}
    model = from_text(text.replace("c1 =", "s = Div(x, k)\n    c1 ="), given)
    seen = list[Array]()

    def watched(channels: Channels, own: list[Segments], batches: Batches, *more: Any) -> Any:
        seen.extend(batch["x"] for batch in batches)
        return traces(channels, own, batches, *more)

    monkeypatch.setattr("onnxfuse.fusion.traces", watched)
    result = onnxfuse.ensemble([model, shuffled(model, 1)]).model
    assert min(x.min() for x in seen) == 0
    assert max(x.max() for x in seen) > 200
    images = {"x": np.random.default_rng(1).uniform(0, 255, (4, 3, 8, 8)).astype(np.float32)}
    assert gap(run(model, images), run(result, images)) < 1e-4


@pytest.mark.parametrize("name", ["conv_bn", "residual", "bn_after_relu"])
def test_batch_normalization_stays(name: str) -> None:
    """The result has the first model's nodes and initializers, and the same model twice is that model."""
    model = build(name)
    result = onnxfuse.ensemble([model, renamed(model)]).model
    assert max_error(model, result) < 1e-4
    assert [n.op_type for n in result.graph.node] == [n.op_type for n in model.graph.node]
    assert dims(result) == dims(model)


def test_the_report_counts_the_work_of_the_result() -> None:
    """Also where a normalization that was put back gave values other names."""
    model = build("conv_bn")
    report = onnxfuse.ensemble([model, renamed(model)]).report
    assert report.after.macs == report.before.macs > 0


def test_channels_that_may_not_be_mixed_keep_their_places() -> None:
    """Rotary angles belong to their places."""
    model, rng = from_text(SHRINKS["rotary attention, tables in the file"]), np.random.default_rng(1)
    values = {n: rng.standard_normal(a.shape) for n, a in weights(model).items() if n.startswith("w")}
    result = onnxfuse.ensemble([model, with_weights(model, values)], align="weights", restore=False).model
    for name in ("cos", "sin"):
        np.testing.assert_array_equal(weights(result)[name], weights(model)[name])


# --- other widths ---------------------------------------------------------------------------------------------------
def doubled(model: ModelProto) -> ModelProto:
    """A copy of PLAIN with each channel there twice; the two share what was read of the one."""
    w = weights(model)
    first, second = np.tile(np.arange(8), 2), np.tile(np.arange(12), 2)
    values = {
        "w1": w["w1"][first],
        "b1": w["b1"][first],
        "w2": w["w2"][second][:, first] / 2,
        "b2": w["b2"][second],
        "w3": w["w3"][:, second] / 2,
        "b3": w["b3"],
    }
    text = PLAIN
    for old, new in (
        ("[8,3,", "[16,3,"),
        ("[8]", "[16]"),
        ("[12,8,", "[24,16,"),
        ("[12]", "[24]"),
        ("[5,12]", "[5,24]"),
    ):
        text = text.replace(old, new)
    return from_text(text, values)


@pytest.mark.parametrize("align", ["activations", "weights"])
@pytest.mark.parametrize("wide_first", [False, True])
def test_transport_needs_no_equal_widths(wide_first: bool, align: str) -> None:
    """A copy twice as wide merges without loss, and the result has the widths of the model named first."""
    model = from_text(PLAIN)
    models = [model, shuffled(doubled(model), 4)]
    first, second = models[::-1] if wide_first else models
    result = onnxfuse.ensemble([first, second], align=align, calib=inputs(model, batch=64)).model
    assert dims(result) == dims(first)
    assert max_error(model, result) < 1e-4


# --- independent models ---------------------------------------------------------------------------------------------
NET = """(float[N,6] x) => (float[N,3] y)
    <float[32,6] w1, float[32] b1, float[24,32] w2, float[24] b2, float[3,24] w3, float[3] b3> {
    h1 = Gemm<transB=1>(x, w1, b1)
    r1 = Relu(h1)
    h2 = Gemm<transB=1>(r1, w2, b2)
    r2 = Relu(h2)
    y = Gemm<transB=1>(r2, w3, b3)
}"""
SHAPES = {"w1": (32, 6), "b1": (32,), "w2": (24, 32), "b2": (24,), "w3": (3, 24), "b3": (3,)}


def task(count: int, seed: int) -> tuple[Array, Array]:
    """Points in six dimensions and one of three classes, by a rule that no linear model knows."""
    x = np.random.default_rng(seed).standard_normal((count, 6)).astype(np.float32)
    return x, ((x[:, 0] * x[:, 1] > 0).astype(int) + (x[:, 2] * x[:, 3] > 0.3).astype(int))


def trained(seed: int) -> ModelProto:
    """NET trained from a random start on samples of its own: Adam, by hand."""
    rng, (x, y) = np.random.default_rng(seed), task(1500, seed)
    w = {n: rng.standard_normal(s) * np.sqrt(2 / s[-1]) * (len(s) > 1) for n, s in SHAPES.items()}
    m, v = ({n: np.zeros(s) for n, s in SHAPES.items()} for _ in range(2))
    for step in range(1, 1201):
        at = rng.integers(0, len(x), 128)
        a0, target = x[at], np.eye(3)[y[at]]
        a1 = np.maximum(a0 @ w["w1"].T + w["b1"], 0)
        a2 = np.maximum(a1 @ w["w2"].T + w["b2"], 0)
        z = a2 @ w["w3"].T + w["b3"]
        e = np.exp(z - z.max(axis=1, keepdims=True))
        d3 = (e / e.sum(axis=1, keepdims=True) - target) / len(at)
        d2 = (d3 @ w["w3"]) * (a2 > 0)
        d1 = (d2 @ w["w2"]) * (a1 > 0)
        grads = {"w1": d1.T @ a0, "b1": d1.sum(0), "w2": d2.T @ a1, "b2": d2.sum(0), "w3": d3.T @ a2, "b3": d3.sum(0)}
        for n, g in grads.items():
            m[n], v[n] = 0.9 * m[n] + 0.1 * g, 0.99 * v[n] + 0.01 * g**2
            w[n] -= 0.01 * m[n] / (1 - 0.9**step) / (np.sqrt(v[n] / (1 - 0.99**step)) + 1e-8)
    return from_text(NET, w)


@pytest.fixture(scope="module")
def two() -> list[ModelProto]:
    return [trained(1), trained(2)]


def accuracy(model: ModelProto) -> float:
    x, y = task(2000, 77)
    return float((run(model, {"x": x})[0].argmax(axis=1) == y).mean())


def samples() -> dict[str, Array]:
    return {"x": task(256, 55)[0]}


def test_two_trained_models_beat_their_plain_average(two: list[ModelProto]) -> None:
    """And what is measured and restored, the default, is no worse than what is not."""
    assert min(accuracy(m) for m in two) > 0.85
    plain, weights_only, default = (
        accuracy(onnxfuse.ensemble(two, **how).model)
        for how in ({"align": "none", "restore": False}, {"align": "weights", "restore": False}, {"calib": samples()})
    )
    assert default > plain + 0.1
    assert default >= weights_only - 0.02


def deviations(model: ModelProto, name: str) -> Array:
    """Deviation over samples of each channel of a value."""
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    return np.asarray(run(copy, samples())[-1].std(axis=0))


def test_variance_does_not_collapse(two: list[ModelProto]) -> None:
    """The mean over channels is that of the models'; without the restoring it is clearly less."""
    mean = np.mean([deviations(m, "h2").mean() for m in two])
    with_it = onnxfuse.ensemble(two, align="none", calib=samples()).model
    without = onnxfuse.ensemble(two, align="none", restore=False).model
    assert deviations(with_it, "h2").mean() == pytest.approx(mean, rel=1e-3)
    assert deviations(without, "h2").mean() < 0.8 * mean


def test_all_of_one_model_is_that_model(two: list[ModelProto]) -> None:
    assert gap(run(two[0]), run(onnxfuse.ensemble(two, weights=[1, 0]).model)) < 1e-5
    assert gap(run(two[1]), run(onnxfuse.ensemble(two, weights=[0, 1]).model)) < 1e-5


def test_the_same_every_time(two: list[ModelProto]) -> None:
    first, second = (onnxfuse.ensemble(two).model.SerializeToString() for _ in range(2))
    assert first == second


# --- with pruning ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("order", ["fap", "paf"])
def test_fused_and_pruned(order: str, two: list[ModelProto], tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    result = onnxfuse.ensemble(two, target, sparsity=0.25, order=order, calib=samples(), round_to=1)
    assert dims(onnx.load(target))["w2"] == (18, 24)
    assert accuracy(onnx.load(target)) > 0.7
    assert result.report.after.channels == 42
    assert [g.after for g in result.report.groups] == [24, 18]


def test_the_plan_is_of_the_pruning(two: list[ModelProto]) -> None:
    assert len(onnxfuse.ensemble(two, sparsity=0.5, method="fold", restore=False, align="weights").plan.merges) == 2
    assert not onnxfuse.ensemble(two, sparsity=0.5, method="fold", order="paf").plan.merges
