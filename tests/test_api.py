"""The public API: its names, defaults, errors, and the numbers in its report."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import onnx
import pytest

import onnxfuse
from onnxfuse.cli import parser
from onnxfuse.ensemble_options import PRUNING, SHARED
from onnxfuse.keywords import FuseKeywords, SharedKeywords
from onnxfuse.options import Options

from .graphs import build, from_text
from .test_cli import call

EXPORTED = """Analysis ChannelGroup FuseResult GroupView Locked ModelError NothingToMerge OnnxFuseError OutputError Plan
Report Slot UsageError VerificationFailed __version__ analyze apply_plan ensemble fuse""".split()


def test_exported_names() -> None:
    assert onnxfuse.__all__ == EXPORTED
    assert all(hasattr(onnxfuse, name) for name in EXPORTED)


def test_defaults_are_the_command_lines() -> None:
    """Every option of `fuse` is a flag, and has the flag's default."""
    options = dict(inspect.signature(onnxfuse.fuse).parameters)
    flags = vars(parser().parse_args(["in.onnx", "out.onnx", "--sparsity", "0.5"]))
    flags["input_shapes"] = flags.pop("input_shape") or None
    flags["input_ranges"] = flags.pop("input_range") or None
    for name in ("model", "output", "sparsity", "progress"):
        del options[name]
    for name, option in options.items():
        default = tuple(flags[name]) if isinstance(flags[name], list) else flags[name]
        assert default == option.default, name


def test_every_option_is_a_documented_keyword() -> None:
    keys = {*SharedKeywords.__annotations__, *FuseKeywords.__annotations__}
    assert keys == {f.name for f in fields(Options)}
    assert set(SharedKeywords.__annotations__) == {*PRUNING, *SHARED}
    for function in (onnxfuse.fuse, onnxfuse.ensemble):
        parameters, described = inspect.signature(function).parameters, inspect.getdoc(function) or ""
        assert get_type_hints(function).keys() == {*parameters, "return"}
        assert not any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        for name in parameters:
            assert re.search(rf"^    (\w+, )*{name}(, \w+)*: ", described, re.MULTILINE), name


@pytest.mark.parametrize("wrong", ["sparsty", "progres"])
def test_an_unknown_keyword_is_named_and_so_is_a_near_one(wrong: str) -> None:
    options: dict[str, Any] = {wrong: 0.5}
    for name in ("fuse", "ensemble"):
        with pytest.raises(TypeError, match=rf"^{name}\(\) got .* '{wrong}'; near: (sparsity|progress)"):
            getattr(onnxfuse, name)("none.onnx", **options)
    options = {"ratio": ["c=0.5"]}  # of `fuse` only
    with pytest.raises(TypeError, match=r"^ensemble\(\) got an unexpected keyword argument 'ratio'"):
        onnxfuse.ensemble([], **options)


@pytest.mark.parametrize("function", ["fuse", "ensemble", "analyze", "apply_plan"])
def test_every_argument_must_be_of_its_kind(function: str) -> None:
    called = getattr(onnxfuse, function)
    for name in inspect.signature(called).parameters:
        with pytest.raises(onnxfuse.UsageError, match=rf"^{name} is a value of type object; give "):
            called(**{name: object()})
    with pytest.raises(onnxfuse.UsageError, match=r"^\w+ is 5; give "):
        called(5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": "a lot"}, "sparsity is 'a lot'; give a number or None"),
        ({"sparsity": True}, "sparsity is True; give a number"),
        ({"seed": 1.5}, "seed is 1.5; give a whole number"),
        ({"eval": ""}, "eval is ''; give a path or None"),
        ({"ratio": {"c1": 0.5}}, "ratio is a value of type dict; give a text or a list of texts"),
        ({"only": [5]}, "only is a value of type list; give a text or a list of texts"),
        ({"input_shapes": {"x": 3}}, "give a mapping of names to lists of whole numbers"),
        ({"input_ranges": {"x": "01"}}, "give a mapping of names to lists of numbers"),
        ({"calib": {"x": [[1], [1, 2]]}}, "'x': is no array"),
    ],
)
def test_values_of_a_wrong_kind(options: dict[str, Any], message: str) -> None:
    with pytest.raises(onnxfuse.UsageError) as caught:
        onnxfuse.fuse(build("mlp"), **{"sparsity": 0.5, **options})
    assert message in str(caught.value)


