"""`--lossless`: dead, constant and duplicate channels go, nothing else does, and the outputs stay what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnxfuse
from onnxfuse.channels import ChannelGroup
from onnxfuse.conduct import Conduct, conducts, verdicts
from onnxfuse.findings import Role
from onnxfuse.graph import Graph
from onnxfuse.grouping import find_channels
from onnxfuse.oracle import oracle_error
from onnxfuse.prepare import prepare
from onnxfuse.probe import probe
from onnxfuse.tensors import set_values
from onnxfuse.weights import front

from .graphs import NAMES, Array, build, from_text, gap, inputs, random_weight, run, weights
from .hard_texts import SHRINKS
from .test_cli import call
from .test_plan import redo

CPU = ["CPUExecutionProvider"]


def counts(model: ModelProto) -> tuple[int, int, int]:
    """How many channels went as dead, constant, duplicate; the result is checked in every way there is."""
    result = onnxfuse.fuse(model, lossless=True)
    feeds = inputs(model, seed=3)
    assert gap(run(model, feeds), run(result.model, feeds)) < 1e-5
    assert oracle_error(model, result, feeds) < 1e-5
    assert result.report.free is not None
    assert sum(g.before - g.after for g in result.report.groups) == sum(result.report.free.values())
    return (result.report.free["dead"], result.report.free["constant"], result.report.free["duplicate"])


def refused(model: ModelProto) -> bool:
    with pytest.raises(onnxfuse.NothingToMerge, match="no channel is dead, constant or a duplicate"):
        onnxfuse.fuse(model, lossless=True)
    return True


MLP = """(float[N,6] x) => (float[N,3] y) <float[8,6] w1, float[8] b1, float[3,8] w2, float[3] b2> {{
    h = Gemm<transB=1>(x, w1, b1)
    r = {}(h)
    y = Gemm<transB=1>(r, w2, b2)
}}"""
CONV = """(float[N,3,6,6] x) => (float[N,4,6,6] y)
    <float[8,3,3,3] w1, float[8] b1, float[4,8,{k},{k}] w2, float[4] b2> {{
    h = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(h)
    y = Conv<pads=[{p},{p},{p},{p}]>(r, w2, b2)
}}"""


def changed(text: str, **edits: dict[Any, Any]) -> ModelProto:
    """The model of a text, with `weight={place: values}` put into its random weights."""
    model = from_text(text)
    for tensor in model.graph.initializer:
        values = np.array(onnx.numpy_helper.to_array(tensor))
        for place, new in edits.get(tensor.name, {}).items():
            values[place] = new
        set_values(tensor, values)
    return model


# --- dead and constant ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("operator", ["Relu", "Sigmoid", "Tanh", "Erf"])
def test_unread_and_unmade_channels(operator: str) -> None:
    """Channel 2 is read by nobody; 3 and 5 are constant, by way of a bias that only Relu makes zero for 5."""
    edits: dict[str, Any] = {"w2": {(..., 2): 0}, "w1": {3: 0, 5: 0}, "b1": {3: 0.5, 5: -0.5}}
    dead = 2 if operator == "Relu" else 1
    assert counts(changed(MLP.format(operator), **edits)) == (dead, 3 - dead, 0)


MET = """(float[1,3,6,6] x) => (float[1,4,6,6] y)
    <float[8,3,3,3] w1, float[8] b1, float[1,3,1,1] wg, float[1] bg, float[4,8,1,1] w2, float[4] b2> {{
    h = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(h)
    p = GlobalAveragePool(x)
    a = Conv(p, wg, bg)
    g = Sigmoid(a)
    s = ReduceSum<keepdims=0>(g)
    q = {}
    y = Conv(q, w2, b2)
}}"""
"""All channels meet one number of the sample's own."""


@pytest.mark.parametrize("meeting", ["Mul(r, g)", "Div(r, g)", "Add(r, g)", "Sub(g, r)", "Max(r, g)", "Clip(r, s)"])
def test_what_meets_a_number_of_the_samples_own_is_not_constant(meeting: str) -> None:
    text = MET.format(meeting)
    assert refused(changed(text, w1={5: 0}, b1={5: 0.5}))
    zero = changed(text, w1={5: 0}, b1={5: -0.5})
    assert counts(zero) == (1, 0, 0) if meeting[:3] in ("Mul", "Div") else refused(zero)
    assert counts(changed(text, w2={(..., 5, 0, 0): 0})) == (1, 0, 0)


