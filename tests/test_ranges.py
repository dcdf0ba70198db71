"""Between what values inputs lie: told by their type, what the graph does first, normalizations, or the user."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxfuse import fuse
from onnxfuse.errors import UsageError
from onnxfuse.graph import Graph
from onnxfuse.grouping import find_channels
from onnxfuse.measuring import dense_first, survey
from onnxfuse.options import Options
from onnxfuse.prepare import prepare
from onnxfuse.probe import probe
from onnxfuse.providers import provider_list
from onnxfuse.ranges import between
from onnxfuse.samples import pictures, synthetic
from onnxfuse.tensors import Array

from .graphs import MODELS, from_text, run
from .test_cli import call
from .test_probe import stateful
from .test_samples import FIRST, record

CPU = provider_list("cpu")
IMAGES = """(TYPE[SHAPE] x) => (float[N,4,R,S] y) <WEIGHTS float[16,3,3,3] w1, float[4,16,3,3] w2> {
    STEPS
    c = Conv(s, w1)
    r = Relu(c)
    y = Conv(r, w2)
}"""
COLOURS = {
    "mean": np.reshape([0.485, 0.456, 0.406], (1, 3, 1, 1)),
    "std": np.reshape([0.229, 0.224, 0.225], (1, 3, 1, 1)),
    "caffe": np.reshape([104, 117, 123], (1, 3, 1, 1)),
    "m1": np.ones(3), "m2": np.zeros(3),
}  # fmt: skip
NUMBERS = {"k255": 255, "half": 127.5, "one": 1, "h": 0.5, "two": 2, "scale": 1 / 255, "full": 0.02}
GIVEN = COLOURS | {name: np.array(value) for name, value in NUMBERS.items()}
ZEROS = {"zero": 0, "at": 128}
"""Constants that steps may read, the last ones bytes."""


def network(steps: str, kind: str = "float", shape: str = "N,3,24,24") -> ModelProto:
    """One that makes `s` of its images x by these steps before its layers read it."""
    used = [name for name in GIVEN if re.search(rf"\b{name}\b", steps)]
    zeros = [name for name in ZEROS if re.search(rf"\b{name}\b", steps)]
    declared = [f"float[{','.join(map(str, GIVEN[n].shape))}] {n}, " for n in used] + [f"uint8[] {n}, " for n in zeros]
    text = IMAGES.replace("TYPE", kind).replace("SHAPE", shape).replace("STEPS", steps)
    model = from_text(text.replace("WEIGHTS", "".join(declared)), GIVEN)
    for tensor in model.graph.initializer:
        if tensor.name in ZEROS:
            tensor.CopyFrom(numpy_helper.from_array(np.array(ZEROS[tensor.name], np.uint8), tensor.name))
    return model


FIRST_STEPS = {
    "as it is": ("s = Identity(x)", None),
    "divided by 255": ("s = Div(x, k255)", (0, 255)),
    "from -1 to 1": ("a = Div(x, half)\n s = Sub(a, one)", (0, 255)),
    "shares of 1": ("a = Sub(x, h)\n s = Mul(a, two)", (0, 1)),
    "shares of 1, normalised": ("a = Sub(x, mean)\n s = Div(a, std)", (0, 1)),
    "bytes, normalised": ("b = Div(x, k255)\n a = Sub(b, mean)\n s = Div(a, std)", (0, 255)),
    "a mean taken away": ("s = Sub(x, caffe)", (0, 255)),
    "normalised by itself": ("s = InstanceNormalization(x, m1, m2)", None),
    "colours turned round": ("e, f, g = Split<axis = 1>(x)\n d = Concat<axis = 1>(g, f, e)\n s = Div(d, k255)",
                             (0, 255)),
    "quantized": ("q = QuantizeLinear(x, scale, zero)\n s = DequantizeLinear(q, scale, zero)", (0, 1)),
    "quantized, normalised": ("q = QuantizeLinear(x, full, at)\n s = DequantizeLinear(q, full, at)", (-2.56, 2.54)),
}  # fmt: skip


@pytest.mark.parametrize("name", FIRST_STEPS)
def test_what_a_graph_does_first_tells(name: str) -> None:
    steps, ends = FIRST_STEPS[name]
    model = network(steps)
    found = probe(model, CPU)
    if ends is None:
        assert found.ranges == {}
        assert abs(found.inputs["x"].mean()) < 0.1
        return
    known, values = found.ranges["x"], found.inputs["x"]
    assert (known.low, known.high) == pytest.approx(ends)
    assert known.low <= values.min() < values.max() <= known.high
    assert values.std() == pytest.approx(known.scale, rel=0.1)
    drawn = np.concatenate([batch["x"] for batch in synthetic(model, found, 64, seed=1)])
    assert known.low <= drawn.min() < drawn.max() <= known.high
    assert drawn.mean() == pytest.approx(known.shift, abs=0.1 * (known.high - known.low))
    assert drawn.std() == pytest.approx(known.scale, rel=0.2)


def bytes_first(shape: str = "N,3,24,24", moved: str = "a = Cast<to = 1>(x)") -> ModelProto:
    return network(f"{moved}\n s = Div(a, k255)", "uint8", shape)


def test_images_of_bytes_are_drawn_as_such() -> None:
    turned = "b = Cast<to = 1>(x)\n a = Transpose<perm = [0, 3, 1, 2]>(b)"
    grey = turned.replace("a =", "g =") + "\n a = Concat<axis = 1>(g, g, g)"
    for model in (bytes_first(), bytes_first("N,24,24,3", turned), bytes_first("N,24,24,1", grey)):
        found = probe(model, CPU)
        (batch, *_) = synthetic(model, found, 64, seed=1)
        for values in (found.inputs["x"], batch["x"]):
            assert values.dtype == np.uint8
            assert values.min() < 20 < 200 < values.max()
        assert pictures(model, found) == {"x"}
        assert np.mean(np.diff(batch["x"].astype(int), axis=2) == 0) > 0.1  # leaves, no noise


def test_bytes_that_are_no_images_stay_what_they_were() -> None:
    model = from_text("(uint8[N,6] x) => (float[N,4] y) <float[6,8] w1, float[8,4] w2> "
                      "{ a = Cast<to = 1>(x)\n b = MatMul(a, w1)\n c = Relu(b)\n y = MatMul(c, w2) }")  # fmt: skip
    found = probe(model, CPU)
    assert found.ranges == {}
    assert set(found.inputs["x"].ravel().tolist()) == {0, 1}
    prepare(model)
    assert dense_first(Graph(model))


def test_one_image_in_colours_is_no_batch_of_signals() -> None:
    model = network("a = Sub(x, mean)\n b = Div(a, std)\n s = Identity(b)", shape="1,3,40,40")
    alone = onnx.ModelProto()
    alone.CopyFrom(model)
    alone.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 40, 40]))
    found = probe(alone, CPU)
    assert (found.ranges["x"].low, found.ranges["x"].high) == (0, 1)
    (batch, *_) = synthetic(alone, found, 4, seed=1)
    assert batch["x"].shape == (3, 40, 40)
    assert np.mean(np.diff(batch["x"], 2) == 0) > 0.1


TABLE = """(float[N,3] x) => (float[N,4] y) <float[3] offset, float[3] unit, float[3,8] w1, float[8,4] w2> {
    a = Sub(x, offset)
    b = Div(a, unit)
    c = MatMul(b, w1)
    d = Relu(c)
    y = MatMul(d, w2)
}"""


def test_columns_of_a_table_have_the_means_and_deviations_that_the_graph_undoes() -> None:
    """As scikit-learn's StandardScaler leaves them in a file: x = offset + unit · z, z of mean 0 and deviation 1."""
    given = {"offset": np.array([1000.0, 0, -3]), "unit": np.array([200.0, 1, 0.01])}
    model = from_text(TABLE, given)
    found = probe(model, CPU).ranges["x"]
    np.testing.assert_allclose(found.shift, given["offset"], rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(found.scale, given["unit"], rtol=1e-3)
    rows = synthetic(model, probe(model, CPU), 512, seed=1)
    values = np.concatenate([batch["x"] for batch in rows])
    np.testing.assert_allclose(values.mean(axis=0), given["offset"], rtol=0.05, atol=0.2)
    np.testing.assert_allclose(values.std(axis=0), given["unit"], rtol=0.1)
    assert "with a mean of 332 and a deviation of 67" in found.words


@pytest.mark.parametrize("more", ["a = Sub(x, offset)\n b = Relu(a)", "a = Mul(x, x)\n b = Sub(a, offset)"])
def test_what_is_not_undone_column_by_column_tells_nothing(more: str) -> None:
    text = TABLE.replace("a = Sub(x, offset)\n    b = Div(a, unit)", more).replace("float[3] unit, ", "")
    assert probe(from_text(text), CPU).ranges == {}


@pytest.mark.parametrize(
    ("ends", "shift", "scale"),
    [((0, 1), 0.45, 0.25), ((0, 255), 114.75, 63.75), ((-1, 1), 0, 0.5), ((-2, 2.6), 0, 1.15), ((10, 30), 19, 5)],
)
def test_mean_and_deviation_of_a_range(ends: tuple[float, float], shift: float, scale: float) -> None:
    found = between(*ends, "")
    assert (found.shift, found.scale) == pytest.approx((shift, scale))
    assert found.of(np.array([-9.0, 9.0])).tolist() == list(ends)


def measured_ranges(model: ModelProto) -> dict[str, tuple[float, float]]:
    """Between what values samples are drawn that the default is fitted to."""
    folded = prepare(model)
    channels = find_channels(Graph(model), probe(model, CPU))
    found = survey(channels, folded, Options(sparsity=0.5), None, (1000, 10**6))
    assert found is not None
    drawn = np.concatenate([batch["x"] for batch in (*found.batches, *found.others)])
    known = {name: (one.low, one.high) for name, one in found.ranges.items()}
    assert all(low <= drawn.min() < drawn.max() <= high for low, high in known.values())
    assert known or abs(drawn.mean()) < 0.1
    return known


NORMAL = """(float[N,3,24,24] x) => (float[N,4,20,20] y)
    <float[16,3,3,3] w1, float[16] g1, float[16] b1, float[16] m1, float[16] v1, float[4,16,3,3] w2> {
    c = Conv(x, w1)
    n = BatchNormalization(c, g1, b1, m1, v1)
    r = Relu(n)
    y = Conv(r, w2)
}"""


@pytest.mark.parametrize(
    ("shift", "scale", "ends"),
    [(115, 64, (0, 255)), (0.45, 0.25, (0, 1)), (0, 1, None), (0, 0.6, None), (0.3, 1.5, None)],
)
def test_the_first_normalization_tells(shift: float, scale: float, ends: tuple[float, float] | None) -> None:
    """That saw images of another mean and deviation; a factor of two does no harm."""
    model = from_text(NORMAL)
    seen = [batch["x"] * scale + shift for batch in synthetic(model, probe(model, CPU), 64, seed=2)]
    record(model, [x.astype(np.float32) for x in seen], FIRST)
    assert measured_ranges(model) == ({} if ends is None else {"x": ends})


@pytest.mark.parametrize("ends", [None, (0, 1), (0, 255)])
def test_biases_tell_where_normalizations_were_folded(ends: tuple[float, float] | None) -> None:
    """ResNet-20, its own normalization of images folded into its first layer."""
    model = onnx.load(MODELS / "resnet20_fmnist.onnx")
    prepare(model)
    first = next(n for n in model.graph.node if n.op_type == "Conv")
    tensors = {t.name: t for t in model.graph.initializer}
    kernel, bias = (numpy_helper.to_array(tensors[name]) for name in first.input[1:3])
    if ends is not None:
        known = between(*ends, "")
        moved = bias - kernel.sum(axis=(1, 2, 3)) * known.shift / known.scale
        for name, values in zip(first.input[1:3], (kernel / known.scale, moved), strict=True):
            tensors[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
    name = model.graph.input[0].name
    notes = fuse(model, sparsity=0.3).report.notes
    told = [note for note in notes if "drawn" in note]
    by = "the first layer's biases say" if ends == (0, 255) else "its biases say"
    assert told == ([] if ends is None else [f"'{name}' is drawn from {ends[0]} to {ends[1]}: {by}"])


def with_biases(biases: Array, mean: float) -> ModelProto:
    """One whose first layer adds these to W (x − mean), in units of what W makes of bytes: in its own bias."""
    model = from_text(IMAGES.replace("TYPE[SHAPE]", "float[N,3,24,24]").replace("WEIGHTS", "float[16] b1, ").
                      replace("STEPS", "s = Identity(x)").replace("Conv(s, w1)", "Conv(s, w1, b1)"))  # fmt: skip
    tensors = {t.name: t for t in model.graph.initializer}
    rows = numpy_helper.to_array(tensors["w1"]).reshape(16, -1)
    values = biases * 64 * np.linalg.norm(rows, axis=1) - mean * rows.sum(axis=1)
    tensors["b1"].CopyFrom(numpy_helper.from_array(values.astype(np.float32), "b1"))
    return model


def test_a_first_layer_that_takes_bytes_is_known_by_its_biases() -> None:
    """In numbers of deviation 1 they would be all that it makes: as in Caffe's networks, or YOLOX."""
    biases = np.random.default_rng(3).uniform(-1, 1, 16)
    for mean, ends in ((115, (0, 255)), (0, (-128, 128))):
        found = probe(with_biases(biases, mean), CPU).ranges["x"]
        assert (found.low, found.high, found.by) == (*ends, "the first layer's biases say")
    assert probe(with_biases(biases / 32, 0), CPU).ranges == {}
    assert probe(with_biases(100 * biases, 0), CPU).ranges == {}  # no range explains that


def test_a_network_that_never_had_any_says_that_nothing_tells() -> None:
    (note,) = [n for n in fuse(MODELS / "svhn.onnx", sparsity=0.3).report.notes if "drawn" in n]
    assert note.startswith("nothing tells between what values images lie")
    assert "--input-range x:LOW,HIGH" in note
    notes = fuse(MODELS / "svhn.onnx", sparsity=0.3, input_ranges={"x": (-2, 2.5)}).report.notes
    assert "'x' is drawn from -2 to 2.5: --input-range says" in notes


def correlation(a: Array, b: Array) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_one_that_normalises_its_own_images_is_fitted_as_one_that_does_not() -> None:
    """ResNet-20 with its normalization in the graph: what is left agrees with what is left without."""
    plain = onnx.load(MODELS / "resnet20_fmnist.onnx")
    name, known = plain.graph.input[0].name, between(0, 255, "")
    within = onnx.ModelProto()
    within.CopyFrom(plain)
    for tensor, value in (("shift", known.shift), ("scale", known.scale)):
        within.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), tensor))
    for node in within.graph.node:
        node.input[:] = ["normalised" if read == name else read for read in node.input]
    for node in (
        helper.make_node("Div", ["a", "scale"], ["normalised"]),
        helper.make_node("Sub", [name, "shift"], ["a"]),
    ):
        within.graph.node.insert(0, node)
    images = np.load(MODELS / "fmnist_test.npz")
    x = images["x"][:200].astype(np.float32).reshape(-1, 1, 28, 28)
    x = (x - x.mean()) / x.std()
    alike = []
    for model, values in ((plain, x), (within, x * known.scale + known.shift)):
        small = fuse(model, sparsity=0.3, round_to=1).model
        before, after = (run(m, {name: values.astype(np.float32)})[0] for m in (model, small))
        alike.append(correlation(before, after))
    assert alike[0] > 0.95
    assert alike[1] == pytest.approx(alike[0], abs=0.02)


