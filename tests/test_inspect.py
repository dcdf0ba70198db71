"""`onnxfuse inspect` and `analyze`: groups with what they govern, locked parts with reason and node."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

import onnxfuse

from .graphs import build, from_text
from .hard_texts import SAFE, SHRINKS
from .test_cli import call


def saved(name: str, folder: Path) -> Path:
    path = folder / "m.onnx"
    onnx.save(build(name), path)
    return path


def test_every_group_and_lock_is_a_row(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved("residual", tmp_path)
    code, out, err = call(capfd, "inspect", path)
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line[0] == "│"]
    assert (code, err) == (0, "")
    assert [row[:4] for row in rows] == [
        ["c1", "2", "8", "5"],
        ["c2", "1", "6", "2"],
        ["c4", "2", "12", "3"],
        ["y", "4", "feeds a graph output", "the graph's outputs"],
    ]


def test_macs_by_hand() -> None:
    """2 samples of 6 → 8 → 10 → 3: w1 has 48 weights, w2 80, w3 30."""
    found = onnxfuse.analyze(build("mlp"))
    assert found.total_macs == 2 * (48 + 80 + 30)
    assert found.macs == (2 * (48 + 80), 2 * (80 + 30))


def test_a_shared_reader_counts_in_proportion() -> None:
    found = onnxfuse.analyze(build("dense_block"))
    w1, w2, w3, w4, pixels = 8 * 3 * 9, 4 * 8 * 9, 4 * 12 * 9, 2 * 16, 2 * 6 * 6
    shares = (w1 + w2 + w3 * 8 // 12 + w4 // 2, w2 + w3 * 4 // 12 + w4 // 4, w3 + w4 // 4)
    assert found.macs == tuple(pixels * n for n in shares)


def test_slots_of_a_group(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capfd, "inspect", saved("mlp", tmp_path), "--group", "h1")
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line[:1] == "│"]
    assert code == 0
    assert rows == [["w1", "0", "produces", "h1"], ["b1", "0", "shift", "h1"], ["w2", "0", "consumes", "h2"]]


@pytest.mark.parametrize("name", ["residual", "grouped", "unknown_operator", "attention_fused"])
def test_json(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved(name, tmp_path)
    code, out, _ = call(capfd, "inspect", path, "--json")
    report, found = json.loads(out), onnxfuse.analyze(path)
    assert code == 0
    assert [(g["name"], g["channels"], tuple(g["nodes"])) for g in report["groups"]] == [
        (g.name, g.channels, g.nodes) for g in found
    ]
    assert all(row["reason"] and row["node"] for row in report["locked"])
    small = onnxfuse.fuse(path, sparsity=0.5).report
    assert [g.name for g in small.groups] == [g.name for g in found]
    assert small.locked == found.locked


def test_a_group_that_shapes_cannot_follow_is_locked() -> None:
    found = onnxfuse.analyze(from_text(SAFE["a shape that is an output"]))
    assert not found.groups
    assert [(row.name, row.node) for row in found.locked] == [
        ("h", "the graph's outputs"),
        ("y", "the graph's outputs"),
    ]


def test_constraints() -> None:
    found = onnxfuse.analyze(build("grouped"))
    assert {g.name: found.constraint(g) for g in found} == {
        "c1": "equally in 2 blocks",
        "c2": "equally in 2 blocks",
    }
    assert {found.constraint(g) for g in onnxfuse.analyze(build("mlp"))} == {"any number"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["m.onnx", "--group", "h9"], 2, "--group 'h9' is no group; near: h"),
        (["m.onnx", "--exclude", "zz"], 2, "--exclude 'zz' matches no node"),
        (["none.onnx"], 1, "no such file"),
        (["m.onnx", "--input-shape", "x"], 2, "is not NAME:1,3,224,224"),
        (["m.onnx", "--sparsity", "0.5"], 2, "unrecognized arguments: --sparsity 0.5; near: --"),
    ],
)
def test_errors(
    arguments: list[str], code: int, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    saved("mlp", tmp_path)
    monkeypatch.chdir(tmp_path)
    found, _, err = call(capfd, "inspect", *arguments)
    assert (found, len(err.splitlines())) == (code, 1)
    assert message in err


def test_a_file_called_inspect(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a model like any other, with a path that is not the bare word."""
    monkeypatch.chdir(tmp_path)
    onnx.save(build("mlp"), tmp_path / "inspect", format="protobuf")
    assert call(capfd, "./inspect", "out.onnx", "--sparsity", 0.5)[0] == 0
    assert call(capfd, "inspect", "inspect")[0] == 0


def test_operators_without_a_rule_are_named_with_what_their_weights_make() -> None:
    found = onnxfuse.analyze(from_text(SHRINKS["attention with its projection"]))
    assert [(g.name, g.channels) for g in found] == [("g", 24)]
    assert ("a", 32, "Attention has no rule", "a") in [(r.name, r.channels, r.reason, r.node) for r in found.locked]
    found = onnxfuse.analyze(from_text(SHRINKS["attention in groups of queries"]))
    rows = [(r.name, r.channels) for r in found.locked if r.reason == "GroupQueryAttention has no rule"]
    assert rows == [("q", 32), ("k", 16), ("v", 16)]
