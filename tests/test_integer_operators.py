"""QLinearConv and its kin: followed, merged, refitted and written back as what they were."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

import onnxfuse
from onnxfuse.grouping import find_channels
from onnxfuse.joins import joins
from onnxfuse.oracle import oracle_error
from onnxfuse.probe import probe
from onnxfuse.providers import provider_list
from onnxfuse.quantized import lower, lowered_graph
from onnxfuse.readers import readers
from onnxfuse.requantize import restore

from .graphs import from_text, gap, inputs, run

HELD = """float s = {0.02}, uint8 z = {128}, int8 o = {0}, float f = {0.01},
    float[8] steps = {0.01,0.02,0.03,0.02,0.01,0.02,0.03,0.02}"""
"""Scales and zero points."""
IMAGE = f"(float[N,6,5,5] x) => (float[N,3,5,5] y) <{HELD}, int8[8,6,1,1] w1, int8[3,8,1,1] w2"
ROWS = f"(float[N,6] x) => (float[N,3] y) <{HELD}, int8[6,8] w1, int8[8,3] w2"
GRAPHS = {
    "a scale per channel, a bias of two layers": f"""{IMAGE}, int8[8,6,1,1] v1, int32[8] b, int8[3,16,1,1] w3> {{
        p = QuantizeLinear(x, s, z)
        h = QLinearConv(p, s, z, w1, steps, o, s, z, b)
        k = QLinearConv(p, s, z, v1, s, o, s, z, b)
        c = com.microsoft.QLinearConcat<axis=1>(s, z, h, s, z, k, s, z)
        r = com.microsoft.QLinearSigmoid(c, s, z, s, z)
        q = QLinearConv(r, s, z, w3, f, o, s, z)
        y = DequantizeLinear(q, s, z)
    }}""",
    "a factor of two layers, which one more dequantizes": f"""{IMAGE}, uint8[1,8,1,1] c> {{
        p = QuantizeLinear(x, s, z)
        h = QLinearConv(p, s, z, w1, f, o, s, z)
        k = com.microsoft.QLinearMul(c, s, z, h, s, z, s, z)
        m = com.microsoft.QLinearAdd(k, s, z, c, s, z, s, z)
        d = DequantizeLinear(c, s, z)
        n = DequantizeLinear(m, s, z)
        t = Add(n, d)
        u = QuantizeLinear(t, s, z)
        g = com.microsoft.QLinearLeakyRelu<alpha=0.1>(u, s, z, s, z)
        a = com.microsoft.QLinearAveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(g, s, z, s, z)
        q = QLinearConv(a, s, z, w2, f, o, s, z)
        y = DequantizeLinear(q, s, z)
    }}""",
    "integers that no operator makes, and one that makes real numbers": f"""{ROWS}, int8[3,8] v2> {{
        p = QuantizeLinear(x, s, z)
        h = QLinearMatMul(p, s, z, w1, f, o, s, z)
        b = DequantizeLinear(h, s, z)
        e = Greater(b, s)
        w = com.microsoft.QLinearWhere(e, h, s, z, z, s, z, s, z)
        y = com.microsoft.QGemm<transB=1>(w, s, z, v2, f, o)
    }}""",
}


def operators(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("method", ["drop", "intra-fusion", "auto"])
@pytest.mark.parametrize("name", GRAPHS)
def test_groups_and_result(name: str, method: str) -> None:
    model = from_text(GRAPHS[name])
    result = onnxfuse.fuse(model, sparsity=0.5, method=method)
    assert {(g.before, g.after) for g in result.report.groups} == {(8, 4)}
    assert oracle_error(model, result, inputs(model)) < 1e-5
    assert operators(result.model) == operators(model)
    unread = {t.name for t in model.graph.initializer} - {n for node in model.graph.node for n in node.input}
    read = {n for node in result.model.graph.node for n in node.input}
    assert {t.name for t in result.model.graph.initializer} <= read | unread


@pytest.mark.parametrize("name", GRAPHS)
def test_back_to_the_same_file(name: str) -> None:
    model, before = from_text(GRAPHS[name]), from_text(GRAPHS[name])
    graph, lowered, _ = lowered_graph(model, probe(model, provider_list("cpu")))
    assert not any(node.op_type.startswith("Q") and node.op_type != "QuantizeLinear" for node in model.graph.node)
    assert gap(run(model), run(before)) < 0.02  # some numbers may be rounded to another integer
    restore(graph, lowered, {})
    assert operators(model) == operators(before)
    assert gap(run(model), run(before)) == 0


def test_two_values_that_are_multiplied() -> None:
    """Neither is a weight; the values' channels stay what they are in the product."""
    model = from_text(f"""(float[1,4,6] x) => (float[1,4,3] y) <{HELD}, int8[6,8] wq, int8[6,8] wk, int8[6,3] w3> {{
        p = QuantizeLinear(x, s, z)
        h = QLinearMatMul(p, s, z, wq, f, o, s, z)
        k = QLinearMatMul(p, s, z, wk, f, o, s, z)
        t = Transpose<perm=[0,2,1]>(k)
        a = QLinearMatMul(h, s, z, t, s, z, s, z)
        v = QLinearMatMul(p, s, z, w3, f, o, s, z)
        q = QLinearMatMul(a, s, z, v, s, z, s, z)
        y = DequantizeLinear(q, s, z)
    }}""")
    result = onnxfuse.fuse(model, sparsity=0.5)
    assert [(g.before, g.after) for g in result.report.groups] == [(8, 4)]
    assert oracle_error(model, result, inputs(model)) < 1e-5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("<kernel_shape=[1,1]>", "<kernel_shape=[1,1], channels_last=1>"), "QLinearAveragePool has no rule"),
        (("(h, s, z, s, z)", "(h, e, z, s, z)"), "QLinearAveragePool has no rule"),
    ],
)
def test_what_cannot_be_followed_stays(change: tuple[str, str], reason: str) -> None:
    """Another layout, or a scale that is computed."""
    text = f"""{IMAGE}> {{
        e = ReduceMax<keepdims=0>(x)
        p = QuantizeLinear(x, s, z)
        h = QLinearConv(p, s, z, w1, f, o, s, z)
        a = com.microsoft.QLinearAveragePool<kernel_shape=[1,1]>(h, s, z, s, z)
        q = QLinearConv(a, s, z, w2, f, o, s, z)
        y = DequantizeLinear(q, s, z)
    }}""".replace(*change)
    with pytest.raises(onnxfuse.NothingToMerge, match=reason):
        onnxfuse.fuse(from_text(text), sparsity=0.5)


