"""Graphs on which it is easy to go wrong: what cannot shrink must be left alone, never break or change the result."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, helper

import onnxfuse
from onnxfuse import settle
from onnxfuse.findings import Lock
from onnxfuse.oracle import oracle_error

from .formats import with_constant_nodes
from .graphs import build, dims, from_text, inputs, random_weight, runs
from .hard_texts import NORMALIZED, SAFE, SHRINKS

BEFORE_1_24 = tuple(map(int, ort.__version__.split(".")[:2])) < (1, 24)
METHODS = ("auto", "drop", "intra-fusion", "barycentric", "fold")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SHRINKS)
def test_shrinks(name: str, method: str) -> None:
    if name == "fused convolution" and BEFORE_1_24:
        pytest.skip("this onnxruntime adds nothing to a convolution whose width is not a whole number of blocks")
    model = from_text(SHRINKS[name])
    result = onnxfuse.fuse(model, sparsity=0.5, method=method)
    assert oracle_error(model, result, inputs(model)) < 1e-5
    assert result.report.after.channels < result.report.before.channels


@pytest.mark.parametrize("name", ["places in an image", "places in an image, anchored"])
def test_what_does_not_run_on_synthetic_samples_is_measured_on_ones_own(name: str) -> None:
    model = from_text(SHRINKS[name])
    plain = onnxfuse.fuse(model, sparsity=0.5, method="surgeon")  # which measures, too: it must not end there
    assert plain.plan.repairs == ()
    with pytest.raises(onnxfuse.VerificationFailed, match=r"on the samples: .*; give others with --calib"):
        onnxfuse.fuse(model, sparsity=0.5, repair=True)


@pytest.mark.parametrize("method", ["drop", "fold"])
@pytest.mark.parametrize("name", SAFE)
def test_safe(name: str, method: str) -> None:
    model = from_text(SAFE[name])
    with contextlib.suppress(onnxfuse.NothingToMerge):
        result = onnxfuse.fuse(model, sparsity=0.5, method=method)
        assert oracle_error(model, result, inputs(model)) < 1e-5


BATCHES = """(float[6,4] x) => (float[2,5,3] y)
    <float[6,8] w1, float[8] b1, float[2,8,8] w2, float[2,1,8] b2, float[1,5,4] w3, float[1,8,3] w4> {
    a = Gemm<transA=1>(x, w1, b1)
    b = MatMul(a, w2)
    c = Add(b, b2)
    d = MatMul(w3, c)
    y = MatMul(d, w4)
}"""
KERNELS = """(float[N,3,6,6] x) => (float[N,2,6,6] y) <float[12,1,3,3] w1, float[12] b1, float[2,12,1,1] w2> {
    c = Conv<group=3, pads=[1,1,1,1]>(x, w1, b1)
    y = Conv(c, w2)
}"""
BEST = """(float[N,9,6] x) => (float[N,2,3] y)
    <float[6,8] w1, float[6,1] w2, float[8,3] w3, int64[1] k = {2}, int64[3] t = {1, 1, 8}> {
    c = MatMul(x, w1)
    s = MatMul(x, w2)
    v, i = TopK<axis=1>(s, k)
    e = Expand(i, t)
    g = GatherElements<axis=1>(c, e)
    y = MatMul(g, w3)
}"""
MATRICES = """(float[N,3,6,6] x) => (float[N,2,6,5] y) <float[8,3,1,1] w1, float[8,6,5] w2, float[2,8,1,1] w3> {
    c = Conv(x, w1)
    m = MatMul(c, w2)
    y = Conv(m, w3)
}"""


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        (BATCHES, 16, 8),
        (KERNELS, 12, 6),
        (BEST, 8, 4),
        (SHRINKS["weights normalized in the graph"], 16, 8),
        (SHRINKS["selective kernels"], 12, 6),
        (SHRINKS["states of channels"], 8, 4),
    ],
    ids=[
        "batches of weights",
        "several kernels for each input",
        "places of the best scores",
        "normalized",
        "selective",
        "states",
    ],
)
def test_all_groups_shrink(text: str, before: int, after: int) -> None:
    model = from_text(text)
    result = onnxfuse.fuse(model, sparsity=0.5)
    assert (result.report.before.channels, result.report.after.channels) == (before, after)
    assert oracle_error(model, result, inputs(model)) < 1e-5


MAXOUT = """(float[N,6] x) => (float[N,3] y) <float[6,8] w1, int64[3] t = {0, 4, 2}, float[4,3] w2> {
    h = MatMul(x, w1)
    r = Reshape(h, t)
    m = ReduceMax<axes=[2], keepdims=0>(r)
    y = MatMul(m, w2)
}"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (MATRICES, r"MatMul with a matrix for each channel \(c\)"),
        ("(float[6,4] x) => (float[8,4] y) <float[8,6] w1> { y = Gemm(w1, x) }", r"weight on the left \(y\)"),
        ("(float[4,6] x) => (float[8,3] y) <float[6,8] w1, float[4,3] w2> {h = Gemm(x, w1)\ny = Gemm<transA=1>(h, w2)}",
         r"Gemm over another axis than the channels' \(h\)"),
        ("(float[N,4] x) => (float[N,2] y) <float[4,1] w1, float[1,2] w2> {h = MatMul(x, w1)\ny = MatMul(h, w2)}",
         "nothing to merge: of no group's channels can a part go: they stay together"),
        ("(float[N,6] x) => (seq(float[N,8]) y) <float[6,8] w1> {h = MatMul(x, w1)\ny = SequenceConstruct(h, h)}",
         r"SequenceConstruct has no rule \(h\)"),
        (MAXOUT, r"ReduceMax within blocks of channels, without --prune-heads \(h\)"),
    ],
    ids=["matrices", "left", "turned", "together", "sequence", "maxout"],
)  # fmt: skip
def test_what_stays_has_the_reason(text: str, reason: str) -> None:
    with pytest.raises(onnxfuse.NothingToMerge, match=reason):
        onnxfuse.fuse(from_text(text), sparsity=0.5)


