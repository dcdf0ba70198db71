"""`--calib`: samples become batches as the model takes them, and what does not fit is refused in one line."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto
from PIL import Image

from onnxfuse import UsageError
from onnxfuse.calibdata import Batches, calibration
from onnxfuse.probe import probe
from onnxfuse.states import steps_first

from .graphs import Array, from_text

CPU = ["CPUExecutionProvider"]
TEXTS = {
    "open": """(float[N,3,8,8] x) => (float[N,4,8,8] y) <float[4,3,1,1] w> { y = Conv(x, w) }""",
    "fixed": """(float[4,3,8,8] x) => (float[4,4,8,8] y) <float[4,3,1,1] w> { y = Conv(x, w) }""",
    "last": """(float[N,8,8,3] x) => (float[N,8,8,4] y) <float[3,4] w> { y = MatMul(x, w) }""",
    "any size": """(float[N,3,H,W] x) => (float[N,4,H,W] y) <float[4,3,1,1] w> { y = Conv(x, w) }""",
    "state": """(float[N,6] x, float[1,4] state) => (float[N,4] y) <float[6,4] w>
        { h = MatMul(x, w) y = Add(h, state) }""",
    "steps": """(float[T,6] x, float[1,1,4] h) => (float[T,1,1,4] y, float[1,1,4] g)
        <float[1,12,6] w, float[1,12,4] r, int64[1] one = {1}> {
            u = Unsqueeze(x, one)
            y, g = GRU<hidden_size = 4>(u, w, r, , , h)
        }""",
    "sequences": """(float[N,5,6] x, float[1,N,4] h) => (float[5,1,N,4] y, float[1,N,4] g)
        <float[1,12,6] w, float[1,12,4] r> {
            u = Transpose<perm = [1, 0, 2]>(x)
            y, g = GRU<hidden_size = 4>(u, w, r, , , h)
        }""",
    "one sequence": """(float[N,T,6] x, float[1,1,4] h) => (float[T,1,N,4] y, float[1,1,4] g)
        <float[1,12,6] w, float[1,12,4] r> {
            u = Transpose<perm = [1, 0, 2]>(x)
            y, g = GRU<hidden_size = 4>(u, w, r, , , h)
        }""",
    "one in the middle": """(float[T,N,6] x, float[1,1,4] h) => (float[T,1,N,4] y, float[1,1,4] g)
        <float[1,12,6] w, float[1,12,4] r> { y, g = GRU<hidden_size = 4>(x, w, r, , , h) }""",
    "bytes": """(uint8[N,1,8,8] x) => (float[N,4,8,8] y) <float[4,1,1,1] w>
        { f = Cast<to = 1>(x) y = Conv(f, w) }""",
    "tokens": """(int32[N,5] x) => (float[N,5,4] y) <float[9,4] w> { y = Gather(w, x) }""",
    "rate": """(float[N,6] x, int64 rate) => (float[N,6] y) <int64 high = {16000}>
        { e = Equal(rate, high) f = Cast<to = 1>(e) y = Mul(x, f) }""",
    "half": """(float16[N,6] x) => (float16[N,6] y) { y = Relu(x) }""",
}


def model_of(name: str) -> ModelProto:
    return from_text(TEXTS[name])


def batches_of(model: ModelProto, source: str | Path | Mapping[str, Array], preprocess: str | None = None) -> Batches:
    return calibration(source, preprocess, model, probe(model, CPU), CPU).fitted


def normal(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def joined(batches: Batches, name: str = "x") -> Array:
    return np.concatenate([b[name] for b in batches])


# --- batches --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "sizes"), [("open", [16, 16, 16, 16, 6]), ("fixed", [4] * 17)])
def test_the_batch_size_is_the_models(name: str, sizes: list[int]) -> None:
    data = normal(68 if name == "fixed" else 70, 3, 8, 8)
    batches = batches_of(model_of(name), {"x": data})
    assert [len(b["x"]) for b in batches] == sizes
    np.testing.assert_array_equal(joined(batches), data)


def test_many_samples_are_thinned_evenly() -> None:
    data = np.repeat(np.arange(1030, dtype=np.float32), 6).reshape(-1, 6)
    chosen = joined(batches_of(model_of("state"), {"x": data, "state": normal(1, 4)}))[:, 0]
    assert (len(chosen), chosen[0], chosen[-1]) == (512, 0, 1029)
    assert set(np.diff(chosen)) <= {2, 3}


def test_a_state_is_given_to_every_run() -> None:
    state = normal(1, 4)
    batches = batches_of(model_of("state"), {"x": normal(64, 6), "state": state})
    assert [len(b["x"]) for b in batches] == [16] * 4
    assert all(np.array_equal(b["state"], state) for b in batches)


def test_a_state_for_each_sample_means_single_runs() -> None:
    data, states = normal(64, 6), normal(64, 4)
    batches = batches_of(model_of("state"), {"x": data, "state": states})
    assert len(batches) == 64
    np.testing.assert_array_equal(joined(batches), data)
    np.testing.assert_array_equal(joined(batches, "state"), states)


@pytest.mark.parametrize(("name", "sizes"), [("one sequence", [1] * 70), ("one in the middle", [70])])
def test_a_batch_size_that_only_a_state_fixes_is_met(name: str, sizes: list[int]) -> None:
    data = normal(70, 5, 6) if name == "one sequence" else normal(70, 1, 6)
    batches = batches_of(model_of(name), {"x": data, "h": normal(1, 1, 4)})
    assert [len(b["x"]) for b in batches] == sizes
    np.testing.assert_array_equal(joined(batches), data)


@pytest.mark.parametrize(
    ("count", "starts"), [(300, [0, 128, 256]), (512, [0, 128, 256, 384]), (912, [0, 261, 523, 784])]
)
def test_steps_of_a_sequence_stay_together(count: int, starts: list[int]) -> None:
    """The network carries its state from step to step, which a few steps after a first state of zeros do not show."""
    data = np.repeat(np.arange(count, dtype=np.float32)[:, None], 6, axis=1)
    batches = batches_of(model_of("steps"), {"x": data, "h": normal(1, 1, 4)})
    assert [b["x"][0, 0] for b in batches] == starts
    assert all((np.diff(b["x"][:, 0]) == 1).all() for b in batches)
    assert {len(b["x"]) for b in batches[:-1]} == {128}


def test_steps_with_a_state_each_stand_by_themselves() -> None:
    """A state of 8 rows for each of 100 steps: 64 of them make 512, and none needs those before it."""
    model = from_text(
        TEXTS["steps"]
        .replace("float[1,1,4] h", "float[8,1,4] s")
        .replace("u = Unsqueeze", "h = Slice(s, zero, one)\n u = Unsqueeze")
        .replace("one = {1}", "one = {1}, int64[1] zero = {0}")
    )
    for states in (normal(800, 1, 4), np.zeros((800, 1, 4), np.float32)):  # which are no copies of one sample
        batches = batches_of(model, {"x": normal(100, 6), "s": states})
        assert [(len(b["x"]), len(b["s"])) for b in batches] == [(1, 8)] * 64


def test_one_run_of_two_batch_sizes_is_no_copy() -> None:
    model = from_text("""(float[64,6] x, float[32,6] z) => (float[6,6] y) {
        a = Transpose(x)
        b = MatMul(a, x)
        c = Transpose(z)
        d = MatMul(c, z)
        y = Add(b, d)
    }""")
    assert len(batches_of(model, {"x": normal(64, 6), "z": normal(32, 6)})) == 1


@pytest.mark.parametrize("states", [1, 70])
def test_sequences_may_have_a_state_each(states: int) -> None:
    """The batch is the second axis of a state, (directions, batch, hidden), where it is the first of the input."""
    model, data, first = model_of("sequences"), normal(70, 5, 6), normal(1, states, 4)
    assert not steps_first(model)
    batches = batches_of(model, {"x": data, "h": first})
    assert [b["h"].shape[1] for b in batches] == [len(b["x"]) for b in batches] == [16, 16, 16, 16, 6]
    np.testing.assert_array_equal(np.concatenate([b["h"] for b in batches], 1), np.broadcast_to(first, (1, 70, 4)))


@pytest.mark.parametrize(("name", "data"), [("steps", normal(70, 6)), ("sequences", normal(70, 5, 6))])
def test_a_state_that_is_left_out_starts_at_zero(
    name: str, data: NDArray[np.float32], caplog: pytest.LogCaptureFixture
) -> None:
    first = np.zeros((1, 1, 4), np.float32)
    given, left_out = (batches_of(model_of(name), {"x": data, **rest}) for rest in ({"h": first}, {}))
    for one, other in zip(given, left_out, strict=True):
        np.testing.assert_array_equal(one["h"], other["h"])
    assert "has no array for 'h' float32" in caplog.text
    assert "it starts at zero" in caplog.text


def test_a_number_that_chooses_a_branch_may_be_left_out(caplog: pytest.LogCaptureFixture) -> None:
    batches = batches_of(model_of("rate"), {"x": normal(70, 6)})
    assert {int(b["rate"]) for b in batches} == {16000}
    assert "has no array for 'rate' int64 []: it is 16000, as in the model" in caplog.text


@pytest.mark.parametrize("file", [True, False])
def test_images_as_the_evaluation_takes_them(file: bool, tmp_path: Path) -> None:
    """The same arrays do for --eval and --calib; labels tell nothing here."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)
    mean, std = np.array([100, 120, 140], np.float32), np.array([50, 60, 70], np.float32)
    arrays = {"x": pixels, "mean": mean, "std": std, "layout": np.array("NCHW"), "y": np.arange(64)}
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    model = from_text(TEXTS["open"].replace(" x)", " image)").replace("(x,", "(image,"))
    found = joined(batches_of(model, tmp_path / "data.npz" if file else arrays), "image")
    np.testing.assert_allclose(found, ((pixels - mean) / std).transpose(0, 3, 1, 2), rtol=1e-5)