def test_what_is_rounded_before_it_is_added_has_a_bias_but_makes_up_for_nothing() -> None:
    """The refit shifts a bias; a convolution's scale has no room for what a shortcut has lost."""
    model = from_text(f"""{ROWS}, uint8[3] c> {{
        p = QuantizeLinear(x, s, z)
        h = QLinearMatMul(p, s, z, w1, f, o, s, z)
        q = QLinearMatMul(h, s, z, w2, f, o, s, z)
        a = com.microsoft.QLinearAdd(q, s, z, c, s, z, s, z)
        y = DequantizeLinear(a, s, z)
    }}""")
    graph, _, reference = lowered_graph(model, probe(model, provider_list("cpu")))
    assert [r.bias for r in readers(find_channels(graph, reference), [])] == ["c"]
    model = from_text(f"""{IMAGE}, int8[8,8,1,1] v, int32[8] b> {{
        p = QuantizeLinear(x, s, z)
        h = QLinearConv(p, s, z, w1, f, o, s, z)
        k = QLinearConv(h, s, z, v, f, o, s, z, b)
        t = com.microsoft.QLinearAdd(k, s, z, h, s, z, s, z)
        q = QLinearConv(t, s, z, w2, f, o, s, z)
        y = DequantizeLinear(q, s, z)
    }}""")
    graph, _, reference = lowered_graph(model, probe(model, provider_list("cpu")))
    channels = find_channels(graph, reference)
    assert not joins(channels, readers(channels, []))


