"""Convolutions refitted tap by tap, and what they read at a place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper

import onnxfuse
from onnxfuse.graph import Graph
from onnxfuse.grouping import find_channels
from onnxfuse.joins import joins
from onnxfuse.patches import patches, places, window
from onnxfuse.probe import probe
from onnxfuse.providers import provider_list
from onnxfuse.readers import readers

from .graphs import Array, from_text, run


@pytest.mark.parametrize(
    ("size", "kernel", "attributes"),
    [
        ((9,), (3,), {}),
        ((9, 7), (3, 2), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
        ((9, 8), (3, 3), {"dilations": [2, 1], "pads": [2, 1, 2, 1]}),
        ((9, 8), (3, 2), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((9, 8), (4, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
        ((9, 8), (3, 3), {"auto_pad": "VALID", "strides": [2, 2]}),
        ((5, 6, 4), (2, 3, 2), {"pads": [1, 1, 0, 0, 1, 1]}),
    ],
)
def test_weights_times_patches_are_the_convolution(
    size: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal((n, 4, *s)).astype(np.float32) for n, s in ((2, size), (5, kernel)))
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    y = convolved(node, x, w)
    at, channels = places(y.shape, 20), np.array([3, 1])
    only = np.zeros_like(w)
    only[:, channels] = w[:, channels]
    read = patches(x, channels, at, window(node, kernel), y.shape[2:])
    taps = np.moveaxis(w[:, channels].reshape(5, 2, -1), 1, 2).reshape(5, -1)
    np.testing.assert_allclose(read @ taps.T, np.moveaxis(convolved(node, x, only), 1, -1)[at], rtol=1e-4, atol=1e-5)


def convolved(node: NodeProto, x: Array, w: Array) -> Array:
    values = [helper.make_tensor_value_info(n, 1, a.shape) for n, a in (("x", x), ("w", w))]
    graph = helper.make_graph([node], "g", values, [helper.make_empty_tensor_value_info("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made: Array = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x, "w": w})[0]
    return made


SHIFTED = """(float[N,1,64] x) => (float[N,3,58] y) <float[2,1,3] w1, float[2] b1, float[3,2,5] w2, float[3] b2> {
    h = Conv(x, w1, b1)
    y = Conv(h, w2, b2)
}"""


@pytest.mark.parametrize("bias", [True, False])
def test_a_channel_that_another_has_one_place_further_is_made_up_for(bias: bool) -> None:
    """Noise at one place tells nothing of the next, so no map of channels can do it, but the next tap does."""
    rng = np.random.default_rng(1)
    w2 = np.zeros((3, 2, 5), np.float32)
    w2[:, :, 1:4] = rng.standard_normal((3, 2, 3))
    values = {
        "w1": np.array([[[0, 1, 0]], [[0, 0, 0.9]]], np.float32),
        "b1": np.array([0.5, -1], np.float32),
        "w2": w2,
        "b2": np.arange(3, dtype=np.float32),
    }
    text = SHIFTED if bias else SHIFTED.replace(", b2)", ")").replace(", float[3] b2", "").replace(", b1)", ")")
    text = text if bias else text.replace(", float[2] b1", "")
    model = from_text(text, {n: v for n, v in values.items() if n in text})
    x = {"x": rng.standard_normal((64, 1, 64)).astype(np.float32)}
    small = onnxfuse.fuse(model, sparsity=0.5, method="drop", calib=x).model
    fresh = {"x": rng.standard_normal((64, 1, 64)).astype(np.float32)}
    before, after = run(model, fresh)[0], run(small, fresh)[0]
    assert np.linalg.norm(after - before) < 0.05 * np.linalg.norm(before - before.mean())


def test_too_few_places_leave_the_taps_alone() -> None:
    """64 places say too little of 54 weights."""
    rng = np.random.default_rng(2)
    text = """(float[N,2,11] x) => (float[N,3,1] y) <float[12,2,3] w1, float[12] b1, float[3,12,9] w2, float[3] b2> {
        h = Conv(x, w1, b1)
        r = Relu(h)
        y = Conv(r, w2, b2)
    }"""
    shapes = {"w1": (12, 2, 3), "b1": (12,), "w2": (3, 12, 9), "b2": (3,)}
    model = from_text(text, {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})

    def refitted(samples: int) -> list[bool]:
        x = {"x": rng.standard_normal((samples, 2, 11)).astype(np.float32)}
        return [r.refitted is not None for r in onnxfuse.fuse(model, sparsity=0.5, calib=x).plan.repairs]

    assert refitted(64) == [False]
    assert refitted(256) == [True]


HALVES = """(float[N,1,64] x) => (float[N,1,64] y) <float[2,1,1] w1, float[2] b1, float[1,2,3] w2, float[1] b2> {
    h = Conv(x, w1, b1)
    r = Relu(h)
    t = Conv<pads=[1,1]>(r, w2, b2)
    y = Relu(t)
}"""
"""r holds 2 max(x, 0) and max(-x, 0); of the second, which goes, t needs only that it is below zero there."""


def halves(text: str, bias: float = 0) -> ModelProto:
    values = {
        "w1": np.array([2, -1], np.float32)[:, None, None],
        "b1": np.zeros(2, np.float32),
        "w2": np.array([[[0, 2, 0], [0, -3, 0]]], np.float32),
        "b2": np.array([bias], np.float32),
    }
    return from_text(text, values)


@pytest.mark.parametrize(
    ("behind", "bias"),
    [
        ("y = Relu(t)", 0),
        ("s = Add(t, x) y = Relu(s)", 0),
        ("low = Constant<value=float {0}>() high = Constant<value=float {2}>() y = Clip(t, low, high)", 0),
        ("low = Constant<value=float {0}>() y = Clip(t, low)", 0),
        ("u = Neg(t) y = Identity(u)", 0),
        ("y = HardSwish(t)", -3),
    ],
)
def test_what_an_activation_cuts_off_is_not_fitted(behind: str, bias: float) -> None:
    """The half that is left says all that passes; where nothing is cut off, the other half is missed."""
    rng = np.random.default_rng(1)
    x, fresh = ({"x": rng.standard_normal((64, 1, 64)).astype(np.float32)} for _ in range(2))
    model = halves(HALVES.replace("y = Relu(t)", behind), bias)
    before, after = (
        run(m, fresh)[0] for m in (model, onnxfuse.fuse(model, sparsity=0.5, method="drop", calib=x).model)
    )
    error = np.linalg.norm(after - before) / np.linalg.norm(before - before.mean())
    assert (error < 0.1) == ("Neg" not in behind)


def test_what_is_cut_off_but_read_elsewhere_too_is_fitted() -> None:
    """A linear fit of t has the right mean; one of what is left of it has not."""
    rng = np.random.default_rng(1)
    x = {"x": rng.standard_normal((64, 1, 64)).astype(np.float32)}
    model = halves(HALVES.replace("[N,1,64] y)", "[N,1,64] y, float[N,1,64] t)"))
    small = onnxfuse.fuse(model, sparsity=0.5, method="drop", calib=x).model
    assert abs(run(small, x)[1].mean() - run(model, x)[1].mean()) < 0.01


BEHIND = """(float[N,1,64] x) => (float[N,3,62] y)
    <float[2,1,3] w0, float[2] b0, float[2,2,1] w1, float[2] b1, float[2,1,3] wd, float[2] bd, float[3,2,1] w2,
     float[3] b2> {
    h = Conv<pads=[1,1]>(x, w0, b0)
    c = Conv(h, w1, b1)
    d = Conv<group=2>(c, wd, bd)
    y = Conv(d, w2, b2)
}"""
"""Both channels of c are h₀ + h₁, where h₁ is 0.9 times h₀ one place further, and a depthwise kernel reads them."""


def behind(bias: bool, middle: Sequence[float] = (1, 1)) -> ModelProto:
    values = {
        "w0": np.array([[[0, 1, 0]], [[0, 0, 0.9]]], np.float32),
        "b0": np.zeros(2, np.float32),
        "w1": np.ones((2, 2, 1), np.float32),
        "b1": np.full(2, bias, np.float32),
        "wd": np.array([[[0, m, 0]] for m in middle], np.float32),
        "bd": np.array([2, 2], np.float32),
        "w2": np.array([[1, -2], [3, 1], [0.5, 2]], np.float32)[..., None],
        "b2": np.arange(3, dtype=np.float32),
    }
    text = BEHIND if bias else BEHIND.replace("wd, bd)", "wd)").replace("float[2] bd, ", "")
    return from_text(text, {n: v for n, v in values.items() if n in text})


@pytest.mark.parametrize("bias", [True, False])
def test_a_depthwise_kernel_makes_up_for_what_its_channel_has_lost(bias: bool) -> None:
    """The 1 × 1 convolution that reads h₀ alone cannot say h₁ any more; the next tap of the depthwise kernel can."""
    rng = np.random.default_rng(1)
    x, fresh = ({"x": rng.standard_normal((64, 1, 64)).astype(np.float32)} for _ in range(2))
    model = behind(bias)
    result = onnxfuse.fuse(model, sparsity=0.5, method="drop", calib=x)
    kernel = next(numpy_helper.to_array(t) for t in result.model.graph.initializer if t.name == "wd")
    np.testing.assert_allclose(kernel, [[[0, 1, 0.9]]], atol=0.1)
    before, after = run(model, fresh)[0], run(result.model, fresh)[0]
    assert np.linalg.norm(after - before) < 0.1 * np.linalg.norm(before - before.mean())


def test_a_merged_depthwise_channel_is_to_say_what_its_merge_makes_of_the_two() -> None:
    """Nothing is lost before it, since only the sum of h is read: the mean of both kernels is right as it is."""
    x = {"x": np.random.default_rng(1).standard_normal((64, 1, 64)).astype(np.float32)}
    small = onnxfuse.fuse(behind(True, (1, 3)), sparsity=0.5, method="fold", calib=x).model
    kernel = next(numpy_helper.to_array(t) for t in small.graph.initializer if t.name == "wd")
    np.testing.assert_allclose(kernel, [[[0, 2, 0]]], atol=0.1)


def test_an_excluded_depthwise_kernel_keeps_every_bit() -> None:
    x = {"x": np.random.default_rng(1).standard_normal((64, 1, 64)).astype(np.float32)}
    small = onnxfuse.fuse(behind(True), sparsity=0.5, method="drop", calib=x, exclude="^d$").model
    kernel = next(numpy_helper.to_array(t) for t in small.graph.initializer if t.name == "wd")
    np.testing.assert_array_equal(kernel, [[[0, 1, 0]], [[0, 1, 0]]])


def test_a_depthwise_kernel_in_a_branch_is_merged_alone() -> None:
    """What a branch reads is not measured, as it may not run."""
    text = """(float[N,3,8,8] x) => (float[N,4,8,8] y)
        <float[8,3,3,3] w0, float[8] b0, float[8,1,3,3] wd, float[8] bd, float[4,8,1,1] w1, float[4] b1,
         float[4,3,1,1] w2, float[16,4,1,1] w3, float[16] b3, float[4,16,1,1] w4, float low = {-9}> {
        m = ReduceMax<keepdims=0>(x)
        b = Greater(m, low)
        h = If (b) <
            then_branch = one () => (float[N,4,8,8] e) {
                c = Conv<pads=[1,1,1,1]>(x, w0, b0)
                d = Conv<group=8, pads=[1,1,1,1]>(c, wd, bd)
                e = Conv(d, w1, b1)
            },
            else_branch = two () => (float[N,4,8,8] f) { f = Conv(x, w2) }
        >
        i = Conv(h, w3, b3)
        r = Relu(i)
        y = Conv(r, w4)
    }"""
    rng = np.random.default_rng(3)
    x = {"x": rng.standard_normal((64, 3, 8, 8)).astype(np.float32)}
    result = onnxfuse.fuse(from_text(text), sparsity=0.5, method="drop", calib=x)
    assert run(result.model, x)[0].shape == (64, 4, 8, 8)


SUM = """(float[N,1,64] x) => (float[N,3,64] y)
    <float[2,1,3] w0, float[2] b0, float[2,2,1] w1, float[2] b1, float[2,2,3] w2, float[2] b2, float[3,2,1] w3,
     float[3] b3> {{
    h = Conv<pads=[1,1]>(x, w0, b0)
    s = Conv(h, w1, b1)
    a = Conv<pads=[1,1]>(h, w2, b2)
    t = Add({})
    y = Conv(t, w3, b3)
}}"""
"""s is h₀ + h₁, where h₁ is 0.9 times h₀ one place further, and what is added to it is h₀ / 2."""


@pytest.mark.parametrize("operands", ["s, a", "a, s"])
def test_what_is_added_makes_up_for_what_its_shortcut_has_lost(operands: str) -> None:
    """The 1 × 1 convolution of the shortcut cannot say h₁ any more; another tap of what is added to it can."""
    rng = np.random.default_rng(1)
    w2 = np.zeros((2, 2, 3), np.float32)
    w2[:, 0, 1] = 0.5
    values = {
        "w0": np.array([[[0, 1, 0]], [[0, 0, 0.9]]], np.float32),
        "b0": np.array([0.5, 0], np.float32),
        "w1": np.ones((2, 2, 1), np.float32),
        "b1": np.array([1, -1], np.float32),
        "w2": w2,
        "b2": np.array([0, 2], np.float32),
        "w3": rng.standard_normal((3, 2, 1)).astype(np.float32),
        "b3": np.arange(3, dtype=np.float32),
    }
    model = from_text(SUM.format(operands), values)
    x, fresh = ({"x": rng.standard_normal((64, 1, 64)).astype(np.float32)} for _ in range(2))
    small = onnxfuse.fuse(model, sparsity=0.5, method="drop", calib=x, only="^h$").model
    kernel = next(numpy_helper.to_array(t) for t in small.graph.initializer if t.name == "w2")
    np.testing.assert_allclose(kernel, np.broadcast_to([0, 0.5, 0.9], (2, 1, 3)), atol=0.1)
    before, after = run(model, fresh)[0], run(small, fresh)[0]
    assert np.linalg.norm(after - before) < 0.15 * np.linalg.norm(before - before.mean())


def test_a_sum_whose_other_operand_still_changes_is_left() -> None:
    """The shortcut's own convolution comes last here, so it is what makes up for the other."""
    rng = np.random.default_rng(2)
    text = """(float[N,3,8,8] x) => (float[N,4] y)
        <float[8,3,3,3] w0, float[8] b0, float[8,8,3,3] w1, float[8] b1, float[8,8,3,3] w2, float[8] b2,
         float[8,8,1,1] w3, float[8] b3, float[4,8] w4, float[4] b4> {
        c = Conv<pads=[1,1,1,1]>(x, w0, b0)
        h = Relu(c)
        d = Conv<pads=[1,1,1,1]>(h, w1, b1)
        r = Relu(d)
        e = Conv<pads=[1,1,1,1]>(r, w2, b2)
        p = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(h)
        f = Conv(p, w3, b3)
        t = Add(e, f)
        u = Relu(t)
        m = GlobalAveragePool(u)
        v = Flatten(m)
        y = Gemm<transB=1>(v, w4, b4)
    }"""
    model = from_text(text)
    x = {"x": rng.standard_normal((64, 3, 8, 8)).astype(np.float32)}
    assert joins_of(model) == {"f": "e"}
    small = onnxfuse.fuse(model, sparsity=0.5, calib=x).model
    assert run(small, x)[0].shape == (64, 4)


def joins_of(model: ModelProto) -> dict[str, str]:
    """What a convolution makes → what that is added to, of all sums that are repaired."""
    graph = Graph(model)
    channels = find_channels(graph, probe(model, provider_list("cpu")))
    order = sorted(readers(channels, []), key=lambda r: r.slot.edge.node)
    return {reader.made: join.other for reader, join in joins(channels, order).items()}
