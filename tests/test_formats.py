"""The same network in every number format and file form: the same groups, and a correct result each time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxfuse
from onnxfuse.oracle import oracle_error
from onnxfuse.probe import probe
from onnxfuse.providers import provider_list
from onnxfuse.runs import Runs, agreements_elsewhere, own_agreements, run_both
from onnxfuse.standin import in_float32, needs_stand_in

from .formats import FORMATS, STEP, external, integer_operators, sparse
from .graphs import Array, case_id, from_text, gap, inputs, load, run, runs, zoo
from .test_properties import with_duplicates
from .texts import TEXTS

SIZES = {"mlp": [(8, 4), (10, 5)], "residual": [(8, 4), (6, 3), (12, 6)], "depthwise": [(8, 4)]}
ROUNDING = {"float16": 2e-3, "bfloat16": 2e-2, "mixed": 2e-3, "int8": 3e-2, "int8 per channel": 3e-2,
            "integer operators": 3e-2, "dynamic": 3e-2}  # fmt: skip
"""Relative error that a format's own rounding makes; 1e-5 for the others."""


def in_format(model: ModelProto, kind: str) -> ModelProto:
    if kind == "bfloat16":
        model.opset_import[0].version = 22  # the first whose Conv has it
    return FORMATS[kind](model)


def outputs(model: ModelProto) -> list[Array]:
    runs = in_float32(model) if needs_stand_in(model) else model
    return run(runs, inputs(runs))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", SIZES)
def test_same_groups_in_every_format(name: str, kind: str) -> None:
    model = in_format(from_text(TEXTS[name]), kind)
    result = onnxfuse.fuse(model, sparsity=0.5)
    assert [(g.before, g.after) for g in result.report.groups] == SIZES[name]
    assert oracle_error(model, result, inputs(model)) < 1e-5
    types = {t.data_type for t in model.graph.initializer}
    assert {t.data_type for t in result.model.graph.initializer} <= types | (
        {1} if kind in ("sparse", "constants") else set()
    )


COMPUTED = """(float[N,6] x) => (float[N,3] y) <float[6,8] w1, float[8] b1, float[8,8] w2, float[3,8] w3> {
    h = MatMul(x, w1)
    a = Add(h, b1)
    p = Softmax<axis=0>(w2)
    k = MatMul(a, p)
    t = Einsum<equation="ij->ji">(w3)
    y = MatMul(k, t)
}"""


def test_constant_nodes_of_all_kinds_are_weights_and_parameters() -> None:
    """Sparse matrices, and a vector as a list of numbers; two are behind operators."""
    model = sparse(from_text(COMPUTED))
    (bias,) = model.graph.initializer
    nodes = [helper.make_node("Constant", [], [s.values.name], sparse_value=s) for s in model.graph.sparse_initializer]
    nodes.append(helper.make_node("Constant", [], ["b1"], value_floats=numpy_helper.to_array(bias).tolist()))
    nodes.extend(model.graph.node)
    del model.graph.initializer[:], model.graph.sparse_initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    result = onnxfuse.fuse(model, sparsity=0.5)
    before, after = result.report.before, result.report.after
    assert (before.parameters, before.channels, after.channels) == (6 * 8 + 8 + 8 * 8 + 8 * 3, 16, 8)
    assert oracle_error(model, result, inputs(model)) < 1e-5


@pytest.mark.parametrize("kind", ["INT16", "UINT4", "FLOAT8E4M3FN"])
def test_weights_of_few_bits_are_parameters(kind: str) -> None:
    model = from_text("(float[N,6] x) => (float[N,3] y) <float[6,3] w, float s = {0.5}> { y = MatMul(x, w) }", opset=21)
    weight = model.graph.initializer[-1]
    weight.CopyFrom(helper.make_tensor("q", TensorProto.DataType.Value(kind), [6, 3], np.ones(18)))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "s"], ["w"]))
    assert onnxfuse.fuse(model, sparsity=0).report.before.parameters == 6 * 3 + 1


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_duplicates_vanish_in_every_format(name: str, kind: str) -> None:
    """Merging equal channels changes nothing: so scales and zero points are right, too."""
    model = in_format(with_duplicates(name), kind)
    result = onnxfuse.fuse(model, sparsity=0.5, method="fold")
    assert gap(outputs(model), outputs(result.model)) < ROUNDING.get(kind, 1e-5)


