"""Synthetic inputs are what the graph's inputs look like they take."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxfuse import fuse
from onnxfuse.bytestreams import PADDING, SIZES
from onnxfuse.calibdata import Batches
from onnxfuse.calibrate import study
from onnxfuse.ends import ended
from onnxfuse.errors import Unsound
from onnxfuse.graph import Graph
from onnxfuse.grouping import find_channels
from onnxfuse.levels import levelled
from onnxfuse.measuring import survey
from onnxfuse.options import Options
from onnxfuse.picking import with_outputs
from onnxfuse.prepare import prepare
from onnxfuse.probe import probe
from onnxfuse.providers import provider_list
from onnxfuse.runs import run
from onnxfuse.samples import sample_count, synthetic
from onnxfuse.states import waveforms
from onnxfuse.tensors import Array
from onnxfuse.trust import Source

from .graphs import MODELS, build, from_text
from .test_repair import images

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
    "real numbers": """(float[N,40] x) => (float[N,40,4] y) <float[7,4] w1> {
        i = Cast<to=6>(x)
        y = Gather(w1, i)
    }""",
    "masked real numbers": """(float[N,40] x) => (float[N,40,4] y, bool[N,40] m) <float[7,4] w1, float none = {0}> {
        m = Equal(x, none)
        i = Cast<to=6>(x)
        y = Gather(w1, i)
    }""",
    "read as they are, too": """(float[N,40] x) => (float[N,40,4] y) <float[7,4] w1, int64[1] last = {2}> {
        i = Cast<to=7>(x)
        e = Gather(w1, i)
        u = Unsqueeze(x, last)
        y = Add(e, u)
    }""",
    "embedding": "(int64[N,40] x) => (float[N,40,4] y) <float[7,4] w1> { y = Gather(w1, x) }",
    "recurrent": """(float[3,N,6] x, float[1,N,5] h, float[N,5] c) => (float[3,1,N,5] y, float[1,N,5] hn)
        <float[1,20,6] w1, float[1,20,5] r1, int64[1] zero = {0}> {
        c1 = Unsqueeze(c, zero)
        y, hn, cn = LSTM<hidden_size=5>(x, w1, r1, , , h, c1)
    }""",
    "sound": """(float[N,576] x) => (float[N,4,1,284] y)
        <int64[2] axes = {1, 2}, float[4,1,1,10] w1, float[4] b1, float[4] scale, float[4] shift, float[4] mean,
         float[4] variance> {
        u = Unsqueeze(x, axes)
        c = Conv<strides=[1,2]>(u, w1, b1)
        r = Relu(c)
        y = BatchNormalization(r, scale, shift, mean, variance)
    }""",
    "signal": "(float[N,1,300] x) => (float[N,4,296] y) <float[4,1,5] w1> { y = Conv(x, w1) }",
}
UNPINNED = """(float[N,CHANNELS,300] x) => (float[N,4,292] y)
    <float[8,CHANNELS,5] w1, float[8] b1, float[4,8,5] w2, float[4] b2> {
    c = Conv(x, w1, b1)
    r = Relu(c)
    y = Conv(r, w2, b2)
}"""
"""Two convolutions without a normalization."""


READING = """(int64[N,L] ids, int64[N,L] mask, int64[N,L] position_ids, int64[N] lengths) =>
    (float[N,L,3] y, int64[N] z)
    <float[ROWS,6] w1, float[40,6] w2, float[6,8] w3, float[8,3] w4, int64[1] last = {2}> {
    e = Gather(w1, ids)
    p = Gather(w2, position_ids)
    s = Add(e, p)
    c = Cast<to=1>(mask)
    u = Unsqueeze(c, last)
    v = Mul(s, u)
    h = MatMul(v, w3)
    r = Relu(h)
    y = MatMul(r, w4)
    z = Identity(lengths)
}"""
"""A text model's inputs as Hugging Face names them, but for the lengths, of which nothing is known."""


def drawn(case: str, count: int = 32) -> dict[str, Array]:
    model = from_text(TEXTS[case])
    batches = synthetic(model, probe(model, provider_list("cpu")), count, seed=1)
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


@pytest.mark.parametrize("case", ["one-hot", "embedding", "masked", "real numbers", "masked real numbers"])
def test_tokens(case: str) -> None:
    x = drawn(case)["x"]
    assert set(np.unique(x)) == set(range(7))
    assert len(np.unique(x, axis=0)) == len(x)


def test_codes_are_probed_as_whole_numbers() -> None:
    probed = probe(from_text(TEXTS["real numbers"]), provider_list("cpu")).inputs["x"]
    assert probed.dtype == np.float32
    assert set(np.unique(probed)) == {0, 1}


def test_what_is_no_integer_is_read_as_it_is() -> None:
    """A number that something takes as it is, and that is cast to an index elsewhere, is no code."""
    x = drawn("read as they are, too")["x"]
    assert (x != np.round(x)).any()


