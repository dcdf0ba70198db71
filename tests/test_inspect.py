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


INT8 = "int8[4,2] q = {1,2,3,4,5,6,7,8}, float f = {0.5}, int8 z = {0}"
COUNTED = {
    "lstm last": ("(float[5,2,3] x) => (float[1,2,4] y) <float[1,16,3] w, float[1,16,4] r>",
                  "_y, y = LSTM<hidden_size=4>(x, w, r)", 10 * 16 * (3 + 4)),
    "gru last": ("(float[2,5,3] x) => (float[1,5,4] y) <float[1,12,3] w, float[1,12,4] r>",
                         "_y, y = GRU<hidden_size=4>(x, w, r)", 10 * 12 * (3 + 4)),
    "quantized lstm": ("(float[5,2,3] x) => (float[1,2,1] y) <int8[1,3,4] w = {1,2,3,4,5,6,7,8,9,1,2,3}, "
                       "int8[1,1,4] r = {1,2,3,4}, float[1] f = {0.5}, int8[1] z = {0}>",
                       "_y, y = com.microsoft.DynamicQuantizeLSTM<hidden_size=1>(x, w, r, , , , , , f, z, f, z)",
                       10 * 4 * (3 + 1)),
    "einsum": ("(float[2,5,3] x) => (float[2,5,4] y) <float[3,4] w>",
               'y = Einsum<equation="...i,ij->...j">(x, w)', 120),
    "einsum of three": ("(float[2,3] x) => (float[2,6] y) <float[3,4] w, float[4,6] v>",
                        'y = Einsum<equation="ab,bc,cd">(x, w, v)', 2 * 3 * 4 + 2 * 4 * 6),
    "einsum, outer": ("(float[2,3] x) => (float[2,3,4] y) <float[4] w>", 'y = Einsum<equation="ab,c->abc">(x, w)', 24),
    "einsum of one": ("(float[2,3] x) => (float[3,2] y)", 'y = Einsum<equation="ab->ba">(x)', 0),
    "fused conv": ("(float[2,3,5,5] x) => (float[2,4,5,5] y) <float[4,3,1,1] w>",
                   'y = com.microsoft.FusedConv<activation="Relu">(x, w)', 2 * 25 * 12),
    "fused gemm": ("(float[3,2] x) => (float[2,4] y) <float[3,4] w>",
                   'y = com.microsoft.FusedGemm<activation="Relu", transA=1>(x, w)', 24),
    "fused matmul": ("(float[5,3,2] x) => (float[5,2,4] y) <float[3,4] w>",
                     "y = com.microsoft.FusedMatMul<transA=1>(x, w)", 5 * 2 * 3 * 4),
    "dynamic matmul": (f"(float[3,4] x) => (float[3,2] y) <{INT8}>",
                       "y = com.microsoft.DynamicQuantizeMatMul(x, q, f, z)", 24),
    "integer to float": (f"(int8[3,4] x) => (float[3,2] y) <{INT8}>",
                         "y = com.microsoft.MatMulIntegerToFloat(x, q, f, f)", 24),
    "integer": (f"(int8[3,4] x) => (int32[3,2] y) <{INT8}>", "y = MatMulInteger(x, q)", 24),
    "integer conv": ("(uint8[1,1,3,3] x) => (int32[1,1,2,2] y) <uint8[1,1,2,2] w = {1,2,3,4}>",
                     "y = ConvInteger(x, w)", 16),
    "quantized matmul": (f"(int8[3,4] x) => (int8[3,2] y) <{INT8}>",
                         "y = QLinearMatMul(x, f, z, q, f, z, f, z)", 24),
    "quantized gemm": (f"(int8[3,4] x) => (int8[3,2] y) <{INT8}>",
                       "y = com.microsoft.QGemm(x, f, z, q, f, z, , f, z)", 24),
    "attention": ("(float[2,5,8] x) => (float[2,5,8] y) <float[8,24] w, float[24] b>",
                  "y = com.microsoft.Attention<num_heads=2>(x, w, b)", 2 * 5 * 8 * 24 + 2 * 2 * 5 * 5 * 8),
    "heads": ("(float[2,5,8] x, float[2,7,8] k, float[2,7,4] v) => (float[2,5,4] y)",
              "y = com.microsoft.MultiHeadAttention<num_heads=2>(x, k, v)", 2 * 5 * 7 * (8 + 4)),
}  # fmt: skip
"""Operator → a model, and its multiply-accumulates by hand."""


@pytest.mark.parametrize("name", COUNTED)
def test_each_operator_by_hand(name: str) -> None:
    head, body, expected = COUNTED[name]
    model = from_text(f"{head} {{ {body} }}")
    for node in model.graph.node:
        node.output[:] = ["" if made == "_y" else made for made in node.output]  # which the text form cannot leave out
    assert onnxfuse.analyze(model).total_macs == expected


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
    found = onnxfuse.analyze(from_text(SHRINKS["attention with its projection, and keys of earlier calls"]))
    assert [(g.name, g.channels) for g in found] == [("g", 24)]
    rows = [(r.name, r.channels) for r in found.locked if r.reason == "Attention of this form has no rule"]
    assert ("a", 32) in rows
    found = onnxfuse.analyze(from_text(SHRINKS["attention in groups of queries"]))
    rows = [(r.name, r.channels) for r in found.locked if r.reason == "GroupQueryAttention has no rule"]
    assert rows == [("q", 32), ("k", 16), ("v", 16)]