def test_a_gate_with_channels_of_its_own_may_be_constant() -> None:
    text = MET.replace("[1,3,1,1] wg, float[1]", "[8,3,1,1] wg, float[8]").replace("ReduceSum<keepdims=0>", "Relu")
    text = text.format("Mul(r, g)")
    assert counts(changed(text, w1={5: 0}, b1={5: 0.5}, wg={5: 0})) == (0, 1, 0)
    assert refused(changed(text, w1={5: 0}, b1={5: 0.5}))


def test_what_a_product_adds_of_the_samples_own_is_not_constant() -> None:
    text = """(float[1,6] x) => (float[1,3] y) <float[8,6] w1, float[3,8] w2, float[3] b2> {
        m = ReduceMean<axes=[1]>(x)
        h = Gemm<transB=1>(x, w1, m)
        y = Gemm<transB=1>(h, w2, b2)
    }"""
    assert refused(changed(text, w1={5: 0}))
    assert refused(changed(text, w1={5: 2 * weights(from_text(text))["w1"][2]}))
    assert counts(changed(text, w1={5: weights(from_text(text))["w1"][2]})) == (0, 0, 1)


def test_a_constant_goes_into_the_bias() -> None:
    model = changed(MLP.format("Tanh"), w1={3: 0}, b1={3: 0.7})
    small = weights(onnxfuse.fuse(model, lossless=True).model)
    expected = weights(model)["b2"] + weights(model)["w2"][:, 3] * np.tanh(np.float32(0.7))
    np.testing.assert_allclose(small["b2"], expected, rtol=1e-6)


