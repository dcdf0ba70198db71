"""The probing run: shapes that need no question, and sizes that are the same in every run."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import onnxfuse
from onnxfuse.prepare import prepare
from onnxfuse.probe import Probe, probe
from onnxfuse.providers import provider_list
from onnxfuse.runs import run
from onnxfuse.sizes import known_sizes

from .graphs import build, from_text

CPU = provider_list("cpu")
ROUNDED = """({} x) => (float[N,10] y)
    <float[32,3,3,3] w1, float[32,10] w2, int64 first = {{0}}, int64 third = {{2}}, int64[1] axis = {{0}},
     int64[1] rest = {{-1}}> {{
    c = Conv<pads=[1,1,1,1]>(x, w1)
    r = Relu(c)
    p = MaxPool<kernel_shape=[2,2], strides=[2,2], pads=[1,1,1,1], ceil_mode=1>(r)
    q = Neg(p)
    s = Shape(p)
    n = Gather(s, first)
    side = Gather(s, third)
    area = Mul(side, side)
    n1 = Unsqueeze(n, axis)
    area1 = Unsqueeze(area, axis)
    target = Concat<axis=0>(n1, rest, area1)
    f = Reshape(q, target)
    m = ReduceMean<axes=[2], keepdims=0>(f)
    y = MatMul(m, w2)
}}"""
"""A pool of 7 × 7 with ceil_mode, of which onnx infers 5 × 5 where onnxruntime makes 4 × 4, and a shape from that."""


def rounded(batch: str) -> ModelProto:
    return from_text(ROUNDED.format(f"float[{batch},3,7,7]"))


def asked_of_all(model: ModelProto) -> Probe:
    """The run of a model whose input has open sizes, so that inference proves none."""
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.graph.input[0].type.tensor_type.shape.Clear()
    shape = tuple(d.dim_value or 2 for d in model.graph.input[0].type.tensor_type.shape.dim)
    copy.graph.input[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, ["a", "b", "c", "d"]))
    return probe(copy, CPU, {"x": shape})


@pytest.mark.parametrize("batch", ["1", "N"])
def test_shapes_are_those_of_the_run_not_of_inference(batch: str) -> None:
    model = rounded(batch)
    found = probe(model, CPU)
    n = found.inputs["x"].shape[0]
    assert found.shapes["p"] == (n, 32, 4, 4)
    assert found.shapes["q"] == (n, 32, 4, 4)


def test_shapes_that_are_proved_are_those_that_are_asked_for() -> None:
    text = """(float[1,3,8,8] x) => (float[1,10] y)
        <float[16,3,3,3] w1, float[256,10] w2, int64[2] target = {1, -1}> {
        c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1)
        r = Relu(c)
        t = Transpose<perm=[0, 2, 3, 1]>(r)
        f = Reshape(t, target)
        y = MatMul(f, w2)
    }"""
    model = from_text(text)
    assert dict(probe(model, CPU).shapes) == dict(asked_of_all(model).shapes)


def test_recorded_shapes_prove_nothing() -> None:
    model = from_text("(float[1,3,8,8] x) => (float[1,16,6,6] y) <float[16,3,3,3] w> { c = Conv(x, w)\n y = Relu(c) }")
    model.graph.node[1].CopyFrom(helper.make_node("FastGelu", ["c"], ["g"], domain="com.microsoft"))
    model.graph.node.append(helper.make_node("Relu", ["g"], ["r"]))
    model.graph.node.append(helper.make_node("Relu", ["r"], ["y"]))
    model.graph.value_info.append(helper.make_tensor_value_info("g", TensorProto.FLOAT, [1, 16, 99, 99]))
    model.graph.output[0].type.tensor_type.shape.dim[3].dim_param = "any"
    assert probe(model, CPU).shapes["r"] == (1, 16, 6, 6)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells there what a process needed")
def test_no_activation_is_kept_until_its_size_was_asked_for(tmp_path: Path) -> None:
    names = ["x", *(f"c{i}" for i in range(30)), "y"]
    lines = "\n".join(f"{after} = Conv({before}, w)" for before, after in pairwise(names))
    model = from_text(f"(float[1,8,512,512] x) => (float[1,8,512,512] y) <float[8,8,1,1] w> {{ {lines} }}")
    model.graph.ClearField("value_info")
    onnx.save(model, tmp_path / "deep.onnx")
    code = """import sys, onnx, onnxfuse.probe, resource
