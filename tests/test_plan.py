"""A saved plan is enough to make the small weights again with NumPy and onnx alone, by the recipe in plan.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, helper

import onnxfuse

from .graphs import Array, build, dims, inputs, weights

Json = dict[str, Any]
GRAPHS = """mlp matmul_add embedding conv_bn residual dense_block depthwise depthwise_twice grouped conv_transpose
squeeze_excite split channel_shuffle depth_to_space_crd pad_channels flatten_spatial shared_bias shared_weight prelu
instance_norm bn_after_relu attention_fused attention_separate conv3d""".split()


# --- the recipe, without onnxfuse -----------------------------------------------------------------------------------
def redo(model: ModelProto, path: Path) -> dict[str, Array]:
    """The small model's floating-point weights, from the original, PLAN.json and PLAN.json.npz."""
    plan = json.loads(path.read_text())
    values = weights(model)
    for folded in plan["folded_batch_norms"]:
        fold(model, values, folded)
    for copy, original in plan["clones"].items():
        values[copy] = values[original]
    later = {(r["initializer"], tuple(r["axes"]), r["split"]) for r in plan["repairs"]}
    kept: dict[str, dict[tuple[Any, ...], set[int]]] = {}
    changed: dict[str, dict[tuple[Any, ...], set[int]]] = {}
    with np.load(path.with_name(path.name + ".npz")) as arrays:
        for key in (k for k in arrays if k.startswith("shift_")):
            values[key.removeprefix("shift_")] = values[key.removeprefix("shift_")] + arrays[key]
        for group in plan["groups"]:
            for number, slot in enumerate(group["slots"]):
                where = (tuple(slot["axes"]), slot["split"])
                positions = arrays[f"group_{group['group']}_slot_{number}_positions"]
                if slot["role"] != "consumes" or (slot["initializer"], *where) not in later:
                    values[slot["initializer"]] = merged(values[slot["initializer"]], group, slot, positions, arrays)
                kept.setdefault(slot["initializer"], {}).setdefault(where, set()).update(slot["kept"])
                changed.setdefault(slot["initializer"], {}).setdefault(where, set()).update(positions.ravel().tolist())
        for repair in plan["repairs"]:
            stem = f"repair_{repair['repair']}_"
            refit(values, repair, {k: arrays[stem + k] for k in PARTS if stem + k in arrays})
    for name, places in changed.items():
        for where, all_positions in places.items():
            values[name] = without(values[name], where, all_positions - kept[name][where])
    return {name: array for name, array in values.items() if array.dtype.kind == "f"}


def fold(model: ModelProto, values: dict[str, Array], folded: Json) -> None:
    """W ← W·γ/√(σ² + ε), b ← (b − μ)·γ/√(σ² + ε) + β."""
    gamma, beta, mean, var = (values[name].astype(np.float64) for name in folded["norm"])
    scale = gamma / np.sqrt(var + folded["epsilon"])
    node = next(n for n in model.graph.node if n.name == folded["node"])
    weight = values[node.input[1]]
    bias = values[node.input[2]] if len(node.input) > 2 else np.zeros_like(mean)
    values[folded["weight"]] = np.moveaxis(np.moveaxis(weight, out_axis(node), -1) * scale, -1, out_axis(node))
    values[folded["bias"]] = ((bias - mean) * scale + beta).astype(np.float32)


def out_axis(node: NodeProto) -> int:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return 1 if node.op_type == "ConvTranspose" or (node.op_type == "Gemm" and not attributes.get("transB")) else 0


def merged(array: Array, group: Json, slot: Json, positions: Array, arrays: Any) -> Array:
    """The array with the kept channels' places overwritten by what is merged into them."""
    matrix = coefficients(group["group"], slot["role"], arrays)
    axes, split = slot["axes"], slot["split"]
    view = array.reshape(split, -1, *array.shape[1:]) if split > 1 else array
    front = np.moveaxis(view, axes, range(len(axes)))
    flat = front.reshape(-1, *front.shape[len(axes) :]).copy()
    flat[positions[group["kept"]]] = np.tensordot(matrix, flat[positions].astype(np.float64), 1)
    gone = np.setdiff1d(np.arange(group["channels"]), group["kept"])
    flat[positions[gone]] = 0  # so that what another group of this tensor reads is what is left
    return np.moveaxis(flat.reshape(front.shape), range(len(axes)), axes).reshape(array.shape)