def test_numbers_of_another_width_are_cast() -> None:
    tokens = np.arange(320).reshape(64, 5) % 9
    assert joined(batches_of(model_of("tokens"), {"x": tokens})).dtype == np.int32
    assert joined(batches_of(model_of("half"), {"x": normal(64, 6)})).dtype == np.float16


def test_an_npz_file_is_read(tmp_path: Path) -> None:
    data = normal(64, 3, 8, 8)
    np.savez(tmp_path / "c.npz", x=data)
    np.testing.assert_array_equal(joined(batches_of(model_of("open"), tmp_path / "c.npz")), data)


# --- what does not fit ----------------------------------------------------------------------------------------------
NAN = normal(64, 3, 8, 8)
NAN[3, 1, 2, 2] = np.nan
REFUSED: Mapping[str, tuple[str, dict[str, Array], str]] = {
    "too few": ("open", {"x": normal(63, 3, 8, 8)}, "63 samples are too few; give 64 to 512"),
    "copies": ("open", {"x": np.ones((70, 3, 8, 8), np.float32)}, "all 70 samples are the same; give 64 to 512"),
    "copies in runs": ("fixed", {"x": np.ones((64, 3, 8, 8), np.float32)}, "all 64 samples are the same"),
    "unknown name": ("open", {"X": NAN}, "'X' is no input; the model takes 'x' float32 [?, 3, 8, 8]"),
    "near name": ("state", {"stat": normal(1, 4)}, "; near: state"),
    "missing": ("state", {"x": normal(64, 6)}, "has no array for input 'state' float32 [1, 4]"),
    "shape": ("open", {"x": normal(64, 3, 8, 9)}, "has shape [64, 3, 8, 9], the model takes 'x' float32 [?, 3, 8, 8]"),
    "channels last": ("open", {"x": normal(64, 8, 8, 3)}, "has its channels last, transpose it by (0, 3, 1, 2)"),
    "channels first": ("last", {"x": normal(64, 3, 8, 8)}, "has its channels first, transpose it by (0, 2, 3, 1)"),
    "one sample": ("open", {"x": normal(3, 8, 8)}, "the first axis counts the samples"),
    "not whole runs": ("fixed", {"x": normal(66, 3, 8, 8)}, "the model takes 'x' float32 [4, 3, 8, 8]"),
    "not a number": ("open", {"x": NAN}, "has values that are NaN or infinite"),
    "bytes": ("open", {"x": np.ones((64, 3, 8, 8), np.uint8)}, "'x' is uint8, the model takes 'x' float32"),
    "floats for tokens": ("tokens", {"x": normal(64, 5)}, "'x' is float32, the model takes 'x' int32 [?, 5]"),
    "overflow": ("half", {"x": 1e6 * normal(64, 6)}, "has values that float16 cannot hold"),
    "large tokens": ("tokens", {"x": np.full((64, 5), 2**40)}, "has values that int32 cannot hold"),
    "wrong tokens": (
        "tokens",
        {"x": 9 + np.arange(320).reshape(64, 5)},
        "onnxruntime cannot run the model on the calibration data",
    ),
    "counts": (
        "state",
        {"x": normal(64, 6), "state": normal(65, 4)},
        "the inputs have different numbers of samples: 'x' 64, 'state' 65",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str) -> None:
    name, arrays, message = REFUSED[case]
    with pytest.raises(UsageError) as caught:
        batches_of(model_of(name), arrays)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_samples_most_of_which_are_copies_are_told(caplog: pytest.LogCaptureFixture) -> None:
    states = {"x": np.repeat(normal(1, 6), 64, axis=0), "state": np.repeat(normal(4, 4), 16, axis=0)}
    assert len(joined(batches_of(model_of("state"), states))) == 4
    assert caplog.messages == ["calibration data: only 4 of 64 samples differ; give 64 to 512"]


def test_copies_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """A sample with another state is no copy."""
    data, states = np.repeat(normal(70, 6), 2, axis=0), normal(140, 4)
    states[1::2][:30] = states[::2][:30]
    batches = batches_of(model_of("state"), {"x": data, "state": states})
    left = np.setdiff1d(np.arange(140), np.arange(1, 60, 2))
    np.testing.assert_array_equal(joined(batches), data[left])
    np.testing.assert_array_equal(joined(batches, "state"), states[left])
    assert caplog.messages == ["calibration data: 30 of 140 samples are copies of others: left out"]


def test_copies_of_whole_runs_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """What is in the middle of a run stays, for the model takes four at a time."""
    data = np.tile(normal(66, 3, 8, 8), (2, 1, 1, 1))  # as 66 is no multiple of four, the second half makes other runs
    data[128:] = data[:4]
    batches = batches_of(model_of("fixed"), {"x": data})
    np.testing.assert_array_equal(joined(batches), data[:128])
    assert caplog.messages == ["calibration data: 4 of 132 samples are copies of others: left out"]


def test_steps_that_are_the_same_stay(caplog: pytest.LogCaptureFixture) -> None:
    """Silence goes on for a while; it is told if there is nothing else."""
    data = np.repeat(normal(80, 6), 2, axis=0)
    batches = batches_of(model_of("steps"), {"x": data, "h": normal(1, 1, 4)})
    np.testing.assert_array_equal(joined(batches), data)
    assert not caplog.messages
    batches_of(model_of("steps"), {"x": np.repeat(normal(4, 6), 40, axis=0), "h": normal(1, 1, 4)})
    assert caplog.messages == ["calibration data: only 4 of 160 samples differ; give 64 to 512"]


def test_files_that_are_no_archives_are_refused(tmp_path: Path) -> None:
    model, path = model_of("open"), tmp_path / "c.npz"
    with pytest.raises(UsageError, match="no such file"):
        batches_of(model, path)
    np.savez(path, x=normal(64, 3, 8, 8))
    whole = path.read_bytes()
    for data, message in (
        (whole[:-100], "not an .npz file"),
        (whole[:300] + bytes(64) + whole[364:], "cannot be read"),
    ):
        path.write_bytes(data)
        with pytest.raises(UsageError, match=message):
            batches_of(model, path)
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(UsageError, match="cannot be read"):
        batches_of(model, path)


# --- images ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """64 images, each of one colour that tells its number, in two folders."""
    for i in range(64):
        path = tmp_path / ("ab"[i // 32]) / f"{i:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 12), (i, 2 * i, 3 * i)).save(path)
    (tmp_path / "readme.txt").write_text("no image")
    return tmp_path


COLOURS = np.arange(64)[:, None] * np.array([1, 2, 3])


@pytest.mark.parametrize(
    ("name", "how", "expected"),
    [
        ("open", None, COLOURS / 255),
        ("last", "layout=nhwc", COLOURS / 255),
        ("open", "scale=1", COLOURS),
        ("open", "mean=0.5,std=0.5", (COLOURS / 255 - 0.5) / 0.5),
        ("open", "mean=0.1,0.2,0.3,std=1,2,4,layout=nchw", (COLOURS / 255 - [0.1, 0.2, 0.3]) / [1, 2, 4]),
        ("open", "mean=0.1,0.2,0.3,order=bgr", COLOURS[:, ::-1] / 255 - [0.1, 0.2, 0.3]),
    ],
)
def test_images_are_preprocessed_as_asked(name: str, how: str | None, expected: Array, photos: Path) -> None:
    x = joined(batches_of(model_of(name), photos, how))
    spatial = (1, 2) if name == "last" else (2, 3)
    assert x.shape == ((64, 8, 8, 3) if name == "last" else (64, 3, 8, 8))
    np.testing.assert_allclose(x.min(axis=spatial), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(x.max(axis=spatial), expected, rtol=1e-5, atol=1e-6)


def test_an_image_is_cut_to_the_models_shape(tmp_path: Path) -> None:
    """Black, then nearly white: the middle of a wide image has the border in its centre."""
    for i in range(64):
        wide = np.zeros((8, 24), np.uint8)
        wide[:, 12:] = 255 - i
        Image.fromarray(wide).save(tmp_path / f"{i:02}.png")
    x = joined(batches_of(model_of("bytes"), tmp_path))
    assert (x[:, :, :, :4] == 0).all()
    assert (x[:, :, :, 4:] == 255 - np.arange(64)[:, None, None, None]).all()


def test_pillow_warns_of_nothing(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image is large for Pillow from 89 million pixels on."""
    with Image.open(next(photos.rglob("*.png"))) as image:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", image.width * image.height - 1)
    assert len(joined(batches_of(model_of("open"), photos))) == 64


def test_open_sizes_are_those_of_the_probe(photos: Path) -> None:
    model = model_of("any size")
    reference = probe(model, CPU, {"x": (2, 3, 20, 10)})
    assert joined(calibration(photos, None, model, reference, CPU).fitted).shape == (64, 3, 20, 10)


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("open", "mean=0.5,sdt=1", "'sdt' is not known; give mean="),
        ("open", "0.5", "'' is not known"),
        ("open", "std=0", "std and scale must be above 0"),
        ("open", "mean=a", "give one number, or one for each of 3 channels"),
        ("open", "scale=1,2,3", "give one number"),
        ("open", "layout=chw", "choose nchw or nhwc"),
        ("open", "layout=nhwc", "[?, 3, 8, 8] does not have 1 or 3 channels in layout nhwc"),
        ("bytes", "mean=1,2,3", "the model takes 1 channels"),
        ("state", "", "a folder of images fits a model with one input of 4 axes"),
    ],
)
def test_preprocessing_that_does_not_fit_is_refused(name: str, how: str, message: str, photos: Path) -> None:
    with pytest.raises(UsageError) as caught:
        batches_of(model_of(name), photos, how)
    assert message in str(caught.value)


def test_unreadable_and_missing_images_are_refused(photos: Path) -> None:
    with pytest.raises(UsageError, match="for a folder of images"):
        batches_of(model_of("open"), {"x": normal(64, 3, 8, 8)}, "scale=1")
    (photos / "a" / "007.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"007\.png: cannot be read as an image"):
        batches_of(model_of("open"), photos)
    Image.fromarray(np.full((8, 8), 3000, np.uint16)).save(photos / "a" / "007.png")
    with pytest.raises(UsageError, match=r"007\.png: cannot .* \(mode I.*\) have more than 8 bits; give 8-bit"):
        batches_of(model_of("open"), photos)
    (photos / "empty").mkdir()
    with pytest.raises(UsageError, match="has no images"):
        batches_of(model_of("open"), photos / "empty")


def test_without_pillow_the_extra_is_named(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"pip install 'onnxfuse\[images\]'"):
        batches_of(model_of("open"), photos)
