"""What holds for any model: nothing changes at sparsity 0, exact duplicates vanish, channel order does not matter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

import onnxfuse
from onnxfuse.oracle import oracle_error
from onnxfuse.protos import graphs

from .graphs import NAMES, Array, build, case_id, dims, from_text, gap, inputs, load, run, stand_ins, weights

METHODS = ("drop", "intra-fusion", "barycentric", "fold")


def _norm(prefix: str) -> dict[str, int]:
    """The vectors of a BatchNormalization, which hold its channels on axis 0."""
    return {f"{prefix}_{vector}": 0 for vector in ("scale", "shift", "mean", "var")}


CHANNELS: dict[str, list[dict[str, int]]] = {
    "mlp": [{"w1": 0, "b1": 0, "w2": 0}, {"w2": 1, "b2": 0, "w3": 1}],
    "conv_bn": [{"w1": 0, **_norm("n1"), "w2": 1}, {"w2": 0, "b2": 0, **_norm("n2"), "w3": 1}],
    "residual": [
        {"w1": 0, "w3": 0, **_norm("n1"), **_norm("n3"), "w2": 1, "w4": 1, "w5": 1},
        {"w2": 0, "w3": 1},
        {"w4": 0, "w5": 0, "b5": 0, **_norm("n4"), "w6": 1},
    ],
    "depthwise": [{"w1": 0, "w2": 0, **_norm("n2"), "w3": 1}],
}
"""For each graph its channel groups by hand: initializer → the axis on which the channels lie."""


def edited(model: ModelProto, change: Callable[[str, Array], Array]) -> ModelProto:
    """A copy with every float initializer replaced by `change(name, values)` of the same shape."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(change(tensor.name, values).astype(np.float32), tensor.name))
    return copy


def with_duplicates(name: str) -> ModelProto:
    """The graph with channel 2i + 1 of each group made like channel 2i, and both read with equal weights."""
    groups = CHANNELS[name]

    def change(tensor: str, values: Array) -> Array:
        for axis in (group[tensor] for group in groups if tensor in group):
            values = np.repeat(values.take(range(0, values.shape[axis], 2), axis), 2, axis)
        return values

    return edited(build(name), change)


# --- sparsity 0 -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", [*dict.fromkeys([*NAMES, *stand_ins()])], ids=case_id)
def test_sparsity_0_changes_nothing(case: Path | str, tmp_path: Path) -> None:
    model, feeds = load(case)
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    result = onnxfuse.fuse(source, target, sparsity=0)
    assert result.model == model
    assert onnx.load(target) == model
    for a, b in zip(run(source, feeds), run(target, feeds), strict=True):
        np.testing.assert_array_equal(a, b)


# --- duplicates -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["barycentric", "fold"])
@pytest.mark.parametrize("name", CHANNELS)
def test_duplicates_vanish(name: str, method: str) -> None:
    model = with_duplicates(name)
    feeds = inputs(model)
    result = onnxfuse.fuse(model, sparsity=0.5, method=method)
    assert gap(run(model, feeds), run(result.model, feeds)) < 1e-5
    before, after = dims(model), dims(result.model)
    for group in CHANNELS[name]:
        for tensor, axis in group.items():
            if tensor in after:
                assert after[tensor][axis] == before[tensor][axis] // 2


@pytest.mark.parametrize("method", ["barycentric", "fold"])
def test_duplicates_vanish_in_a_concat(method: str) -> None:
    """Each of the concatenated layers is a group of its own: pairs lie within r1's 8 channels, r2's 4 and r3's 4."""

    def change(name: str, values: Array) -> Array:
        if name in ("w1", "w2", "b2", "w3"):
            values = np.repeat(values[::2], 2, 0)
        return np.repeat(values[:, ::2], 2, 1) if name in ("w2", "w3", "w4") else values

    model = edited(build("dense_block"), change)
    feeds = inputs(model)
    result = onnxfuse.fuse(model, sparsity=0.5, method=method)
    assert gap(run(model, feeds), run(result.model, feeds)) < 1e-5
    assert dims(result.model)["w4"] == (2, 8, 1, 1)