PARTS = ("layout", "kept", "expand", "shift", "refitted", "gain", "offset")


def refit(values: dict[str, Array], repair: Json, r: dict[str, Array]) -> None:
    """A consumer's columns combined, its bias shifted, what it makes scaled and shifted."""
    name, bias, split, axes = (repair[k] for k in ("initializer", "bias", "split", "axes"))
    array = values[name].astype(np.float64)
    view = array.reshape(split, -1, *array.shape[1:]) if split > 1 else array
    front = np.moveaxis(view, axes, range(len(axes)))
    flat = front.reshape(-1, *front.shape[len(axes) :]).copy()
    columns = flat[r["layout"]]
    if bias:
        parts = zip(np.split(columns, split), np.split(r["shift"], split), strict=True)
        sums = [np.tensordot(shift, part, 1) for part, shift in parts]
        made = np.concatenate([s.sum(axis=(0, *range(2, s.ndim))) for s in sums])
        values[bias] = values[bias] + made.reshape(values[bias].shape)
    new = np.zeros_like(columns)
    new[r["kept"]] = np.tensordot(r["expand"].T, columns, 1)
    if "refitted" in r:
        new[r["kept"]] += r["refitted"]
    flat[r["layout"]] = new
    array = np.moveaxis(flat.reshape(front.shape), range(len(axes)), axes).reshape(array.shape)
    if bias:
        array = scaled(array, r["gain"], repair["outputs_axis"], split)
        gain, offset = (r[k].reshape(values[bias].shape) for k in ("gain", "offset"))
        values[bias] = values[bias] * gain + offset
    values[name] = array.astype(np.float32)


def scaled(array: Array, gain: Array, axis: int, split: int) -> Array:
    """Each output times its gain; a grouped transposed convolution counts its outputs in each group."""
    if axis == 1 and split > 1:
        blocks = array.reshape(split, -1, *array.shape[1:])
        return np.asarray(blocks * gain.reshape(split, 1, -1, *(1,) * (array.ndim - 2))).reshape(array.shape)
    return np.moveaxis(np.moveaxis(array, axis, -1) * gain, -1, axis)


def coefficients(group: int, role: str, arrays: Any) -> Array:
    """(k, n): compress, for `consumes` the transpose of expand, for `scale` compress with rows of sum 1."""
    stem = f"group_{group}_{'expand' if role == 'consumes' else 'compress'}"
    matrix = np.zeros(arrays[f"{stem}_shape"])
    matrix[arrays[f"{stem}_row"], arrays[f"{stem}_column"]] = arrays[f"{stem}_value"]
    if role == "scale":
        matrix = matrix / matrix.sum(axis=1, keepdims=True)
    return matrix.T if role == "consumes" else matrix


def without(array: Array, where: tuple[tuple[int, ...], int], gone: set[int]) -> Array:
    """The array without some flat positions over some axes; every block has as many of them along its last axis."""
    axes, split = where
    view = array.reshape(split, -1, *array.shape[1:]) if split > 1 else array
    front = np.moveaxis(view, axes, range(len(axes)))
    flat = np.delete(front.reshape(-1, *front.shape[len(axes) :]), sorted(gone), axis=0)
    small = np.moveaxis(flat.reshape(*front.shape[: len(axes) - 1], -1, *flat.shape[1:]), range(len(axes)), axes)
    return small.reshape(-1, *small.shape[2:]) if split > 1 else small


# --- tests ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", GRAPHS)
def test_plan_redoes_the_repair(name: str, tmp_path: Path) -> None:
    check_redo(name, tmp_path, method="auto", repair=True)


@pytest.mark.parametrize("method", ["auto", "fold"])
@pytest.mark.parametrize("name", ["depthwise", "depthwise_twice", "grouped"])
def test_plan_redoes_the_repair_on_data(name: str, method: str, tmp_path: Path) -> None:
    check_redo(name, tmp_path, method=method, calib=inputs(build(name), seed=5, batch=64))


