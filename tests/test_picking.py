"""Operators that pick by value: a rounding decides what is there, so results are judged with the original's picks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

import onnxfuse
from onnxfuse import runs, verify
from onnxfuse.comparison import furthest_apart
from onnxfuse.oracle import oracle_error
from onnxfuse.picking import feeds_of, in_order_of, picked, with_outputs, with_picks
from onnxfuse.probe import probe
from onnxfuse.providers import provider_list
from onnxfuse.runs import run

from .graphs import Array, from_text

CPU = provider_list("cpu")
TEXT = """(float[1,3,16,16] x) => (int64[2,M] y, float[1,16,16,16] z)
    <float[32,3,3,3] w1, float[16,32,3,3] w2, float level = {0.1}> {
    c1 = Conv<pads=[1,1,1,1]>(x, w1)
    r1 = Relu(c1)
    z = Conv<pads=[1,1,1,1]>(r1, w2)
    s = ReduceMax<axes=[0, 1], keepdims=0>(z)
    g = Greater(s, level)
    y = NonZero(g)
}"""
BEHIND = """(float[1,3,16,16] x) => (float[M,8] y)
    <float[32,3,3,3] w1, float[8,32,3,3] w2, float level = {0.1}, float[8,8] w3, int64[2] shape = {0, -1}> {
    c1 = Conv<pads=[1,1,1,1]>(x, w1)
    r1 = Relu(c1)
    z = Conv<pads=[1,1,1,1]>(r1, w2)
    t = Transpose<perm=[0, 2, 3, 1]>(z)
    s = ReduceMax<axes=[3], keepdims=0>(t)
    g = Greater(s, level)
    n = NonZero(g)
    places = Transpose(n)
    p = GatherND(t, places)
    q = Reshape(p, shape)
    y = MatMul(q, w3)
}"""

ORDERED = """(float[1,3,16,16] x) => (float[20,8] y, float[20] v)
    <float[32,3,3,3] w1, float[8,32,3,3] w2, int64[2] shape = {256, 8}, int64[1] k = {20}> {
    c1 = Conv<pads=[1,1,1,1]>(x, w1)
    r1 = Relu(c1)
    z = Conv<pads=[1,1,1,1]>(r1, w2)
    t = Transpose<perm=[0, 2, 3, 1]>(z)
    rows = Reshape(t, shape)
    s = ReduceMax<axes=[1], keepdims=0>(rows)
    v, i = TopK(s, k)
    y = Gather(rows, i)
}"""


def fused(model: ModelProto, **options: Any) -> onnxfuse.FuseResult:
    return onnxfuse.fuse(model, sparsity=0.5, method="drop", input_shapes={"x": (1, 3, 16, 16)}, **options)


def level(model: ModelProto, value: NDArray[Any]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "level")
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value, np.float32), "level"))


def test_what_is_picked_is_given() -> None:
    model = from_text(TEXT)
    assert picked(model.graph) == ["y"]
    part = with_picks(model, {"y": np.zeros((2, 3), np.int64)})
    assert [o.name for o in part.graph.output] == ["z", "s"]  # y is given; what is compared with the level is read
    assert [n.op_type for n in part.graph.node] == ["Conv", "Relu", "Conv", "ReduceMax"]
    assert picked(from_text("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }").graph) == []


def test_what_is_behind_a_pick_runs_on_what_is_given() -> None:
    model = from_text(BEHIND)
    feeds = probe(model, CPU).inputs
    given = {"n": np.array([[0, 0], [3, 5], [7, 2]])}
    part = with_picks(model, given)
    found = run(part, feeds_of(part, feeds, given), CPU, optimized=False)
    assert found["y"].shape == (2, 8)
    whole = run(with_outputs(model, ["t"]), feeds, CPU, optimized=False)["t"]
    w3 = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "w3"))
    np.testing.assert_allclose(found["y"], whole[0, [3, 5], [7, 2]] @ w3, rtol=1e-4, atol=1e-5)


def test_a_pick_inside_an_if_is_one() -> None:
    text = """(float[8] x, bool c) => (int64[1,M] y) {
        y = If (c) <then_branch = a () => (int64[1,K] p) { p = NonZero(x) },
                    else_branch = b () => (int64[1,L] q) { m = Neg(x) q = NonZero(m) }>
    }"""
    assert picked(from_text(text).graph) == ["y"]


def test_a_rounding_that_picks_is_no_fault() -> None:
    """The threshold lies between what the result has with optimizations and without."""
    model = from_text(TEXT)
    part, feeds = with_outputs(fused(model).model, ["s"]), probe(model, CPU).inputs
    plain, fast = (run(part, feeds, CPU, optimized)["s"] for optimized in (False, True))
    apart = plain != fast
    assert apart.any()
    level(model, np.minimum(plain, fast)[apart].max())
    result = fused(model)
    found = [run(result.model, feeds, CPU, optimized)["y"].shape for optimized in (False, True)]
    assert found[0] != found[1]
    assert result.report.comparison.agreement < 1e-3
    assert [o.name for o in result.report.comparison.outputs] == ["z"]


def test_a_result_that_picks_nothing_is_run_with_the_originals_picks(caplog: pytest.LogCaptureFixture) -> None:
    """Such an exported graph cannot reshape no box at all, which says nothing of the merge."""
    model = from_text(BEHIND)
    feeds = probe(model, CPU).inputs
    before, after = (run(with_outputs(m, ["s"]), feeds, CPU, optimized=False)["s"] for m in (model, fused(model).model))
    assert before.max() > after.max()
    level(model, (before.max() + after.max()) / 2)
    with pytest.raises(Exception, match="Reshape"):
        run(fused(model).model, feeds, CPU, optimized=False)
    with caplog.at_level("WARNING", "onnxfuse"):
        result = fused(model)
    assert "but not with its own picks" in caplog.text
    (y,) = result.report.comparison.outputs
    assert y.name == "y"
    assert 0.3 < y.cosine < 1
    assert oracle_error(model, result, feeds) < 1e-5


def test_where_the_original_picks_nothing_what_its_picks_read_is_compared() -> None:
    """A detector finds no box in noise: that a result finds none either says nothing."""
    text = BEHIND.replace("q = Reshape(p, shape)", "q = Identity(p)")
    model = from_text(text.replace(", int64[2] shape = {0, -1}", ""))
    level(model, np.array(1000))
    assert probe(model, CPU).outputs["y"].shape == (0, 8)
    (found,) = fused(model).report.comparison.outputs
    assert (found.name, found.cosine < 0.9999) == ("s", True)
    with pytest.raises(onnxfuse.VerificationFailed, match="output 's' has cosine similarity"):
        fused(model, min_cosine=0.9999)
    result, feeds = fused(model), probe(model, CPU).inputs
    assert oracle_error(model, result, feeds) < 1e-5
    next(n for n in result.model.graph.node if n.op_type == "Relu").op_type = "Neg"
    assert oracle_error(model, result, feeds) > 0.1


def test_rows_without_any_are_in_order() -> None:
    none, some = {"y": np.zeros((0, 8))}, {"y": np.ones((2, 8))}
    assert in_order_of(none, none) == none
    assert in_order_of(none, some) == some


def test_rows_that_change_places_are_put_back() -> None:
    """Two picks whose scores differ by a rounding; of rows that are the same, none is nearest to one only."""
    rng = np.random.default_rng(0)
    one = {"boxes": rng.standard_normal((6, 4)), "scores": rng.standard_normal(6), "count": np.array(6)}
    order = [0, 2, 1, 3, 5, 4]
    other = {"boxes": one["boxes"][order] + 1e-7, "scores": one["scores"][order], "count": one["count"]}
    back = in_order_of(one, other)
    assert furthest_apart(one, other) > 0.1
    assert furthest_apart(one, back) < 1e-6
    twice = {n: np.concatenate([a, a]) for n, a in other.items() if a.ndim}
    assert furthest_apart(in_order_of(twice, twice), twice) == 0
    many = {"y": np.arange(10_000.0)}  # distances of all pairs would fill the memory
    assert in_order_of(many, many)["y"] is many["y"]


def test_a_result_that_orders_its_picks_otherwise_with_optimizations_is_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only if rows change places: one that is far off is refused."""
    off = 0.0

    def swapped(model: Any, feeds: Any, providers: Any, *_: Any) -> tuple[dict[str, Array], dict[str, Array]]:
        plain = run(model, feeds, providers, optimized=False)
        return plain, {n: (1 + off) * a[::-1] for n, a in plain.items()}

    monkeypatch.setattr(runs, "_plain_and_fast", swapped)
    monkeypatch.setattr(runs, "with_given_picks", lambda *_: None)
    monkeypatch.setattr(verify, "with_given_picks", lambda *_: None)
    model = from_text(ORDERED)
    assert fused(model).report.comparison.agreement < 1e-6
    off = 0.1
    with pytest.raises(onnxfuse.OnnxFuseError, match="optimizations off and on differ by"):
        fused(model)


def test_a_floor_is_held_by_what_is_made_of_the_same_picks() -> None:
    """With picks of its own, a result gives other rows."""
    model = from_text(ORDERED)
    assert fused(model).report.comparison.cosine < 0.8
    assert fused(model, min_cosine=0.8).report.comparison.cosine > 0.8