@pytest.mark.parametrize("turned", [False, True])
def test_duplicates_vanish_in_a_large_matrix(turned: bool) -> None:
    """A million weights and more go through memory in strips, if the channels lie along its rows."""
    shape, gemm = ("1040,1030", "<transB = 1> (a, w2)") if turned else ("1030,1040", "(a, w2)")
    text = f"(float[N,6] x) => (float[N,1040] y) <float[6,1030] w1, float[{shape}] w2>"
    model = from_text(text + "{ h = MatMul(x, w1) a = Relu(h) y = Gemm " + gemm + " }")

    def change(name: str, values: Array) -> Array:
        axis = int(name == "w1" or turned)
        return np.repeat(values.take(range(0, 1030, 2), axis), 2, axis)

    model = edited(model, change)
    feeds = inputs(model)
    small = onnxfuse.fuse(model, sparsity=0.5, method="fold", round_to=1).model
    assert dims(small)["w2"] == ((1040, 515) if turned else (515, 1040))
    assert gap(run(model, feeds), run(small, feeds)) < 1e-5


# --- channel order, seeds, names ------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CHANNELS)
def test_channel_order_does_not_matter(name: str, method: str) -> None:
    """Renumbering the channels of every group gives a small model that computes the same."""
    model, rng = build(name), np.random.default_rng(3)
    orders = [rng.permutation(dims(model)[t][axis]) for t, axis in (next(iter(g.items())) for g in CHANNELS[name])]

    def change(tensor: str, values: Array) -> Array:
        for group, order in zip(CHANNELS[name], orders, strict=True):
            values = values.take(order, group[tensor]) if tensor in group else values
        return values

    shuffled = edited(model, change)
    feeds = inputs(model)
    assert gap(run(model, feeds), run(shuffled, feeds)) < 1e-5
    small, other = (onnxfuse.fuse(m, sparsity=0.5, method=method).model for m in (model, shuffled))
    assert gap(run(small, feeds), run(other, feeds)) < 1e-4


@pytest.mark.parametrize("options", [{"method": m} for m in METHODS] + [{"importance": "random"}], ids=str)
@pytest.mark.parametrize("name", ["residual", "grouped", "attention_fused"])
def test_two_runs_are_identical(name: str, options: dict[str, str]) -> None:
    one, two = (onnxfuse.fuse(build(name), sparsity=0.5, seed=4, **options).model for _ in range(2))  # type: ignore[arg-type]
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)


def test_seed_decides_random_importance() -> None:
    kept = {
        tuple(m.kept.tolist())
        for seed in range(6)
        for _, m in onnxfuse.fuse(build("mlp"), sparsity=0.5, importance="random", method="drop", seed=seed).plan.merges
    }
    assert len(kept) > 4


@pytest.mark.parametrize("name", ["conv_bn", "residual", "dense_block"])
def test_nodes_without_names(name: str) -> None:
    named, bare = build(name), build(name)
    for node in bare.graph.node:
        node.name = ""
    one, two = (weights(onnxfuse.fuse(m, sparsity=0.5).model) for m in (named, bare))
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], two[key])


# --- shared initializers --------------------------------------------------------------------------------------------
def test_shared_bias_is_cloned() -> None:
    """Both layers used one vector; their groups keep different channels of it."""
    result = onnxfuse.fuse(build("shared_bias"), sparsity=0.5, method="drop")
    bias = weights(build("shared_bias"))["b1"]
    nodes = {node.name: node for node in result.model.graph.node}
    used = [nodes[n].input[2] for n in ("c1", "c2")]
    kept = {group.name: merge.kept for group, merge in result.plan.merges}
    assert len(set(used)) == 2
    for node, name in zip(("c1", "c2"), used, strict=True):
        np.testing.assert_array_equal(weights(result.model)[name], bias[kept[node]])