@pytest.mark.parametrize("method", ["drop", "intra-fusion", "barycentric", "fold"])
@pytest.mark.parametrize("name", GRAPHS)
def test_plan_redoes_the_merge(name: str, method: str, tmp_path: Path) -> None:
    check_redo(name, tmp_path, method=method)


def check_redo(name: str, tmp_path: Path, **options: Any) -> None:
    model, path = build(name), tmp_path / "PLAN.json"
    result = onnxfuse.fuse(model, sparsity=0.5, **options)
    result.plan.save(path)
    again = redo(model, path)
    small = {key: array for key, array in weights(result.model).items() if array.dtype.kind == "f"}
    assert small.keys() <= again.keys()
    for key, array in small.items():
        assert again[key].shape == array.shape, key
        np.testing.assert_allclose(again[key], array, rtol=1e-5, atol=1e-6, err_msg=key)


def saved(name: str, folder: Path, **options: Any) -> Json:
    path = folder / "plan.json"
    onnxfuse.fuse(build(name), sparsity=0.5, method="drop", **options).plan.save(path)
    plan: Json = json.loads(path.read_text())
    return plan


def test_kept_indices_of_a_weight(tmp_path: Path) -> None:
    """w2 of the MLP loses input rows with h1 and output columns with h2; dropping only selects."""
    values = weights(build("mlp"))
    plan = saved("mlp", tmp_path)
    kept = {(s["initializer"], tuple(s["axes"])): s["kept"] for g in plan["groups"] for s in g["slots"]}
    assert set(kept) == {("w1", (0,)), ("b1", (0,)), ("w2", (0,)), ("w2", (1,)), ("b2", (0,)), ("w3", (1,))}
    assert kept["w1", (0,)] == kept["b1", (0,)] == kept["w2", (0,)]
    assert kept["w2", (1,)] == kept["b2", (0,)] == kept["w3", (1,)]
    small = weights(onnxfuse.fuse(build("mlp"), sparsity=0.5, method="drop").model)
    np.testing.assert_array_equal(small["w2"], values["w2"][kept["w2", (0,)]][:, kept["w2", (1,)]])


def test_kept_indices_behind_a_flatten(tmp_path: Path) -> None:
    """Each of 8 channels has 9 neighbouring columns of the matrix that reads 3 × 3 positions."""
    plan = saved("flatten_spatial", tmp_path)
    group = next(g for g in plan["groups"] if g["name"] == "c1")
    kept = {s["initializer"]: s["kept"] for s in group["slots"]}
    assert kept["w1"] == group["kept"]
    assert kept["w2"] == [9 * channel + k for channel in group["kept"] for k in range(9)]


def test_what_else_the_plan_says(tmp_path: Path) -> None:
    plan = saved("shared_bias", tmp_path, seed=3)
    assert plan["options"]["method"] == "drop"
    assert plan["options"]["sparsity"] == 0.5
    assert plan["options"]["seed"] == 3
    assert list(plan["clones"].values()) == ["b1"]
    assert [(g["name"], g["channels"], len(g["kept"])) for g in plan["groups"]] == [("c2", 8, 4), ("c1", 8, 4)]


def test_folded_batch_norms_are_listed(tmp_path: Path) -> None:
    first, second = saved("conv_bn", tmp_path)["folded_batch_norms"]
    assert (first["node"], first["weight"]) == ("c1", "w1")
    assert first["norm"] == ["n1_scale", "n1_shift", "n1_mean", "n1_var"]
    assert (second["bias"], second["epsilon"]) == ("b2", pytest.approx(1e-3))
    assert first["bias"] in dims(onnxfuse.fuse(build("conv_bn"), sparsity=0.5).model)


def test_nothing_merged_is_an_empty_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    onnxfuse.fuse(build("mlp"), sparsity=0).plan.save(path)
    plan = json.loads(path.read_text())
    assert (plan["groups"], plan["folded_batch_norms"], plan["clones"]) == ([], [], {})
    with np.load(tmp_path / "plan.json.npz") as arrays:
        assert list(arrays) == []