def test_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(from_text(TEXTS["residual"]), tmp_path)
    monkeypatch.chdir(tmp_path)
    result = onnxfuse.fuse("beside/in.onnx", "out.onnx", sparsity=0.5)
    assert [(g.before, g.after) for g in result.report.groups] == SIZES["residual"]
    assert oracle_error(onnx.load(path), result, inputs(result.model)) < 1e-5
    assert gap(run(tmp_path / "out.onnx"), run(result.model)) == 0


# --- quantized ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["drop", "intra-fusion", "fold"])
@pytest.mark.parametrize("case", zoo(r"smallcnn_.*quant"), ids=case_id)
def test_quantized_zoo(case: Path | str, method: str) -> None:
    """QDQ per tensor and per channel, integer operators, dynamically quantized."""
    model, feeds = load(case)
    if not runs(model, feeds):
        pytest.skip("this onnxruntime has no kernels for the graph")
    shapes = {name: array.shape for name, array in feeds.items()}
    result = onnxfuse.fuse(model, sparsity=0.5, method=method, input_shapes=shapes)
    assert oracle_error(model, result, feeds) < 1e-4
    assert result.report.after.channels < result.report.before.channels
    assert {n.op_type for n in result.model.graph.node} <= {n.op_type for n in model.graph.node}


@pytest.mark.parametrize("kind", ["int8", "int8 per channel"])
def test_dropping_keeps_scales_and_integers(kind: str) -> None:
    model = FORMATS[kind](from_text(TEXTS["mlp"]))
    result = onnxfuse.fuse(model, sparsity=0.5, method="drop")
    before, after = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (model, result.model))
    ((first, merge),) = [(g, m) for g, m in result.plan.merges if g.name == "h1"]
    kept = first.slots[0].positions[merge.kept].ravel()
    np.testing.assert_array_equal(after["w1_q"], before["w1_q"][kept])
    np.testing.assert_array_equal(after["w1_s"], before["w1_s"][kept] if before["w1_s"].ndim else before["w1_s"])
    np.testing.assert_array_equal(after["b1_h1_q"], before["b1_h1_q"][kept])


