"""Lines of writing: what is drawn, for which inputs, and what it is good for."""

from __future__ import annotations

import string

import numpy as np
import onnx
import pytest

import onnxfuse
from onnxfuse.calibrate import study
from onnxfuse.graph import Graph
from onnxfuse.grouping import find_channels
from onnxfuse.prepare import prepare
from onnxfuse.probe import Probe, probe
from onnxfuse.samples import synthetic, written
from onnxfuse.tensors import Array
from onnxfuse.trust import Source
from onnxfuse.writing import FIGURES, MARKS, SIGNS, is_line, line

from .graphs import from_text

CPU = ["CPUExecutionProvider"]
READER = """(float[N,INPUT] x) => (float[N,4,A,B] y)
    <float[8,CHANNELS,3,3] w1, float[8] b1, float[8,8,3,3] w2, float[8] b2, float[4,8,1,1] w3> {
    c = Conv<pads=[1,1,1,1], strides=[FIRST]>(x, w1, b1)
    r = Relu(c)
    d = Conv<pads=[1,1,1,1], strides=[SECOND]>(r, w2, b2)
    s = Relu(d)
    y = Conv(s, w3)
}"""


def reader(sizes: str, first: str = "2,1", second: str = "2,1", channels: int = 3) -> onnx.ModelProto:
    text = READER.replace("INPUT", f"{channels},{sizes}").replace("CHANNELS", str(channels))
    return from_text(text.replace("FIRST", first).replace("SECOND", second))


def samples(model: onnx.ModelProto, probed: Probe, count: int = 16) -> Array:
    return np.concatenate([batch["x"] for batch in synthetic(model, probed, count, seed=1)])


@pytest.mark.parametrize(
    ("shape", "is_one"),
    [
        ((3, 48, 192), True),
        ((1, 32, 96), True),
        ((3, 64, 400), True),
        ((3, 64, 190), False),
        ((3, 65, 400), False),
        ((3, 224, 224), False),
        ((2, 48, 192), False),
        ((1, 1, 400), False),
    ],
)
def test_which_images_are_lines(shape: tuple[int, int, int], is_one: bool) -> None:
    assert is_line(shape) == is_one


def test_there_is_a_sign_for_all_that_is_written() -> None:
    assert set(string.ascii_letters + FIGURES + MARKS) == set(SIGNS)
    for strokes in SIGNS.values():
        corners = np.array([list(map(int, corner)) for stroke in strokes.split("|") for corner in stroke.split()])
        assert (corners >= 0).all()
        assert (corners <= (6, 8)).all()
        assert all(len(stroke.split()) > 1 for stroke in strokes.split("|"))


@pytest.mark.parametrize("shape", [(3, 48, 192), (1, 32, 96), (3, 8, 24), (1, 2, 200)])
def test_lines_are_signs_on_a_ground(shape: tuple[int, int, int]) -> None:
    """Of two tones far from each other, one of which takes less room, all different and the same by the same seed."""
    rng, again = np.random.default_rng(3), np.random.default_rng(3)
    made = np.stack([line(shape, rng) for _ in range(64)])
    assert made.shape == (64, *shape)
    assert np.array_equal(made, np.stack([line(shape, again) for _ in range(64)]))
    assert len(np.unique(made.reshape(64, -1), axis=0)) == 64
    assert made.min() >= -1
    assert made.max() <= 1
    assert abs(made.mean()) < 0.2
    assert made.std(axis=(2, 3)).mean() > 0.2


def test_ink_takes_less_room_than_what_it_is_on() -> None:
    rng = np.random.default_rng(3)
    made = np.stack([line((1, 48, 192), rng)[0] for _ in range(64)])
    middles = (made.max(axis=(1, 2)) + made.min(axis=(1, 2))) / 2
    light = (made > middles[:, None, None]).mean(axis=(1, 2))
    assert np.median(np.minimum(light, 1 - light)) == pytest.approx(0.2, abs=0.1)
    assert 0.25 < (light > 0.5).mean() < 0.75  # black on white, and white on black


def test_behind_short_lines_there_is_nothing() -> None:
    rng = np.random.default_rng(3)
    ends = [line((3, 48, 192), rng)[:, :, -8:] for _ in range(200)]
    assert np.mean([not end.any() for end in ends]) == pytest.approx(0.2, abs=0.08)


@pytest.mark.parametrize("sizes", ["48,192", "32,W", "H,W"])
def test_inputs_as_low_as_lines_are_drawn_so(sizes: str) -> None:
    model = reader(sizes)
    probed = probe(model, CPU)
    drawn = samples(model, probed)
    assert written(model, probed) == {"x"}
    assert drawn.shape[2] in (32, 48)
    assert drawn.shape[3] == 192
    assert abs(drawn).max() == 1  # images of leaves are beyond


def test_channels_may_come_last() -> None:
    model = from_text(
        """(float[N,H,W,3] x) => (float[N,4,A,B] y) <float[8,3,3,3] w1, float[4,8,3,3] w2> {
            t = Transpose<perm=[0,3,1,2]>(x)
            c = Conv<strides=[2,1]>(t, w1)
            r = Relu(c)
            y = Conv<strides=[2,1]>(r, w2)
        }"""
    )
    probed = probe(model, CPU)
    assert samples(model, probed).shape == (16, 48, 192, 3)
    assert written(model, probed) == {"x"}


@pytest.mark.parametrize(("sizes", "strides"), [("H,W", "2,2"), ("H,W", "1,2"), ("48,48", "2,1"), ("224,224", "2,1")])
def test_others_are_not(sizes: str, strides: str) -> None:
    model = reader(sizes, first="2,1", second=strides)
    probed = probe(model, CPU)
    assert not written(model, probed)
    assert samples(model, probed).shape[2:] in ((224, 224), (48, 48))


def test_a_low_image_that_does_not_run_is_guessed_again() -> None:
    """A matrix behind the convolutions takes one size only."""
    model = from_text(
        """(float[N,3,H,W] x) => (float[N,5] y) <float[8,3,3,3] w1, float[8,8,3,3] w2, float[32768,5] w3> {
            c = Conv<pads=[1,1,1,1], strides=[2,1]>(x, w1)
            r = Relu(c)
            d = Conv<pads=[1,1,1,1], strides=[4,2]>(r, w2)
            f = Flatten(d)
            y = MatMul(f, w3)
        }"""
    )
    assert probe(reader("H,W"), CPU).inputs["x"].shape == (2, 3, 48, 192)
    assert probe(model, CPU).inputs["x"].shape[2:] == (256, 256)


def test_what_is_measured_on_lines_chooses() -> None:
    for sizes, source in (("48,192", Source.WRITING), ("48,48", Source.OTHER)):
        model = reader(sizes)
        prepare(model)
        probed = probe(model, CPU)
        channels = find_channels(Graph(model), probed)
        assert study(channels, [], synthetic(model, probed, 16, seed=1), None).source is source


def test_the_report_tells_what_was_guessed() -> None:
    notes = onnxfuse.fuse(reader("H,W"), sparsity=0.5, round_to=1).report.notes
    assert any("--input-shape x:1,3,48,192" in note for note in notes)
