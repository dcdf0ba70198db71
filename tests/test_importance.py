"""Which channels survive: every metric on four numbers, gradients, and the user's own scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnxfuse
from onnxfuse.channels import ChannelGroup, Slot
from onnxfuse.features import chip, energy
from onnxfuse.findings import Role
from onnxfuse.importance import METRICS, GroupView, importance
from onnxfuse.oracle import oracle_error

from .graphs import Array, build, from_text, inputs, run, weights
from .test_cli import call

MADE = np.array([[1, -2], [0, 3], [4, 0], [0, 0]], np.float32)
READ = np.array([[1], [-1], [2], [2]], np.float32)


def view(*rows: Array) -> GroupView:
    """A group that these weights make and read; its salience is that of gradients of one half."""
    n = len(rows[0])
    slots = [Slot(f"w{i}", "layer", (0,), 1, Role.PRODUCES, np.arange(n)[:, None]) for i in range(len(rows))]
    group = ChannelGroup("layer", n, tuple(slots), np.arange(n), 0, n, 0, ("layer",))
    by_slot = dict(zip(slots, rows, strict=True))
    return GroupView(group, by_slot, np.random.default_rng(0), {s: r / 2 for s, r in by_slot.items()})


SCORES = [
    # (3 + 1)/2, (3 + 1)/2, (4 + 2)/2, (0 + 2)/2 = 2, 2, 3, 1 with mean 2; Taylor's are half of that
    ("l1", [1, 1, 1.5, 0.5]),
    ("taylor", [1, 1, 1.5, 0.5]),
    # (5 + 1)/2, (9 + 1)/2, (16 + 4)/2, (0 + 4)/2 = 3, 5, 10, 2 with mean 5
    ("l2", [0.6, 1, 2, 0.4]),
    # of these, each over the sum of those not smaller: 3/18, 5/15, 10/10, 2/20 with mean 0.4
    ("lamp", [1 / 6 / 0.4, 1 / 3 / 0.4, 2.5, 0.25]),
]


@pytest.mark.parametrize(("name", "expected"), SCORES)
def test_metrics(name: str, expected: list[float]) -> None:
    np.testing.assert_allclose(importance(METRICS[name].function, view(MADE, READ)), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["l1", "l2", "lamp", "taylor"])
def test_dead_channels(name: str) -> None:
    assert importance(METRICS[name].function, view(np.zeros((3, 2), np.float32))).tolist() == [0, 0, 0]


# --- gradients ------------------------------------------------------------------------------------------------------
NORMED = """(float[N,2,6,6] x) => (float[N,3,6,6] y)
    <float[8,2,1,1] w1, float[8] a_scale, float[8] a_shift, float[8] a_mean, float[8] a_var, float[3,8,1,1] w2> {
    c = Conv(x, w1)
    b = BatchNormalization(c, a_scale, a_shift, a_mean, a_var)
    r = Relu(b)
    y = Conv(r, w2)
}"""


def kept(model: ModelProto, **options: Any) -> list[int]:
    """The survivors of the only group."""
    ((_, merge),) = onnxfuse.fuse(model, sparsity=0.5, method="drop", **options).plan.merges
    return list(merge.kept.tolist())


def gradients_of(model: ModelProto) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(w.shape).astype(np.float32) for name, w in weights(model).items()}


def best(scores: Array) -> list[int]:
    return sorted(np.argsort(-scores)[: len(scores) // 2].tolist())


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_taylor_is_that_of_the_file_as_it_is(scale: float) -> None:
    """A normalization multiplies the weights that it is folded into, and divides their gradients."""
    gamma = np.array([scale, 1 / scale] * 4)
    model = from_text(NORMED, {"a_scale": gamma})
    values, gradients = weights(model), gradients_of(model)
    made = np.abs(values["w1"] * gradients["w1"]).sum(axis=(1, 2, 3))
    read = np.abs(values["w2"] * gradients["w2"]).sum(axis=(0, 2, 3))
    assert kept(model, importance="taylor", gradients=gradients) == best(made + read)


def test_gradients_reach_cloned_and_renamed_weights() -> None:
    """Two normalizations share one convolution's weights, so that folding makes copies."""
    model = from_text("""(float[N,2,6,6] x) => (float[N,3,6,6] y)
        <float[8,2,1,1] w1, float[8] a_scale, float[8] a_shift, float[8] a_mean, float[8] a_var,
         float[8] b_scale, float[8] b_shift, float[8] b_mean, float[8] b_var, float[3,8,1,1] w2> {
        c = Conv(x, w1)
        a = BatchNormalization(c, a_scale, a_shift, a_mean, a_var)
        d = Conv(x, w1)
        b = BatchNormalization(d, b_scale, b_shift, b_mean, b_var)
        s = Add(a, b)
        y = Conv(s, w2)
    }""")
    values, gradients = weights(model), gradients_of(model)
    made = np.abs(values["w1"] * gradients["w1"]).sum(axis=(1, 2, 3))
    read = np.abs(values["w2"] * gradients["w2"]).sum(axis=(0, 2, 3))
    found = kept(model, importance="taylor", gradients={k: gradients[k] for k in ("w1", "w2")})
    assert found == best(2 * made + read)