def test_numbers_of_numpy_are_numbers() -> None:
    """The report, which is JSON, could not be made of them."""
    numbers: dict[str, Any] = {"sparsity": np.float32(0.4), "seed": np.int64(3), "round_to": np.int8(1)}
    numbers |= {"external_data": np.False_, "input_shapes": {"x": np.array([2, 6])}}
    result = onnxfuse.fuse(build("mlp"), **numbers)
    plain = onnxfuse.fuse(build("mlp"), sparsity=0.4, seed=3, round_to=1, input_shapes={"x": (2, 6)})
    assert result.model == plain.model
    assert json.dumps(result.report.options) == json.dumps(plain.report.options)
    shares: Any = np.array([0.5, 0.5], np.float32)
    onnxfuse.ensemble([build("mlp")] * 2, weights=shares, **numbers)


# --- analyze --------------------------------------------------------------------------------------------------------
MLP_GROUPS = """h1: 8 channels
  produces  w1 axis 0 (h1)
  shift     b1 axis 0 (h1)
  consumes  w2 axis 0 (h2)
h2: 10 channels
  produces  w2 axis 1 (h2)
  shift     b2 axis 0 (h2)
  consumes  w3 axis 1 (y)"""


def test_analyze_prints() -> None:
    assert "\n".join(map(str, onnxfuse.analyze(build("mlp")))) == MLP_GROUPS


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "residual",
            {"c1": (8, {"c1", "c3", "c2", "c4", "c5"}), "c2": (6, {"c2", "c3"}), "c4": (12, {"c4", "c5", "y"})},
        ),
        ("depthwise_twice", {"c1": (8, {"c1", "c2", "y"})}),
        ("dense_block", {"c1": (8, {"c1", "c2", "c3", "y"}), "c2": (4, {"c2", "c3", "y"}), "c3": (4, {"c3", "y"})}),
        ("squeeze_excite", {"c1": (8, {"c1", "s1", "s3", "y"}), "s1": (4, {"s1", "s3"})}),
    ],
)
def test_analyze_finds(name: str, expected: dict[str, tuple[int, set[str]]]) -> None:
    assert {g.name: (g.channels, set(g.nodes)) for g in onnxfuse.analyze(build(name))} == expected


def test_analyze_reads_files(tmp_path: Path) -> None:
    onnx.save(build("residual"), tmp_path / "m.onnx")
    assert [g.name for g in onnxfuse.analyze(tmp_path / "m.onnx", exclude=["^c2$"])] == ["c4"]
    assert [g.name for g in onnxfuse.analyze(str(tmp_path / "m.onnx"), exclude=["^y$"])] == ["c1", "c2"]


# --- errors ---------------------------------------------------------------------------------------------------------
def test_error_tree() -> None:
    codes = {"ModelError": 1, "NothingToMerge": 1, "OutputError": 1, "UsageError": 2, "VerificationFailed": 3}
    for name, code in codes.items():
        error = getattr(onnxfuse, name)
        assert issubclass(error, onnxfuse.OnnxFuseError)
        assert error.exit_code == code
    assert issubclass(onnxfuse.UsageError, ValueError)