INTEGER_OPERATORS = {
    "weights that are quantized in the graph": """(float[N,6] x) => (float[N,3] y)
        <float[6,8] w1, float s = {0.02}, int8 z = {0}, float[8,3] w2> {
        q = QuantizeLinear(w1, s, z)
        d = DequantizeLinear(q, s, z)
        h = MatMul(x, d)
        y = MatMul(h, w2)
    }""",
    "a transposed weight": """(float[N,6] x) => (float[N,3] y)
        <int8[8,6] w1 = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,
         7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3}, float s = {0.02}, float[8,3] w2> {
        d = DequantizeLinear(w1, s)
        t = Transpose(d)
        h = MatMul(x, t)
        y = MatMul(h, w2)
    }""",
    "activations by channel": """(float[N,6,4,4] x) => (float[N,3,4,4] y)
        <float[8,6,1,1] w1, float[8] s_scale, uint8[8] z = {7,7,7,7,7,7,7,7}, float[3,8,1,1] w2> {
        h = Conv(x, w1)
        q = QuantizeLinear<axis=1>(h, s_scale, z)
        d = DequantizeLinear<axis=1>(q, s_scale, z)
        y = Conv(d, w2)
    }""",
    "an integer product": """(float[N,6] x) => (float[N,3] y)
        <float[6,8] w1, int8[8,3] w2 = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6}, float s = {0.02}> {
        h = MatMul(x, w1)
        q, a, z = DynamicQuantizeLinear(h)
        i = MatMulInteger(q, w2, z)
        c = Cast<to=1>(i)
        m = Mul(a, s)
        y = Mul(c, m)
    }""",
    "a weight that every run quantizes": """(float[N,6] x) => (float[N,3] y) <float[6,8] w1, float[8,3] w2> {
        h = MatMul(x, w1)
        v, s, u = DynamicQuantizeLinear(w2)
        q, a, z = DynamicQuantizeLinear(h)
        i = MatMulInteger(q, v, z, u)
        c = Cast<to=1>(i)
        m = Mul(a, s)
        y = Mul(c, m)
    }""",
    "a scale for each column, and two that read the same integers": """(float[N,4] x) => (float[N,3] y)
        <int8[4,8] w1 = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5},
         int8[8] zeros = {0,0,0,0,0,0,0,0},
         float[8] s1 = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8}, float s2 = {0.02}, float s3 = {0.03},
         int8[8,3] w2 = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6},
         int8[8,3] w3 = {3,2,1,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6}> {
        p, b, n = DynamicQuantizeLinear(x)
        j = MatMulInteger(p, w1, n, zeros)
        e = Cast<to=1>(j)
        f = Mul(b, s1)
        h = Mul(f, e)
        q, a, z = DynamicQuantizeLinear(h)
        i = MatMulInteger(q, w2, z)
        c = Cast<to=1>(i)
        m = Mul(a, s2)
        k = Mul(c, m)
        i3 = MatMulInteger(q, w3, z)
        c3 = Cast<to=1>(i3)
        m3 = Mul(a, s3)
        k3 = Mul(c3, m3)
        y = Add(k, k3)
    }""",
}


@pytest.mark.parametrize("method", ["drop", "intra-fusion", "fold"])
@pytest.mark.parametrize("name", INTEGER_OPERATORS)
def test_quantized_graphs(name: str, method: str) -> None:
    model = from_text(INTEGER_OPERATORS[name])
    result = onnxfuse.fuse(model, sparsity=0.5, method=method)
    assert [(g.before, g.after) for g in result.report.groups] == [(8, 4)]
    assert oracle_error(model, result, inputs(model)) < 1e-5


@pytest.mark.parametrize("kind", [k for k in FORMATS if not k.startswith(("int", "dynamic"))])
def test_lossless_in_every_format(kind: str) -> None:
    """A duplicate goes; between quantized layers nothing is known to be equal."""
    model = in_format(with_duplicates("mlp"), kind)
    result = onnxfuse.fuse(model, lossless=True)
    assert result.report.free is not None
    assert result.report.free["duplicate"] > 0
    assert gap(outputs(model), outputs(result.model)) < ROUNDING.get(kind, 1e-5)


@pytest.mark.parametrize("kind", FORMATS)
def test_activations_in_every_format(kind: str) -> None:
    model = in_format(from_text(TEXTS["mlp"]), kind)
    samples = {"x": np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)}
    result = onnxfuse.fuse(model, sparsity=0.5, importance="energy", calib=samples)
    assert [(g.before, g.after) for g in result.report.groups] == SIZES["mlp"]


def test_nothing_is_lossless_before_dynamically_quantized_layers() -> None:
    """The columns of duplicates add up to what other integers stand for."""
    with pytest.raises(onnxfuse.NothingToMerge):
        onnxfuse.fuse(FORMATS["dynamic"](with_duplicates("mlp")), lossless=True)