def test_the_command_takes_ranges(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, config = tmp_path / "in.onnx", tmp_path / "o.toml"
    onnx.save(network("s = Identity(x)"), path)
    config.write_text("input-range = {x = [0, 255]}\n")
    how = [path, "--dry-run", "--sparsity", 0.5, "--json", "-"]
    for given in (["--input-range", "x:0,255"], ["--config", config]):
        code, out, err = call(capfd, *how, *given)
        report = json.loads(out)
        assert (code, err, report["options"]["input_ranges"]) == (0, "", {"x": [0, 255]})
        assert any("drawn from 0 to 255: --input-range says" in note for note in report["notes"])


WRONG = {
    "no such input": ({"image": (0, 1)}, "--input-range names 'image', but the model's inputs are x"),
    "upside down": ({"x": (1, 0)}, "--input-range x:1,0 is no range; give LOW,HIGH"),
    "three": ({"x": (0, 1, 2)}, "is no range"),
    "endless": ({"x": (0, float("inf"))}, "is no range"),
    "nothing": ({"x": (float("nan"), 1)}, "is no range"),
}


@pytest.mark.parametrize("name", WRONG)
def test_ranges_that_cannot_be(name: str) -> None:
    given, message = WRONG[name]
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        fuse(network("s = Identity(x)"), sparsity=0.5, input_ranges=given)  # type: ignore[arg-type]


def test_codes_and_states_have_no_range() -> None:
    text = """(int64[N,6] x) => (float[N,6,4] y) <float[50,8] w1, float[8,4] w2> {
        e = Gather(w1, x)
        r = Relu(e)
        y = MatMul(r, w2)
    }"""
    cast = (
        text.replace("int64[N,6] x", "float[N,6] x")
        .replace("w1, x)", "w1, i)")
        .replace("e =", "i = Cast<to = 7>(x)\n e =")
    )
    for name, model in (("x", from_text(text)), ("x", from_text(cast)), ("state", stateful())):
        with pytest.raises(UsageError, match=f"{name!r} holds codes, whole numbers or a state, which have no range"):
            fuse(model, sparsity=0.5, input_ranges={name: (0, 1)})
