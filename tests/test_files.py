"""Large weights in files beside the model: mapped, kept so, written so; and what is wrong with them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

import onnxfuse

from .formats import with_constant_nodes
from .graphs import build, dims, from_text, gap, inputs, run
from .test_cli import call

LARGE = """(float[N,512] x) => (float[N,3] y) <float[512,600] w1, float[600] b1, float[600,512] w2, float[512,3] w3> {
    h = MatMul(x, w1)
    a = Add(h, b1)
    k = MatMul(a, w2)
    y = MatMul(k, w3)
}"""
"""w1 and w2 have more than a megabyte each: they are mapped instead of read."""


def saved(model: ModelProto, path: Path) -> Path:
    copy = ModelProto()
    copy.CopyFrom(model)
    onnx.save(copy, path, save_as_external_data=True, location=f"{path.stem}.bin", size_threshold=0)
    return path


def test_mapped_weights_give_the_same_result(tmp_path: Path) -> None:
    model = from_text(LARGE)
    path = saved(model, tmp_path / "in.onnx")
    plain = onnxfuse.fuse(model, sparsity=0.5, method="drop")
    mapped = onnxfuse.fuse(path, tmp_path / "out.onnx", sparsity=0.5, method="drop")
    assert mapped.model == plain.model
    assert dims(mapped.model)["w1"] == (512, 300)
    written = onnx.load(tmp_path / "out.onnx")
    assert gap(run(written), run(plain.model)) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.bin", "in.onnx", "out.onnx", "out.onnx.data"]


def test_freed_memory_is_kept_for_a_model_of_moderate_size_whose_weights_are_in_its_file(tmp_path: Path) -> None:
    """Asked in processes of their own, for whose whole life it holds; only glibc can."""
    inside, beside, none = (
        tmp_path / "in.onnx",
        saved(from_text(LARGE), tmp_path / "beside.onnx"),
        tmp_path / "none.onnx",
    )
    onnx.save(from_text(LARGE), inside)
    os.mkfifo(pipe := tmp_path / "pipe")
    code = "import sys, pathlib, onnxfuse.heap as h; print([h.keep_freed(pathlib.Path(p)) for p in sys.argv[1:]])"
    told = subprocess.run(
        [sys.executable, "-c", code, beside, none, pipe, inside], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == str([False, False, False, platform.libc_ver()[0] == "glibc"])


def test_mapped_weights_that_no_group_touches(tmp_path: Path) -> None:
    """The source's data file may be replaced: what is still mapped from it is read first."""
    model = from_text(LARGE)
    path = tmp_path / "m.onnx"
    copy = ModelProto()
    copy.CopyFrom(model)
    onnx.save(copy, path, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    result = onnxfuse.fuse(path, path, sparsity=0.5, method="drop", exclude=["^h$"])
    assert dims(result.model)["w1"] == (512, 600)
    assert gap(run(path), run(result.model)) == 0
    np.testing.assert_array_equal(run(onnx.load(path))[0], run(result.model)[0])


def test_sparsity_0_keeps_a_model_with_functions_and_external_data(tmp_path: Path) -> None:
    model = from_text(LARGE)
    relu = helper.make_node("Relu", ["v"], ["r"])
    function = helper.make_function("local", "Same", ["v"], ["r"], [relu], [helper.make_opsetid("", 17)])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node[1].CopyFrom(helper.make_node("Same", ["h"], ["a"], domain="local"))
    path = saved(model, tmp_path / "in.onnx")
    result = onnxfuse.fuse(path, tmp_path / "out.onnx", sparsity=0)
    assert result.model == onnx.load(path)
    assert gap(run(tmp_path / "out.onnx"), run(model)) == 0


def test_external_data_on_request(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnx.save(from_text(LARGE), tmp_path / "in.onnx")
    for flags, beside in (([], False), (["--external-data"], True)):
        target = tmp_path / f"out{len(flags)}.onnx"
        assert call(capfd, tmp_path / "in.onnx", target, "--sparsity", 0.5, "--method", "drop", *flags)[0] == 0
        assert target.with_name(f"{target.name}.data").exists() == beside
        onnx.checker.check_model(str(target), full_check=True)
        assert run(target)[0].shape == (3, 3)


@pytest.mark.parametrize("flags", [[], ["--external-data"]])
def test_a_size_is_that_of_all_files(flags: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The data file's tensors begin at multiples of a page, and the model says where."""
    onnx.save(from_text(LARGE), tmp_path / "in.onnx")
    out = tmp_path / "out.onnx"
    assert call(capfd, tmp_path / "in.onnx", out, "--target-size", "200kB", "--method", "drop", *flags)[0] == 0
    assert 180_000 < sum(f.stat().st_size for f in tmp_path.glob("out.onnx*")) <= 200_000


def _damage(path: Path, key: str, value: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = value
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("location", "../elsewhere.bin", "is not in the folder of the model"),
        ("location", "none.bin", "o such file"),
        ("offset", "99999999", "does not hold the"),
        ("length", "12", "does not hold the"),
        ("location", ".", "is not a file"),
        ("offset", "-4", "external data is missing or unreadable"),
        ("offset", "first", "external data is missing or unreadable"),
    ],
)
def test_bad_external_data(
    key: str, value: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = saved(from_text(LARGE), tmp_path / "in.onnx")
    (tmp_path.parent / "elsewhere.bin").write_bytes(bytes(10))
    _damage(path, key, value)
    code, _, err = call(capfd, path, tmp_path / "out.onnx", "--sparsity", 0.5)
    assert (code, len(err.splitlines())) == (1, 1)
    assert message in err


@pytest.mark.parametrize("size", [0, 1024])
def test_links_as_download_caches_have_them(size: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All files lie in one folder under other names; links to them in another one have the model's names."""
    store, links = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    store.mkdir()
    links.mkdir(parents=True)
    model = from_text(LARGE)
    onnx.save(model, store / "m", save_as_external_data=True, location="model.onnx_data", size_threshold=size)
    (store / "model.onnx_data").rename(store / "d")
    (links / "model.onnx").symlink_to("../../blobs/m")
    (links / "model.onnx_data").symlink_to("../../blobs/d")
    assert call(capfd, links / "model.onnx", tmp_path / "out.onnx", "--sparsity", 0)[0] == 0
    assert gap(run(tmp_path / "out.onnx"), run(from_text(LARGE))) == 0
    copy = tmp_path / "model.onnx"  # whose folder the link leads out of: onnxruntime refuses it, too
    copy.write_bytes((store / "m").read_bytes())
    (tmp_path / "model.onnx_data").symlink_to(store.parent.parent / "elsewhere.bin")
    (store.parent.parent / "elsewhere.bin").write_bytes((store / "d").read_bytes())
    code, _, err = call(capfd, copy, tmp_path / "other.onnx", "--sparsity", 0)
    assert (code, "model.onnx_data is not in the folder of the model" in err) == (1, True)


def test_a_link_into_another_folder_is_no_place_for_a_data_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is looked for beside the link; where the link stays in its folder it is there."""
    (tmp_path / "other").mkdir()
    (tmp_path / "far.onnx").symlink_to("other/real.onnx")
    (tmp_path / "near.onnx").symlink_to("real.onnx")
    path = saved(from_text(LARGE), tmp_path / "in.onnx")
    code, _, err = call(capfd, path, tmp_path / "far.onnx", "--sparsity", 0.5)
    assert (code, len(err.splitlines()), "is a link into another folder" in err) == (1, 1, True)
    assert not any((tmp_path / "other").iterdir())
    assert call(capfd, path, tmp_path / "near.onnx", "--sparsity", 0.5)[0] == 0
    assert (tmp_path / "near.onnx").is_symlink()
    assert run(tmp_path / "near.onnx")[0].shape == (3, 3)
    onnx.save(from_text(LARGE), tmp_path / "one.onnx")
    assert call(capfd, tmp_path / "one.onnx", tmp_path / "far.onnx", "--sparsity", 0.5)[0] == 0
    assert run(tmp_path / "far.onnx")[0].shape == (3, 3)


def test_external_data_of_a_constant_node_counts_and_is_not_written_over(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, data = tmp_path / "in.onnx", tmp_path / "out.onnx.data"
    onnx.save(
        with_constant_nodes(build("mlp")), path, save_as_external_data=True, location=data.name, size_threshold=0,
        convert_attribute=True,
    )  # fmt: skip
    result = onnxfuse.fuse(path, sparsity=0.5)
    assert result.report.before.file_bytes == path.stat().st_size + data.stat().st_size
    code, _, err = call(capfd, path, tmp_path / "out.onnx", "--sparsity", 0.5)
    assert (code, "holds the weights of" in err) == (1, True)


def test_unused_outputs_and_optional_inputs() -> None:
    model = from_text(
        """(float[N,3,6,6] x) => (float[N,2,6,6] y) <float[8,3,1,1] w1, float six = {6}, float[2,8,1,1] w2> {
            h = Conv(x, w1)
            c = Clip(h, , six)
            d, mask = Dropout(c)
            y = Conv(d, w2)
        }"""
    )
    result = onnxfuse.fuse(model, sparsity=0.5)
    assert [(g.before, g.after) for g in result.report.groups] == [(8, 4)]
    assert list(result.model.graph.node[1].input) == ["h", "", "six"]


def test_a_model_without_names() -> None:
    """Nodes need no names, and values may have any."""
    model = build("residual")
    for node in model.graph.node:
        node.name = ""
        node.input[:] = [f'{n} "é/\n' if n in {"a1", "c2", "w2"} else n for n in node.input]
        node.output[:] = [f'{n} "é/\n' if n in {"a1", "c2"} else n for n in node.output]
    for t in model.graph.initializer:
        t.name = f'{t.name} "é/\n' if t.name == "w2" else t.name
    del model.graph.value_info[:]
    result = onnxfuse.fuse(model, sparsity=0.5)
    assert [(g.before, g.after) for g in result.report.groups] == [(8, 4), (6, 3), (12, 6)]
    assert run(result.model, inputs(model))[0].shape == run(model)[0].shape
