"""Whatever goes wrong: the right exit code, one line on stderr, the destination as it was, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxfuse

from .formats import with_constant_nodes
from .graphs import ROOT, build, from_text
from .test_cli import Run, call, last, report_of
from .texts import TEXTS

HALF = ["--sparsity", "0.5"]
PRECIOUS = b"what was there before"
PNG = b"\x89PNG\r\n\x1a\n" + zlib.compress(bytes(range(256)) * 20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a good model in.onnx and a destination out.onnx that must not change."""
    onnx.save(build("residual"), tmp_path / "in.onnx")
    (tmp_path / "out.onnx").write_bytes(PRECIOUS)
    return tmp_path


def check_failed(run: Run, code: int, message: str, folder: Path) -> None:
    found, out, err = run
    assert message in err
    assert (found, len(err.splitlines())) == (code, 1)
    assert err.startswith("onnxfuse: ")
    assert "Traceback" not in err
    assert "internal error" not in err
    assert last(out).startswith(f"FAILED (exit code {code})")
    assert (folder / "out.onnx").read_bytes() == PRECIOUS
    assert {p.name for p in folder.iterdir()} <= {
        "in.onnx",
        "out.onnx",
        "bad.onnx",
        "bad.json",
        "bad.onnxtxt",
        "directory",
    }