def test_roundings_count_as_they_do_in_the_original_on_any_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one input the original may be the same by chance, where a rounding makes no number another integer."""
    model = FORMATS["dynamic"](from_text(TEXTS["mlp"]))

    def apart(*arguments: Any) -> Runs:
        found = run_both(*arguments)
        return replace(found, fast={name: 1.005 * a for name, a in found.plain.items()})

    monkeypatch.setattr("onnxfuse.verify.run_both", apart)
    monkeypatch.setattr("onnxfuse.verify.own_agreements", lambda *_: iter([0.0, 0.004]))
    assert onnxfuse.fuse(model, sparsity=0.5, method="drop").report.comparison.agreement > 0.004
    monkeypatch.setattr("onnxfuse.verify.own_agreements", lambda *_: iter([0.0, 0.0004]))
    monkeypatch.setattr("onnxfuse.verify.agreements_elsewhere", lambda *_: iter([0.002] * 7))
    with pytest.raises(onnxfuse.OnnxFuseError, match=r"differ by 0.005 \(the original's by 0.0004\)"):
        onnxfuse.fuse(model, sparsity=0.5, method="drop")


@pytest.mark.parametrize(
    ("kind", "others", "made"),
    [
        ("dynamic", [0.0] * 5 + [0.3] * 2, True),
        ("dynamic", [0.0] * 3 + [0.3] * 4, False),
        ("dynamic", [0.0009] * 7, True),
        ("dynamic", [0.0011] * 7, False),
        ("float32", [0.0] * 7, False),
    ],
)
def test_a_rounding_on_one_input_of_many_is_chance(
    kind: str, others: list[float], made: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where numbers are rounded to integers; elsewhere optimizations that change a result are at fault."""
    model = FORMATS[kind](from_text(TEXTS["mlp"]))

    def apart(*arguments: Any) -> Runs:
        found = run_both(*arguments)
        return replace(found, fast={name: 1.005 * a for name, a in found.plain.items()})

    monkeypatch.setattr("onnxfuse.verify.run_both", apart)
    monkeypatch.setattr("onnxfuse.verify.own_agreements", lambda *_: iter([0.0] * 8))
    monkeypatch.setattr("onnxfuse.verify.agreements_elsewhere", lambda *_: iter(others))
    if made:
        assert onnxfuse.fuse(model, sparsity=0.5, method="drop").report.comparison.agreement > 0.004
        return
    with pytest.raises(onnxfuse.OnnxFuseError, match=r"differ by 0.005 \(the original's by 0\)"):
        onnxfuse.fuse(model, sparsity=0.5, method="drop")


def test_what_optimizations_change_is_measured_on_eight_inputs() -> None:
    model = FORMATS["dynamic"](from_text(TEXTS["mlp"]))
    found = list(own_agreements(probe(model, provider_list("cpu")), provider_list("cpu"), model))
    assert len(found) == 8
    assert max(found) < 0.01


def test_what_does_not_run_elsewhere_excuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the original's differences nor a result's agreement on the inputs that are left."""
    model, cpu = FORMATS["dynamic"](from_text(TEXTS["mlp"])), provider_list("cpu")
    reference = probe(model, cpu)

    def fails(*_: Any) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr("onnxfuse.runs._outputs", fails)
    assert list(agreements_elsewhere(model, reference, cpu)) == [float("inf")] * 7


def test_an_output_of_zeros_elsewhere_excuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to zeros every difference is infinite."""
    model, cpu = FORMATS["dynamic"](from_text(TEXTS["mlp"])), provider_list("cpu")
    reference, found = probe(model, cpu), iter([0.1, *[float("inf")] * 7])
    monkeypatch.setattr("onnxfuse.runs.furthest_apart", lambda *_: next(found))
    assert list(own_agreements(reference, cpu, model)) == [0.1]


