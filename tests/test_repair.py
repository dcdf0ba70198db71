"""Repair: consumers refitted on measured activations, and the methods that look at them."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from scipy.sparse import csr_array

import onnxfuse
from onnxfuse import attempt, runs
from onnxfuse.cli import main
from onnxfuse.comparison import Comparison
from onnxfuse.errors import NothingToMerge, Unsound, VerificationFailed
from onnxfuse.fidelity import Fidelity, fidelity_on_drawn
from onnxfuse.graph import Graph
from onnxfuse.grouping import find_channels
from onnxfuse.heldout import parted
from onnxfuse.leastsquares import Prior, fit
from onnxfuse.likeness import Likeness, likeness
from onnxfuse.linear import linear
from onnxfuse.oracle import oracle_error
from onnxfuse.prepare import prepare
from onnxfuse.probe import probe
from onnxfuse.providers import provider_list
from onnxfuse.readers import readers
from onnxfuse.search import find
from onnxfuse.shrinkage import oas, shrunk
from onnxfuse.trust import Source
from onnxfuse.verify import verify

from .formats import FORMATS
from .graphs import MODELS, Array, build, dims, from_text, inputs, random_weight, run, weights
from .hard_texts import RECURRENT
from .texts import TEXTS

GRAPHS = """mlp matmul_add conv_bn residual dense_block depthwise grouped conv_transpose squeeze_excite split
channel_shuffle flatten_spatial shared_bias shared_weight instance_norm attention_fused conv3d""".split()


def accuracy(model: ModelProto, count: int = 400) -> float:
    with np.load(MODELS / "fmnist_test.npz") as data:
        images, labels = data["x"][:count], data["y"][:count]
    x = (images.astype(np.float32)[:, None] / 255 - np.float32(0.2860)) / np.float32(0.3530)
    return float((run(model, {"input": x})[0].argmax(1) == labels).mean())


def images(count: int) -> dict[str, Array]:
    with np.load(MODELS / "fmnist_calib.npz") as data:
        x = data["x"][:count]
    return {"input": (x.astype(np.float32)[:, None] / 255 - np.float32(0.2860)) / np.float32(0.3530)}


UNPINNED = from_text(
    """(float[N,3,6,6] x) => (float[N,4,6,6] y)
        <float[8,3,3,3] w1, float[8] b1, float[8,8,3,3] w2, float[8] b2, float[4,8,1,1] w3> {
        h = Conv<pads=[1,1,1,1]>(x, w1, b1)
        r = Relu(h)
        i = Conv<pads=[1,1,1,1]>(r, w2, b2)
        s = Relu(i)
        y = Conv(s, w3)
    }"""
)
"""Images without a normalization."""


def small(**options: Any) -> ModelProto:
    return onnxfuse.fuse(MODELS / "resnet20_fmnist.onnx", **{"sparsity": 0.3, **options}).model


# --- what it is good for --------------------------------------------------------------------------------------------
def test_without_data_auto_keeps_what_the_paper_loses() -> None:
    """93 % dense; half of what intra-fusion loses is kept with certainty, in truth far more."""
    paper, ours = accuracy(small(method="intra-fusion")), accuracy(small())
    assert 0.93 - ours < 0.5 * (0.93 - paper)


def test_samples_of_the_users_own_keep_more_yet() -> None:
    assert accuracy(small(sparsity=0.5, calib=images(64))) > 0.8


def test_dynamically_quantized_layers_are_refitted() -> None:
    """At half the channels 30 % remain without; what shifts a convolution before its BatchNormalization is an Add."""
    model = FORMATS["dynamic"](onnx.load(MODELS / "resnet20_fmnist.onnx"))
    result = onnxfuse.fuse(model, sparsity=0.5, calib=images(64))
    assert accuracy(result.model) > 0.8
    assert oracle_error(model, result, images(2)) < 1e-4
    count = Counter(n.op_type for n in result.model.graph.node)
    assert (count["ConvInteger"], count["MatMulInteger"], count["BatchNormalization"]) == (21, 1, 21)
    assert count["Add"] > Counter(n.op_type for n in model.graph.node)["Add"]


def test_integer_operators_are_refitted() -> None:
    """Quantized as coarsely as here 83 % remain of 93, and of these 19 without a refit."""
    model = FORMATS["integer operators"](onnx.load(MODELS / "resnet20_fmnist.onnx"))
    result = onnxfuse.fuse(model, sparsity=0.5, calib=images(64))
    assert accuracy(result.model) > 0.7
    assert oracle_error(model, result, images(2)) < 1e-4
    count = Counter(n.op_type for n in result.model.graph.node)
    assert (count["QLinearConv"], count["QLinearAdd"], count["QGemm"]) == (21, 9, 1)


def test_a_repaired_merge_is_closer_than_the_merge_alone() -> None:
    model = build("mlp")
    feeds = inputs(model, seed=7, batch=200)
    dense = run(model, feeds)[0]

    def gap(**options: Any) -> float:
        made = onnxfuse.fuse(model, sparsity=0.5, method="drop", **options).model
        return float(np.linalg.norm(run(made, feeds)[0] - dense) / np.linalg.norm(dense))

    assert gap(calib=inputs(model, seed=3, batch=256)) < 0.8 * gap()


GEMM = """(float[N,6] x) => (float[N,4] y) <float[6,16] w1, float[16] b1, float[16,4] w2, float[4] b2> {
    h = Gemm(x, w1, b1)
    r = Relu(h)
    y = Gemm(r, w2, b2)
}"""
MATMUL_ADD = """(float[N,6] x) => (float[N,4] y) <float[6,16] w1, float[16] b1, float[16,4] w2, float[4] b2> {
    m = MatMul(x, w1)
    h = Add(m, b1)
    r = Relu(h)
    q = MatMul(r, w2)
    y = Add(b2, q)
}"""
CONV = """(float[N,3,6,6] x) => (float[N,4,4,4] y) <float[16,3,3,3] w1, float[16] b1, float[4,16,1,1] w2, float[4] b2> {
    h = Conv(x, w1, b1)
    r = Relu(h)
    y = Conv(r, w2, b2)
}"""
CONV_ADD = """(float[N,3,6,6] x) => (float[N,4,4,4] y)
    <float[16,3,3,3] w1, float[1,16,1,1] b1, float[4,16,1,1] w2, float[4,1,1] b2> {
    m = Conv(x, w1)
    h = Add(m, b1)
    r = Relu(h)
    q = Conv(r, w2)
    y = Add(q, b2)
}"""


@pytest.mark.parametrize("size", [2.0**-20, np.where(np.arange(16) % 2, 2.0**-20, 1)], ids=["layer", "channels"])
@pytest.mark.parametrize("text", [GEMM, CONV], ids=["Gemm", "Conv"])
def test_channels_have_no_units_of_their_own(text: str, size: Any) -> None:
    """What is multiplied by a, and read by weights divided by a, is the same network."""
    model = from_text(text)
    own, made = weights(model), np.broadcast_to(size, 16)
    rows, columns = (made[:, None, None, None], made[:, None, None]) if text is CONV else (made, made[:, None])
    scaled = from_text(text, own | {"w1": own["w1"] * rows, "b1": own["b1"] * made, "w2": own["w2"] / columns})
    feeds, fresh = inputs(model, seed=2, batch=128), inputs(model, seed=5, batch=64)
    first, second = (
        onnxfuse.fuse(m, sparsity=0.5, method="surgeon", calib=feeds, round_to=1).model for m in (model, scaled)
    )
    np.testing.assert_allclose(run(first, fresh)[0], run(second, fresh)[0], rtol=1e-3, atol=1e-4)


def test_nor_have_weights_whose_squares_are_beyond_all_numbers() -> None:
    """Multiplied by 2⁸⁰, the last layer costs as much as before: the same channels go, and nothing overflows."""
    own = weights(model := from_text(CONV))
    large = from_text(CONV, own | {"w2": own["w2"] * 2.0**80, "b2": own["b2"] * 2.0**80})
    feeds = inputs(model, seed=2, batch=128)
    left = [
        onnxfuse.fuse(m, sparsity=0.5, method="surgeon", calib=feeds, round_to=1).plan.merges[0][1].kept.tolist()
        for m in (model, large)
    ]
    assert left[0] == left[1]


EINSUM_ADD = MATMUL_ADD.replace("MatMul(r, w2)", 'Einsum<equation="...j, jk -> ...k">(r, w2)')
TURNED = """(float[N,5,6] x) => (float[4,N,5] y) <float[6,16] w1, float[16] b1, float[4,16] w2> {
    m = MatMul(x, w1)
    h = Add(m, b1)
    r = Relu(h)
    y = Einsum<equation="kj,btj->kbt">(w2, r)
}"""


def test_einsums_of_any_form_are_repaired() -> None:
    result = onnxfuse.fuse(from_text(TURNED), sparsity=0.5, calib=inputs(from_text(TURNED), batch=64))
    assert result.report.notes == ("repaired 1 consumers, on 56 given samples",)


@pytest.mark.parametrize(("whole", "apart"), [(GEMM, MATMUL_ADD), (GEMM, EINSUM_ADD), (CONV, CONV_ADD)])
def test_a_bias_in_a_node_of_its_own_is_repaired_alike(whole: str, apart: str) -> None:
    model = from_text(whole)
    own = weights(model)
    biases = {"b1": own["b1"].reshape(1, 16, 1, 1), "b2": own["b2"].reshape(4, 1, 1)} if apart is CONV_ADD else {}
    other = from_text(apart, own | biases)
    feeds = inputs(model, seed=2, batch=128)
    first, second = (onnxfuse.fuse(m, sparsity=0.4, method="fold", calib=feeds).model for m in (model, other))
    fresh = inputs(model, seed=5, batch=64)
    np.testing.assert_allclose(run(first, fresh)[0], run(second, fresh)[0], rtol=1e-3, atol=1e-4)
    fitted = {n: v[parted(128, 1, 512, 1)[0]] for n, v in feeds.items()}
    assert abs(run(second, fitted)[0].mean() - run(model, fitted)[0].mean()) < 1e-3  # both shift and offset, each once


def test_one_number_added_to_all_that_a_gemm_makes_stays_one() -> None:
    model = from_text(GEMM.replace("float[4] b2", "float[1] b2"))
    result = onnxfuse.fuse(model, sparsity=0.4, calib=inputs(model, batch=64))
    assert dims(result.model)["b2"] == (1,)
    assert oracle_error(model, result, inputs(model)) < 1e-5


DEPENDENT = """(float[N,6] x) => (float[N,3] y) <float[8,6] w1, float[8] b1, float[3,8] w2, float[3] b2> {
    h = Gemm <transB=1> (x, w1, b1)
    r = Relu(h)
    y = Gemm <transB=1> (r, w2, b2)
}"""


def test_the_surgeon_drops_channels_that_others_can_replace() -> None:
    """Channels 4…7 are 3 times channels 0…3, so superfluous: no magnitude tells, their covariance does."""
    rng = np.random.default_rng(0)
    w1, b1, w2 = rng.standard_normal((4, 6)), rng.standard_normal(4), rng.standard_normal((3, 8))
    values = {"w1": np.vstack([w1, 3 * w1]), "b1": np.hstack([b1, 3 * b1]), "w2": w2, "b2": rng.standard_normal(3)}
    model = from_text(DEPENDENT, values)
    feeds = inputs(model, seed=1, batch=256)
    result = onnxfuse.fuse(model, sparsity=0.5, method="surgeon", calib=feeds)
    kept = result.plan.merges[0][1].kept % 4
    assert sorted(kept.tolist()) == [0, 1, 2, 3]
    dense, again = run(model, feeds)[0], run(result.model, feeds)[0]
    assert np.linalg.norm(again - dense) < 0.1 * np.linalg.norm(dense)  # the ridge costs a few per cent


UNEVEN = """(float[N,4,8,8] x) => (float[N,2,8,8] y, float[N,2,8,8] z)
    <float[4,4,1,1] w1, float[4] b1, float[2,4,1,1] w2 = {100, 10, 0, 0, 0, 0, 1, 0.9},
     float[4,4,1,1] w3, float[4] b3, float[2,4,1,1] w4 = {1, 0, 0.05, 0, 0, 1, 0, 0.05}> {
    h = Conv (x, w1, b1)
    r = Relu(h)
    y = Conv (r, w2)
    g = Conv (x, w3, b3)
    s = Relu(g)
    z = Conv (s, w4)
}"""


@pytest.mark.parametrize(("given", "left"), [(True, [2, 4]), (False, [3, 3])])
def test_on_synthetic_samples_all_outputs_cost_alike(given: bool, left: list[int]) -> None:
    """Channels 2 and 3 of h are all of its quiet reader; all they make is a hundredth of what the loud one makes.

    Which channel goes is another matter: there what readers make counts as it is.
    """
    values = {w: np.eye(4)[:, :, None, None] for w in ("w1", "w3")} | {b: np.full(4, 3.0) for b in ("b1", "b3")}
    model = from_text(UNEVEN, values)
    samples = inputs(model, seed=1, batch=64) if given else None
    result = onnxfuse.fuse(model, sparsity=0.25, method="surgeon", scope="global", round_to=1, calib=samples)
    assert [g.after for g in result.report.groups] == left
    assert result.plan.merges[0][1].kept.tolist()[:2] == [0, 1]


ORTHOGONAL = """(float[N,2] x) => (float[N,1] y) <float[2,2] w1 = {1, 0, 0, 1}, float[1,2] w2 = {1, 1}> {
    h = Gemm <transB=1> (x, w1)
    y = Gemm <transB=1> (h, w2)
}"""


def test_variance_repair_from_weights() -> None:
    """Rows (1, 0 | 1) and (0, 1 | 1), weights and reader, of norm √2 have the mean (½, ½ | 1) of norm √1.5.

    Half of the repair, in logarithms, is (2 / 1.5)^¼; the reader takes the sum of both columns, 2.
    """
    result = onnxfuse.fuse(from_text(ORTHOGONAL), sparsity=0.5, method="fold-variance")
    made = weights(result.model)
    np.testing.assert_allclose(made["w1"], [[0.5 * (2 / 1.5) ** 0.25] * 2], rtol=1e-6)
    np.testing.assert_allclose(made["w2"], [[2]], rtol=1e-6)


# --- what must hold -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["auto", "surgeon"])
@pytest.mark.parametrize("name", GRAPHS)
def test_the_oracle_holds_after_repair(name: str, method: str) -> None:
    model = build(name)
    result = onnxfuse.fuse(model, sparsity=0.5, method=method, repair=True)
    assert result.plan.repairs
    assert oracle_error(model, result, inputs(model, seed=5)) < 1e-4


def test_two_runs_give_the_same_bits() -> None:
    first, second = (small(method="auto") for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()


def test_the_report_says_what_was_repaired_on_what() -> None:
    def repaired(**options: Any) -> list[str]:
        notes = onnxfuse.fuse(build("mlp"), sparsity=0.5, **options).report.notes
        return [note for note in notes if note.startswith("repaired")]

    assert repaired(method="fold") == []
    assert repaired(method="fold", repair=True) == ["repaired 2 consumers, on 1024 synthetic samples"]
    assert repaired(calib=inputs(build("mlp"), batch=64)) == ["repaired 2 consumers, on 56 given samples"]


SHARED = """(float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,4,4,4] z)
    <float[8,3,3,3] w0, float[8] b0, float[16,8,3,3] w1, float[4,16,1,1] w2> {
    c = Conv<pads=[1,1,1,1]>(x, w0, b0)
    p = Relu(c)
    q = MaxPool<kernel_shape=[2,2], strides=[2,2]>(p)
    a = Conv<pads=[1,1,1,1]>(p, w1)
    ar = Relu(a)
    y = Conv(ar, w2)
    b = Conv<pads=[1,1,1,1]>(q, w1)
    br = Relu(b)
    z = Conv(br, w2)
}"""
PICKING = """(float[N,3,8,8] x) => (float[N,4,8,8] y, float[M,4] z)
    <float[8,3,3,3] w0, float[8] b0, float[4,8,1,1] w1, float[8,4] w2> {
    c = Conv<pads=[1,1,1,1]>(x, w0, b0)
    p = Relu(c)
    y = Conv(p, w1)
    g = GlobalAveragePool(p)
    f = Flatten(g)
    d = Compress<axis=0>(f, keep)
    z = MatMul(d, w2)
}""".replace("float[N,3,8,8] x)", "float[N,3,8,8] x, bool[N] keep)")


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        (SHARED, {}, "not refitted, 2 of 2 consumers: weights used more than once (w2, w1)"),
        (SHARED, {"only": ("^a$",)}, "not refitted, 1 of 1 consumers: weights used more than once (w2)"),
        (PICKING, {}, "not refitted, 1 of 2 consumers: they read what was picked by value (w2)"),
    ],
)
def test_the_report_says_what_was_not_repaired(text: str, options: dict[str, Any], expected: str) -> None:
    model = from_text(text)
    calib = inputs(model, batch=64)
    notes = onnxfuse.fuse(model, sparsity=0.5, calib=calib, **options).report.notes
    assert [note for note in notes if "not refitted" in note] == [expected]
    unwanted = onnxfuse.fuse(model, sparsity=0.5, calib=calib, repair=False, **options).report.notes
    assert not any("refitted" in note for note in unwanted)


def test_synthetic_inputs_tell_nothing_of_a_matrix_on_the_input(caplog: pytest.LogCaptureFixture) -> None:
    """A convolution reads patches, which look the same everywhere; a matrix reads each place with its own weights."""
    with caplog.at_level("WARNING", "onnxfuse"):
        assert onnxfuse.fuse(build("mlp"), sparsity=0.5).plan.repairs == ()
    assert "not repaired: the first layer has weights for each place" in caplog.text
    assert onnxfuse.fuse(build("residual"), sparsity=0.5).plan.repairs
    assert onnxfuse.fuse(build("mlp"), sparsity=0.5, repair=True).plan.repairs


def test_what_picks_by_value_is_not_compared() -> None:
    """The result keeps other boxes than the original, and another number of them: there is nothing to fit."""
    text = """(float[N,3,8,8] x) => (float[M,4] y) <float[12,3,3,3] w1, float[8,12,1,1] w2, float[8,6] w3,
         float[6,4] w4, float half = {0.5}> {
        c1 = Conv<pads=[1,1,1,1]>(x, w1)
        r1 = Relu(c1)
        c2 = Conv(r1, w2)
        t = Transpose<perm=[0,2,3,1]>(c2)
        s = ReduceMax<axes=[3], keepdims=0>(t)
        g = Greater(s, half)
        n = NonZero(g)
        places = Transpose(n)
        p = GatherND(t, places)
        h = MatMul(p, w3)
        r = Relu(h)
        y = MatMul(r, w4)
    }"""
    model = from_text(text)
    result = onnxfuse.fuse(model, sparsity=0.5, repair=True)
    assert [r.reader.slot.tensor for r in result.plan.repairs] == ["w2"]
    assert result.report.after.macs < 0.6 * result.report.before.macs


def test_auto_without_repair_is_only_the_merge() -> None:
    folded = onnxfuse.fuse(build("mlp"), sparsity=0.5, method="fold-variance").model
    auto = onnxfuse.fuse(build("mlp"), sparsity=0.5, method="auto", repair=False).model
    for name, array in weights(folded).items():
        np.testing.assert_array_equal(weights(auto)[name], array)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--no-repair", "--method", "fold", "--calib", "x.npz"], "measures nothing"),
        (["--calib-preprocess", "mean=0"], "--calib-preprocess is of the images of --calib"),
        (["--calib", "nowhere.npz"], "nowhere.npz: no such file"),
    ],
)
def test_options_that_contradict_each_other(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(build("mlp"), tmp_path / "in.onnx")
    code = main([str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), "--sparsity", "0.5", *flags])
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()


def test_calibration_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays: Any = images(64)
    np.savez(tmp_path / "calib.npz", **arrays)
    arguments = [str(MODELS / "lenet300_fmnist.onnx"), str(tmp_path / "out.onnx"), "--sparsity", "0.7"]
    assert main([*arguments, "--calib", str(tmp_path / "calib.npz")]) == 0
    assert "consumers, on 56 given samples" in capsys.readouterr().out
    assert accuracy(onnx.load(tmp_path / "out.onnx")) > 0.8


# --- what channels cost, as measured ---------------------------------------------------------------------------------
TWO_LAYERS = """(float[N,6] x) => (float[N,8] y) <float[16,6] w1, float[16] b1, float[16,16] w2, float[16] b2,
    float[8,16] w3, float[8] b3> {
    h = Gemm <transB=1> (x, w1, b1)
    r = Relu(h)
    g = Gemm <transB=1> (r, w2, b2)
    s = Relu(g)
    y = Gemm <transB=1> (s, w3, b3)
}"""


def test_global_scope_takes_channels_where_others_make_up_for_them() -> None:
    """Half of the second layer's channels are multiples of the others, which no norm tells; none of the first's are."""
    rng = np.random.default_rng(0)
    w2, b2, w3 = rng.standard_normal((8, 16)), rng.standard_normal(8), rng.standard_normal((8, 16))
    values = {"w2": np.vstack([w2, 2 * w2]), "b2": np.hstack([b2, 2 * b2]), "w3": w3 * np.repeat([1, 0.5], 8)}
    model = from_text(TWO_LAYERS, values)
    feeds = inputs(model, seed=1, batch=512)

    def kept(method: str) -> list[int]:
        result = onnxfuse.fuse(model, sparsity=0.25, scope="global", method=method, calib=feeds)
        return [row.after for row in result.report.groups]

    first, second = kept("surgeon")
    assert second < first
    assert kept("drop") != [first, second]


def test_a_repair_that_spoils_the_model_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Also when a file is written: the first attempt leaves nothing behind."""
    seen, sound = [], verify

    def spoiled_once(*args: Any) -> Comparison:
        seen.append(args)
        if len(seen) % 2:
            raise Unsound("outputs with optimizations off and on differ by 0.24")
        return sound(*args)

    plain = onnxfuse.fuse(build("residual"), sparsity=0.5, repair=False)
    monkeypatch.setattr(attempt, "verify", spoiled_once)
    with caplog.at_level("WARNING", "onnxfuse"):
        result = onnxfuse.fuse(build("residual"), tmp_path / "out.onnx", sparsity=0.5)
    assert "differ by 0.24); it is made without repair" in caplog.text
    assert [args[-1] for args in seen] == [True, False]  # wary only while there is another way
    assert result.plan.repairs == ()
    assert result.report.options["repair"] is False
    assert result.model == plain.model
    assert onnx.load(tmp_path / "out.onnx") == plain.model
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(onnxfuse.VerificationFailed, match=r"differ by 0\.24"):
        onnxfuse.fuse(build("residual"), sparsity=0.5, repair=True)