def files(vocabulary: int) -> list[Array]:
    text = f"(int64[N,2048] x) => (float[N,2048,2] y) <float[{vocabulary},2] w1> {{ y = Gather(w1, x) }}"
    model = from_text(text)
    return [x for b in synthetic(model, probe(model, provider_list("cpu")), 64, seed=1) for x in b["x"]]


def test_bytes_are_those_of_files() -> None:
    """A vocabulary of 256: three times as many samples, texts and binary files."""
    made = [bytes(x.astype(np.uint8)) for x in files(256)]
    texts = [f for f in made if all(c in b"\t\r\n" or 32 <= c < 127 for c in f)]
    assert len(set(made)) == len(made) == 192
    assert 0.5 < len(texts) / len(made) < 0.75
    common = np.array([[f.count(letter) for letter in (b" ", b"e", b"q")] for f in texts]).sum(axis=0)
    assert list(np.argsort(-common)) == [0, 1, 2]
    binary = [np.frombuffer(f, np.uint8) for f in made if f not in texts]
    assert np.mean([(x == 0).mean() > 0.02 for x in binary]) > 0.7


def test_files_are_of_many_kinds() -> None:
    """Markup, keys with values, tables, code; records, whose bytes repeat; packed data, which has no structure."""
    made = [bytes(x.astype(np.uint8)) for x in files(256)]
    forms = [rb"</\w+>\r?\n *<", rb'"\w+": ("\w+"|\d+),\r?\n', rb"\n(\d+([,;\t|])\w+)(\2\w+)*\r?\n", rb"\(\w+, \w+\)"]
    assert all(sum(re.search(form, f) is not None for f in made) >= 3 for form in forms)
    codes = [np.frombuffer(f, np.uint8) for f in made]
    repeats = [max(np.mean(x[size:] == x[:-size]) for size in SIZES) for x in codes]
    assert 10 <= sum(share > 0.5 for share in repeats) <= 60
    assert 3 <= sum(share < 0.01 for share in repeats) <= 25


def test_short_files_are_padded_where_a_code_is_left_for_it() -> None:
    padded = [x for x in files(257) if (x == PADDING).any()]
    assert 0.2 < len(padded) / 192 < 0.4
    for x in padded:
        at = np.flatnonzero(x == PADDING)
        assert at[-1] - at[0] == len(at) - 1


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


