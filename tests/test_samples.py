"""Synthetic inputs are what the graph's inputs look like they take."""

from __future__ import annotations

import numpy as np
import pytest

from onnxfuse.probe import probe
from onnxfuse.providers import provider_list
from onnxfuse.samples import synthetic
from onnxfuse.tensors import Array

from .graphs import from_text

TEXTS = {
    "one-hot": """(int32[N,40] x) => (float[N,40,4] y) <int32[1,1,7] codes = {0,1,2,3,4,5,6}, int64[3] shape = {0,40,1},
         float[7,4] w1> {
        r = Reshape(x, shape)
        e = Equal(r, codes)
        h = Cast<to=1>(e)
        y = MatMul(h, w1)
    }""",
    "one token": "(int64 x) => (float[4] y) <float[7,4] w1> { y = Gather(w1, x) }",
    "masked": """(int64[N,40] x) => (float[N,40,4] y, bool[N,40,2] m) <int64[1,1,2] special = {0, 6}, float[7,4] w1,
         int64[1] last = {-1}> {
        u = Unsqueeze(x, last)
        m = Equal(u, special)
        y = Gather(w1, x)
    }""",
    "embedding": "(int64[N,40] x) => (float[N,40,4] y) <float[7,4] w1> { y = Gather(w1, x) }",
    "recurrent": """(float[3,N,6] x, float[1,N,5] h, float[N,5] c) => (float[3,1,N,5] y, float[1,N,5] hn)
        <float[1,20,6] w1, float[1,20,5] r1, int64[1] zero = {0}> {
        c1 = Unsqueeze(c, zero)
        y, hn, cn = LSTM<hidden_size=5>(x, w1, r1, , , h, c1)
    }""",
    "signal": "(float[N,1,300] x) => (float[N,4,296] y) <float[4,1,5] w1> { y = Conv(x, w1) }",
}


def drawn(case: str, count: int = 32) -> dict[str, Array]:
    model = from_text(TEXTS[case])
    batches = synthetic(model, probe(model, provider_list("cpu")), count, seed=1)
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


@pytest.mark.parametrize("case", ["one-hot", "embedding", "masked"])
def test_tokens(case: str) -> None:
    x = drawn(case)["x"]
    assert set(np.unique(x)) == set(range(7))
    assert len(np.unique(x, axis=0)) == len(x)


def test_one_token_alone() -> None:
    model = from_text(TEXTS["one token"])
    batches = synthetic(model, probe(model, provider_list("cpu")), 4, seed=1)
    assert {b["x"].shape for b in batches} == {()}
    assert all(0 <= int(b["x"]) < 7 for b in batches)


def test_a_state_is_zero_at_first() -> None:
    inputs = drawn("recurrent", 4)
    assert not inputs["h"].any()
    assert not inputs["c"].any()
    assert inputs["x"].std() > 0.5


def test_signals_have_deviation_one() -> None:
    x = drawn("signal")["x"]
    assert np.allclose(x.mean(axis=(1, 2)), 0, atol=1e-5)
    assert np.allclose(x.std(axis=(1, 2)), 1, atol=1e-5)