BAD_GRADIENTS: Mapping[str, tuple[Mapping[str, Array | None], str]] = {
    "missing": ({"w2": None}, "has none for weight 'w2'"),
    "unknown": ({"w22": np.zeros(1)}, "'w22' is no initializer of the model; near: w2"),
    "transposed": ({"w2": np.zeros((10, 8), np.float32)}, "has shape [10, 8], its weight has [8, 10]; transpose it"),
    "shape": ({"w2": np.zeros(3, np.float32)}, "has shape [3], its weight has [8, 10]"),
    "overflow": ({"w2": np.full((8, 10), 1e300)}, "'w2' times its weight is more than float32 holds"),
    "not a number": ({"w2": np.full((8, 10), np.nan, np.float32)}, "'w2' has values that are no finite floats"),
}


@pytest.mark.parametrize("case", BAD_GRADIENTS)
def test_gradients_that_do_not_fit_are_refused(case: str) -> None:
    change, message = BAD_GRADIENTS[case]
    model = build("mlp")
    given = {k: v for k, v in ({**gradients_of(model), **change}).items() if v is not None}
    with pytest.raises(onnxfuse.UsageError) as caught:
        onnxfuse.fuse(model, sparsity=0.5, importance="taylor", gradients=given)
    assert message in str(caught.value)


# --- the user's own -------------------------------------------------------------------------------------------------
MLP: dict[str, Any] = {"h1": np.arange(8.0)[::-1], "h2": np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3.0])}
"""Layers of the model "mlp": their best halves are 0…3, and 2, 4, 5, 7, 8."""


def survivors(importance: Any) -> dict[str, list[int]]:
    result = onnxfuse.fuse(build("mlp"), sparsity=0.5, method="drop", importance=importance)
    return {group.name: merge.kept.tolist() for group, merge in result.plan.merges}


def test_own_scores() -> None:
    assert survivors(MLP) == {"h1": [0, 1, 2, 3], "h2": [2, 4, 5, 7, 8]}
    assert survivors(lambda v: MLP[v.group.name]) == {"h1": [0, 1, 2, 3], "h2": [2, 4, 5, 7, 8]}


@pytest.mark.parametrize("method", ["auto", "intra-fusion", "barycentric"])
@pytest.mark.parametrize("calib", [False, True])
def test_what_is_called_important_stays(method: str, calib: bool) -> None:
    """`auto` would choose by what it measures."""
    model = build("mlp")
    samples = {n: np.random.default_rng(1).standard_normal((256, *a.shape[1:])) for n, a in inputs(model).items()}
    options: dict[str, Any] = {"calib": {n: a.astype(np.float32) for n, a in samples.items()}} if calib else {}
    options |= {"target": "important"} if method == "barycentric" else {}
    result = onnxfuse.fuse(model, sparsity=0.5, method=method, importance=MLP, **options)
    found = {group.name: merge.kept.tolist() for group, merge in result.plan.merges}
    assert found == {"h1": [0, 1, 2, 3], "h2": [2, 4, 5, 7, 8]}


@pytest.mark.parametrize("method", ["fold", "fold-variance", "surgeon"])
def test_methods_that_do_not_go_by_importance_refuse_it(method: str) -> None:
    with pytest.raises(onnxfuse.UsageError, match=f"method '{method}' does not go by importance: leave out"):
        onnxfuse.fuse(build("mlp"), sparsity=0.5, method=method, importance="l2")


