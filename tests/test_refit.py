"""Convolutions refitted tap by tap, and what they read at a place."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import NodeProto, helper

import onnxfuse
from onnxfuse.patches import patches, places, window

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