def test_weights_quantized_in_blocks_are_left_alone_with_the_reason() -> None:
    model = from_text(
        """(float[N,6] x) => (float[N,2] y)
        <int8[6,2] q = {1,2,3,4,5,6,7,8,9,1,2,3}, float[2,2] s = {0.5, 0.25, 0.5, 0.25}, float[2,8] w2, float[8,2] w3> {
            w = DequantizeLinear<axis=0, block_size=3>(q, s)
            h = MatMul(x, w)
            k = MatMul(h, w2)
            y = MatMul(k, w3)
        }""",
        opset=21,
    )
    result = onnxfuse.fuse(model, sparsity=0.5)
    assert [(g.name, g.before, g.after) for g in result.report.groups] == [("k", 8, 4)]
    assert ("w", "its weights are quantized in blocks or below 8 bits") in [
        (row.name, row.reason) for row in result.report.locked
    ]
    assert oracle_error(model, result, inputs(model)) < 1e-5


@pytest.mark.parametrize("method", ["drop", "fold"])
@pytest.mark.parametrize("scale", [0, 1e-8, 1])
def test_a_channel_of_zeros_with_any_scale(scale: float, method: str) -> None:
    """A quantizer may give it the scale 0: in its units nothing can be counted, its bias neither."""
    model = FORMATS["int8 per channel"](from_text(TEXTS["mlp"]))
    held = {t.name: t for t in model.graph.initializer}
    rows = {"w1_q": 0, "w1_s": scale, "b1_h1_q": -(2**31), "b1_h1_s": scale * STEP}
    for name, value in rows.items():
        values = np.array(numpy_helper.to_array(held[name]))
        values[0] = value
        held[name].CopyFrom(numpy_helper.from_array(values, name))
    result = onnxfuse.fuse(model, sparsity=0.5, method=method)
    assert [(g.before, g.after) for g in result.report.groups] == SIZES["mlp"]
    assert oracle_error(model, result, inputs(model)) < 1e-5


def test_lossless_between_integer_operators() -> None:
    """What a rounding to integers makes of a channel that hardly varies is not known."""
    model = from_text("""(float[N,6] x) => (float[N,3] y) <float[6,8] w1, float[8,8] w2, float[8,3] w3> {
        h = MatMul(x, w1)
        k = MatMul(h, w2)
        y = MatMul(k, w3)
    }""")
    weight = np.array(numpy_helper.to_array(model.graph.initializer[0]))
    weight[:, 0] = 0
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w1"))
    with pytest.raises(onnxfuse.NothingToMerge):
        onnxfuse.fuse(integer_operators(model), lossless=True)


def test_recorded_shapes_of_quantized_constants_follow() -> None:
    model = onnx.shape_inference.infer_shapes(FORMATS["int8"](from_text(TEXTS["mlp"])))
    for t in model.graph.initializer:
        model.graph.value_info.append(helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    result = onnxfuse.fuse(model, sparsity=0.5)
    onnx.checker.check_model(result.model, full_check=True)
    recorded = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in result.model.graph.value_info}
    true = {t.name: list(t.dims) for t in result.model.graph.initializer}
    assert "x_step" in recorded
    assert "w1_q" not in recorded
    assert all(dims == true[name] for name, dims in recorded.items() if name in true)


def test_depthwise_kernels_are_refitted_in_half_precision() -> None:
    """Sums of the squares of what they see are beyond float16."""
    text = """(float[N,3,16,16] x) => (float[N,4,16,16] y)
        <float[16,3,1,1] w1, float[16] b1, float[16,1,3,3] w2, float[16] b2, float[4,16,1,1] w3> {
        a = Conv(x, w1, b1)
        c = Relu(a)
        d = Conv<group=16, pads=[1,1,1,1]>(c, w2, b2)
        e = Relu(d)
        y = Conv(e, w3)
    }"""
    samples = 30 * np.random.default_rng(0).standard_normal((64, 3, 16, 16))
    cosines = []
    for model in (from_text(text), FORMATS["float16"](from_text(text))):
        report = onnxfuse.fuse(model, sparsity=0.25, round_to=1, calib={"x": samples.astype(np.float32)}).report
        assert report.fidelity is not None
        cosines.append(report.fidelity.cosine)
    assert cosines[1] == pytest.approx(cosines[0], abs=5e-3)