def test_shared_weight_stays_shared() -> None:
    result = onnxfuse.fuse(build("shared_weight"), sparsity=0.5)
    nodes = {node.name: node for node in result.model.graph.node}
    assert nodes["h1"].input[1] == nodes["h2"].input[1] == "w2"
    assert set(weights(result.model)) == {"w1", "w2", "w3"}


TWO_WAYS = """(float[N,16] x) => (float[N,4] y, float[N,4] z)
    <float[16,16] w, float[16,16] w0, float[16,8] w1, float[8,4] w2, float[16,4] u> {
    x0 = MatMul(x, w0)
    a = Gemm<transB=1>(x0, w)
    r = Relu(a)
    c = MatMul(r, w1)
    y = MatMul(c, w2)
    b = MatMul(x, w)
    z = MatMul(b, u)
}"""
TIED = """(int64[N] i) => (float[N,40] y) <float[40,16] e, float[16,8] w1, float[8,16] w2> {
    h = Gather(e, i)
    c = MatMul(h, w1)
    b = MatMul(c, w2)
    q = Softmax(b)
    t = Transpose<perm=[1,0]>(e)
    y = MatMul(q, t)
}"""
BRANCHES = """(float[N,16] x, bool up) => (float[N,4] y) <float[64,16] w, float[16,8] w1, float[8,4] v, float[64,4] u> {
    y = If(up) <
        then_branch = yes () => (float[N,4] a) { c = MatMul(x, w1) a = MatMul(c, v) },
        else_branch = no () => (float[N,4] b) {
            t = Transpose<perm=[1,0]>(w)
            h = MatMul(x, t)
            s = Transpose<perm=[1,0]>(w)
            k = MatMul(x, s)
            j = Add(h, k)
            b = MatMul(j, u)
        }>
}"""


@pytest.mark.parametrize(
    ("text", "keep"), [(TWO_WAYS, ["x0", "a"]), (TIED, ["h"]), (BRANCHES, ["MatMul → h"])], ids=["ways", "tied", "if"]
)
def test_a_shared_weight_that_stays_is_still_one(text: str, keep: list[str]) -> None:
    """Only group c shrinks, by four rows of what it reads and what reads it."""
    model = from_text(text)
    result = onnxfuse.fuse(model, sparsity=0.5, method="drop", keep=keep)
    before, after = result.report.before, result.report.after
    assert before.parameters - after.parameters == 4 * (16 if text is TIED else 4) + 4 * 16
    assert not any("larger" in note for note in result.report.notes)
    assert oracle_error(model, result, inputs(model)) < 1e-6


def test_a_result_that_is_larger_says_so() -> None:
    result = onnxfuse.fuse(from_text(TWO_WAYS), sparsity=0.5, method="drop", keep=["x0", "c"])
    assert result.report.after.parameters > result.report.before.parameters
    assert any("larger than the original: 64 parameters more" in note for note in result.report.notes)


def test_what_a_branch_no_longer_reads_goes() -> None:
    model = from_text(BRANCHES)
    branch = next(a.g for a in model.graph.node[0].attribute if a.name == "else_branch")
    branch.initializer.append(model.graph.initializer[0])
    assert branch.initializer[0].name == "w"
    del model.graph.initializer[0]
    result = onnxfuse.fuse(model, sparsity=0.5, method="drop")
    assert "w" not in {t.name for graph in graphs(result.model) for t in graph.initializer}
    assert result.report.after.parameters < result.report.before.parameters


def test_what_is_locked_keeps_its_bytes() -> None:
    """Around the unknown operator only the first layer shrinks; b2 and w3 are as they were."""
    before, after = (weights(m) for m in (build("unknown_operator"), _small("unknown_operator")))
    assert after["w1"].shape == (6, 4)
    for name in ("b2", "w3"):
        np.testing.assert_array_equal(before[name], after[name])


def _small(name: str) -> ModelProto:
    return onnxfuse.fuse(build(name), sparsity=0.5).model


