"""The command line: exit codes, what stands on stdout and stderr, which files are written."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console

import onnxfuse
from onnxfuse.cli import main
from onnxfuse.latency import Latency
from onnxfuse.lazy import UNUSED
from onnxfuse.report import result_line, slowness
from onnxfuse.tables import print_report

from .graphs import build, dims, from_text, gap, run, weights

Run = tuple[int, str, str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file with the residual network."""
    path = tmp_path / "in.onnx"
    onnx.save(build("residual"), path)
    return path


def call(capfd: pytest.CaptureFixture[str], *arguments: object) -> Run:
    """Exit code, stdout and stderr of one call."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capfd.readouterr()
    return code, out, err


def last(text: str) -> str:
    return text.splitlines()[-1]


# --- success --------------------------------------------------------------------------------------------------------
def test_table_and_result_line(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = model.with_name("out.onnx")
    code, out, err = call(capfd, model, target, "--sparsity", 0.5)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"{model} → {target}"
    for word in (
        "channels",
        "parameters",
        "MACs",
        "file size",
        "3 of 3 channel groups merged (3 by surgeon)",
        "feeds a graph output",
    ):
        assert word in out
    assert last(out).startswith(f"PASSED {target}: ")
    assert dims(onnx.load(target))["w1"] == (4, 3, 3, 3)


def test_a_result_that_is_sound_but_hardly_alike_is_called_so(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = model.with_name("out.onnx")
    doubt = "hardly resemble the original's"
    code, out, _ = call(capfd, model, target, "--sparsity", 0.9, "--method", "drop")
    assert code == 0
    assert doubt in out
    assert "removing less, --scope global and --calib keep more" in out
    assert last(out).startswith("PASSED")
    _, out, _ = call(capfd, model, target, "--target-params", 0.2, "--method", "drop")
    assert "removing less and --calib keep more" in out  # a budget is spread already
    assert doubt not in call(capfd, model, target, "--sparsity", 0)[1]


def test_quiet_is_one_line(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capfd, model, model.with_name("out.onnx"), "--sparsity", 0.5, "--quiet")
    assert (code, err, len(out.splitlines())) == (0, "", 1)
    assert out.startswith("PASSED ")


def test_options_may_stand_between_the_files(
    model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    for name, arguments in (
        ("b.onnx", "in.onnx --sparsity 0.5 b.onnx"),
        ("-c.onnx", "--sparsity 0.5 -- in.onnx -c.onnx"),
    ):
        assert call(capfd, *arguments.split())[0] == 0
        assert Path(name).exists()


def test_a_quiet_run_imports_nothing_for_tables(model: Path) -> None:
    code = 'import sys, onnxfuse.cli as c; sys.exit(c.main(sys.argv[1:]) or any(m[:4] == "rich" for m in sys.modules))'
    subprocess.run([sys.executable, "-c", code, str(model), "--sparsity", "0.5", "--dry-run", "--quiet"], check=True)


def test_a_run_starts_nothing_of_numpy_that_it_does_not_need(model: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "onnxfuse", str(model), "--sparsity", "0.5", "--dry-run"]
    log = subprocess.run([*command, "--method", "drop"], capture_output=True, text=True, check=True).stderr
    started = {line.rpartition("|")[2].strip() for line in log.splitlines()}
    assert "numpy.linalg._linalg" in started
    assert not [name for name in started if name.startswith(tuple(f"{put_off}." for put_off in UNUSED))]


def test_what_is_put_off_is_there_when_it_is_asked_for() -> None:
    code = """if True:
        import numpy, sys
        from onnxfuse.lazy import UNUSED, put_off
        put_off({**UNUSED, "numpy.nothing": ()})
        assert "numpy.nothing" not in sys.modules
        from numpy import *
        assert "numpy.ma.core" not in sys.modules
        from numpy.testing import assert_array_equal
        assert_array_equal(ma.masked_array([1, 2], [False, True]).compressed(), [1])
        assert numpy.polynomial.Polynomial([1, 2])(2) == 5 and numpy.f2py.get_include()
        import numpy.ma.mrecords
    """
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("before", ["gc.disable()", "gc.freeze()", "gc.enable()"])
def test_importing_leaves_the_garbage_collector_as_it_was(before: str) -> None:
    state = "gc.isenabled(), gc.get_freeze_count() > 0"
    code = f"import gc; {before}; was = {state}; import onnxfuse.api; assert ({state}) == was"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_verbose_lists_groups_and_logs(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capfd, model, model.with_name("out.onnx"), "--sparsity", 0.5, "--verbose")
    assert code == 0
    assert "channel groups" in out
    for name in ("c1", "c2", "c4"):
        assert any(line.startswith(f"│ {name} ") for line in out.splitlines())
    assert last(out).startswith("PASSED ")


def test_dry_run_writes_nothing(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = model.read_bytes()
    for arguments in ([model], [model, model.with_name("out.onnx")], [model, model]):
        code, out, _ = call(capfd, *arguments, "--sparsity", 0.5, "--dry-run")
        assert code == 0
        assert last(out).startswith("PASSED (nothing written): ")
    assert [p.name for p in model.parent.iterdir()] == ["in.onnx"]
    assert model.read_bytes() == before


def test_json_on_stdout(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capfd, model, model.with_name("out.onnx"), "--sparsity", 0.5, "--json", "-")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert (report["status"], report["options"]["sparsity"]) == ("passed", 0.5)
    assert {g["method"] for g in report["groups"]} == {"surgeon"}
    assert report["after"]["channels"] == report["before"]["channels"] // 2 == 13
    assert [(g["name"], g["before"], g["after"]) for g in report["groups"]] == [
        ("c1", 8, 4),
        ("c2", 6, 3),
        ("c4", 12, 6),
    ]


def test_a_result_that_is_slower_is_called_so(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = onnxfuse.fuse(model, sparsity=0.5).report
    for after, slower in ((1.5, True), (1.02, False), (0.5, False)):
        timed = replace(report, latency=Latency(1.0, after, 9, 1, "CPUExecutionProvider"))
        print_report(timed, Console(width=200))
        assert ("slower than the original" in capfd.readouterr().out) == slower
        assert f"latency {100 * (after - 1):+.0f}%" in result_line(timed)


@pytest.mark.parametrize(("after", "hardly"), [(0.99, True), (0.9, True), (0.7, False), (1.2, False)])
def test_a_result_whose_time_hardly_falls_is_called_so(
    after: float, hardly: bool, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Half of the channels, and about 70% of the multiply-accumulates, are gone."""
    report = onnxfuse.fuse(model, sparsity=0.5).report
    print_report(replace(report, latency=Latency(1.0, after, 9, 1, "CUDAExecutionProvider")), Console(width=200))
    assert ("of the time here: most of it goes elsewhere" in capfd.readouterr().out) == hardly


