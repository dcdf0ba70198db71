"""Recurrent networks: their states are known, and every sample starts from what the one before has left."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

import onnxfuse
from onnxfuse.carryover import carried_over, next_states
from onnxfuse.probe import Probe, probe
from onnxfuse.samples import synthetic
from onnxfuse.states import is_state

from .graphs import from_text, run

CPU = ["CPUExecutionProvider"]
COUNTING = """(float[N,4] x, float[N,4] {state}) => (float[N,4] y, float[N,4] {next}) <float[4,8] w1, float[8,4] w2> {{
    {next} = Add(x, {state})
    m = MatMul({next}, w1)
    r = Relu(m)
    y = MatMul(r, w2)
}}"""
"""Its state is the sum of all that it was given; no operator tells that it is one, but its name does."""
LAYERED = """(float[N,6] x, float[2,N,5] state, bool up) => (float[1,1,N,5] y, float[2,N,5] after)
    <float[1,20,6] w1, float[1,20,5] r1, int64[1] zero = {0}, int64 first = {0}, int64 second = {1}> {
    t = Unsqueeze(x, zero)
    y, after = If(up) <
        then_branch = yes () => (float[1,1,N,5] a, float[2,N,5] b) {
            h = Gather(state, first)
            c = Gather(state, second)
            h1 = Unsqueeze(h, zero)
            c1 = Unsqueeze(c, zero)
            a, hn, cn = LSTM<hidden_size=5>(t, w1, r1, , , h1, c1)
            b = Concat<axis=0>(hn, cn)
        },
        else_branch = no () => (float[1,1,N,5] d, float[2,N,5] e) {
            d, en, fn = LSTM<hidden_size=5>(t, w1, r1)
            e = Concat<axis=0>(en, fn)
        }>
}"""
"""As Silero's VAD: both parts of an LSTM's state are one input, which only one branch reads."""


def counting(state: str = "state", following: str = "stateN") -> tuple[ModelProto, Probe]:
    model = from_text(COUNTING.format(state=state, next=following))
    return model, probe(model, CPU)


@pytest.mark.parametrize(
    ("state", "following", "known"), [("h", "hn", True), ("h", "next", False), ("state", "state_out", True)]
)
def test_a_state_is_known_by_its_name(state: str, following: str, known: bool) -> None:
    model, reference = counting(state, following)
    assert (is_state(model, state), is_state(model, "x")) == (known, False)
    assert next_states(model, reference) == ({state: following} if known else {})


def test_an_only_input_is_no_state() -> None:
    model = from_text("(float[N,4] x) => (float[N,4] x_out) <float[4,4] w1> { x_out = MatMul(x, w1) }")
    assert not is_state(model, "x")


def test_an_image_is_no_state() -> None:
    model = from_text("""(float[N,3,8,8] x, float[1] scale) => (float[N,3,8,8] x_out) { x_out = Mul(x, scale) }""")
    assert not is_state(model, "x")


def test_what_a_convolution_reads_alone_is_no_state() -> None:
    """As a voice and who is to have it."""
    model = from_text("""(float[N,1,64] voice, float[N,4,1] speaker) => (float[N,4,60] voice_out) <float[4,1,5] w1> {
        h = Conv(voice, w1)
        voice_out = Mul(h, speaker)
    }""")
    assert not is_state(model, "voice")


def test_every_run_starts_from_what_the_one_before_has_left() -> None:
    model, reference = counting()
    drawn = synthetic(model, reference, 64, 0)
    found = carried_over(model, reference, drawn)
    total = np.zeros_like(drawn[0]["state"])
    for before, after in zip(drawn, found, strict=True):
        assert not before["state"].any()
        np.testing.assert_array_equal(after["x"], before["x"])
        np.testing.assert_allclose(after["state"], total, rtol=1e-5, atol=1e-6)
        total = total + before["x"]


def test_a_state_in_a_branch_is_one() -> None:
    model = from_text(LAYERED)
    reference = probe(model, CPU, {"state": (2, 2, 5)})
    batches = carried_over(model, reference, synthetic(model, reference, 8, 0))
    assert not batches[0]["state"].any()
    np.testing.assert_allclose(batches[1]["state"], run(model, batches[0])[1], rtol=1e-5, atol=1e-6)


def test_states_that_are_given_stay() -> None:
    model, reference = counting()
    batches = [{"x": np.ones((2, 4), np.float32), "state": np.full((2, 4), i, np.float32)} for i in range(3)]
    assert carried_over(model, reference, batches) == batches


def test_a_run_of_another_size_starts_anew() -> None:
    model, reference = counting()
    batches = [{"x": np.ones((n, 4), np.float32), "state": np.zeros((n, 4), np.float32)} for n in (2, 2, 1)]
    assert [b["state"].sum() for b in carried_over(model, reference, batches)] == [0, 8, 0]


def test_channels_that_states_wake_up_stay() -> None:
    """Two of four are silent as long as the sum is below 4, and say the most of it then."""
    weights = {
        "w1": np.eye(2, 4, dtype=np.float32) + 0.05 * np.eye(2, 4, 2, dtype=np.float32),
        "b1": np.array([-4, -4, 0, 0], np.float32),
        "w2": np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32),
    }
    model = from_text(
        """(float[N,2] x, float[N,2] state) => (float[N,2] y, float[N,2] stateN)
        <float[2,4] w1, float[4] b1, float[4,2] w2> {
            stateN = Add(x, state)
            m = MatMul(stateN, w1)
            a = Add(m, b1)
            r = Relu(a)
            y = MatMul(r, w2)
        }""",
        weights,
    )
    x = np.abs(np.random.default_rng(0).standard_normal((256, 2))).astype(np.float32)
    calib = {"x": x, "state": np.zeros_like(x)}
    small = onnxfuse.fuse(model, sparsity=0.5, method="drop", importance="energy", calib=calib).model
    feeds = {"x": x[:64], "state": 10 * x[64:128]}
    before, after = (run(m, feeds)[0] for m in (model, small))
    assert np.linalg.norm(after - before) < 0.2 * np.linalg.norm(before)


def test_sizes_that_were_guessed_are_told() -> None:
    text = """(float[N,1,L] x) => (float[N,4,M] y)
        <float[8,1,5] w1, float[8] b1, float[4,8,1] w2,
         float[8] n_scale, float[8] n_shift, float[8] n_mean, float[8] n_var> {
        c = Conv(x, w1, b1)
        n = BatchNormalization(c, n_scale, n_shift, n_mean, n_var)
        r = Relu(n)
        y = Conv(r, w2)
    }"""
    told = "sizes that the model leaves open were guessed: --input-shape x:1,1,224; give those it is used with"
    assert told in onnxfuse.fuse(from_text(text), sparsity=0.5).report.notes
    for options in (
        {"input_shapes": {"x": (1, 1, 99)}},
        {"calib": {"x": np.random.default_rng(0).standard_normal((64, 1, 40)).astype(np.float32)}},
    ):
        assert not any(
            "guessed" in note for note in onnxfuse.fuse(from_text(text), sparsity=0.5, **options).report.notes
        )