WIDTHS = {
    "dense": "h = QLinearConv(p, s, z, w1, f, o, s, z)\n a = QLinearConv(h, s, z, w2, f, o, s, z)",
    "depthwise": """h = QLinearConv(p, s, z, w1, f, o, s, z)
        k = QLinearConv<group={n}, pads=[1,1,1,1]>(h, s, z, v, f, o, s, z)
        a = QLinearConv(k, s, z, w2, f, o, s, z)""",
    "dynamic": """u, v0, v1 = DynamicQuantizeLinear(x)
        i0 = ConvInteger(u, d1, v1, z)
        e0 = Cast<to=1>(i0)
        m0 = Mul(v0, s)
        r = Mul(e0, m0)
        q, b, c = DynamicQuantizeLinear(r)
        i = ConvInteger(q, d2, c, z)
        e = Cast<to=1>(i)
        m = Mul(b, s)
        t = Mul(e, m)
        a = QuantizeLinear(t, s, z)""",
}


@pytest.mark.parametrize(
    ("kind", "n", "sparsity", "kept"),
    [
        ("dense", 16, 0.3, None),
        ("dense", 24, 0.3, {16}),
        ("dense", 64, 0.2, {48}),
        ("dense", 12, 0.5, {6}),
        ("depthwise", 32, 0.4, {16}),
        ("depthwise", 48, 0.3, {32}),
        ("dynamic", 33, 0.3, {23}),
    ],
)
def test_widths_that_kernels_of_integers_take(kind: str, n: int, sparsity: float, kept: set[int] | None) -> None:
    """Of fewer than 16 channels or parts of blocks they take longer; those that quantize as they go do not care."""
    weights = f"int8[{n},6,1,1] w1, int8[3,{n},1,1] w2, int8[{n},1,3,3] v, uint8[{n},6,1,1] d1, uint8[3,{n},1,1] d2"
    text = f"""(float[N,6,5,5] x) => (float[N,3,5,5] y) <{HELD}, {weights}> {{
        p = QuantizeLinear(x, s, z)
        {WIDTHS[kind].replace("{n}", str(n))}
        y = DequantizeLinear(a, s, z)
    }}"""
    if kept is None:
        with pytest.raises(onnxfuse.NothingToMerge, match="no group of at most 16 channels loses what kernels take"):
            onnxfuse.fuse(from_text(text), sparsity=sparsity, method="drop")
        return
    report = onnxfuse.fuse(from_text(text), sparsity=sparsity, method="drop").report
    assert {g.after for g in report.groups} <= kept


def test_groups_that_stay_whole_are_told() -> None:
    text = f"""{IMAGE}, int8[16,6,1,1] v1, int8[32,16,1,1] v2, int8[3,32,1,1] v3> {{
        p = QuantizeLinear(x, s, z)
        h = QLinearConv(p, s, z, v1, f, o, s, z)
        k = QLinearConv(h, s, z, v2, f, o, s, z)
        q = QLinearConv(k, s, z, v3, f, o, s, z)
        y = DequantizeLinear(q, s, z)
    }}"""
    report = onnxfuse.fuse(from_text(text), sparsity=0.5, method="drop").report
    assert [(g.before, g.after) for g in report.groups] == [(16, 16), (32, 16)]
    assert any(note.startswith("1 group stays whole: with fewer channels") for note in report.notes)
    report = onnxfuse.fuse(from_text(text), target_macs=0.1, method="drop").report
    assert all(g.after < 16 and g.after % 4 == 0 for g in report.groups)  # a budget that nothing else keeps
    with pytest.raises(onnxfuse.UsageError, match=r"0\.\d+ of the original's \(0\.\d+ with --round-to 1\)"):
        onnxfuse.fuse(from_text(text), target_macs=0.05, method="drop")
    assert onnxfuse.fuse(from_text(text), target_macs=0.05, method="drop", round_to=1).report.after.macs


def test_weights_of_a_lowered_model_are_its_own() -> None:
    """An integer that two read in different ways is held twice."""
    model = from_text(GRAPHS["a factor of two layers, which one more dequantizes"])
    held = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "c"))
    schemes = lower(model).schemes
    assert sum(np.array_equal(s.integers, held) for s in schemes.values()) == 2