@pytest.mark.parametrize(("first", "second", "method"), [(0.8, 0.7, "surgeon"), (0.8, 0.9, "auto"), (0.7, 0.6, "auto")])
def test_where_more_is_lost_than_goes_channels_are_chosen_by_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path,
    first: float, second: float, method: str,
) -> None:  # fmt: skip
    """Half the channels go, so half of the outputs' energy may: if the other result is nearer, it is taken."""
    same = {"method": "surgeon"} if method == "surgeon" else {"method": "fold-variance", "repair": True}
    expected = onnxfuse.fuse(UNPINNED, sparsity=0.5, **same)
    off, measured = iter([first, second, first]), fidelity_on_drawn

    def worse(*args: Any) -> Fidelity | None:
        found = measured(*args)
        assert found is not None
        return replace(found, outputs=(replace(found.outputs[0], relative=next(off)),))

    monkeypatch.setattr(attempt, "fidelity_on_drawn", worse)
    with caplog.at_level("WARNING", "onnxfuse"):
        result = onnxfuse.fuse(UNPINNED, tmp_path / "out.onnx", sparsity=0.5)
    why = "by fold-variance too much is lost (output 'y' is off by 0.8 of its size on "
    assert (why in caplog.text) == (method == "surgeon")
    assert result.report.options["method"] == method
    assert onnx.load(tmp_path / "out.onnx") == result.model == expected.model
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_not_sound_is_made_by_what_was_measured_before_it_is_made_without_repair(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sound, expected = verify, onnxfuse.fuse(UNPINNED, sparsity=0.5, method="surgeon")
    made: list[ModelProto] = []

    def spoiled(*args: Any) -> Comparison:
        made.append(args[0])
        if args[0] != expected.model:
            raise Unsound("outputs with optimizations off and on differ by 0.24")
        return sound(*args)

    monkeypatch.setattr(attempt, "verify", spoiled)
    result = onnxfuse.fuse(UNPINNED, sparsity=0.5)
    assert result.model == expected.model
    assert len(made) == 2
    assert caplog.messages == [
        "by fold-variance too much is lost (outputs with optimizations off and on differ by 0.24); it is made "
        "by surgeon"
    ]


@pytest.mark.parametrize("method", ["surgeon", ""])
def test_where_a_search_by_weights_finds_nothing_what_was_measured_is_tried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """Of neither search the first error is told."""
    searched, seen = find, list[str]()

    def fails(make: Any, judge: Any, options: Any, tell: Any) -> Any:
        seen.append(options.method)
        found = searched(make, judge, options, tell)
        if options.method != method:
            raise NothingToMerge(f"nothing is found by {options.method}")
        return found

    monkeypatch.setattr(attempt, "find", fails)
    if method:
        assert onnxfuse.fuse(UNPINNED, min_cosine=0.01).report.options["method"] == method
        assert "too much is lost (nothing is found by auto); it is made by surgeon" in caplog.text
    else:
        with pytest.raises(NothingToMerge, match="by auto"):
            onnxfuse.fuse(UNPINNED, min_cosine=0.01)
    assert seen == ["auto", "surgeon"]


def test_what_was_not_repaired_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def unsound(*args: Any) -> Comparison:
        seen.append(args[-1])
        raise Unsound("outputs with optimizations off and on differ by 0.24")

    monkeypatch.setattr(attempt, "verify", unsound)
    with pytest.raises(Unsound):
        onnxfuse.fuse(from_text(TWO_LAYERS), sparsity=0.5)
    assert seen == [False]


def test_a_model_that_explodes_is_refused_where_there_is_another_way() -> None:
    model, louder = build("residual"), build("residual")
    reference = probe(model, provider_list("cpu"), seed=0)
    last = next(n for n in louder.graph.node if louder.graph.output[0].name in n.output)
    last.output[0] = "quiet"
    factor = onnx.numpy_helper.from_array(np.array(100, np.float32), "factor")
    louder.graph.initializer.append(factor)
    louder.graph.node.append(onnx.helper.make_node("Mul", ["quiet", "factor"], [louder.graph.output[0].name]))
    sound = verify(louder, reference, provider_list("cpu"), None, None, lambda: model)
    assert sound.outputs[0].relative == pytest.approx(99, rel=1e-3)
    with pytest.raises(Unsound, match="is 99 times as far off as zeros would be"):
        verify(louder, reference, provider_list("cpu"), None, None, lambda: model, wary=True)


def test_shares_of_one_do_not_explode(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probability near zero may become a thousand times as large, and is one still."""
    model, reference = build("residual"), probe(build("residual"), provider_list("cpu"), seed=0)
    before, after = ({n: np.full_like(a, x) for n, a in reference.outputs.items()} for x in (1e-4, 0.1))
    quiet = replace(reference, outputs=before)
    monkeypatch.setattr(runs, "_plain_and_fast", lambda *_: (after, after))
    found = verify(model, quiet, provider_list("cpu"), None, None, lambda: model, wary=True)
    assert found.outputs[0].relative == pytest.approx(999, rel=1e-3)
    after.update({n: a * 11 for n, a in after.items()})
    with pytest.raises(Unsound, match="times as far off"):
        verify(model, quiet, provider_list("cpu"), None, None, lambda: model, wary=True)


def test_a_score_that_saturates_may_be_made_of_roundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is next to nothing then, and so is what optimizations change of it."""
    model, reference = build("residual"), probe(build("residual"), provider_list("cpu"), seed=0)
    name, value = next(iter(reference.outputs.items()))
    rest = {n: a for n, a in reference.outputs.items() if n != name}
    pair = [{**rest, name: np.full_like(value, x)} for x in (1e-7, 1.2e-7)]
    monkeypatch.setattr(runs, "_plain_and_fast", lambda *_: pair)
    assert verify(model, reference, provider_list("cpu"), None, None, lambda: model).agreement == pytest.approx(0.2)
    pair[:] = [{**rest, name: np.full_like(value, x)} for x in (1.0, 1.2)]
    with pytest.raises(Unsound, match=r"differ by 0\.2"):
        verify(model, reference, provider_list("cpu"), None, None, lambda: model)


def test_a_share_is_not_made_of_roundings_however_small_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Sigmoid is computed to 1e-7 of its range."""
    model, reference = build("residual"), probe(build("residual"), provider_list("cpu"), seed=0)
    quiet = replace(reference, outputs={n: np.full_like(a, 1e-2) for n, a in reference.outputs.items()})
    pair = [{n: np.full_like(a, x) for n, a in reference.outputs.items()} for x in (1e-5, 1.05e-5)]
    monkeypatch.setattr(runs, "_plain_and_fast", lambda *_: pair)
    assert verify(model, quiet, provider_list("cpu"), None, None, lambda: model, wary=True).agreement == 0
    with pytest.raises(Unsound, match=r"differ by 0\.05"):  # what is no share in the original
        verify(model, reference, provider_list("cpu"), None, None, lambda: model, wary=True)


STREAM = """(float[N,6,5,5] x) => (float[N,3,5,5] y)
    <float[16,6,3,3] w0, float[16] b0, float[16,16,1,1] w1, float[16] b1, float[3,16,1,1] w2, float[3] b2> {
    s = Conv<pads=[1,1,1,1]>(x, w0, b0)
    d = Conv(s, w1, b1)
    t = Add(s, d)
    y = Conv(t, w2, b2)
}"""
"""A residual stream without a function on it: s, and what is added to it, may be written in any basis."""


def test_what_goes_into_a_sum_is_left_at_its_least_error() -> None:
    """Scaled to the deviation that it had it would be further off; what a Relu reads is scaled."""
    data = {"x": np.random.default_rng(0).standard_normal((64, 6, 5, 5)).astype(np.float32)}
    for change, scaled in ((("", ""), False), (("t = Add(s, d)", "r = Relu(d) t = Add(s, r)"), True)):
        plan = onnxfuse.fuse(from_text(STREAM.replace(*change)), sparsity=0.75, method="surgeon", calib=data).plan
        gains = [r.gain for r in plan.repairs if r.reader.made == "d"]
        assert len(gains) == 1
        assert bool((gains[0] != 1).any()) == scaled


def test_channels_that_are_mere_coordinates_are_mixed() -> None:
    """Three outputs depend on three mixtures of 16 channels, which no four channels of them hold."""
    one = STREAM.replace("d = Conv(s, w1, b1)", "").replace("Add(s, d)", "Identity(s)")
    data = {"x": np.random.default_rng(0).standard_normal((64, 6, 5, 5)).astype(np.float32)}

    def lost(text: str, method: str) -> float:
        before = run(model := from_text(text), data)[0]
        small = onnxfuse.fuse(model, sparsity=0.75, round_to=1, method=method, calib=data).model
        return float(np.linalg.norm(run(small, data)[0] - before) / np.linalg.norm(before))

    assert lost(one, "auto") < 0.02  # a ridge is all
    assert lost(one, "surgeon") > 0.3
    assert lost(STREAM, "auto") < 0.6
    assert lost(STREAM, "auto") < 0.9 * lost(STREAM, "surgeon")


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (("t = Add(s, d)", "t = Add(s, d)"), 1),
        (("t = Add(s, d)", "r = Relu(d) t = Add(s, r)"), 0),  # a function of each channel
        (("t = Add(s, d)", "u = Add(s, d) t = Add(u, one)"), 0),  # shifts every channel, which no mixture is
        (("t = Add(s, d)", "u = Add(s, d) t = Mul(u, u)"), 0),
        (("t = Add(s, d)", "u = Add(s, d) t = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(u)"), 1),
    ],
)
def test_what_may_be_mixed(change: tuple[str, str], count: int) -> None:
    model = from_text(STREAM.replace("float[3] b2>", "float[3] b2, float one = {1}>").replace(*change))
    prepare(model)
    graph = Graph(model)
    channels = find_channels(graph, probe(model, provider_list("cpu")))
    assert len(linear(channels)) == count
    assert len(channels.groups) == 1


def test_a_product_of_two_values_is_not_mixed() -> None:
    """A query's channels are read by the keys."""
    channels = find_channels(Graph(build("attention_fused")), probe(build("attention_fused"), provider_list("cpu")))
    assert channels.groups
    assert not linear(channels)


POINTWISE = """(float[N,6,H,W] x) => (float[N,4,H,W] y)
    <float[16,6,1,1] w1, float[16] b1, float[4,16,1,1] w2, float[4] b2> {
    h = Conv(x, w1, b1)
    r = Relu(h)
    y = Conv(r, w2, b2)
}"""
SHORTCUT = """(float[N,6,H,W] x) => (float[N,4,H,W] y)
    <float[8,6,1,1] w1, float[8] b1, float[8,8,1,1] w2, float[8] b2, float[4,8,1,1] w3, float[4] b3> {
    a = Conv(x, w1, b1)
    h = Relu(a)
    b = Conv(h, w2, b2)
    s = Add(b, a)
    r = Relu(s)
    y = Conv(r, w3, b3)
}"""
DEPTHWISE = """(float[N,6,H,W] x) => (float[N,4,H,W] y)
    <float[8,6,1,1] w0, float[8] b0, float[16,8,1,1] w1, float[16] b1, float[16,1,1,1] w2, float[16] b2,
     float[4,16,1,1] w3, float[4] b3> {
    e = Conv(x, w0, b0)
    f = Relu(e)
    a = Conv(f, w1, b1)
    h = Relu(a)
    d = Conv <group=16> (h, w2, b2)
    r = Relu(d)
    y = Conv(r, w3, b3)
}"""


@pytest.mark.parametrize("seed", range(20))
def test_a_channel_alone_is_trusted_whatever_its_variance_is_rounded_to(seed: int) -> None:
    variance = np.random.default_rng(seed).exponential(size=(1, 1)).astype(np.float32)
    assert oas(variance, 100) == 0


@pytest.mark.parametrize("text", [POINTWISE, SHORTCUT, DEPTHWISE])
def test_places_that_say_the_same_are_no_more_samples(text: str) -> None:
    """64 images of one place and the same with 25 equal ones: as much is known, so as much is corrected."""
    model = from_text(text)
    x = np.random.default_rng(3).normal(size=(64, 6, 1, 1)).astype(np.float32)
    once, often = (
        onnxfuse.fuse(model, sparsity=0.4, method="surgeon", calib={"x": v}, input_shapes={"x": (1, 6, 5, 5)}).model
        for v in (x, np.tile(x, (1, 1, 5, 5)))
    )
    for name, values in weights(once).items():
        np.testing.assert_allclose(weights(often)[name], values, rtol=1e-4, atol=1e-4, err_msg=name)


def test_places_are_never_worth_more_than_they_are() -> None:
    """Of 1,000 tokens in one axis, each a sample, 400 are looked at."""
    assert Likeness(1000, 1).worth(400) == 400
    assert Likeness(1000, 1).worth(4000) == 1000


@pytest.mark.parametrize(("own", "source", "worth"), [(0, "DATA", 1600), (1, "DATA", 123), (1, "ANCHORED", 1600)])
def test_places_count_by_what_a_sample_has_of_its_own(own: float, source: str, worth: float) -> None:
    """Half of the variance between 64 samples: 1 / (0.5 / 1600 + 0.5 / 64) = 123. Synthetic ones count in full."""
    model, rng = from_text(POINTWISE), np.random.default_rng(0)
    graph = Graph(model)
    found = readers(find_channels(graph, probe(model, provider_list("cpu"), {"x": (1, 6, 5, 5)})), [])
    reader = next(r for r in found if r.slot.tensor == "w2")
    chunks = [rng.normal(size=(16, 16, 5, 5)) + own * rng.normal(size=(16, 16, 1, 1)) for _ in range(4)]
    assert likeness(reader, chunks, Source[source]).worth(1600) == pytest.approx(worth, rel=0.15)


@pytest.mark.parametrize("count", [20, 200])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(("share", "worth"), [(0, 1), (1, 0.25), (0.5, 0.4)])
def test_expand_is_the_equations_for_few_samples_and_for_many(
    count: int, centred: bool, blocks: int, share: float, worth: float
) -> None:
    """`share` of what four places of a sample show is the sample's own: they are worth so many of independent ones."""
    rng, least = np.random.default_rng(count), 0.02
    x = rng.normal(size=(count, 40)).astype(np.float32) + 2
    kept = np.flatnonzero(np.tile([1, 0, 1, 1, 0, 1, 0, 1, 0, 1], 4))  # 24, equally many of each half
    y = x[:, kept] + 0.3 * rng.normal(size=(count, len(kept))).astype(np.float32)
    prior = 0.5 * np.eye(40)[:, kept]
    with ThreadPoolExecutor(1) as pool:
        known = Prior(csr_array(prior), kept, blocks, least)
        expand, shift = fit([x.copy()], iter([y.copy()]), centred, known, Likeness(count // 4, share), pool)
    mean_x, mean_y = (v.mean(axis=0) if centred else np.zeros(v.shape[1]) for v in (x, y))
    x, y = x.astype(np.float64) - mean_x, y.astype(np.float64) - mean_y
    expected = np.zeros((40, len(kept)))
    for rows, columns in zip(np.split(np.arange(40), blocks), np.split(np.arange(len(kept)), blocks), strict=True):
        square, product = y[:, columns].T @ y[:, columns] / count, x[:, rows].T @ y[:, columns] / count
        start = prior[np.ix_(rows, columns)]
        added = np.diag(shrunk(square.diagonal(), max(least, oas(square, worth * count))))
        expected[np.ix_(rows, columns)] = start + (product - start @ square) @ np.linalg.inv(square + added)
    np.testing.assert_allclose(expand, expected, atol=2e-5)
    np.testing.assert_allclose(shift, mean_x - expected @ mean_y, atol=2e-4)


FAINT = """(float[N,16,8,8] x) => (float[N,4,8,8] y)
    <float[16,16,1,1] w1, float[16] gamma, float[16] beta, float[16] mean, float[16] variance,
     float[4,16,1,1] w2, float[4] b2> {
    h = Conv(x, w1)
    n = BatchNormalization(h, gamma, beta, mean, variance)
    r = Relu(n)
    y = Conv(r, w2, b2)
}"""


def test_channels_that_training_left_faint_are_no_signal() -> None:
    """Where σ² is below ε, a normalization does not bring a channel to the deviation |γ|: here every second one."""
    rng = np.random.default_rng(0)
    size = np.where(np.arange(16) % 2, 1e-5, 1)
    w1 = rng.standard_normal((16, 16, 1, 1)) * size[:, None, None, None]
    values = {"w1": w1, "gamma": np.ones(16), "beta": np.full(16, 0.5), "mean": np.zeros(16)}
    model = from_text(FAINT, values | {"variance": np.square(w1).sum(axis=(1, 2, 3))})
    result = onnxfuse.fuse(model, sparsity=0.5, round_to=1, method="surgeon")
    assert np.array_equal(result.plan.merges[0][1].kept, np.arange(0, 16, 2))


def test_samples_of_another_scale_are_refused_in_one_line() -> None:
    with pytest.raises(Unsound, match=r"^'/2/Relu_output_0' overflows on the samples; scale them as in training$"):
        small(calib={"input": images(64)["input"] * np.float32(1e20)})


def test_synthetic_samples_that_overflow_are_no_fault_of_the_users(caplog: pytest.LogCaptureFixture) -> None:
    """Their squares are beyond all numbers; what reads them makes numbers of common size of them."""
    rng = np.random.default_rng(0)
    sizes = {"w1": (1e25, (16, 6, 1, 1)), "w2": (1e-25, (4, 16, 1, 1))}
    model = from_text(POINTWISE, {n: scale * rng.standard_normal(s) for n, (scale, s) in sizes.items()})
    why = "'r' overflows on synthetic samples; give your own with --calib"
    for method in ("auto", "surgeon"):
        assert not onnxfuse.fuse(model, sparsity=0.5, method=method, input_shapes={"x": (1, 6, 5, 5)}).plan.repairs
    refitting = f"refitting on synthetic samples gives no sound result ({why}); it is made without repair"
    assert caplog.messages == [refitting, f"not repaired: {why}"]


def test_a_variance_that_is_rounded_below_zero_is_none() -> None:
    assert 0 <= oas(np.diag([-1e-20, -1e-20, -2e-20]), 64) <= 1e3


@pytest.mark.parametrize(
    ("op", "gates", "direction"),
    [("LSTM", 4, "forward"), ("GRU", 3, "bidirectional"), ("RNN", 1, "reverse"), ("LSTM", 4, "bidirectional")],
)
def test_gates_are_refitted_with_their_bias(op: str, gates: int, direction: str) -> None:
    """Six channels and a constant say all that 16 do."""
    d = 2 if direction == "bidirectional" else 1
    text = RECURRENT.format(d=d, rows=5 * gates, both=10 * gates, op=op, direction=direction)
    model = from_text(text, {"b1": np.random.default_rng(5).standard_normal(16)})
    feeds = inputs(model, seed=3, batch=64)
    result = onnxfuse.fuse(model, sparsity=0.5, round_to=1, method="surgeon", calib=feeds)
    dense, made = run(model, feeds)[0], run(result.model, feeds)[0]
    assert np.linalg.norm(made - dense) < 0.02 * np.linalg.norm(dense)
    assert [r.reader.bias for r in result.plan.repairs] == ["b"]


def test_weights_near_the_largest_number_end_in_one_line() -> None:
    """Sums of what they make are beyond all numbers, and NumPy's warnings are errors here."""
    with pytest.raises(VerificationFailed, match="is NaN or infinite on the input that is tried"):
        onnxfuse.fuse(from_text(TEXTS["residual"], {"w1": np.full((8, 3, 3, 3), 1e38)}), sparsity=0.5)


def test_channels_that_weight_decay_has_left_hardly_any_weights() -> None:
    """Squeezes of PP-OCR's detectors have channels made and read by weights of 1e-38, whose square float32 cannot hold:
    twelve of 16 here, of which four stay."""
    w1, w2 = (random_weight(name, shape) for name, shape in (("w1", (6, 16)), ("w2", (16, 3))))
    w1[:, 4:] *= 1e-38
    w2[4:] *= 1e-38
    model = from_text(
        """(float[N,6] x) => (float[N,3] y) <float[6,16] w1, float[16] b1, float[16,3] w2, float[3] b2> {
        h = Gemm(x, w1, b1)
        r = Relu(h)
        y = Gemm(r, w2, b2)
    }""",
        {"w1": w1, "w2": w2, "b1": np.zeros(16, np.float32)},
    )
    data = {"x": np.random.default_rng(0).standard_normal((256, 6)).astype(np.float32)}
    result = onnxfuse.fuse(model, sparsity=0.5, calib=data, round_to=1)
    assert dims(result.model)["w1"] == (6, 8)
    assert result.report.fidelity is not None
    assert result.report.fidelity.cosine > 0.999


TWICE = """(float[N,3,8,8] x) => (float[N,2,8,8] y)
    <float[6,3,3,3] w1, float[6] b1, float[8,{each},3,3] w2, float[8] b2, float[2,8,1,1] w3> {{
    c = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(c)
    twice = Concat<axis=1>(r, r)
    g = Conv<pads=[1,1,1,1], group={groups}>(twice, w2, b2)
    y = Conv(g, w3)
}}"""


@pytest.mark.parametrize("method", ["auto", "fold"])
def test_a_channel_that_several_blocks_of_a_grouped_convolution_read(method: str) -> None:
    """Channels j and j + 3 are the same, so half of them lose nothing, though each block reads all of them."""
    half = {name: random_weight(name, shape) for name, shape in (("w1", (3, 3, 3, 3)), ("b1", (3,)))}
    twice = {name: np.concatenate([values, values]) for name, values in half.items()}
    model = from_text(TWICE.format(groups=2, each=6), twice)
    result = onnxfuse.fuse(model, sparsity=0.5, method=method, keep=["^g$"], repair=True)
    assert dims(result.model)["w1"] == (3, 3, 3, 3)
    assert result.report.comparison.outputs[0].relative < 0.02  # the ridge's share


def test_no_whole_number_of_channels_for_each_block_of_a_grouped_convolution() -> None:
    """Six channels, each of them in two of four blocks."""
    model = from_text(TWICE.format(groups=4, each=3))
    result = onnxfuse.fuse(model, sparsity=0.5, repair=True)
    assert dims(result.model)["w1"] == (2, 3, 3, 3)
    assert oracle_error(model, result, inputs(model)) < 1e-5
    assert result.plan.repairs