def test_sound_is_no_flattened_image() -> None:
    """576 = 24², but a convolution along one axis reads it."""
    assert waveforms(from_text(TEXTS["sound"])) == {"x"}
    assert waveforms(from_text(TEXTS["embedding"])) == set()
    x = drawn("sound")["x"]
    assert x.shape[1] == 576
    assert np.allclose(x.std(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("level", [1.0, 0.3, 0.1, 0.03])
@pytest.mark.parametrize("folded", [False, True])
def test_a_normalization_tells_how_loud_sound_is(level: float, folded: bool) -> None:
    model = from_text(TEXTS["sound"].replace("Relu(c)", "Identity(c)" if folded else "Relu(c)"))
    batches = synthetic(model, probe(model, provider_list("cpu")), 64, seed=1)
    shown = with_outputs(model, ["r"])
    run = ort.InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    made = np.concatenate([run.run(["r"], {"x": b["x"] * np.float32(level)})[0] for b in batches])
    statistics = {"mean": made.mean((0, 2, 3)), "variance": made.var((0, 2, 3)), "scale": made.std((0, 2, 3))}
    for tensor in model.graph.initializer:
        if tensor.name in statistics:
            tensor.CopyFrom(onnx.numpy_helper.from_array(statistics[tensor.name].astype(np.float32), tensor.name))
    assert found_level(model, batches) == pytest.approx(level, rel=1e-3)


def test_without_a_normalization_sound_is_as_loud_as_recordings_are() -> None:
    model = from_text(TEXTS["sound"].replace("BatchNormalization(r, scale, shift, mean, variance)", "Identity(r)"))
    batches = synthetic(model, probe(model, provider_list("cpu")), 4, seed=1)
    assert found_level(model, batches) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(("channels", "method"), [(1, "surgeon"), (2, "fold-variance")])
def test_where_nothing_pins_synthetic_samples_only_sound_decides_what_stays(channels: int, method: str) -> None:
    result = fuse(from_text(UNPINNED.replace("CHANNELS", str(channels))), sparsity=0.5, round_to=1)
    assert [merge.method for _, merge in result.plan.merges] == [method]


@pytest.mark.parametrize(("rows", "method"), [(1000, "surgeon"), (200, "fold-variance")])
def test_so_does_text_of_more_than_letters(rows: int, method: str) -> None:
    result = fuse(from_text(READING.replace("ROWS", str(rows))), sparsity=0.5)
    assert {merge.method for _, merge in result.plan.merges} == {method}


@pytest.mark.parametrize(("rows", "source"), [(200, Source.LETTERS), (257, Source.FILES), (1000, Source.TEXT)])
def test_letters_bytes_and_words_are_told_apart(rows: int, source: Source) -> None:
    model = from_text(READING.replace("ROWS", str(rows)))
    reference = probe(model, provider_list("cpu"))
    channels = find_channels(Graph(model), reference)
    assert study(channels, [], synthetic(model, reference, 16, seed=1), known=None).source is source


@pytest.mark.parametrize(("name", "source"), [("depthwise", Source.SEPARABLE), ("conv_bn", Source.ANCHORED)])
def test_networks_of_depthwise_kernels_are_told_apart(name: str, source: Source) -> None:
    model = build(name)
    folded, reference = prepare(model), probe(model, provider_list("cpu"))
    channels = find_channels(Graph(model), reference)
    assert study(channels, folded, synthetic(model, reference, 16, seed=1), known=None).source is source


@pytest.mark.parametrize(("group", "norm", "rough"), [(8, True, True), (8, False, False), (1, True, False)])
def test_images_have_texture_for_depthwise_kernels_that_are_pinned(group: int, norm: bool, rough: bool) -> None:
    """Leaves alone are even: most second differences along a row are nothing."""
    normal = "BatchNormalization(c, g1, b1, m1, v1)" if norm else "Identity(c)"
    text = """(float[N,3,24,24] x) => (float[N,4,18,18] y)
        <float[8,3,3,3] w1, float[8,READ,3,3] w2, float[8] g1, float[8] b1, float[8] m1, float[8] v1,
         float[4,8,3,3] w3> {
        b = Conv(x, w1)
        c = Conv<group=GROUP>(b, w2)
        n = NORMAL
        r = Relu(n)
        y = Conv(r, w3)
    }""".replace("NORMAL", normal)
    model = from_text(text.replace("READ", str(8 // group)).replace("GROUP", str(group)))
    drawn = synthetic(model, probe(model, provider_list("cpu")), 64, seed=1)
    if norm:
        record(model, [batch["x"] for batch in drawn], FIRST)
    folded = prepare(model)
    channels = find_channels(Graph(model), probe(model, provider_list("cpu")))
    measured = survey(channels, folded, Options(sparsity=0.5), None, (1000, 1000))
    assert measured is not None
    for batches in (measured.batches, measured.others):
        even = np.mean([abs(np.diff(b["x"], 2)) < 1e-4 for b in batches])
        assert even < 0.01 if rough else even > 0.5


def test_text_comes_in_short_pieces_and_all_of_it_is_seen() -> None:
    """In many short pieces there is more to see than in a few long ones. Masks are ones and positions count."""
    model = from_text(READING.replace("ROWS", "1000"))
    reference = probe(model, provider_list("cpu"))
    assert {n: a.shape for n, a in reference.inputs.items()} == {
        "ids": (2, 16), "mask": (2, 16), "position_ids": (2, 16), "lengths": (2,),
    }  # fmt: skip
    batch = synthetic(model, reference, 4, seed=1)[0]
    assert (batch["mask"] == 1).all()
    assert (batch["position_ids"] == np.arange(16)).all()
    assert len(np.unique(batch["ids"])) > 16
    assert set(batch["lengths"].tolist()) <= set(reference.inputs["lengths"].tolist())


def test_where_something_else_than_text_is_read_its_sizes_are_tried_first() -> None:
    text = """(int64[N,L] ids, float[N,L,6] more) => (float[N,L,6] y) <float[1000,6] w1> {
        e = Gather(w1, ids)
        y = Add(e, more)
    }"""
    assert probe(from_text(text), provider_list("cpu")).inputs["ids"].shape == (2, 224)


def found_level(model: onnx.ModelProto, batches: Batches) -> float:
    folded = prepare(model)
    channels = find_channels(Graph(model), probe(model, provider_list("cpu")))
    found = levelled(channels, folded, batches, waveforms(model))
    return float(found[0]["x"].std() / batches[0]["x"].std())


@pytest.mark.parametrize("ends", [(-np.inf, np.inf), (-0.8, np.inf), (-np.inf, 0.4), (-1.0, 1.0)])
def test_images_end_where_those_of_training_did(ends: tuple[float, float]) -> None:
    """By what its BatchNormalizations hold."""
    text = """(float[N,3,24,24] x) => (float[N,4,20,20] y)
        <float[16,3,3,3] w1, float[16] g1, float[16] b1, float[16] m1, float[16] v1, float[4,16,3,3] w2,
         float[4] g2, float[4] b2, float[4] m2, float[4] v2> {
        c = Conv(x, w1)
        n = BatchNormalization(c, g1, b1, m1, v1)
        r = Relu(n)
        e = Conv(r, w2)
        y = BatchNormalization(e, g2, b2, m2, v2)
    }"""
    model = from_text(text)
    drawn = synthetic(model, probe(model, provider_list("cpu")), 64, seed=1)
    others = synthetic(model, probe(model, provider_list("cpu")), 64, seed=2)
    record(model, [np.clip(batch["x"], *ends) for batch in others], FIRST, SECOND)
    folded = prepare(model)
    channels = find_channels(Graph(model), probe(model, provider_list("cpu")))
    cut = ended(channels, folded, drawn, {"x"}, 1000, {})
    assert all(np.array_equal(a["x"], np.clip(b["x"], *ends)) for a, b in zip(cut, drawn, strict=True))
    assert ended(channels, folded, drawn, {"x"}, 10**9, {}) is drawn
    with pytest.raises(Unsound, match="cannot run the model on synthetic samples"):
        ended(channels, folded, [{"x": b["x"][:, :2]} for b in drawn], {"x"}, 1000, {})
    assert ended(channels, folded, drawn, set(), 1000, {}) is drawn


FIRST, SECOND = ("c", ("m1", "v1")), ("e", ("m2", "v2"))
"""A value, and the mean and variance of its normalization."""


def record(model: onnx.ModelProto, batches: list[Array], *norms: tuple[str, tuple[str, str]]) -> None:
    """Let normalizations have seen these."""
    for value, names in norms:
        part = with_outputs(model, [value])
        made = np.concatenate([run(part, {"x": x}, provider_list("cpu"), optimized=False)[value] for x in batches])
        for tensor in model.graph.initializer:
            if tensor.name in names:
                told = made.mean((0, 2, 3)) if tensor.name == names[0] else made.var((0, 2, 3))
                tensor.CopyFrom(onnx.numpy_helper.from_array(told.astype(np.float32), tensor.name))


def test_runs_are_not_too_many_where_the_batch_is_fixed() -> None:
    for dims, runs in (("N,1,300", 64), ("1,1,300", 512)):
        model = from_text(TEXTS["signal"].replace("N,1,300", dims))
        assert len(synthetic(model, probe(model, provider_list("cpu")), 1024, seed=1)) == runs


def test_cheap_models_are_measured_on_more_samples() -> None:
    assert [sample_count(macs) for macs in (10**4, 1_500_000, 40_000_000, 300_000_000, 10**10)] == [
        1024,
        1024,
        256,
        100,
        8,
    ]


# --- the user's samples ---------------------------------------------------------------------------------------------
NORMED = """(float[N,6] x) => (float[N,3] y)
    <float[6] g, float[6] b, float[6] m = {3, 3, 3, 3, 3, 3}, float[6] v = {4, 4, 4, 4, 4, 4},
     float[6,16] w1, float[16,3] w2> {
    n = BatchNormalization(x, g, b, m, v)
    h = MatMul(n, w1)
    r = Relu(h)
    y = MatMul(r, w2)
}"""
STRANGE = (
    r"calibration data are not what the model was trained on: at 'x' channels vary (\S+) times as much and are (\S+) "
)


@pytest.mark.parametrize(
    ("scale", "shift", "factor", "off"),
    [(2, 3, 0, 0), (1.5, 2, 0, 0), (0.5, 3, 0.25, 0), (9, 3, 4.5, 0), (2, 8, 1, 2.5)],
)
def test_samples_that_are_scaled_otherwise_than_in_training(
    scale: float, shift: float, factor: float, off: float, caplog: pytest.LogCaptureFixture
) -> None:
    x = scale * np.random.default_rng(0).standard_normal((64, 6), np.float32) + np.float32(shift)
    fuse(from_text(NORMED), sparsity=0.5, calib={"x": x})
    if not factor:
        assert not caplog.messages
        return
    (message,) = caplog.messages
    numbers = re.match(STRANGE, message)
    assert numbers, message
    assert [float(n) for n in numbers.groups()] == [pytest.approx(factor, rel=0.2), pytest.approx(off, abs=0.8)]


def test_images_that_are_not_normalised_are_told_from_those_that_are(caplog: pytest.LogCaptureFixture) -> None:
    """All looks well otherwise: the result is fitted to them, and likes them."""
    normalised = images(64)["input"]
    raw = normalised * np.float32(0.3530) + np.float32(0.2860)  # from 0 to 1
    for x, warnings in ((normalised, 0), (raw, 1)):
        report = fuse(MODELS / "resnet20_fmnist.onnx", sparsity=0.2, calib={"input": x}).report
        assert report.fidelity is not None
        assert report.fidelity.cosine > 0.99
        assert len(caplog.messages) == warnings
    assert re.search(r"vary 0\.3\d times as much and are 0\.2\d deviations off", caplog.text)