def test_whole_blocks_go_where_that_is_permitted() -> None:
    model = from_text(MAXOUT)
    result = onnxfuse.fuse(model, sparsity=0.5, prune_heads=True)
    assert result.report.after.macs == result.report.before.macs / 2
    assert oracle_error(model, result, inputs(model)) < 1e-5


FLAT = """(float[2,5,16] x, float[5,5] mask) => (float[2,5,3] y)
    <float[16,32] w1, float[16,16] w2, float[16,24] w3, float[48,3] w4> {
    q = MatMul(x, w1)
    k = MatMul(x, w2)
    v = MatMul(x, w3)
    a = Attention<q_num_heads=4, kv_num_heads=2>(q, k, v, mask)
    y = MatMul(a, w4)
}"""
APART = """(float[2,5,16] x) => (float[2,5,3] y)
    <float[16,32] w1, float[16,32] w2, float[16,32] w3, float[32,3] w4,
     int64[4] t = {0, 0, 4, -1}, int64[3] u = {0, 0, -1}> {
    q0 = MatMul(x, w1)
    k0 = MatMul(x, w2)
    v0 = MatMul(x, w3)
    q1 = Reshape(q0, t)
    k1 = Reshape(k0, t)
    v1 = Reshape(v0, t)
    q = Transpose<perm=[0,2,1,3]>(q1)
    k = Transpose<perm=[0,2,1,3]>(k1)
    v = Transpose<perm=[0,2,1,3]>(v1)
    a = Attention<is_causal=1>(q, k, v)
    b = Transpose<perm=[0,2,1,3]>(a)
    c = Reshape(b, u)
    y = MatMul(c, w4)
}"""


@pytest.mark.parametrize(("heads", "method"), [(False, "auto"), (True, "drop")], ids=["channels", "heads"])
@pytest.mark.parametrize("text", [FLAT, APART], ids=["flat", "apart"])
def test_attention_of_opset_23(text: str, heads: bool, method: str) -> None:
    model = from_text(text, opset=23)
    if not runs(model, inputs(model)):
        pytest.skip("this onnxruntime has no such kernel")
    result = onnxfuse.fuse(model, sparsity=0.5, method=method, prune_heads=heads)
    assert result.report.after.macs == result.report.before.macs / 2
    assert oracle_error(model, result, inputs(model)) < 1e-5


def with_initializers_as_inputs(model: ModelProto) -> ModelProto:
    """As every model was before IR version 4."""
    model.ir_version = 3
    for t in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
    model.opset_import[0].version = 11
    return model


@pytest.mark.parametrize("name", ["mlp", "conv_bn", "residual", "shared_bias"])
def test_initializers_that_are_inputs(name: str) -> None:
    model = with_initializers_as_inputs(build(name))
    result = onnxfuse.fuse(model, sparsity=0.5)
    declared = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in result.model.graph.input}
    assert {t.name: list(t.dims) for t in result.model.graph.initializer}.items() <= declared.items()
    assert oracle_error(model, result, inputs(model)) < 1e-5


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"lossless": True}], ids=["half", "lossless"])
@pytest.mark.parametrize("added", ["1", "1,8"])
def test_what_folding_makes_a_vector_of_is_a_vector_as_an_input(added: str, options: dict[str, Any]) -> None:
    kernel = random_weight("w1", (8, 6)) * (np.arange(8) > 0)[:, None]
    model = with_initializers_as_inputs(from_text(NORMALIZED.format(n="N", c=added), {"w1": kernel}))
    result = onnxfuse.fuse(model, **options)
    assert [len(v.type.tensor_type.shape.dim) for v in result.model.graph.input if v.name == "c"] == [1]
    assert oracle_error(model, result, inputs(model)) < 1e-5