# --- inputs ---------------------------------------------------------------------------------------------------------
def junk(data: bytes, name: str = "bad.onnx") -> Callable[[Path], Path]:
    """A maker of a file with these bytes."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def saved(model: ModelProto) -> Callable[[Path], Path]:
    """A maker of a model file."""
    return junk(model.SerializeToString())


def truncated(folder: Path) -> Path:
    return junk((folder / "in.onnx").read_bytes()[:-700])(folder)


def without_its_data(folder: Path) -> Path:
    onnx.save(
        build("flatten_spatial"), folder / "bad.onnx", save_as_external_data=True, location="data", size_threshold=0
    )
    (folder / "data").unlink()
    return folder / "bad.onnx"


def stripped() -> ModelProto:
    model = build("mlp")
    model.graph.initializer[0].ClearField("raw_data")
    return model


def too_few_numbers(of_constant_node: bool) -> ModelProto:
    """A weight whose values are not bytes but numbers, one too few."""
    model = build("mlp")
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, numpy_helper.to_array(tensor)))
    del tensor.float_data[-1]
    return with_constant_nodes(model) if of_constant_node else model


def directory(folder: Path) -> Path:
    (folder / "directory").mkdir()
    return folder / "directory"


def empty_graph() -> ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    return helper.make_model(helper.make_graph([], "g", [value], [value]))


def without_operator_set() -> ModelProto:
    model = from_text("(float[N,4] x) => (float[N,4] y) { y = com.microsoft.Gelu(x) }")
    del model.opset_import[1]
    return model


def foreign_operator() -> ModelProto:
    model = from_text("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    model.graph.node[0].op_type, model.graph.node[0].domain = "Mystery", "org.example"
    model.opset_import.append(helper.make_opsetid("org.example", 1))
    return model


def with_text_input() -> ModelProto:
    return from_text("(string[N] x) => (string[N] y) { y = Identity(x) }")


def with_a_nan() -> ModelProto:
    values = np.ones((8, 6), np.float32)
    values[3, 2] = np.nan
    return from_text(TEXTS["mlp"], {"w1": values})


CLASSIFIER = "(float[N,4] x) => (float[N,3] y) <float[4,3] w1> { y = MatMul(x, w1) }"
NORMALIZED = """(float[N,4] x) => (float[N,3] y) <float[4,6] w1, float[6] n_scale, float[6,3] w2> {
    h = MatMul(x, w1)
    n = LayerNormalization(h, n_scale)
    y = MatMul(n, w2)
}"""
WRONG_SHAPE = """(float[N,4] x) => (float[N,M] y) <float[4,6] w1, int64[2] t = {-1, 7}> {
    h = MatMul(x, w1)
    y = Reshape(h, t)
}"""
INPUTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing file": (lambda folder: folder / "none.onnx", "no such file"),
    "directory": (directory, "is a directory"),
    "device": (lambda folder: Path("/dev/null"), "is not a file; give an .onnx file"),
    "png": (junk(PNG), "is not an ONNX model"),
    "truncated": (truncated, "is not an ONNX model, or is truncated"),
    "empty file": (junk(b""), "is not an ONNX model"),
    "random bytes": (junk(np.random.default_rng(0).bytes(5000)), "is not an ONNX model"),
    "zeros": (junk(bytes(100)), "is not an ONNX model"),
    "text": (junk(b"hello\n"), "is not an ONNX model"),
    "json": (junk(b'{"irVersion": ', "bad.json"), "is not an ONNX model"),
    "onnx text": (junk(b"hello", "bad.onnxtxt"), "is not an ONNX model"),
    "ort format": (junk(b"\x00\x00\x00\x00ORTM" + bytes(50)), "is an ORT-format model"),
    "empty graph": (saved(empty_graph()), "empty graph"),
    "external data missing": (without_its_data, "external data is missing"),
    "weights stripped": (saved(stripped()), "holds 0 of its 192 bytes"),
    "a number missing": (saved(too_few_numbers(False)), "holds 47 of its 48 numbers"),
    "a number missing in a node": (saved(too_few_numbers(True)), "holds 47 of its 48 numbers"),
    "operators of no set": (saved(without_operator_set()), "No opset import for domain com.microsoft"),
    "unknown operator": (saved(foreign_operator()), "registered function/op; repair the model first"),
    "shapes do not fit": (saved(from_text(WRONG_SHAPE)), "onnxruntime cannot run the model"),
    "strings": (saved(with_text_input()), "is not a numeric tensor"),
    "two open sizes": (
        saved(
            from_text("""(float[A,B,6] x, float[A,3] k) => (float[A,B,6] y) <int64[3] s = {5, 7, 6}> {
            y = Reshape(x, s) }""")
        ),
        "give the right shapes, as in --input-shape x:1,224,6 --input-shape k:1,3",
    ),
    "only a classifier": (saved(from_text(CLASSIFIER)), "nothing to merge: feeds a graph output (y)"),
    "nothing but locks": (
        saved(from_text(NORMALIZED)),
        "LayerNormalization over the channels, without --allow-norm (h)",
    ),
    "no weights": (saved(from_text("(float[N] x) => (float[N] y) { y = Relu(x) }")), "nothing to merge: no Conv"),
    "a weight is not a number": (saved(with_a_nan()), "w1"),
    "name too long": (lambda folder: folder / ("n" * 300), "ame too long"),
}


@pytest.mark.filterwarnings("ignore:The onnxtxt format is experimental")  # onnx says so while it reads one
@pytest.mark.parametrize("case", INPUTS)
def test_bad_input(case: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make, message = INPUTS[case]
    check_failed(call(capfd, make(folder), folder / "out.onnx", "--sparsity", 0.5), 1, message, folder)


@pytest.mark.parametrize(
    ("options", "code"), [(["--target-macs", 0.5], 2), (["--min-cosine", 0.5], 1), (["--target-latency", "0.1x"], 2)]
)
def test_budgets_and_floors_give_the_reasons_too(
    options: list[object], code: int, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, why = saved(from_text(NORMALIZED))(folder), "without --allow-norm (h)"
    check_failed(call(capfd, path, folder / "out.onnx", *options), code, why, folder)
    assert "original is within the budget" in call(capfd, path, folder / "out.onnx", "--target-macs", 1.0)[1]


@pytest.mark.parametrize("method", ["drop", "auto"])
@pytest.mark.parametrize("options", [[], ["--calib"], ["--lossless"], ["--scope", "global"]], ids=str)
@pytest.mark.parametrize(("name", "value"), [("w1", np.nan), ("b1", np.inf), ("a_scale", -np.inf)])
def test_weights_biases_and_factors_must_be_finite(
    name: str, value: float, options: list[str], method: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever is measured: samples are not at fault."""
    text = """(float[N,6] x) => (float[N,3] y) <float[8,6] w1, float[8] b1, float[8] a_scale, float[3,8] w2> {
        h = Gemm<transB=1>(x, w1, b1)
        r = PRelu(h, a_scale)
        y = Gemm<transB=1>(r, w2)
    }"""
    shape = next(t.dims for t in from_text(text).graph.initializer if t.name == name)
    onnx.save(from_text(text, {name: np.where(np.arange(8) == 3, value, np.ones(shape).T).T}), folder / "in.onnx")
    given = [*HALF, "--method", method, *options] if options != ["--lossless"] else [*options]
    if "--calib" in options:
        (folder / "directory").mkdir()
        np.savez(folder / "directory" / "x.npz", x=np.random.default_rng(0).standard_normal((64, 6)).astype("f"))
        given += [str(folder / "directory" / "x.npz"), "--repair"]
    message = f"weight '{name}' of "
    check_failed(call(capfd, folder / "in.onnx", folder / "out.onnx", *given), 1, message, folder)