def test_the_plan_has_what_went_into_the_biases(tmp_path: Path) -> None:
    model = changed(MLP.format("Tanh"), w1={3: 0, 4: 0}, b1={3: 0.7, 4: -0.7})
    result = onnxfuse.fuse(model, lossless=True)
    result.plan.save(tmp_path / "PLAN.json")
    again = redo(model, tmp_path / "PLAN.json")
    for name, array in weights(result.model).items():
        np.testing.assert_allclose(again[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("bias", "kernel", "pad", "found"),
    [(0.5, 1, 0, (0, 1, 0)), (-0.5, 3, 1, (1, 0, 0)), (0.5, 3, 1, None)],
    ids=["no border", "zero", "border"],
)
def test_a_constant_is_none_at_a_padded_border(
    bias: float, kernel: int, pad: int, found: tuple[int, int, int] | None
) -> None:
    model = changed(CONV.format(k=kernel, p=pad), w1={1: 0}, b1={1: bias})
    assert refused(model) if found is None else counts(model) == found


def test_a_constant_without_a_bias_to_go_into_stays() -> None:
    text = MLP.replace(", float[3] b2", "").replace(", w2, b2", ", w2").format("Relu")
    assert refused(changed(text, w1={1: 0}, b1={1: 1.0}))
    assert counts(changed(text, w1={1: 0}, b1={1: -1.0})) == (1, 0, 0)


def test_a_bias_after_matmul_takes_constants_up() -> None:
    text = """(float[N,6] x) => (float[N,3] y) <float[6,8] w1, float[8] b1, float[8,3] w2, float[3] b2> {
        m = MatMul(x, w1)
        h = Add(m, b1)
        r = Sigmoid(h)
        n = MatMul(r, w2)
        y = Add(n, b2)
    }"""
    assert counts(changed(text, w1={(..., 2): 0})) == (0, 1, 0)


@pytest.mark.parametrize("name", ["a vector reads channels", "a vector reads channels from the left"])
def test_a_vector_reads_channels(name: str) -> None:
    """What is added behind it has no channels, and takes no constant up."""
    assert counts(changed(SHRINKS[name], w1={5: 0}, b1={5: -0.5})) == (1, 0, 0)
    assert counts(changed(SHRINKS[name], v={5: 0})) == (1, 0, 0)
    assert refused(changed(SHRINKS[name], w1={5: 0}, b1={5: 0.5}))


def test_no_bias_is_added_to_a_product_that_is_an_output() -> None:
    """The last node of the graph adds to another product."""
    text = """(float[N,6] x) => (float[N,3] y, float[N,3] z)
        <float[6,8] w1, float[8] b1, float[8,3] w2, float[8,3] w3, float[3] b3> {
        m = MatMul(x, w1)
        h = Add(m, b1)
        r = Sigmoid(h)
        y = MatMul(r, w2)
        n = MatMul(r, w3)
        z = Add(n, b3)
    }"""
    assert refused(changed(text, w1={(..., 2): 0}))


def test_faint_channels_count_as_dead_where_both_sides_are_faint() -> None:
    """A channel that is made faintly may be read strongly."""
    faint, loud = 1e-4 * random_weight("w", (6,)), 1e4 * random_weight("v", (3,))
    text = MLP.format("Relu")
    assert counts(changed(text, w1={1: faint}, b1={1: 0}, w2={(..., 1): 1e-4 * loud / 1e4})) == (1, 0, 0)
    assert refused(changed(text, w1={1: faint}, b1={1: 0}, w2={(..., 1): loud}))


def test_a_normalization_makes_faint_channels_loud() -> None:
    text = """(float[N,3,6,6] x) => (float[N,4,6,6] y)
        <float[8,3,1,1] w1, float[8] b1, float[8] n_scale, float[8] n_shift, float[4,8,1,1] w2> {
        h = Conv(x, w1, b1)
        n = InstanceNormalization(h, n_scale, n_shift)
        y = Conv(n, w2)
    }"""
    assert refused(changed(text, w1={1: 1e-9}))


def test_one_channel_stays() -> None:
    model = changed(MLP.format("Relu"), w1={...: 0}, b1={...: 0})
    assert counts(model) == (7, 0, 0)


PICKED = """(float[1,3,6,6] x) => (float[1,4] y) <float[8,3,3,3] w1, float[8] b1, float[8,1,3,3] k, float[8] c,
    float half = {{0.5}}, float[4,8] w2, float[4] b2> {{
    h = Conv<pads=[1,1,1,1]>(x, w1, b1)
    d = Conv<pads=[1,1,1,1],group=8>(h, k, c)
    m = ReduceMean<keepdims=0>(x)
    l = {}(m, half)
    i = Cast<to=7>(l)
    row = Gather<axis=2>(d, i)
    point = Gather<axis=2>(row, i)
    y = Gemm<transB=1>(point, w2, b2)
}}"""
"""The input's mean says whether a point at the border is read, where channels are not what they are within."""


def test_nothing_may_be_lost_on_an_input_of_another_mean_either() -> None:
    for comparison in ("Less", "Greater"):
        with pytest.raises(onnxfuse.VerificationFailed, match="on random input of another mean and scale, over 1e-05"):
            onnxfuse.fuse(changed(PICKED.format(comparison), w1={5: 0}, b1={5: 0.5}), lossless=True)


# --- duplicates -----------------------------------------------------------------------------------------------------
def doubled(text: str, factor: float) -> ModelProto:
    """Channel 5 is `factor` times channel 2."""
    values = weights(from_text(text))
    return changed(text, w1={5: factor * values["w1"][2]}, b1={5: factor * values["b1"][2]})


@pytest.mark.parametrize(
    ("operator", "scaled"),
    [("Relu", True), ("Identity", True), ("LeakyRelu", True), ("Abs", True), ("Tanh", False), ("Elu", False)],
)
def test_a_multiple_is_a_duplicate_where_the_operator_keeps_it(operator: str, scaled: bool) -> None:
    text = MLP.format(operator)
    assert counts(doubled(text, 1.0)) == (0, 0, 1)
    assert counts(doubled(text, 3.7)) == (0, 0, 1) if scaled else refused(doubled(text, 3.7))
    assert refused(doubled(text, -1.0))


def test_a_duplicates_reader_reads_the_other_that_many_times() -> None:
    model = doubled(MLP.format("Relu"), 4.0)
    result = onnxfuse.fuse(model, lossless=True)
    w2 = weights(model)["w2"].copy()
    w2[:, 2] += 4 * w2[:, 5]
    np.testing.assert_allclose(weights(result.model)["w2"], np.delete(w2, 5, axis=1), rtol=1e-6)
    ((_, merge),) = result.plan.merges
    assert merge.expand.toarray()[5].tolist() == [0, 0, 4, 0, 0, 0, 0]


def test_what_is_added_alike_to_all_is_no_multiple_of_itself() -> None:
    text = """(float[N,6] x) => (float[N,3] y)
        <float[8,6] w1, float[8] b1, float[1] one = {1}, float[3,8] w2> {
        h = Gemm<transB=1>(x, w1, b1)
        r = Relu(h)
        s = Add(r, one)
        y = Gemm<transB=1>(s, w2)
    }"""
    assert refused(doubled(text, 2.0))
    assert counts(doubled(text, 1.0)) == (0, 0, 1)


@pytest.mark.parametrize("shape", ["1", "4,1"])
def test_what_a_product_adds_alike_to_all_is_no_multiple_of_itself(shape: str) -> None:
    text = f"""(float[4,6] x) => (float[4,3] y) <float[8,6] w1, float[{shape}] c, float[3,8] w2, float[3] b2> {{
        h = Gemm<transB=1>(x, w1, c)
        r = Relu(h)
        y = Gemm<transB=1>(r, w2, b2)
    }}"""
    row = weights(from_text(text))["w1"][2]
    assert refused(changed(text, w1={5: 2 * row}))
    assert counts(changed(text, w1={5: row})) == (0, 0, 1)
    assert counts(changed(text, w1={5: 2 * row}, c={...: 0})) == (0, 0, 1)


def test_slopes_must_agree() -> None:
    text = """(float[N,6] x) => (float[N,3] y) <float[8,6] w1, float[8] b1, float[8] a_scale, float[3,8] w2> {
        h = Gemm<transB=1>(x, w1, b1)
        r = PRelu(h, a_scale)
        y = Gemm<transB=1>(r, w2)
    }"""
    assert refused(doubled(text, 2.0))
    model = doubled(text, 2.0)
    tensor = next(t for t in model.graph.initializer if t.name == "a_scale")
    set_values(tensor, np.full(8, 0.3))
    assert counts(model) == (0, 0, 1)


UNKNOWN = {"shared_weight", "attention_fused", "attention_separate", "grouped", "channel_shuffle", "instance_norm"}
"""Graphs without a group that stands alone and whose operators all say what becomes of twins."""


@pytest.mark.parametrize("name", NAMES)
def test_twins_in_any_graph(name: str) -> None:
    """The second channel of every group is made like the first: it goes, unless nothing is known of an operator."""
    model, expected = twins(build(name))
    assert (expected == 0) == (name in UNKNOWN)
    if expected:
        assert counts(model)[2] == expected
    else:
        assert refused(model)


def twins(model: ModelProto) -> tuple[ModelProto, int]:
    """The prepared model with a twin in every group, and how many of them may go."""
    prepare(model)
    graph = Graph(model)
    reference = probe(model, CPU)
    channels = find_channels(graph, reference)
    alone = [g for g in channels.groups if sum(g.family == o.family for o in channels.groups) == 1]
    known = conducts(channels.groups, verdicts(channels))
    able = [g for g in alone if g.unit == g.channels > 1 and known[g] is not Conduct.OTHER]
    for group in able:
        copy(graph, group)
    return model, len(able)


def copy(graph: Graph, group: ChannelGroup) -> None:
    for slot in group.slots:
        if slot.role is not Role.CONSUMES:
            values: Array = np.array(graph.array(slot.tensor))
            view = front(values, slot)
            first, second = (np.unravel_index(slot.positions[i], view.shape[: len(slot.axes)]) for i in (0, 1))
            view[second] = view[first]
            set_values(graph.constants[slot.tensor], values)


# --- command line ---------------------------------------------------------------------------------------------------
def test_the_report_counts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnx.save(doubled(MLP.format("Relu"), 2.0), tmp_path / "in.onnx")
    code, out, err = call(capfd, tmp_path / "in.onnx", tmp_path / "out.onnx", "--lossless")
    assert (code, err) == (0, "")
    assert "nothing was lost with 0 dead, 0 constant, 1 duplicate channels" in out
    code, _, err = call(capfd, tmp_path / "out.onnx", tmp_path / "again.onnx", "--lossless")
    assert (code, err.count("\n")) == (1, 1)
    assert not (tmp_path / "again.onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lossless": True, "sparsity": 0.5}, "leave out --sparsity"),
        ({"lossless": True, "method": "fold", "cost_norm": 2}, "leave out --method, --cost-norm"),
        ({}, "give --sparsity, --lossless, a budget"),
    ],
)
def test_options_that_contradict(options: dict[str, Any], message: str) -> None:
    with pytest.raises(onnxfuse.UsageError, match=message):
        onnxfuse.fuse(build("mlp"), **options)