ERRORS: list[tuple[dict[str, Any], list[object], str]] = [
    ({"sparsity": 1.0}, ["--sparsity", 1.0], "UsageError"),
    ({"sparsity": float("nan")}, ["--sparsity", "nan"], "UsageError"),
    ({"provider": "abacus"}, ["--provider", "abacus"], "UsageError"),
    ({"method": "drop", "target_mass": "uniform"}, ["--method", "drop", "--target-mass", "uniform"], "UsageError"),
    ({"min_cosine": 3.0}, ["--min-cosine", 3.0], "UsageError"),
    ({"importance": "magic"}, ["--importance", "magic"], "UsageError"),
    ({"importance": "none.npz"}, ["--importance", "none.npz"], "UsageError"),
    ({"importance": "taylor"}, ["--importance", "taylor"], "UsageError"),
    ({"importance": "chip"}, ["--importance", "chip"], "UsageError"),
    ({"gradients": "none.npz"}, ["--gradients", "none.npz"], "UsageError"),
    ({"exclude": ["c9"]}, ["--exclude", "c9"], "UsageError"),
    ({"exclude": ["("]}, ["--exclude", "("], "UsageError"),
    ({"exclude": ["^c"]}, ["--exclude", "^c"], "NothingToMerge"),
    ({"input_shapes": {"x": [1, 2]}}, ["--input-shape", "x:1,2"], "UsageError"),
    ({"input_ranges": {"x": [2, 1]}}, ["--input-range", "x:2,1"], "UsageError"),
    ({"min_cosine": 0.99999, "sparsity": 0.9}, ["--min-cosine", 0.99999, "--sparsity", 0.9], "VerificationFailed"),
]