def test_a_result_that_misses_its_latency_when_timed_again_is_called_so() -> None:
    for after, late in ((7.9, True), (7.5, False), (4.0, False)):
        assert any("13%" in w for w in slowness(Latency(10.0, after, 9, 1, "", 7.0))) == late
    assert slowness(Latency(10.0, 9.9, 9, 1, "")) == []


def test_json_in_a_file(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = model.with_name("report.json")
    code, out, _ = call(capfd, model, model.with_name("out.onnx"), "--sparsity", 0.5, "--json", path)
    assert code == 0
    assert json.loads(path.read_text())["destination"] == str(model.with_name("out.onnx"))
    assert last(out).startswith("PASSED ")


def test_json_of_a_failure(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capfd, model.with_name("none.onnx"), "o.onnx", "--sparsity", 0.5, "--json", "-")
    report = json.loads(out)
    assert (code, report["status"], report["exit_code"], len(err.splitlines())) == (1, "failed", 1, 1)
    assert "no such file" in report["error"]


def test_plan_files(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = model.with_name("plan.json")
    code, _, _ = call(capfd, model, model.with_name("out.onnx"), "--sparsity", 0.5, "--plan", path, "--quiet")
    assert code == 0
    assert [g["name"] for g in json.loads(path.read_text())["groups"]] == ["c4", "c2", "c1"]
    with np.load(path.with_name("plan.json.npz")) as arrays:
        assert arrays["group_0_compress_shape"].tolist() == [6, 12]


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_information(flag: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capfd, flag)
    assert (code, err) == (0, "")
    assert out == f"onnxfuse {onnxfuse.__version__}\n" if flag == "--version" else "exit codes:" in out


def test_in_place(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, _ = call(capfd, model, model, "--sparsity", 0.5, "--quiet")
    assert code == 0
    assert dims(onnx.load(model))["w1"] == (4, 3, 3, 3)
    assert [p.name for p in model.parent.iterdir()] == ["in.onnx"]


def test_permissions_and_links_stay(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The destination is a link to a file that only its owner may read."""
    real, link = model.with_name("real.onnx"), model.with_name("link.onnx")
    real.write_bytes(b"old")
    real.chmod(0o600)
    link.symlink_to(real.name)
    code, _, _ = call(capfd, model, link, "--sparsity", 0.5, "--quiet")
    assert (code, link.is_symlink(), real.stat().st_mode & 0o777) == (0, True, 0o600)
    assert dims(onnx.load(real))["w1"] == (4, 3, 3, 3)


def test_options_reach_the_merge(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = model.with_name("out.onnx")
    flags = "--method barycentric --importance l2 --target important --source-mass importance --cost-norm 2 --seed 5"
    code, _, _ = call(capfd, model, target, "--sparsity", 0.4, *flags.split(), "--provider", "cpu")
    expected = onnxfuse.fuse(
        model, sparsity=0.4, method="barycentric", importance="l2", target="important", source_mass="importance",
        cost_norm=2, seed=5,
    )  # fmt: skip
    assert code == 0
    assert onnx.load(target) == expected.model


def test_input_shape(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A width that no guess fits: the matrix reads 4 · 10 positions."""
    path = tmp_path / "in.onnx"
    text = """(float[N,2,W] x) => (float[N,3] y) <float[8,2,1] w1, float[80,3] w2, int64[2] flat = {-1, 80}> {
        h = Conv(x, w1)
        f = Reshape(h, flat)
        y = MatMul(f, w2)
    }"""
    onnx.save(from_text(text), path)
    code, out, err = call(capfd, path, tmp_path / "o.onnx", "--sparsity", 0.5, "--quiet")
    assert (code, len(err.splitlines()), last(out).startswith("FAILED")) == (1, 1, True)
    assert "--input-shape" in err
    code, _, _ = call(capfd, path, tmp_path / "o.onnx", "--sparsity", 0.5, "--input-shape", "x:2,2,10")
    assert code == 0
    assert dims(onnx.load(tmp_path / "o.onnx"))["w2"] == (40, 3)


@pytest.mark.parametrize(("pattern", "kept"), [("^c2$", ["w2", "w1"]), ("c5", ["w5", "w4", "w1"]), ("^y$", ["w6"])])
def test_exclude(pattern: str, kept: list[str], model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An excluded layer's weights keep every bit, input side and output side."""
    target = model.with_name("out.onnx")
    before = weights(onnx.load(model))
    code, _, _ = call(capfd, model, target, "--sparsity", 0.5, "--exclude", pattern)
    after = weights(onnx.load(target))
    np.testing.assert_array_equal(before[kept[0]], after[kept[0]])
    assert [after[name].shape for name in kept] == [before[name].shape for name in kept]
    assert code == 0
    assert sum(a.size for a in after.values()) < sum(a.size for a in before.values())


def test_external_data(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Weights beside the model in, weights beside the model out."""
    text = "(float[N,64] x) => (float[N,4] y) <float[64,64] w1, float[64,4] w2> { h = MatMul(x, w1) y = MatMul(h, w2) }"
    folder = tmp_path / "deep"
    folder.mkdir()
    onnx.save(from_text(text), tmp_path / "in.onnx", save_as_external_data=True, location="in.bin", size_threshold=0)
    code, _, err = call(capfd, tmp_path / "in.onnx", folder / "out.onnx", "--sparsity", 0.5)
    assert (code, err) == (0, "")
    assert sorted(p.name for p in folder.iterdir()) == ["out.onnx", "out.onnx.data"]
    assert (folder / "out.onnx").stat().st_size < 2000
    memory = onnxfuse.fuse(from_text(text), sparsity=0.5).model
    assert gap(run(folder / "out.onnx"), run(memory)) < 1e-6


# --- verification ---------------------------------------------------------------------------------------------------
def test_min_cosine(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = model.with_name("out.onnx")
    target.write_bytes(b"precious")
    code, out, err = call(capfd, model, target, "--sparsity", 0.9, "--method", "drop", "--min-cosine", 0.9999)
    assert code == 3
    assert last(out) == f"FAILED (exit code 3): {target} is as it was"
    assert err.startswith("onnxfuse: output 'y' has cosine similarity ")
    assert err.endswith(", below the minimum 0.9999 (on random input)\n")
    assert target.read_bytes() == b"precious"
    code, _, _ = call(capfd, model, target, "--sparsity", 0.9, "--method", "drop", "--min-cosine", -1)
    assert code == 0


def report_of(out: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    return report


def test_json_has_no_nan(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The original's first output is zero, so an error relative to it is infinite: JSON has no such number."""
    text = """(float[N,2] x) => (float[N,1] y, float[N,1] z)
        <float[3,2] w1 = {1, 0, 1, 0, 0, 0.5}, float[1,3] w2 = {1, -1, 0}, float[1,3] w3 = {0, 0, 1}> {
        h = Gemm<transB=1>(x, w1)
        y = Gemm<transB=1>(h, w2)
        z = Gemm<transB=1>(h, w3)
    }"""
    onnx.save(from_text(text), tmp_path / "in.onnx")
    code, out, _ = call(capfd, tmp_path / "in.onnx", "--dry-run", "--sparsity", 0.5, "--method", "drop", "--json", "-")
    assert code == 0
    assert report_of(out)["comparison"]["outputs"][0]["max_abs"] > 0
