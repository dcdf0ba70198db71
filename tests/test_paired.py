"""Channels that only a product of two values reads, queries and keys: no weight there counts a merged one N times."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

import onnxfuse
from onnxfuse.oracle import oracle_error

from .graphs import from_text, gap, inputs, run, weights

MATRICES = "float[16,8] wq, float[8] bq, float[16,8] wk, float[8] bk, float[16,8] wv"
PROJECTED = """q0 = MatMul(x, wq)
    q1 = Add(q0, bq)
    k0 = MatMul(x, wk)
    k1 = Add(k0, bk)
    v = MatMul(x, wv)"""
HEADS = """qs = Reshape(q1, heads)
    q = Transpose<perm=[0,2,1,3]>(qs)
    ks = Reshape(k1, heads)
    k = Transpose<perm=[0,2,3,1]>(ks)
    vs = Reshape(v, heads)
    vt = Transpose<perm=[0,2,1,3]>(vs)
    l = MatMul(q, k)
    a = Softmax<axis=-1>(l)
    o = MatMul(a, vt)
    t = Transpose<perm=[0,2,1,3]>(o)
    y = Reshape(t, joined)"""


def attention(logits: str, more: str = "") -> str:
    """One head, whose logits are these."""
    return f"""(float[N,5,16] x) => (float[N,5,8] y) <{MATRICES}{more}> {{
    {PROJECTED}
    {logits}
    a = Softmax<axis=-1>(l)
    y = MatMul(a, v)
    }}"""


TURNED = "kt = Transpose<perm=[0,2,1]>(k1)\n"
FORMS = {
    "scaled": attention(TURNED + "s = Mul(q1, c)\nl = MatMul(s, kt)", ", float c = {0.35}"),
    "rectified": attention("q = Relu(q1)\nk = Relu(k1)\nkt = Transpose<perm=[0,2,1]>(k)\nl = MatMul(q, kt)"),
    "einsum": attention('l = Einsum<equation="bid,bjd->bij">(q1, k1)'),
    "fused matmul": attention("l = com.microsoft.FusedMatMul<alpha=0.35, transB=1>(q1, k1)"),
    "heads": f"""(float[N,5,16] x) => (float[N,5,8] y)
        <{MATRICES}, int64[4] heads = {{0,0,2,4}}, int64[3] joined = {{0,0,8}}> {{ {PROJECTED} {HEADS} }}""",
    "fused heads": f"""(float[N,5,16] x) => (float[N,5,8] y) <{MATRICES}> {{ {PROJECTED}
        y = com.microsoft.MultiHeadAttention<num_heads=2>(q1, k1, v) }}""",
    "fused projection": """(float[N,5,16] x) => (float[N,5,8] y) <float[16,24] wq, float[24] bq> {
        q = com.microsoft.Attention<num_heads=2, scale=0.35>(x, wq, bq)
        y = Identity(q) }""",
    "one weight": """(float[N,5,16] x) => (float[N,5,8] y)
        <float[16,16] wq, float[16] bq, float[16,8] wv, int64[2] sizes = {8, 8}> {
        p = MatMul(x, wq)
        b = Add(p, bq)
        q, k = Split<axis=-1>(b, sizes)
        kt = Transpose<perm=[0,2,1]>(k)
        l = MatMul(q, kt)
        a = Softmax<axis=-1>(l)
        v = MatMul(x, wv)
        y = MatMul(a, v)
    }""",
    "convolutions": """(float[N,6,3,3] x) => (float[N,6,9] y)
        <float[8,6,1,1] wq, float[8] bq, float[8,1,3,3] deep, float[8,6,1,1] wk, float[8] bk, int64[3] flat = {0,0,9},
         int64[3] flat_x = {0,6,9}> {
        q0 = Conv(x, wq, bq)
        q1 = Conv<group=8, pads=[1,1,1,1]>(q0, deep)
        q = Reshape(q1, flat)
        k1 = Conv(x, wk, bk)
        k = Reshape(k1, flat)
        qt = Transpose<perm=[0,2,1]>(q)
        l = MatMul(qt, k)
        a = Softmax<axis=1>(l)
        v = Reshape(x, flat_x)
        y = MatMul(v, a)
    }""",
}


def in_pairs(text: str) -> ModelProto:
    """Every second query and key is like the one before it."""
    values = {}
    for name, array in weights(from_text(text)).items():
        if name in ("wq", "bq", "wk", "bk", "deep"):
            axis = int(name[0] == "w" and array.ndim == 2)
            values[name] = np.repeat(array.take(range(0, array.shape[axis], 2), axis), 2, axis)
    return from_text(text, values)


def row_sums(result: onnxfuse.FuseResult) -> list[list[float]]:
    """Of each group's compress."""
    return [np.asarray(m.compress.sum(axis=1)).ravel().round(6).tolist() for _, m in result.plan.merges]