OLD = """(float[N,3,6,6] x) => (float[N,3,12,12] y)
    <float[12,3,1,1] w1, float[6,4,1,1] w2, float[3,12,1,1] w3, float[4] scales = {1, 1, 2, 2}> {
    c = Conv(x, w1)
    a, b = Split<axis=1, split=[6,6]>(c)
    s = Slice<axes=[1], starts=[0], ends=[4]>(a)
    p = Pad<pads=[0,0,1,1,0,0,1,1]>(s)
    u = Unsqueeze<axes=[2]>(p)
    q = Squeeze<axes=[2]>(u)
    k = Conv<kernel_shape=[1,1]>(q, w2)
    m = MaxPool<kernel_shape=[3,3]>(k)
    j = Concat<axis=1>(m, b)
    z = Upsample<mode="nearest">(j, scales)
    y = Conv(z, w3)
}"""


@pytest.mark.parametrize("method", METHODS)
def test_opset_9(method: str) -> None:
    """Bounds, sizes, axes and pads were attributes."""
    model = from_text(OLD, opset=9)
    result = onnxfuse.fuse(model, sparsity=0.5, method=method)
    assert oracle_error(model, result, inputs(model)) < 1e-5
    split = next(a for node in result.model.graph.node for a in node.attribute if a.name == "split")
    assert sum(split.ints) == 6


def test_local_functions_are_inlined() -> None:
    """A block that is a function of the model, called twice."""
    opset = helper.make_opsetid("", 17)
    nodes = [helper.make_node("MatMul", ["v", "w"], ["m"]), helper.make_node("Relu", ["m"], ["r"])]
    function = helper.make_function("local", "Layer", ["v", "w"], ["r"], nodes, [opset])
    text = """(float[N,6] x) => (float[N,3] y) <float[6,8] w1, float[8,8] w2, float[8,3] w3> {
        h = MatMul(x, w1)
        k = MatMul(h, w2)
        y = MatMul(k, w3)
    }"""
    model = from_text(text)
    for node in model.graph.node[:2]:
        node.op_type, node.domain = "Layer", "local"
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    result = onnxfuse.fuse(model, sparsity=0.5)
    assert [(g.before, g.after) for g in result.report.groups] == [(8, 4), (8, 4)]
    assert oracle_error(model, result, inputs(model)) < 1e-5


GROUP_NORM = """(float[N,3,6,6] x) => (float[N,2,6,6] y)
    <float[8,3,1,1] w1, float[8] g_scale, float[8] g_shift, float[2,8,1,1] w2> {
    h = Conv(x, w1)
    g = GroupNormalization<num_groups=4>(h, g_scale, g_shift)
    y = Conv(g, w2)
}"""


@pytest.mark.parametrize("method", METHODS)
def test_group_normalization(method: str) -> None:
    """Whole groups go, and the number of groups follows."""
    model = from_text(GROUP_NORM, opset=21)
    result = onnxfuse.fuse(model, sparsity=0.5, method=method)
    assert oracle_error(model, result, inputs(model)) < 1e-5
    assert [a.i for node in result.model.graph.node for a in node.attribute if a.name == "num_groups"] == [2]


def test_what_folding_leaves_unread_goes() -> None:
    """The vectors of a folded BatchNormalization and a size's computation go; what nothing read before stays."""
    text = """(float[N,3,6,6] x) => (float[N,3,6,6] y) <float[8,3,1,1] w1, float[8] n_scale, float[8] n_shift,
        float[8] n_mean, float[8] n_var, float[3,4,1,1] w2, int64[1] axis = {1}, int64[1] two = {2}> {
        c = Conv(x, w1)
        b = BatchNormalization(c, n_scale, n_shift, n_mean, n_var)
        idle = Relu(b)
        s = Shape(b)
        n = Gather(s, axis)
        h = Div(n, two)
        halves = Concat<axis=0>(h, h)
        u, v = Split<axis=1>(b, halves)
        m = Mul(u, v)
        y = Conv(m, w2)
    }"""
    model = with_constant_nodes(from_text(text))
    result = onnxfuse.fuse(model, sparsity=0.5)
    assert oracle_error(model, result, inputs(model)) < 1e-5
    operators = Counter(node.op_type for node in result.model.graph.node)
    assert operators == {"Constant": 2, "Conv": 2, "Relu": 1, "Split": 1, "Mul": 1}
    read = {name for node in result.model.graph.node for name in node.input} | {"y"}
    made = [t.name for t in result.model.graph.initializer] + [n.output[0] for n in result.model.graph.node]
    assert set(made) - read == {"idle"}
    assert onnxfuse.fuse(model, sparsity=0).model == model