# --- destinations ---------------------------------------------------------------------------------------------------
DESTINATIONS = {
    "no disk behind it": ("/dev/null", [], "is a device or a pipe, not a file; give a file name, or --dry-run"),
    "links in a circle": ("directory", [], "is a symbolic link that leads in a circle"),
    "plan: links in a circle": ("out.onnx", ["--plan", "directory"], "is a symbolic link that leads in a circle"),
    "json: not writable": ("out.onnx", ["--json", "/proc/r.json"], "/proc/r.json: cannot be written: No such file"),
    "no such directory": ("none/out.onnx", [], "the directory"),
    "is a directory": ("", [], "is a directory"),
    "below a file": ("in.onnx/out.onnx", [], "the directory"),
    "name too long": ("n" * 300, [], "ame too long"),
    "plan: no such directory": ("out.onnx", ["--plan", "none/plan.json"], "the directory"),
    "plan: is a directory": ("out.onnx", ["--plan", "."], "irectory"),
    "json: no such directory": ("out.onnx", ["--json", "none/r.json"], "the directory"),
    "json: is a directory": ("out.onnx", ["--json", "."], "irectory"),
}


@pytest.mark.parametrize("case", DESTINATIONS)
def test_bad_destination(
    case: str, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    name, extra, message = DESTINATIONS[case]
    (folder / "directory").symlink_to("directory")
    check_failed(call(capfd, "in.onnx", folder / name, "--sparsity", 0.5, *extra), 1, message, folder)
    assert onnx.load(folder / "in.onnx") == build("residual")


@pytest.mark.parametrize("flag", ["--json", "--plan"])
def test_two_results_in_one_file(flag: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The report or the plan would replace the model that was just written, or the model that was read."""
    for name in ("out.onnx", "in.onnx"):
        code, _, err = call(capfd, folder / "in.onnx", folder / "out.onnx", *HALF, flag, folder / name)
        assert (code in (1, 2), len(err.splitlines())) == (True, 1)
        assert (folder / "out.onnx").read_bytes() == PRECIOUS
        assert onnx.load(folder / "in.onnx") == build("residual")


@pytest.mark.parametrize("results", ["read.npz", "out.onnx --json linked.npz", "out.onnx --plan read.npz"])
@pytest.mark.parametrize("option", ["--calib", "--eval", "--gradients", "--from-plan", "--config", "--importance"])
def test_what_is_read_is_not_written(
    option: str, results: str, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the file is read for, and by whatever name: `linked` is a link to it."""
    monkeypatch.chdir(folder)
    Path("read.npz").write_bytes(before := b"seed = 1\n")
    Path("linked.npz").hardlink_to("read.npz")
    needed = ["--importance", "taylor"] if option == "--gradients" else []
    code, _, err = call(capfd, "in.onnx", *results.split(), *HALF, *needed, option, "read.npz")
    assert (code, err.count("\n")) == (2, 1)
    assert err.endswith(f"{results.split()[-1]}: this run reads that file; give another one to write to\n")
    assert Path("read.npz").read_bytes() == before
    assert Path("out.onnx").read_bytes() == PRECIOUS


@pytest.mark.parametrize("results", ["images/0.PNG", "out.onnx --json images/0.PNG", "out.onnx --plan images/0.PNG"])
def test_an_image_of_a_folder_is_not_written(
    results: str, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    Path("images").mkdir()
    Path("images/0.PNG").write_bytes(PRECIOUS)
    code, _, err = call(capfd, "in.onnx", *results.split(), *HALF, "--calib", "images")
    assert (code, err.count("\n")) == (2, 1)
    assert "images/0.PNG: this run reads that file" in err
    assert Path("images/0.PNG").read_bytes() == Path("out.onnx").read_bytes() == PRECIOUS


def test_side_files_are_written_before_the_model(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may be full at last: then the destination is as it was, as is said."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "plan.npz")

    monkeypatch.setattr(np, "savez_compressed", full)
    (folder / "directory").mkdir()
    run = call(capfd, folder / "in.onnx", folder / "out.onnx", *HALF, "--plan", folder / "directory" / "plan")
    check_failed(run, 1, "plan.npz: cannot be written: No space left on device", folder)
    assert not [*(folder / "directory").iterdir()]


def test_a_pipe_takes_the_report(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, _ = call(capfd, folder / "in.onnx", folder / "out.onnx", *HALF, "--quiet", "--json", "/dev/null")
    assert (code, Path("/dev/null").is_char_device()) == (0, True)


@pytest.mark.parametrize("flag", ["--json", "--plan"])
def test_output_onto_the_data_of_the_input(flag: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The model that was read would lose its weights."""
    path = folder / "bad.onnx"
    onnx.save(build("residual"), path, save_as_external_data=True, location="bad.data", size_threshold=0)
    before = onnx.load(path)
    for given in ([folder / "bad.data"], [folder / "out.onnx", flag, folder / "bad.data"]):
        code, _, err = call(capfd, path, *given, *HALF)
        assert (code in (1, 2), len(err.splitlines())) == (True, 1)
    assert onnx.load(path) == before


# --- options --------------------------------------------------------------------------------------------------------
REFUSED = {
    "sparsity 1": (["--sparsity", "1"], "give 0 ≤ sparsity < 1"),
    "sparsity 40": (["--sparsity", "40"], "give 0 ≤ sparsity < 1"),
    "sparsity -1": (["--sparsity", "-1"], "give 0 ≤ sparsity < 1"),
    "sparsity nan": (["--sparsity", "nan"], "give 0 ≤ sparsity < 1"),
    "sparsity inf": (["--sparsity", "inf"], "give 0 ≤ sparsity < 1"),
    "exclude matches nothing": ([*HALF, "--exclude", "c7"], "--exclude 'c7' matches no node; near: c"),
    "exclude is no regex": ([*HALF, "--exclude", "c("], "is not a regular expression"),
    "exclude is checked at sparsity 0": (["--sparsity", "0", "--exclude", "c7"], "matches no node"),
    "shape without a name": ([*HALF, "--input-shape", "1,3,8,8"], "is not NAME:1,3,224,224"),
    "shape without sizes": ([*HALF, "--input-shape", "x:"], "is not NAME:1,3,224,224"),
    "shape in letters": ([*HALF, "--input-shape", "x:a,b"], "is not NAME:1,3,224,224"),
    "shape in superscript": ([*HALF, "--input-shape", "x:1,3,8,²"], "is not NAME:1,3,224,224"),
    "negative shape": ([*HALF, "--input-shape", "x:1,3,-8,8"], "is not NAME:1,3,224,224"),
    "shape of an unknown input": ([*HALF, "--input-shape", "image:1,3,8,8"], "the model's inputs are x"),
    "shape that contradicts": ([*HALF, "--input-shape", "x:1,3,9,9"], "does not fit the model's"),
    "shape of another rank": ([*HALF, "--input-shape", "x:1,3"], "does not fit the model's"),
    "shape of size 0": ([*HALF, "--input-shape", "x:0,3,8,8"], "does not fit the model's"),
    "range without a name": ([*HALF, "--input-range", "0,1"], "is not NAME:LOW,HIGH, such as x:0,255"),
    "range of one number": ([*HALF, "--input-range", "x:1"], "is not NAME:LOW,HIGH"),
    "range in letters": ([*HALF, "--input-range", "x:a,b"], "is not NAME:LOW,HIGH"),
    "range upside down": ([*HALF, "--input-range", "x:1,-1"], "--input-range x:1,-1 is no range"),
    "range of an unknown input": ([*HALF, "--input-range", "image:0,1"], "the model's inputs are x"),
    "unknown provider": (
        [*HALF, "--provider", "abacus"],
        "provider 'abacus' is not in this onnxruntime; choose from cpu",
    ),
    "target mass without transport": (
        [*HALF, "--method", "drop", "--target-mass", "uniform"],
        "leave out --target-mass",
    ),
    "cost without transport": ([*HALF, "--method", "fold", "--cost-norm", "2"], "leave out --cost-norm"),
    "cosine 2": ([*HALF, "--min-cosine", "2"], "is not a cosine"),
    "cosine nan": ([*HALF, "--min-cosine", "nan"], "is not a cosine"),
    "seed -1": ([*HALF, "--seed", "-1"], "seed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_option(case: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments, message = REFUSED[case]
    check_failed(call(capfd, folder / "in.onnx", folder / "out.onnx", *arguments), 2, message, folder)


@pytest.mark.parametrize("provider", onnxruntime.get_available_providers())
def test_a_provider_works_or_is_refused(provider: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """onnxruntime itself falls back to the CPU, with a page of log."""
    result = call(capfd, folder / "in.onnx", folder / "out.onnx", *HALF, "--provider", provider)
    if result[0]:
        check_failed(result, 2, "cannot start here", folder)
    else:
        assert result[2] == ""


USAGE = [
    (["--sparsity", "0.5"], "input"),
    (["in.onnx", "out.onnx", "--sparsity", "half"], "invalid float value: 'half'"),
    (["in.onnx", "out.onnx", "third", "--sparsity", "0.5"], "unrecognized arguments: third"),
    (["in.onnx", "out.onnx", *HALF, "--method", "magic"], "invalid choice: 'magic'"),
    (["in.onnx", "out.onnx", *HALF, "--cost-norm", "3"], "invalid choice: 3"),
    (["in.onnx", "out.onnx", *HALF, "--quiet", "--verbose"], "not allowed with"),
    (["in.onnx", "out.onnx", *HALF, "--frobnicate"], "unrecognized arguments: --frobnicate"),
    (["in.onnx", "out.onnx", "--target-mac", "0.5"], "unrecognized arguments: --target-mac 0.5; near: --target-macs"),
    (["in.onnx", "out.onnx", *HALF, "--eval", ""], "--eval is empty; give a value or leave it out"),
    (["in.onnx", "out.onnx", *HALF, "--calib="], "--calib is empty"),
    (["in.onnx", "out.onnx", *HALF, "--config", ""], "--config is empty"),
    (["in.onnx", "", *HALF], "an argument is empty"),
    (["in.onnx", "out.onnx", "--spars=0.5"], "unrecognized arguments: --spars=0.5; near: --sparsity"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_usage(arguments: list[str], message: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The command line itself is wrong."""
    code, out, err = call(capfd, *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("onnxfuse: ")
    assert message in err
    assert err.endswith("see onnxfuse --help\n")
    _, out, err = call(capfd, *arguments, "--json", "-")
    assert err == f"onnxfuse: {report_of(out)['error']}\n"


def test_debug_adds_a_stack_trace(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = folder / "in.onnx", folder / "none" / "out.onnx", *HALF, "--json", "-"
    code, out, err = call(capfd, *arguments)
    again, same, trace = call(capfd, *arguments, "--debug")
    assert (code, out) == (again, same) == (1, same)
    assert trace.startswith("Traceback")
    assert trace.endswith(err)


def test_no_output(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_failed(call(capfd, folder / "in.onnx", *HALF), 2, "give one, or --dry-run", folder)


ROOTS = """(float[N,3] x) => (float[N,2] y) <float[8,3] w1, float[2,8] w2, float[2] b2> {
    h = Gemm<transB=1>(x, w1)
    r = Relu(h)
    z = Gemm<transB=1>(r, w2, b2)
    y = Sqrt(z)
}"""


@pytest.mark.parametrize(
    ("bias", "where", "command"),
    [(0, " at some places, and the result at others", ""), (-99, "", ""), (-99, "", "ensemble")],
)
def test_what_is_no_number_proves_nothing(
    bias: int, where: str, command: str, folder: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    model = from_text(ROOTS, {"b2": np.full(2, bias)})
    onnx.save(model, "in.onnx")
    onnx.save(model, "bad.onnx")
    how = (
        ["ensemble", "in.onnx", "bad.onnx", "out.onnx"]
        if command
        else ["in.onnx", "out.onnx", "--sparsity", "0.9", "--method", "drop"]
    )
    message = f"output 'y' is NaN or infinite on the input that is tried{where}, so nothing can be compared; give samp"
    check_failed(call(capfd, *how), 3, message, folder)


def test_what_is_no_number_on_random_input_only() -> None:
    """The user's samples are tried then."""
    weights = {
        name: np.random.default_rng(0).uniform(0.5, 1, shape) for name, shape in (("w1", (8, 3)), ("w2", (2, 8)))
    }
    samples = np.random.default_rng(0).uniform(10, 20, (64, 3))
    model = from_text(ROOTS, {**weights, "b2": np.full(2, -9)})
    for calib in ({"x": samples}, {"x": samples.astype(np.float32)}):
        result = onnxfuse.fuse(model, sparsity=0.5, calib=calib)
        assert result.report.comparison.cosine > 0.99


def test_infinities_of_a_mask_differ_in_nothing() -> None:
    model = from_text(ROOTS.replace("Sqrt(z)", "Add(z, b2)"), {"b2": np.array([0, -np.inf])})
    result = onnxfuse.fuse(model, sparsity=0.5, max_error=99)
    assert 0 < result.report.comparison.outputs[0].max_abs < 99


def test_failed_check_as_json(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--sparsity", 0.9, "--method", "drop", "--min-cosine", 1, "--json", "-"]
    code, out, err = call(capfd, folder / "in.onnx", folder / "out.onnx", *options)
    report = report_of(out)
    assert (code, report["status"], report["exit_code"], len(err.splitlines())) == (3, "failed", 3, 1)
    assert (folder / "out.onnx").read_bytes() == PRECIOUS


# --- as a process ---------------------------------------------------------------------------------------------------
def process(*arguments: object, stdout: int | IO[str] = subprocess.PIPE) -> subprocess.Popen[str]:
    """The command, which takes SIGINT even where these tests were started in the background and so ignore it."""
    return subprocess.Popen(
        [sys.executable, "-m", "onnxfuse", *map(str, arguments)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )


def test_module_runs(folder: Path) -> None:
    with process(folder / "in.onnx", folder / "small.onnx", *HALF) as run:
        out, err = run.communicate()
    assert (run.returncode, err) == (0, "")
    assert last(out).startswith("PASSED ")


def test_module_fails(folder: Path) -> None:
    with process(folder / "none.onnx", folder / "out.onnx", *HALF) as run:
        out, err = run.communicate()
    check_failed((run.returncode, out, err), 1, "no such file", folder)


def test_nobody_reads_stdout(folder: Path) -> None:
    """As with `| head -1`: what is said is lost, not what is done."""
    reader, writer = os.pipe()
    os.close(reader)
    with process(folder / "in.onnx", folder / "out.onnx", *HALF, stdout=writer) as run:
        os.close(writer)
        assert run.communicate()[1] == ""
    assert (run.returncode, onnx.load(folder / "out.onnx").graph.name) == (0, build("residual").graph.name)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="not on this system")
def test_stdout_cannot_be_written(folder: Path) -> None:
    with Path("/dev/full").open("w") as full, process("--help", stdout=full) as run:
        assert run.communicate()[1] == "onnxfuse: stdout: cannot be written: No space left on device\n"
    assert run.returncode == 1


SHELL = "import sys, onnxfuse.streams as s; s.open_streams(); print('é'); print(s.wants_json(sys.argv[1:]))"


@pytest.mark.parametrize(("redirected", "said"), [("", "?\nTrue\n"), (">&-", ""), ("<&- 2>&- >&-", "")])
def test_streams_that_are_ascii_or_closed(redirected: str, said: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = ["sh", "-c", f'"$0" -c "$1" --json - {redirected}', sys.executable, SHELL]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=True)
    assert (done.stdout, done.stderr) == (said, "")


def test_interrupted_while_packages_are_imported(folder: Path) -> None:
    """The first module that the command line imports sends the signal, which nohup would have ignored."""
    code = """import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)
class Stop:
    def find_spec(self, name, *_):
        if name == "numpy": import warnings; warnings.warn("of numpy"); os.kill(os.getpid(), signal.SIGHUP)
sys.meta_path.insert(0, Stop())
from onnxfuse.__main__ import entry
entry()"""
    command = [sys.executable, "-c", code, "in.onnx", "out.onnx", *HALF, "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (130, "onnxfuse: interrupted\n")
    assert report_of(done.stdout)["exit_code"] == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(number: signal.Signals, folder: Path) -> None:
    """Stopped in the midst of merging a network that takes seconds, as its log says."""
    n = 2000
    text = f"""(float[N,8] x) => (float[N,4] y)
        <float[8,{n}] w1, float[{n},{n}] w2, float[{n},{n}] w3, float[{n},4] w4> {{
        a = MatMul(x, w1)
        b = MatMul(a, w2)
        c = MatMul(b, w3)
        y = MatMul(c, w4)
    }}"""
    onnx.save(from_text(text), folder / "bad.onnx")
    with process(folder / "bad.onnx", folder / "out.onnx", *HALF, "--verbose") as run:
        assert run.stderr is not None
        log = next(line for line in run.stderr if "merge" in line)
        run.send_signal(number)
        out, rest = run.communicate()
    assert run.returncode == 130, log
    assert "onnxfuse: interrupted" in rest
    assert "Traceback" not in rest
    assert last(out) == f"FAILED (exit code 130): {folder / 'out.onnx'} is as it was"
    assert (folder / "out.onnx").read_bytes() == PRECIOUS
    assert {p.name for p in folder.iterdir()} == {"in.onnx", "bad.onnx", "out.onnx"}