@pytest.mark.parametrize(("options", "flags", "kind"), ERRORS, ids=lambda v: str(v))
def test_errors_are_the_command_lines(
    options: dict[str, Any], flags: list[object], kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "in.onnx"
    onnx.save(build("residual"), path)
    with pytest.raises(onnxfuse.OnnxFuseError) as caught:
        onnxfuse.fuse(path, tmp_path / "out.onnx", **{"sparsity": 0.5, **options})
    assert type(caught.value).__name__ == kind
    code, _, err = call(capfd, path, tmp_path / "out.onnx", "--sparsity", 0.5, *flags)
    assert (code, err) == (caught.value.exit_code, f"onnxfuse: {caught.value}\n")
    assert [p.name for p in tmp_path.iterdir()] == ["in.onnx"]


@pytest.mark.parametrize(
    ("options", "listed"),
    [
        ({"method": "magic"}, "auto, intra-fusion, barycentric, fold, fold-variance, surgeon, drop"),
        ({"importance": "magic"}, "l1, l2, lamp, taylor, chip, energy, random, or give an .npz file"),
        ({"target": "magic"}, "important, cluster"),
        ({"source_mass": "magic"}, "uniform, importance"),
        ({"cost_norm": 3}, "1, 2"),
    ],
)
def test_an_unknown_value_lists_the_known(options: dict[str, Any], listed: str) -> None:
    with pytest.raises(onnxfuse.UsageError, match=f"is not known; choose from .*{listed}"):
        onnxfuse.fuse(build("mlp"), sparsity=0.5, **options)


def test_analyze_has_the_same_errors(tmp_path: Path) -> None:
    with pytest.raises(onnxfuse.ModelError, match="no such file"):
        onnxfuse.analyze(tmp_path / "none.onnx")
    with pytest.raises(onnxfuse.UsageError, match="is not a regular expression"):
        onnxfuse.analyze(build("mlp"), exclude=["("])
    with pytest.raises(onnxfuse.UsageError, match="matches no node"):
        onnxfuse.analyze(build("mlp"), exclude=["nothing"])


# --- progress and report --------------------------------------------------------------------------------------------
def test_progress() -> None:
    calls: list[tuple[str, int, int]] = []
    onnxfuse.fuse(build("residual"), sparsity=0.5, progress=lambda *call: calls.append(call))
    stages = ["load", "run the original", "find channel groups", "measure", "merge", "repair", "rewrite", "verify"]
    assert list(dict.fromkeys(stage for stage, _, _ in calls)) == [*stages, "compare on synthetic samples"]
    assert all(0 <= done <= total for _, done, total in calls)
    assert next(total for stage, _, total in calls if stage == "merge") == 3


SIZES = [
    # (graph, parameters before and after, multiply-accumulates before and after at batch 2)
    # MatMul 2·5·8·6 + 2·5·4·8; the bias has 8
    ("matmul_add", 6 * 8 + 8 + 8 * 4, 6 * 4 + 4 + 4 * 4, 800, 400),
    # 3×3 Conv 3 → 8 at 8×8, 3×3 Conv 8 → 6 at 4×4, Gemm 6 → 5; the norms' 4·8 + 4·6 vectors become 8 biases
    ("conv_bn", 216 + 32 + 432 + 6 + 24 + 35, 108 + 4 + 108 + 3 + 20, 27648 + 13824 + 60, 13824 + 3456 + 30),
    # 1×1 Conv 3 → 8, depthwise 3×3, 1×1 Conv 8 → 4, all at 6×6; the norm's 32 become 8 biases
    ("depthwise", 24 + 72 + 32 + 32, 12 + 36 + 4 + 16, 1728 + 5184 + 2304, 864 + 2592 + 1152),
    # 3×3 Conv 3 → 8, 3×3 Conv 8 → 12 in 2 groups, 1×1 Conv 12 → 3, all at 6×6
    ("grouped", 216 + 432 + 12 + 36, 108 + 108 + 6 + 18, 15552 + 31104 + 2592, 7776 + 7776 + 1296),
    # Conv at 4×4; ConvTranspose 8 → 6 reads 4×4, 6 → 8 in 2 groups reads 8×8, with 4×4 kernels; 1×1 Conv at 16×16
    ("conv_transpose", 216 + 768 + 24 + 384 + 8 + 16, 108 + 128 + 2 + 64 + 4 + 8,
     6912 + 24576 + 49152 + 8192, 3456 + 4096 + 8192 + 4096),
]  # fmt: skip


@pytest.mark.parametrize(("name", "parameters", "fewer", "macs", "less"), SIZES, ids=[row[0] for row in SIZES])
def test_report_counts(name: str, parameters: int, fewer: int, macs: int, less: int) -> None:
    report = onnxfuse.fuse(build(name), sparsity=0.5).report
    assert (report.before.parameters, report.after.parameters) == (parameters, fewer)
    assert (report.before.macs, report.after.macs) == (macs, less)


def test_report_sizes_in_bytes(tmp_path: Path) -> None:
    onnx.save(build("residual"), tmp_path / "in.onnx")
    report = onnxfuse.fuse(tmp_path / "in.onnx", tmp_path / "out.onnx", sparsity=0.5).report
    assert report.before.file_bytes == (tmp_path / "in.onnx").stat().st_size
    assert report.after.file_bytes == (tmp_path / "out.onnx").stat().st_size
    assert (report.source, report.destination) == (str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"))


def test_report_says_what_was_left_alone() -> None:
    report = onnxfuse.fuse(build("unknown_operator"), sparsity=0.5).report
    assert [(row.name, row.channels, row.reason, row.node) for row in report.locked] == [
        ("k", 8, "Trilu has no rule", "u"),
        ("y", 3, "feeds a graph output", "the graph's outputs"),
    ]


def test_report_is_json() -> None:
    options: dict[str, Any] = {"exclude": ["c9|^y$"], "input_shapes": {"x": (2, 3, 8, 8)}, "min_cosine": -1}
    report = onnxfuse.fuse(build("residual"), sparsity=0.5, **options).report
    assert json.loads(json.dumps(report.as_json(), allow_nan=False))["options"]["exclude"] == ["c9|^y$"]
    assert report.seconds > 0


def test_comparison_of_a_perfect_result() -> None:
    """A hidden channel that nothing reads is all that goes."""
    text = """(float[N,1] x) => (float[N,1] y) <float[2,1] w1 = {2, 0.5}, float[1,2] w2 = {3, 0}> {
        h = Gemm<transB=1>(x, w1)
        y = Gemm<transB=1>(h, w2)
    }"""
    (output,) = onnxfuse.fuse(from_text(text), sparsity=0.5, method="drop").report.comparison.outputs
    assert (output.name, output.cosine, output.max_abs, output.relative) == ("y", 1, 0, 0)