@pytest.mark.parametrize("method", ["barycentric", "fold", "fold-variance", "auto"])
@pytest.mark.parametrize("form", FORMS)
def test_equal_queries_and_keys_become_one_that_counts_twice(form: str, method: str) -> None:
    model = in_pairs(FORMS[form])
    feeds = inputs(model)
    result = onnxfuse.fuse(model, sparsity=0.5, method=method, round_to=1, only=("^[qp]",))
    assert all(2 * g.after == g.before for g in result.report.groups if g.name[0] in "pq")
    assert gap(run(model, feeds), run(result.model, feeds)) < 1e-5
    assert oracle_error(model, result, feeds) < 1e-5


NORMED = """n = ReduceL2<axes=[-1]>(q1)
    q = Div(q1, n)
    kt = Transpose<perm=[0,2,1]>(k1)
    l = MatMul(q, kt)"""


@pytest.mark.parametrize(
    "logits",
    [
        "q = Sigmoid(q1)\n" + TURNED + "l = MatMul(q, kt)",
        "q = Mul(q1, k1)\n" + TURNED + "l = MatMul(q, kt)",
        NORMED,
    ],
)
def test_no_factor_where_it_would_not_arrive(logits: str) -> None:
    """A sigmoid bends it, a product of three factors has it thrice, a norm over the channels takes it away."""
    model = in_pairs(attention(logits))
    result = onnxfuse.fuse(model, sparsity=0.5, method="fold", round_to=1, only=("^q0$",), allow_norm=True)
    assert row_sums(result) == [[1, 1, 1, 1]]


def test_no_factor_where_a_weight_reads_the_channels_too() -> None:
    model = in_pairs(
        attention(TURNED + "l = MatMul(q1, kt)")
        .replace("y = MatMul(a, v)", "y = MatMul(q1, w2)")
        .replace("float[16,8] wv", "float[16,8] wv, float[8,8] w2")
    )
    result = onnxfuse.fuse(model, sparsity=0.5, method="fold", round_to=1, only=("^q0$",))
    assert row_sums(result) == [[1, 1, 1, 1]]


@pytest.mark.parametrize("method", ["drop", "surgeon"])
def test_what_is_only_selected_stays_as_it_is(method: str) -> None:
    model = from_text(FORMS["scaled"])
    result = onnxfuse.fuse(model, sparsity=0.5, method=method, round_to=1, only=("^q0$",))
    ((_, merge),) = result.plan.merges
    before, after = weights(model), weights(result.model)
    for name in ("wq", "wk", "bq", "bk"):
        np.testing.assert_array_equal(after[name], before[name][..., merge.kept])


# --- which of them --------------------------------------------------------------------------------------------------
def half_silent(form: str) -> ModelProto:
    """Four queries are loud, but their keys are zero."""
    values = {name: np.array(array) for name, array in weights(from_text(FORMS[form])).items()}
    keys = [values["wq"][:, 8:], values["bq"][8:]] if form == "one weight" else [values["wk"], values["bk"]]
    for key, query in zip(keys, (values["wq"], values["bq"]), strict=True):
        key[..., :4] = 0
        query[..., :4] *= 100
    return from_text(FORMS[form], values)


@pytest.mark.parametrize(
    ("form", "metric"),
    [("scaled", "l1"), ("scaled", "l2"), ("scaled", "energy"), ("one weight", "l1"), ("one weight", "l2")],
)
def test_a_query_without_its_key_is_worth_nothing(form: str, metric: str) -> None:
    model = half_silent(form)
    feeds = inputs(model)
    calib = inputs(model, batch=64) if metric == "energy" else None
    half = onnxfuse.fuse(
        model, sparsity=0.5, method="drop", importance=metric, calib=calib, repair=False, round_to=1, only=("^[pq]",)
    )
    assert gap(run(model, feeds), run(half.model, feeds)) < 1e-5


@pytest.mark.parametrize("form", ["scaled", "one weight"])
def test_queries_without_keys_cost_nothing(form: str) -> None:
    """By their weights alone half of them would be the dearest channels there are."""
    model = half_silent(form)
    feeds = inputs(model)
    found = onnxfuse.fuse(model, target_params=0.85, method="drop", round_to=1)
    assert gap(run(model, feeds), run(found.model, feeds)) < 1e-5