@pytest.mark.parametrize("mode", ["CRD", "DCR"])
def test_depth_to_space_whose_result_nothing_reads(mode: str) -> None:
    """Its input must stay a multiple of the block's size all the same."""
    text = f"""(float[N,3,6,6] x) => (float[N,2,6,6] y) <float[12,3,1,1] w1, float[2,12,1,1] w2> {{
        h = Conv(x, w1)
        d = DepthToSpace<blocksize=2, mode="{mode}">(h)
        y = Conv(h, w2)
    }}"""
    model = from_text(text)
    result = onnxfuse.fuse(model, sparsity=0.5)
    assert dims(result.model)["w1"] == (4, 3, 1, 1)
    assert oracle_error(model, result, inputs(model)) < 1e-5


@pytest.mark.parametrize("method", ["intra-fusion", "fold"])
@pytest.mark.parametrize("tables", ["tables in the file", "neighbours turn", "angles computed"])
def test_rotary_channels_are_selected_not_mixed(tables: str, method: str) -> None:
    """A mean of two channels that turn at different speeds turns at neither; others of the same graph are merged."""
    model = from_text(SHRINKS[f"rotary attention, {tables}"])
    result = onnxfuse.fuse(model, sparsity=0.5, method=method)
    merges = {group.name: merge for group, merge in result.plan.merges}
    assert {name: m.compress.nnz > len(m.kept) or m.expand.nnz > len(m.kept) for name, m in merges.items()} == {
        "q0": False,
        "v": True,
    }
    found = onnxfuse.analyze(model)
    assert [g.name for g in found if found.constraint(g).startswith("selected, not merged: ")] == ["q0"]
    assert any(note.startswith("selected, not merged in 1 group: ") for note in result.report.notes)


HEADS = """(float[N,S,16] x) => (float[N,S,3] y)
    <float[16,16] w1, float[16,16] w2, float[16,3] w3, float[16,3] w4> {
    sizes = Shape<end = 2>(x)
    four = Constant<value_ints = [4]>()
    flat = Constant<value_ints = [0, 0, -1]>()
    shape = Concat<axis = 0>(sizes, four, four)
    q = MatMul(x, w1)
    v = %s
    qh = Reshape(q, shape)
    vh = Reshape(v, shape)
    qt = Tanh(qh)
    vt = Relu(vh)
    qf = Reshape(qt, flat)
    vf = Reshape(vt, flat)
    qy = MatMul(qf, w3)
    vy = MatMul(vf, w4)
    y = Add(qy, vy)
}"""


@pytest.mark.parametrize("amount", [{"target_macs": 0.6}, {"sparsity": 0.5, "ratio": ["^q$=0.25"]}])
def test_two_values_of_which_one_number_is_the_size(amount: dict[str, Any]) -> None:
    """Their channels are other ones, but equally many: one `Concat` made the shape of both."""
    model = from_text(HEADS % "MatMul(x, w2)")
    result = onnxfuse.fuse(model, **amount, round_to=1, method="drop")
    q, v = ([g.after for g in result.report.groups if g.name == name] for name in "qv")
    assert q == v
    assert sum(q) < 16
    assert oracle_error(model, result, inputs(model)) < 1e-5


def test_a_number_that_is_the_size_of_what_must_stay_too() -> None:
    model = from_text(HEADS.replace(", float[16,16] w2", "") % "Neg(x)")
    with pytest.raises(onnxfuse.NothingToMerge, match=r"cannot follow \(q\)"):
        onnxfuse.fuse(model, sparsity=0.5, method="drop")


def test_a_conflict_that_no_lock_settles_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Lock(np.zeros(1, np.int64), "a shape cannot follow", "n.1")
    monkeypatch.setattr(settle, "conflicts", lambda *_: [lock])
    with pytest.raises(onnxfuse.ModelError, match=r"^n\.1: a shape cannot follow; .* --exclude 'n\\\\\.1'$"):
        onnxfuse.fuse(build("mlp"), sparsity=0.5)


DROPPING = """(float[N,6] x, bool training) => (float[N,2] y) <float[6,8] w1, float few = {{1e-7}}, float[8,2] w2> {{
    h = MatMul(x, w1)
    d = Dropout{seed}(h, few, training)
    n = RandomNormalLike{real}(x)
    z = Mul(n, few)
    y = MatMul(d, w2)
}}"""


@pytest.mark.parametrize(("seed", "count"), [("", 1), ("<seed=1>", 0)])
def test_what_is_drawn_at_random_is_told(seed: str, count: int) -> None:
    model = from_text(DROPPING.format(seed=seed, real=seed.replace("1", "1.0")))
    result = onnxfuse.fuse(model, sparsity=0.5)
    told = [n for n in result.report.notes if n.startswith("Dropout (d) and 1 other draw at random in every run")]
    assert len(told) == count
