"""Networks that read writing, or find it: how they are known, and what is done for them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnxfuse
from onnxfuse import reading
from onnxfuse.cli import main
from onnxfuse.pages import SIDE, has_room, marked_page, page, turned_page
from onnxfuse.probe import Probe, probe
from onnxfuse.reading import QUESTIONS, Question, what_it_reads, with_room
from onnxfuse.tensors import Array
from onnxfuse.writing import counted_line, line, turned_line

from .graphs import from_text, weights

CPU = ["CPUExecutionProvider"]
LINES, PAGES, TURNED, HALVES = QUESTIONS
FINDER = """(float[N,3,ROWS,COLUMNS] x) => (float[N,1,A,B] y)
    <float[12,3,7,7] w1, float[12] b1, float[1,12,1,1] w2, float[1] b2, float none = {0.0}, float some = {0.2}> {
    c = Conv<pads=[3,3,3,3]>(x, w1, b1)
    r = Relu(c)
    m = Conv(r, w2, b2)
    p = AveragePool<kernel_shape=[7,25], pads=[3,12,3,12], count_include_pad=1>(m)
    y = Clip(p, none, some)
}"""
SIDES = """(float[N,3,120,120] x) => (float[N,4] y) <int64[1] zero = {0}, int64[1] low = {40}, int64[1] high = {80},
    int64[1] end = {120}, int64[1] two = {2}, int64[1] three = {3}> {
    t = Slice(x, zero, low, two)
    b = Slice(x, high, end, two)
    l = Slice(x, zero, low, three)
    r = Slice(x, high, end, three)
    top = ReduceMean<axes=[1,2,3], keepdims=1>(t)
    bottom = ReduceMean<axes=[1,2,3], keepdims=1>(b)
    left = ReduceMean<axes=[1,2,3], keepdims=1>(l)
    right = ReduceMean<axes=[1,2,3], keepdims=1>(r)
    c = Concat<axis=1>(NAMES)
    y = Flatten(c)
}"""
DARKEST = "ReduceMin<axes=[1,2], keepdims=0>(d)"
READER = """(float[N,3,48,W] x) => (float[N,M,2] y)
    <float[8,3,1,1] w1, float[8] b1, float[1,8,1,1] w2, float edge = {EDGE}, float zero = {0.0},
     int64[3] long = {0, -1, 1}> {
    c = Conv(x, w1, b1)
    r = Relu(c)
    d = Conv(r, w2)
    high = ReduceMax<axes=[1,2], keepdims=0>(d)
    low = LOW
    apart = Sub(high, low)
    sign = Reshape(apart, long)
    none = Mul(sign, zero)
    blank = Add(none, edge)
    y = Concat<axis=2>(blank, sign)
}"""


def finder(rows: str = "H", columns: str = "W", last: bool = False, **given: Array) -> ModelProto:
    """Strokes, dark and bright, and how many of them there are around a place; channels last, if asked.

    What is as faint as strokes in noise counts for nothing.
    """
    stroke = np.full((7, 7), -1 / 40)
    stroke[2:5, 2:5] = 1 / 9
    strokes = np.broadcast_to(stroke / 3, (12, 3, 7, 7)).copy()
    strokes[6:] *= -1
    size = np.linspace(0.5, 1.5, 12)
    strokes *= size[:, None, None, None]
    text = FINDER.replace("ROWS", rows).replace("COLUMNS", columns)
    if last:
        text = text.replace("1,A,B", "A,B,1").replace("y = ", "z = ")
        text = text.replace("some)\n}", "some)\n    y = Transpose<perm=[0,2,3,1]>(z)\n}")
    arrays = {"w1": strokes, "b1": -0.55 * size, "w2": np.full((1, 12, 1, 1), 0.175), "b2": np.zeros(1)} | given
    return from_text(text, {name: values.astype(np.float32) for name, values in arrays.items()})


def reader(steps_first: bool = False, low: str = DARKEST, edge: str = "0.5") -> ModelProto:
    """Columns in which something is dark and something bright are told from others."""
    text = READER.replace("LOW", low).replace("EDGE", edge)
    if steps_first:
        text = text.replace("float[N,M,2]", "float[M,N,2]").replace("y = ", "z = ")
        text = text.replace("sign)\n}", "sign)\n    y = Transpose<perm=[1,0,2]>(z)\n}")
    arrays = {"w1": np.full((8, 3, 1, 1), 1 / 3), "b1": np.full(8, 1.0), "w2": np.full((1, 8, 1, 1), 1 / 8)}
    return from_text(text, {name: values.astype(np.float32) for name, values in arrays.items()})


def asked(model: ModelProto, probed: Probe | None = None) -> Question | None:
    return what_it_reads(model, probed or probe(model, CPU), seed=0)


def lines_in(model: ModelProto) -> Probe:
    return probe(model, CPU, {"x": (1, 3, 48, 320)})


# --- what is drawn --------------------------------------------------------------------------------------------------
def test_pages() -> None:
    """Both of one kind, light and dark; lines are where the marks are; the same from one seed."""
    rng, again = np.random.default_rng(0), np.random.default_rng(0)
    made = [marked_page((3, 160, 200), rng) for _ in range(40)]
    assert all(image.shape == (3, 160, 200) and where.shape == (160, 200) for image, where in made)
    assert all(np.array_equal(image, page((3, 160, 200), again)) for image, _ in made)
    assert {value for _, where in made for value in np.unique(where)} == {0, 1}
    shares = [where.mean() for _, where in made]
    assert 0.02 < min(s for s in shares if s) < max(shares) < 0.5
    edges = [(_edges(image), where) for image, where in made if where.any()]
    assert np.median([e[where == 1].mean() / e[where == 0].mean() for e, where in edges]) > 2


def _edges(image: Array) -> Array:
    return np.asarray(np.abs(np.diff(image.mean(axis=0), axis=1, prepend=0)))


def test_some_pages_are_plain_between_their_lines() -> None:
    rng = np.random.default_rng(1)
    made = [marked_page((1, 128, 128), rng) for _ in range(80)]
    flat = [np.ptp(image[:, rows]) < 1e-9 for image, where in made if (rows := where_free(where)).any()]
    assert 0 < np.mean(flat) < 0.5


def where_free(where: Array) -> Array:
    """Rows without a line, and without what stands out above and below it."""
    rows = np.flatnonzero(where.any(axis=1))
    near = np.abs(np.arange(len(where))[:, None] - rows).min(axis=1, initial=99)
    return np.asarray(near > 24)


@pytest.mark.parametrize(
    ("shape", "room"), [((3, 96, 96), True), ((1, 640, 100), True), ((3, 95, 400), False), ((4, 200, 200), False)]
)
def test_which_images_have_room_for_a_page(shape: tuple[int, int, int], room: bool) -> None:
    assert has_room(shape) == room


def test_signs_are_counted() -> None:
    rng, again = np.random.default_rng(0), np.random.default_rng(0)
    made = [counted_line((3, 48, 320), rng) for _ in range(60)]
    assert all(np.array_equal(image, line((3, 48, 320), again)) for image, _ in made)
    counts = np.array([count for _, count in made])
    assert 0.1 < (counts == 0).mean() < 0.5  # upside down
    assert 5 < counts[counts > 0].mean() < 40


# --- who reads ------------------------------------------------------------------------------------------------------
def bars(shape: tuple[int, int, int], rng: np.random.Generator) -> tuple[Array, int]:
    """White bars on black, as signs."""
    count = int(rng.integers(3, 30))
    image = np.full(shape, -1.0)
    image[:, 10:30, 4 : 4 + 8 * count : 8] = 1
    return image, count


@pytest.mark.parametrize("steps_first", [False, True])
def test_a_network_that_tells_signs_reads(steps_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reader(steps_first)
    assert not asked(model, lines_in(model))  # letters that touch are one to it
    shown = replace(LINES, draw=bars)
    monkeypatch.setattr(reading, "QUESTIONS", (shown, PAGES, TURNED, HALVES))
    assert asked(model, lines_in(model)) is shown


@pytest.mark.parametrize("model", [reader(low=DARKEST.replace("Min", "Max")), reader(edge="99.0")])
def test_one_that_tells_nothing_does_not(model: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "QUESTIONS", (replace(LINES, draw=bars), PAGES, TURNED, HALVES))
    assert not asked(model, lines_in(model))


@pytest.mark.parametrize("model", [finder(), finder("128", "160", last=True)])
def test_a_network_whose_output_is_where_lines_are_finds_them(model: ModelProto) -> None:
    assert asked(model) is PAGES


@pytest.mark.parametrize("model", [finder(w1=np.full((12, 3, 7, 7), 0.02), b1=np.full(12, 9.0)), finder("64", "64")])
def test_one_that_tells_how_bright_it_is_finds_nothing_nor_one_without_room(model: ModelProto) -> None:
    assert not asked(model)


def corner(shape: tuple[int, int, int], rng: np.random.Generator) -> tuple[Array, int]:
    """White at the top, to the left, ...: a page that anybody tells the right way up."""
    turn, image = int(rng.integers(4)), rng.standard_normal(shape) * 0.1
    image[:, : shape[1] // 3] += 2
    return np.rot90(image, turn, (1, 2)), turn


@pytest.mark.parametrize(("names", "tells"), [("top, left, bottom, right", True), ("top, left, top, right", False)])
def test_a_network_that_tells_which_way_up_a_page_is(names: str, tells: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = from_text(SIDES.replace("NAMES", names))
    assert not asked(model)
    shown = replace(TURNED, draw=corner)
    monkeypatch.setattr(reading, "QUESTIONS", (LINES, PAGES, shown, HALVES))
    assert (asked(model) is shown) == tells


def half(shape: tuple[int, int, int], rng: np.random.Generator) -> tuple[Array, int]:
    turned, image = int(rng.integers(2)), rng.standard_normal(shape) * 0.1
    image[:, : shape[1] // 3] += 2
    return image[:, ::-1] if turned else image, turned


@pytest.mark.parametrize(("names", "tells"), [("top, bottom", True), ("top, top", False), ("left, right", False)])
def test_a_network_that_tells_which_way_up_a_line_is(names: str, tells: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SIDES.replace("NAMES", names).replace("120,120", "48,192").replace("float[N,4]", "float[N,2]")
    model = from_text(text.replace("{40}", "{16}").replace("{80}", "{32}").replace("{120}", "{48}"))
    assert not asked(model)
    shown = replace(HALVES, draw=half)
    monkeypatch.setattr(reading, "QUESTIONS", (LINES, PAGES, TURNED, shown))
    assert (asked(model) is shown) == tells


MEANS = """(float[N,3,48,192] x OTHER) => (SHAPE y) <int64[1] one = {1}> {
    a = ReduceMean<axes=[1,2,3], keepdims=0>(x)
    b = ReduceMean<axes=[1,2,3], keepdims=0>(LAST)
    c = Unsqueeze(a, one)
    d = Unsqueeze(b, one)
    e = Concat<axis=1>(c, d)
    y = LIKE(e)
}"""


@pytest.mark.parametrize(
    ("other", "last", "like", "shape"),
    [(", float[N,3,48,192] z", "z", "Identity", "float[N,2]"), ("", "x", "ReduceMean<axes=[0]>", "float[1,2]")],
)
def test_two_lines_at_once_and_what_is_of_all_samples_are_not_asked_for(
    other: str, last: str, like: str, shape: str
) -> None:
    text = MEANS.replace("OTHER", other).replace("LAST", last).replace("LIKE", like).replace("SHAPE", shape)
    assert not asked(from_text(text))


def test_a_map_of_all_samples_is_none_of_each() -> None:
    text = "(float[N,3,128,128] x) => (float[1,3,128,128] y) { y = ReduceMean<axes=[0]>(x) }"
    assert not asked(from_text(text))


def test_turned_lines() -> None:
    """Half of them; letters are narrower than others."""
    rng, again = np.random.default_rng(0), np.random.default_rng(0)
    made = [turned_line((3, 48, 192), rng) for _ in range(60)]
    assert 0.3 < np.mean([turned for _, turned in made]) < 0.7
    assert all(np.array_equal(image, turned_line((3, 48, 192), again)[0]) for image, _ in made)
    edges = [np.mean([_edges(draw((3, 48, 192), rng)).mean() for _ in range(60)]) for draw in (line, narrow)]
    assert edges[1] > 1.1 * edges[0]


def narrow(shape: tuple[int, int, int], rng: np.random.Generator) -> Array:
    return turned_line(shape, rng)[0]


def test_turned_pages() -> None:
    rng, again = np.random.default_rng(0), np.random.default_rng(0)
    made = [turned_page((3, 128, 128), rng) for _ in range(40)]
    assert {turn for _, turn in made} == {0, 1, 2, 3}
    for image, turn in made:
        assert int(again.integers(4)) == turn
        assert np.array_equal(np.rot90(image, -turn, (1, 2)), page((3, 128, 128), again))


def test_open_sizes_have_room_for_lines() -> None:
    model = finder()
    assert with_room(model, probe(model, CPU), SIDE).inputs["x"].shape[1:] == (3, SIDE, SIDE)
    free = finder()
    free.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "C"
    assert with_room(free, probe(free, CPU, {"x": (1, 3, 224, 224)}), SIDE).inputs["x"].shape == (1, 3, SIDE, SIDE)
    for known in (finder("128", "160"), finder("128", "W")):
        found = probe(known, CPU)
        assert with_room(known, found, SIDE) is found
    large = probe(model, CPU, {"x": (1, 3, 400, 200)})
    assert with_room(model, large, SIDE) is large
    fixed = from_text("(float[N,3,H,W] x) => (float[N,K] y) <float[150528,2] w> { f = Flatten(x)\n y = MatMul(f, w) }")
    small = probe(fixed, CPU, {"x": (1, 3, 224, 224)})
    assert with_room(fixed, small, SIDE) is small


# --- what is done for them ------------------------------------------------------------------------------------------
def test_what_it_is_fitted_to_is_as_good_as_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On random input it finds nothing, so the report tells of pages; a floor is held there."""
    model, out, report = tmp_path / "in.onnx", tmp_path / "out.onnx", tmp_path / "report.json"
    onnx.save(finder(), model)
    sizes = ["--sparsity", "0.5", "--round-to", "1", "--min-cosine", "0.99", "--json", str(report)]
    assert main([str(model), str(out), *sizes]) == 0
    told = json.loads(report.read_text())
    assert told["read"]
    assert told["synthetic"]["cosine"] > 0.99
    printed = capsys.readouterr().out
    assert "it reads, or finds, the writing that is drawn for it" in printed
    assert f"--input-shape x:1,3,{SIDE},{SIDE}" in printed
    assert "on random input" not in printed
    assert f"cosine {told['synthetic']['cosine']:.4f} on synthetic samples" in printed.splitlines()[-1]


def test_a_shape_that_is_given_stays() -> None:
    report = onnxfuse.fuse(finder(), sparsity=0.5, round_to=1, input_shapes={"x": (1, 3, 128, 160)}).report
    assert report.read
    assert not any("--input-shape" in note for note in report.notes)


def test_a_floor_on_pages_can_be_missed() -> None:
    """Each stroke counts from another strength on."""
    model = finder(b1=weights(finder())["b1"] * np.linspace(0.9, 1.1, 12))
    with pytest.raises(onnxfuse.VerificationFailed, match="synthetic samples output 'y' has cosine"):
        onnxfuse.fuse(model, sparsity=0.9, round_to=1, min_cosine=0.9999, input_shapes={"x": (1, 3, 128, 128)})


def test_other_networks_are_told_of_by_random_input_too() -> None:
    model = finder(w1=np.random.default_rng(0).standard_normal((12, 3, 7, 7)) * 0.1)
    report = onnxfuse.fuse(model, sparsity=0.5, round_to=1, input_shapes={"x": (1, 3, 64, 64)}).report
    assert not report.read
