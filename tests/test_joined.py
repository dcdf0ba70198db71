"""Outputs of parts of different sizes: each part is compared, and none drowns in the others."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

from onnxfuse import VerificationFailed, fuse
from onnxfuse.comparison import difference
from onnxfuse.joined import Faint, faint_parts, taken_apart
from onnxfuse.probe import probe
from onnxfuse.providers import provider_list

from .graphs import from_text

CPU = provider_list("cpu")
DETECTOR = """(float[N,3,12,12] x) => (float[N,7,100] y)
    <float[16,3,3,3] w1, float[16] b1, float[4,16,1,1] w2, float[3,16,1,1] w3, float pixels = {100.0},
     int64[3] boxes = {0, 4, 100}, int64[3] classes = {0, 3, 100}> {
    c = Conv(x, w1, b1)
    r = Relu(c)
    a = Conv(r, w2)
    p = Mul(a, pixels)
    u = Reshape(p, boxes)
    d = Conv(r, w3)
    e = Reshape(d, classes)
    s = Sigmoid(e)
    JOIN
}"""
JOINED = {
    "at once": ("y = Concat<axis=1>(u, s)", "s"),
    "turned": ("m = Transpose<perm=[0, 2, 1]>(u)\n n = Transpose<perm=[0, 2, 1]>(s)\n q = Concat<axis=2>(m, n)\n"
               " y = Transpose<perm=[0, 2, 1]>(q)", "s"),
    "in two steps": ("k, l = Split<axis=1>(u, two)\n t = Concat<axis=1>(k, l)\n z = Identity(t)\n"
                     " y = Concat<axis=1>(z, s)", "s"),
    "scores first": ("y = Concat<axis=1>(s, u)", "s"),
}  # fmt: skip


def detector(join: str) -> ModelProto:
    text = DETECTOR.replace("JOIN", join)
    return from_text(text.replace("<float[16", "<int64[2] two = {2, 2}, float[16", 1) if "two" in join else text)


@pytest.mark.parametrize("name", JOINED)
def test_scores_beside_boxes_in_pixels_are_compared(name: str) -> None:
    join, part = JOINED[name]
    model = detector(join)
    report = fuse(model, sparsity=0.5, method="drop").report
    whole, scores = report.comparison.outputs
    assert (whole.name, scores.name) == ("y", f"y ({part})")
    assert scores.max_abs <= 1 < whole.max_abs
    assert report.comparison.cosine == min(whole.cosine, scores.cosine)


def test_where_a_part_is() -> None:
    """And that of another number of samples; an output of another shape stays whole."""
    model = detector(JOINED["at once"][0])
    found = probe(model, CPU)
    (faint,) = found.faint.values()
    assert (faint.name, faint.mask.shape) == ("s", (1, 7, 100))
    assert faint.mask[0].all(axis=1).tolist() == [False] * 4 + [True] * 3
    three, four = np.ones((3, 7, 100)), np.ones((3, 7, 99))
    first, second = taken_apart({"y": three}, {"y": 2 * three}, found.faint)
    assert {n: v.shape for n, v in first.items()} == {"y": (3, 400), "y (s)": (3, 300)}
    assert difference("y", first["y (s)"], second["y (s)"]).relative == 1
    assert taken_apart({"y": four}, {"y": four}, found.faint)[0].keys() == {"y"}
    assert taken_apart({"y": three}, {"y": four}, found.faint)[0].keys() == {"y"}


def test_parts_of_one_size_stay_together() -> None:
    text = "(float[N,4] x) => (float[N,8] y) { r = Relu(x)\n y = Concat<axis=1>(x, r) }"
    assert probe(from_text(text), CPU).faint == {}


def test_rows_that_are_joined() -> None:
    """Without samples: the mask is of every row."""
    text = """(float[5,4] x) => (float[10,4] y) <float big = {100.0}> {
        p = Mul(x, big)
        y = Concat<axis=0>(p, x)
    }"""
    model = from_text(text)
    found = probe(model, CPU)
    parts = faint_parts(model, found.outputs, found.shapes)
    assert (parts["y"].name, parts["y"].mask[:, 0].tolist()) == ("x", [False] * 5 + [True] * 5)
    first, _ = taken_apart(found.outputs, found.outputs, parts)
    np.testing.assert_array_equal(first["y (x)"], found.inputs["x"].ravel())


def test_what_is_not_finite_is_left_whole() -> None:
    model = from_text("(float[5,4] x) => (float[10,4] y) { p = Log(x)\n y = Concat<axis=0>(p, x) }")
    found = probe(model, CPU)
    assert faint_parts(model, {"y": np.full((10, 4), np.nan)}, found.shapes) == {}


def test_a_floor_holds_for_scores() -> None:
    """A detector whose boxes are all right, and whose scores are gone."""
    model = detector(JOINED["at once"][0])
    cosines = {o.name: o.cosine for o in fuse(model, sparsity=0.5, method="drop").report.comparison.outputs}
    floor = (cosines["y"] + cosines["y (s)"]) / 2
    low = min(cosines, key=cosines.__getitem__)
    with pytest.raises(VerificationFailed) as caught:
        fuse(model, sparsity=0.5, method="drop", min_cosine=floor)
    assert f"output {low!r} has cosine similarity" in str(caught.value)


def test_a_mask_of_all_samples() -> None:
    faint = Faint("s", np.array([[True, False]]))
    rest, part = faint.split(np.arange(6).reshape(3, 2))
    assert (rest.tolist(), part.tolist()) == ([[1], [3], [5]], [[0], [2], [4]])
    assert not faint.fits(np.zeros((3, 3)))