def test_a_group_takes_the_mean_of_its_layers() -> None:
    """The residual model's `c1` and `c3` make the channels that are added up."""
    groups = onnxfuse.analyze(build("residual"))
    group = max(groups, key=lambda g: sum(s.role is Role.PRODUCES for s in g.slots))
    makers = [s.node for s in group.slots if s.role is Role.PRODUCES]
    assert len(makers) > 1
    rng = np.random.default_rng(0)
    scores = {name: rng.random(group.channels) for name in makers}
    result = onnxfuse.fuse(build("residual"), sparsity=0.5, method="drop", importance=scores, only=[f"^{group.name}$"])
    assert result.plan.merges[0][1].kept.tolist() == best(np.mean(list(scores.values()), axis=0))


def test_a_layer_whose_channels_are_several_groups() -> None:
    """Half of what the layer makes goes one way, half another: its scores are told apart by position."""
    model = from_text(
        """(float[N,4] x) => (float[N,3] y, float[N,3] z)
        <float[4,16] w1, float[8,3] w2, float[8,3] w3> {
        h = MatMul(x, w1)
        a, b = Split<axis = 1, num_outputs = 2>(h)
        y = MatMul(a, w2)
        z = MatMul(b, w3)
    }""",
        opset=18,
    )
    scores = np.random.default_rng(0).random(16)
    result = onnxfuse.fuse(model, sparsity=0.5, method="drop", importance={"h": scores})
    left = {g.slots[0].positions[m.kept].ravel()[0] // 8: m.kept.tolist() for g, m in result.plan.merges}
    assert left == {0: best(scores[:8]), 1: best(scores[8:])}


def test_own_scores_from_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnx.save(build("mlp"), tmp_path / "in.onnx")
    np.savez(tmp_path / "scores.npz", **MLP)
    arguments = [
        "--sparsity",
        0.5,
        "--method",
        "drop",
        "--importance",
        tmp_path / "scores.npz",
        "--plan",
        tmp_path / "p",
    ]
    assert call(capfd, tmp_path / "in.onnx", tmp_path / "out.onnx", *arguments)[0] == 0
    plan = json.loads((tmp_path / "p").read_text())
    assert {g["name"]: g["kept"] for g in plan["groups"]} == {"h1": [0, 1, 2, 3], "h2": [2, 4, 5, 7, 8]}
    assert plan["options"]["importance"] == str(tmp_path / "scores.npz")


@pytest.mark.parametrize(
    ("source", "recorded"),
    [(MLP, "arrays: h1, h2"), (lambda v: MLP[v.group.name], "<lambda>")],
    ids=["arrays", "function"],
)
def test_a_plan_can_be_written_whatever_was_given(source: Any, recorded: str, tmp_path: Path) -> None:
    result = onnxfuse.fuse(build("mlp"), sparsity=0.5, importance=source)
    result.plan.save(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["options"]["importance"] == recorded
    assert json.loads(json.dumps(result.report.as_json()))["options"]["importance"] == recorded


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"h3": np.ones(8)}, "'h3' makes no channels that may shrink"),
        ({"h1": np.ones(8)}, "has no 10 scores for h2"),
        (MLP | {"h1": np.ones(7)}, "'h1' has 8 outputs, its scores have shape [7]"),
        (MLP | {"h1": -np.ones(8)}, "importance of h1: the scores are not 8 finite numbers from 0 up"),
        (MLP | {"h1": np.full(8, 1j)}, "'h1' is complex128; give numbers from 0 up"),
        (MLP | {"h1": np.full(8, 1e308)}, "importance of h1: the scores are not 8 finite numbers from 0 up"),
        (lambda v: np.full(10, 1j), "importance of h2: the scores are not 10 finite numbers from 0 up"),
        (lambda v: np.ones(3), "importance of h2: the scores are not 10 finite numbers from 0 up"),
    ],
)
def test_own_scores_that_do_not_fit_are_refused(source: Any, message: str) -> None:
    with pytest.raises(onnxfuse.UsageError) as caught:
        survivors(source)
    assert message in str(caught.value)