# --- what else a file holds -----------------------------------------------------------------------------------------
def decorated() -> ModelProto:
    """conv_bn with everything that an exporter may write into a file."""
    model = build("conv_bn")
    model.producer_name, model.producer_version, model.domain = "trainer", "1.2", "org.example"
    model.model_version, model.doc_string = 7, "what the model is"
    model.graph.doc_string, model.graph.name = "what the graph is", "network"
    model.graph.node[0].doc_string, model.graph.input[0].doc_string = "first layer", "an image"
    next(t for t in model.graph.initializer if t.name == "w2").doc_string = "second kernel"
    helper.set_model_props(model, {"classes": '["a", "b"]', "stride": "32"})
    return model


def test_metadata_stays(tmp_path: Path) -> None:
    model = decorated()
    onnxfuse.fuse(model, tmp_path / "out.onnx", sparsity=0.5)
    small = onnx.load(tmp_path / "out.onnx")
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "ir_version"):
        assert getattr(small, field) == getattr(model, field), field
    assert list(small.metadata_props) == list(model.metadata_props)
    assert list(small.opset_import) == list(model.opset_import)
    assert (small.graph.doc_string, small.graph.name) == ("what the graph is", "network")
    assert small.graph.node[0].doc_string == "first layer"
    assert next(t for t in small.graph.initializer if t.name == "w2").doc_string == "second kernel"
    assert list(small.graph.input) == list(model.graph.input)
    assert list(small.graph.output) == list(model.graph.output)
    assert small.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


@pytest.mark.parametrize("name", NAMES)
def test_recorded_shapes_stay_true(name: str) -> None:
    """An exporter's record of inner shapes: what is still there agrees with what inference finds."""
    model = onnx.shape_inference.infer_shapes(build(name))
    small = onnxfuse.fuse(model, sparsity=0.5, method="fold").model
    bare = ModelProto()
    bare.CopyFrom(small)
    del bare.graph.value_info[:]
    inferred = {v.name: v for v in onnx.shape_inference.infer_shapes(bare, data_prop=True).graph.value_info}
    for value in small.graph.value_info:
        assert value.name in inferred
        found = [d.dim_value for d in inferred[value.name].type.tensor_type.shape.dim]
        kept = [d.dim_value for d in value.type.tensor_type.shape.dim]
        assert all(a == b or not a or not b for a, b in zip(found, kept, strict=True)), value.name


def test_other_recorded_shapes_stay() -> None:
    model = onnx.shape_inference.infer_shapes(build("branches"))
    small = onnxfuse.fuse(model, sparsity=0.5, keep="^c$").model
    assert [v.name for v in model.graph.value_info] == ["h", "r", "c", "i"]
    assert [v.name for v in small.graph.value_info] == ["c", "i"]


def test_file_onto_itself(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(build("residual"), path)
    result = onnxfuse.fuse(path, path, sparsity=0.5)
    assert onnx.load(path) == result.model
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("name", NAMES)
def test_written_file_is_the_result_and_the_input_is_left_alone(name: str, tmp_path: Path) -> None:
    model = build(name)
    result = onnxfuse.fuse(model, tmp_path / "out.onnx", sparsity=0.5)
    onnxfuse.analyze(model)
    assert model == build(name)
    assert onnx.load(tmp_path / "out.onnx") == result.model
    assert not [t for t in result.model.graph.initializer if t.external_data]


def test_external_data_stays_in_the_result(tmp_path: Path) -> None:
    """A model with external data gets a result with external data; the one in memory is whole all the same."""
    model = from_text(
        """(float[N,64] x) => (float[N,3] y) <float[64,64] w1, float[64,64] w2, float[64,3] w3> {
            h = MatMul(x, w1)
            r = Relu(h)
            k = MatMul(r, w2)
            y = MatMul(k, w3)
        }"""
    )
    onnx.save(model, tmp_path / "in.onnx", save_as_external_data=True, location="in.bin", size_threshold=0)
    result = onnxfuse.fuse(tmp_path / "in.onnx", tmp_path / "out.onnx", sparsity=0.5)
    assert (tmp_path / "out.onnx.data").stat().st_size > 0
    assert gap(run(tmp_path / "out.onnx"), run(result.model)) == 0