model = onnx.load(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
onnxfuse.probe.probe(model, ["CPUExecutionProvider"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"""
    command = [sys.executable, "-c", code, str(tmp_path / "deep.onnx")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 12 * 8192  # KiB; each of the 31 activations takes 8,192


def test_a_size_below_one_is_an_open_one() -> None:
    model = from_text("(float[1,3,8,8] x) => (float[N,16,M,K] y) <float[16,3,3,3] w> { c = Conv(x, w)\n y = Relu(c) }")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert list(known_sizes(model)["c"]) == [None, 16, 6, 6]
    assert probe(model, CPU).shapes["c"] == (2, 16, 6, 6)


def test_an_input_without_a_shape_gets_the_one_that_is_given() -> None:
    model = build("matmul_add")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(onnxfuse.ModelError, match=r"give the right shapes, as in --input-shape x:1,3,224,224$"):
        onnxfuse.fuse(model, sparsity=0.5)
    assert onnxfuse.fuse(model, sparsity=0.5, input_shapes={"x": (1, 5, 6)}).report.after.channels == 4


def stateful() -> ModelProto:
    """As Silero's VAD: no open dimension has a name, and the state's batch is behind its layers."""
    model = from_text("""(float[N,L] x, float[1,M,4] state) => (float[L,1,N,4] y, float[1,N,4] next)
        <float[1,8] w0, float[8,6] w1, float[1,16,6] w, float[1,16,4] r, int64[1] last = {2}> {
        u = Unsqueeze(x, last)
        h = MatMul(u, w0)
        a = Relu(h)
        m = MatMul(a, w1)
        t = Transpose<perm=[1,0,2]>(m)
        y, next = LSTM<hidden_size=4>(t, w, r, , , state)
    }""")
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    return model


def test_a_state_with_its_batch_behind_its_layers_gets_as_many_as_the_input() -> None:
    result = onnxfuse.fuse(stateful(), sparsity=0.5)
    assert [(g.before, g.after) for g in result.report.groups] == [(8, 4), (6, 3)]
    shapes = {name: feed.shape for name, feed in probe(stateful(), CPU).inputs.items()}
    assert shapes == {"x": (2, 224), "state": (1, 2, 4)}
    with pytest.raises(onnxfuse.ModelError, match=r"as in --input-shape x:3,5 --input-shape state:1,1,4$"):
        onnxfuse.fuse(stateful(), sparsity=0.5, input_shapes={"x": (3, 5)})


LONG = """(float[N,T,6] x, int64[N] x_lens) => (float[N,T,3] y, float[N,4] z)
    <float[6,3] w1, float[rows,4] w2, int64 first = {0}, int64 step = {1}, int64[1] last = {1}, int64[1] behind = {2}> {
    s = Shape(x)
    one = Gather(s, step)
    at = Range(first, one, step)
    lengths = Unsqueeze(x_lens, last)
    within = Less(at, lengths)
    mask = Cast<to=1>(within)
    m = Unsqueeze(mask, behind)
    seen = Mul(x, m)
    y = MatMul(seen, w1)
    z = Gather(w2, x_lens)
}"""
"""Values of which only as many count as lengths say."""


@pytest.mark.parametrize(("rows", "longest"), [(500, 224), (2, 1)])
def test_lengths_are_those_of_whole_samples(rows: int, longest: int) -> None:
    """Of lengths of 0 and 1 a network makes nothing; those with which it does not run are not taken."""
    found = probe(from_text(LONG.replace("rows", str(rows))), CPU).inputs
    assert found["x"].shape == (2, 224, 6)
    assert found["x_lens"].max() == longest


def test_a_size_that_inference_gets_wrong_is_not_folded_so() -> None:
    small = onnxfuse.fuse(rounded("N"), sparsity=0.5, method="drop").model
    y = run(small, {"x": np.ones((3, 3, 7, 7), np.float32)}, CPU, optimized=True)["y"]
    assert y.shape == (3, 10)
    assert next(t for t in small.graph.initializer if t.name == "w1").dims[0] == 16


def exact(batch: str) -> ModelProto:
    return from_text(ROUNDED.format(f"float[{batch},3,7,7]").replace("ceil_mode=1", "ceil_mode=0"))


def operators(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_sizes_that_a_run_settles_need_no_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    model = exact("1")
    shapes = probe(model, CPU).shapes
    monkeypatch.setattr("onnxfuse.prepare.known_sizes", lambda model: pytest.fail("inferred"))
    prepare(model, (), shapes)
    assert operators(model) == ["Conv", "Relu", "MaxPool", "Neg", "Reshape", "ReduceMean", "MatMul"]


def test_an_open_size_is_not_settled() -> None:
    model = exact("N")
    prepare(model, (), probe(model, CPU).shapes)
    assert "Shape" in operators(model)


def test_a_size_that_the_checker_would_contradict_stays_computed() -> None:
    model = rounded("1")
    prepare(model, (), probe(model, CPU).shapes)
    assert "Shape" in operators(model)


def test_a_size_that_an_input_or_a_pick_says_is_not_settled() -> None:
    text = """(float[1] x, int64[1] size, float[8] z) => (int64[1] a, int64[2] b) <int64[1] one = {1}> {
        e = Expand(x, size)
        s = Shape(e)
        a = Add(s, one)
        n = NonZero(z)
        t = Shape(n)
        b = Add(t, one)
    }"""
    model = from_text(text)
    prepare(model, (), probe(model, CPU).shapes)
    assert operators(model).count("Shape") == 2


def test_what_is_picked_is_noted_in_the_probing_run() -> None:
    text = (
        "(float[8] x) => (int64[1,M] y) <float level = {0.0}> { s = Abs(x)\n g = Greater(s, level)\n y = NonZero(g) }"
    )
    found = probe(from_text(text), CPU)
    assert set(found.noted) == {"y", "s"}
    np.testing.assert_array_equal(found.noted["s"], np.abs(found.inputs["x"]))
    assert not probe(rounded("1"), CPU).noted
