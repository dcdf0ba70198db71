"""`onnxfuse ensemble`: what it prints and writes, and that whatever is wrong is one line, with nothing written."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxfuse
from onnxfuse.cli_ensemble import parser

from .copies import renamed, shuffled
from .graphs import build, from_text, gap, inputs, run
from .test_cli import call, last
from .test_ensemble import CONCAT, PLAIN, RESIDUAL

PRECIOUS = b"what was there before"
Change = Callable[[ModelProto], ModelProto]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a.onnx, b.onnx (a in disguise) and a destination that must not change by itself."""
    model = from_text(PLAIN)
    onnx.save(model, tmp_path / "a.onnx")
    onnx.save(renamed(shuffled(model, 1)), tmp_path / "b.onnx")
    np.savez(tmp_path / "calib.npz", **inputs(model, batch=64))  # type: ignore[arg-type]
    (tmp_path / "out.onnx").write_bytes(PRECIOUS)
    return tmp_path


def test_two_files_become_one(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = [folder / f"{n}.onnx" for n in ("a", "b", "out")]
    code, out, err = call(capfd, "ensemble", paths[0], "--calib", folder / "calib.npz", *paths[1:])
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"{paths[0]} + {paths[1]} → {paths[2]}"
    assert "fused 2 models, aligned by activations of 64 given samples; cosine 1.0000" in out
    assert "mean and deviation restored in 3 layers" in out
    assert "channel groups merged" not in out
    assert last(out).startswith(f"PASSED {paths[2]}: 100.0% of the MACs")
    assert gap(run(onnx.load(paths[0])), run(onnx.load(paths[2]))) < 1e-5


def test_what_an_ensemble_cannot_be_asked_for_is_not_advised(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is removed without a sparsity, and there is no --scope."""
    onnx.save(from_text(PLAIN, {"w3": np.full((5, 12), -9)}), folder / "b.onnx")
    paths = [folder / f"{n}.onnx" for n in ("a", "b", "out")]
    said = [call(capfd, "ensemble", *paths, "--weights", "0,1", *more)[1] for more in ([], ["--sparsity", 0.5])]
    assert "your own test set; --calib keeps more, --min-cosine refuses" in said[0]
    assert "your own test set; removing less and --calib keep more, --min-cosine refuses" in said[1]


def test_json_plan_and_pruning(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = [folder / f"{n}.onnx" for n in ("a", "b", "out")]
    how = ["--sparsity", 0.5, "--method", "fold", "--weights", "0.25,0.75", "--align", "weights", "--no-restore"]
    code, out, err = call(capfd, "ensemble", *paths, *how, "--plan", folder / "p.json", "--json", "-")
    report = json.loads(out)
    assert (code, err, report["status"], report["options"]["weights"]) == (0, "", "passed", [0.25, 0.75])
    assert [(g["before"], g["after"]) for g in report["groups"]] == [(8, 4), (12, 6)]
    assert len(json.loads((folder / "p.json").read_text())["groups"]) == 2


def test_defaults_are_the_command_lines() -> None:
    options = dict(inspect.signature(onnxfuse.ensemble).parameters)
    flags = vars(parser().parse_args(["a.onnx", "b.onnx", "out.onnx"]))
    flags["input_shapes"] = flags.pop("input_shape") or None
    flags["input_ranges"] = flags.pop("input_range") or None
    for name in ("models", "output", "progress"):
        del options[name]
    for name, option in options.items():
        default = tuple(flags[name]) if isinstance(flags[name], list) else flags[name]
        assert default == option.default, name


# --- refusals -------------------------------------------------------------------------------------------------------
def text(*changes: tuple[str, str]) -> Change:
    """PLAIN with differences."""

    def change(_: ModelProto) -> ModelProto:
        made = PLAIN
        for old, new in changes:
            made = made.replace(old, new)
        return from_text(made)

    return change


def other_opset(model: ModelProto) -> ModelProto:
    return from_text(PLAIN, opset=16)


def in_float16(model: ModelProto) -> ModelProto:
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


MODELS: dict[str, tuple[Change, str]] = {
    "another operator": (text(("LeakyRelu", "Tanh")), "node 4 is Tanh (r2), in {a} it is LeakyRelu (r2)"),
    "an attribute": (
        text(("pads=[1,1,1,1]", "pads=[0,0,0,0]")),
        "pads of node 0 (c1) is [0, 0, 0, 0], in {a} [1, 1, 1, 1]",
    ),
    "an input's name": (text(("x)", "X)"), ("(x,", "(X,")), "input 0 is 'X' float [?, 3, 8, 8], in {a} 'x' float"),
    "more nodes": (lambda _: from_text(RESIDUAL), "input 0 is 'x' float [?, 3, 6, 6]"),
    "another connection": (text(("Conv(m1,", "Conv(r1,")), "node 3 (c2) reads 'r1' as input 0, in {a} 'm1'"),
    "another kernel": (text(("12,8,3,3", "12,8,1,1")), "constant 'w2' has shape [12, 8, 1, 1], [12, 8, 3, 3]"),
    "other classes": (
        text(("[N,5]", "[N,6]"), ("[5,12]", "[6,12]"), ("[5] b3", "[6] b3")),
        "output 0 is 'y' float [?, 6]",
    ),
    "another opset": (other_opset, "opset of domain 'ai.onnx' is 16, in {a} 17"),
    "another type": (in_float16, "input 0 is 'x' float16 [?, 3, 8, 8], in {a} 'x' float [?, 3, 8, 8]"),
}


@pytest.mark.parametrize("case", MODELS)
def test_another_architecture_is_refused(case: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change, message = MODELS[case]
    onnx.save(change(onnx.load(folder / "a.onnx")), folder / "bad.onnx")
    check(call(capfd, "ensemble", folder / "a.onnx", folder / "bad.onnx", folder / "out.onnx"), 1, folder, message)


def check(found: tuple[int, str, str], code: int, folder: Path, message: str) -> None:
    """One line, this exit code, the destination as it was."""
    assert message.format(a=folder / "a.onnx") in found[2]
    assert (found[0], len(found[2].splitlines())) == (code, 1)
    assert found[2].startswith("onnxfuse: ")
    assert "internal error" not in found[2]
    assert last(found[1]).startswith(f"FAILED (exit code {code})")
    assert (folder / "out.onnx").read_bytes() == PRECIOUS


ARGUMENTS: dict[str, tuple[list[str], int, str]] = {
    "one file twice": (["a.onnx", "a.onnx", "out.onnx"], 2, "a.onnx is given twice"),
    "by another name": (["a.onnx", "./link.onnx", "out.onnx"], 2, "link.onnx is given twice (as"),
    "one model": (["a.onnx", "out.onnx"], 2, "takes two models or more"),
    "the output is a model": (["a.onnx", "b.onnx", "c.onnx", "b.onnx"], 2, "is both a model and the output"),
    "an unreadable second file": (["a.onnx", "junk.onnx", "out.onnx"], 1, "junk.onnx: is not an ONNX model"),
    "no second file": (["a.onnx", "missing.onnx", "out.onnx"], 1, "missing.onnx: no such file"),
    "no folder": (["a.onnx", "b.onnx", "no/out.onnx"], 1, "does not exist; create it first"),
    "weights": (["a.onnx", "b.onnx", "out.onnx", "--weights", "0.5,0.6"], 2, "the weights 0.5, 0.6 are no shares"),
    "negative": (["a.onnx", "b.onnx", "out.onnx", "--weights=-0.5,1.5"], 2, "numbers from 0 to 1 whose sum is 1"),
    "not numbers": (["a.onnx", "b.onnx", "out.onnx", "--weights", "a,b"], 2, "no numbers with commas between"),
    "too many": (["a.onnx", "b.onnx", "out.onnx", "--weights", "0.5,0.3,0.2"], 2, "3 weights are given for 2 models"),
    "nothing pruned": (["a.onnx", "b.onnx", "out.onnx", "--method", "fold", "--order", "paf"], 2, "--method, --order"),
    "sparsity": (["a.onnx", "b.onnx", "out.onnx", "--sparsity", "1.5"], 2, "sparsity 1.5"),
    "no cosine": (["a.onnx", "b.onnx", "out.onnx", "--min-cosine", "3"], 2, "min-cosine 3.0 is not a cosine"),
    "a plan of nothing": (["a.onnx", "b.onnx", "out.onnx", "--plan", "p.json"], 2, "--plan is of a pruning"),
    "unused samples": (
        ["a.onnx", "b.onnx", "out.onnx", "--calib", "calib.npz", "--align", "weights", "--no-restore"],
        2,
        "leave out --calib",
    ),
    "a cosine": (
        ["a.onnx", "b.onnx", "out.onnx", "--align", "none", "--no-restore", "--min-cosine", "1"],
        3,
        "below the minimum",
    ),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_what_makes_no_sense_is_refused(
    case: str, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, code, message = ARGUMENTS[case]
    (folder / "junk.onnx").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    (folder / "link.onnx").symlink_to(folder / "a.onnx")
    onnx.save(from_text(PLAIN, {"b1": np.ones(8)}), folder / "c.onnx")
    monkeypatch.chdir(folder)
    check(call(capfd, "ensemble", *arguments), code, folder, message)


def test_quantized_models_are_refused() -> None:
    model = from_text(CONCAT)
    w = numpy_helper.to_array(model.graph.initializer[0])
    node = helper.make_node("DequantizeLinear", ["wq", "ws"], ["w1"], axis=0)
    model.graph.node.insert(0, node)
    del model.graph.initializer[0]
    model.graph.initializer.append(numpy_helper.from_array(np.ones(w.shape, np.int8), "wq"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(len(w), np.float32), "ws"))
    with pytest.raises(onnxfuse.ModelError, match="is quantized"):
        onnxfuse.ensemble([model, model], align="none", restore=False)


def test_bodies_of_branches_are_the_same_or_refused() -> None:
    model = build("branches")
    same = onnxfuse.ensemble([model, model], align="weights", restore=False).model
    assert gap(run(model), run(same)) < 1e-5
    other = ModelProto()
    other.CopyFrom(model)
    branch = next(n for n in other.graph.node if n.op_type == "If")
    next(a.g for a in branch.attribute if a.name == "else_branch").node[0].op_type = "Abs"
    with pytest.raises(onnxfuse.ModelError, match=r"model 2: node \d+ is Abs"):
        onnxfuse.ensemble([model, other], align="weights", restore=False)