# --- activations ----------------------------------------------------------------------------------------------------
def test_chip_and_energy_of_four_numbers() -> None:
    """The nuclear norm of a matrix with orthogonal rows is the sum of their norms."""
    rows = np.array([[3.0, 4, 0], [0, 0, 2]])
    np.testing.assert_allclose(chip(rows), [5, 2], atol=1e-6)
    np.testing.assert_allclose(energy(rows), [25 / 3, 4 / 3])


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (70, 4)])
def test_chip_is_the_difference_of_nuclear_norms(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal(shape)
    expected = []
    for i in range(len(x)):
        without = x.copy()
        without[i] = 0
        expected.append(np.linalg.norm(x, "nuc") - np.linalg.norm(without, "nuc"))
    np.testing.assert_allclose(chip(x), expected, atol=1e-6)


CALIB = {"x": np.random.default_rng(0).standard_normal((70, 2, 6, 6)).astype(np.float32)}


@pytest.mark.parametrize("name", ["chip", "energy"])
def test_activations_are_those_that_are_read(name: str) -> None:
    """Of the original network, after BatchNormalization and ReLU, over all samples."""
    model = from_text(NORMED)
    feature = METRICS[name].feature
    assert feature is not None
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info("r"))
    maps = run(model, CALIB)[1].reshape(70, 8, 36).astype(np.float64)
    del model.graph.output[1]
    assert kept(model, importance=name, calib=CALIB) == best(np.mean([feature(m) for m in maps], axis=0))


@pytest.mark.parametrize("name", ["residual", "flatten_spatial", "attention_fused", "dense_block", "embedding"])
def test_activations_of_any_graph(name: str) -> None:
    model = build(name)
    feeds = inputs(model, batch=64)
    result = onnxfuse.fuse(model, sparsity=0.5, importance="energy", calib=feeds)
    assert oracle_error(model, result, feeds) < 1e-5


def test_a_flattened_channel_has_all_its_places() -> None:
    """What a Gemm reads after Flatten is scored as what the pooled map holds."""
    model = from_text("""(float[N,2,4,4] x) => (float[N,3] y) <float[8,2,1,1] w1, float[8] b1, float[128,3] w2> {
        c = Conv(x, w1, b1)
        r = Relu(c)
        f = Flatten(r)
        y = Gemm(f, w2)
    }""")
    calib = {"x": CALIB["x"][:, :, :4, :4]}
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info("r"))
    maps = run(model, calib)[1]
    del model.graph.output[1]
    assert kept(model, importance="energy", calib=calib) == best((maps**2).mean(axis=(0, 2, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"importance": "chip"}, "importance 'chip' needs --calib"),
        ({"importance": "l1", "gradients": {}}, "--gradients is for --importance taylor"),
        ({"calib_preprocess": "scale=1"}, "--calib-preprocess is of the images of --calib"),
        ({"importance": "chip", "calib": {}}, "calibration data: has no array for input 'x'"),
        (
            {"importance": "chip", "method": "drop", "calib": {"x": CALIB["x"] * np.float32(5e37)}},
            "overflows on the samples",
        ),
        ({"lossless": True, "sparsity": None, "calib": CALIB}, "leave out --calib"),
    ],
)
def test_calibration_that_is_missing_or_not_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(onnxfuse.UsageError) as caught:
        onnxfuse.fuse(from_text(NORMED), **{"sparsity": 0.5, **options})
    assert message in str(caught.value)


def test_calibration_on_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnx.save(from_text(NORMED), tmp_path / "in.onnx")
    arrays: dict[str, Any] = CALIB
    np.savez(tmp_path / "calib.npz", **arrays)
    flags = ["--sparsity", 0.5, "--importance", "chip", "--calib", tmp_path / "calib.npz", "--json", "-"]
    code, out, _ = call(capfd, tmp_path / "in.onnx", tmp_path / "out.onnx", *flags)
    assert code == 0
    assert json.loads(out)["options"]["calib"] == str(tmp_path / "calib.npz")
    bad = ["--sparsity", 0.5, "--importance", "chip", "--calib", tmp_path / "none.npz"]
    code, _, err = call(capfd, tmp_path / "in.onnx", tmp_path / "out.onnx", *bad)
    assert (code, err) == (2, f"onnxfuse: {tmp_path / 'none.npz'}: no such file\n")
