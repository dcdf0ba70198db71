"""`apply_plan`: the weights a model was exported from become what the pruned file computes with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

import onnxfuse

from .copies import with_weights
from .graphs import ROOT, Array, build, dims, from_text, gap, inputs, run, weights
from .hard_texts import NORMALIZED, RECURRENT, SHRINKS

GRAPHS = """mlp matmul_add conv_bn residual dense_block squeeze_excite prelu bn_after_relu shared_weight
conv_transpose conv3d embedding""".split()


def check(model: ModelProto, state: dict[str, Array], result: onnxfuse.FuseResult) -> None:
    """The original graph with these small weights computes what the pruned file does."""
    feeds = inputs(model, seed=3)
    small = with_weights(model, state)
    del small.graph.value_info[:]
    assert dims(small) != dims(model)
    assert gap(run(result.model, feeds), run(small, feeds)) < 1e-4


# --- the same names -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["fold", "auto"])
@pytest.mark.parametrize("name", GRAPHS)
def test_the_original_graph_with_the_small_weights_is_the_small_model(name: str, method: str) -> None:
    model = build(name)
    result = onnxfuse.fuse(model, sparsity=0.5, method=method, round_to=1, calib=calibrated(model, method))
    check(model, onnxfuse.apply_plan(weights(model), result.plan), result)


def calibrated(model: ModelProto, method: str) -> dict[str, Array] | None:
    return inputs(model, batch=64) if method == "auto" and "N" in str(model.graph.input[0]) else None


@pytest.mark.parametrize("added", ["8", "1,8", "1", "1,1"])
def test_what_a_matrix_adds_before_its_normalization(added: str) -> None:
    model = from_text(NORMALIZED.format(n="N", c=added))
    result = onnxfuse.fuse(model, sparsity=0.5, method="fold")
    check(model, onnxfuse.apply_plan(weights(model), result.plan), result)


@pytest.mark.parametrize("name", ["a vector reads channels", "a vector reads channels from the left"])
def test_a_vector_that_reads_channels_is_refitted(name: str) -> None:
    model = from_text(SHRINKS[name])
    result = onnxfuse.fuse(model, sparsity=0.5, calib=inputs(model, batch=64))
    assert [r.reader.slot.tensor for r in result.plan.repairs] == ["v"]
    check(model, onnxfuse.apply_plan(weights(model), result.plan), result)


@pytest.mark.parametrize("saved", [False, True])
def test_gates_are_refitted_with_their_bias(saved: bool, tmp_path: Path) -> None:
    model = from_text(RECURRENT.format(d=2, rows=20, both=40, op="LSTM", direction="bidirectional"))
    result = onnxfuse.fuse(model, sparsity=0.5, round_to=1, calib=inputs(model, batch=64))
    result.plan.save(tmp_path / "plan.json")
    check(model, onnxfuse.apply_plan(weights(model), tmp_path / "plan.json" if saved else result.plan), result)


def test_a_saved_plan(tmp_path: Path) -> None:
    model = build("residual")
    result = onnxfuse.fuse(model, sparsity=0.5, method="fold")
    result.plan.save(tmp_path / "plan.json")
    check(model, onnxfuse.apply_plan(weights(model), tmp_path / "plan.json"), result)


def test_channels_that_are_only_kept_keep_their_numbers() -> None:
    """With `drop` nothing is mixed: normalizations and kernels are the old ones' rows."""
    model = build("conv_bn")
    result = onnxfuse.fuse(model, sparsity=0.5, method="drop")
    state, old = onnxfuse.apply_plan(weights(model), result.plan), weights(model)
    kept = result.plan.merges[-1][1].kept
    norm = next(n for n in model.graph.node if n.op_type == "BatchNormalization")
    for name in norm.input[1:5]:
        np.testing.assert_allclose(state[name], old[name][kept], rtol=1e-4, atol=1e-5)


def test_what_the_plan_does_not_mention_stays() -> None:
    model = build("mlp")
    result = onnxfuse.fuse(model, sparsity=0.5, method="fold")
    extra = np.arange(3)
    state = onnxfuse.apply_plan({**weights(model), "step": extra}, result.plan)
    assert state["step"] is extra
    assert list(state) == [*weights(model), "step"]


# --- other names and orders of axes ---------------------------------------------------------------------------------
def keras(state: dict[str, Array]) -> dict[str, Array]:
    """Kernels as (H, W, in, out) and (in, out), under other names."""
    turned = {n: a.transpose(2, 3, 1, 0) if a.ndim == 4 else a.T for n, a in state.items()}
    return {f"layer_{i}/variable:0": np.array(a) for i, a in enumerate(turned.values())}


NET = """(float[N,3,8,8] x) => (float[N,5] y)
    <float[8,3,3,3] w1, float[8] b1, float[8,8,3,3] w2, float[8] b2, float[5,8] w3, float[5] b3> {
    c1 = Conv(x, w1, b1)
    r1 = Relu(c1)
    c2 = Conv(r1, w2, b2)
    r2 = Relu(c2)
    p = GlobalAveragePool(r2)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w3, b3)
}"""


@pytest.mark.parametrize("as_list", [False, True])
def test_values_decide_where_names_tell_nothing(as_list: bool) -> None:
    model = from_text(NET)
    result = onnxfuse.fuse(model, sparsity=0.5, method="fold", round_to=1)
    given = keras(weights(model))
    if as_list:
        small = onnxfuse.apply_plan(list(given.values()), result.plan, model)
    else:
        small = list(onnxfuse.apply_plan(given, result.plan, model).values())
    back = [a.transpose(3, 2, 0, 1) if a.ndim == 4 else a.T for a in small]
    check(model, dict(zip(weights(model), back, strict=True)), result)


def test_prefixes_and_separators_are_no_names() -> None:
    model = build("mlp")
    state = {f"module.layers.{n}": a for n, a in weights(model).items()}
    layered = ModelProto()
    layered.CopyFrom(model)
    for node in layered.graph.node:
        node.input[:] = [f"layers/{n}" if n in weights(model) else n for n in node.input]
    for tensor in layered.graph.initializer:
        tensor.name = f"layers/{tensor.name}"
    result = onnxfuse.fuse(layered, sparsity=0.5, method="fold")
    small = onnxfuse.apply_plan(state, result.plan)
    check(model, {n.removeprefix("module.layers."): a for n, a in small.items()}, result)


def exported(model: ModelProto) -> ModelProto:
    """What an exporter makes of Conv → BatchNormalization: one Conv, its initializers named by numbers."""
    copy, values = ModelProto(), weights(model)
    copy.CopyFrom(model)
    for i in reversed(range(len(copy.graph.node))):
        norm = copy.graph.node[i]
        if norm.op_type != "BatchNormalization":
            continue
        conv = next(n for n in copy.graph.node if n.output[0] == norm.input[0])
        gamma, beta, mean, var = (values[n].astype(np.float64) for n in norm.input[1:5])
        epsilon = next((helper.get_attribute_value(a) for a in norm.attribute if a.name == "epsilon"), 1e-5)
        scale, own = gamma / np.sqrt(var + epsilon), values[conv.input[2]] if len(conv.input) > 2 else 0
        kernel = values[conv.input[1]] * scale[:, None, None, None]
        made = {f"onnx::Conv_{2 * i}": kernel, f"onnx::Conv_{2 * i + 1}": (own - mean) * scale + beta}
        copy.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in made.items())
        conv.input[1:] = list(made)
        conv.output[0] = norm.output[0]
        del copy.graph.node[i]
    used = {n for node in copy.graph.node for n in node.input}
    for i in reversed(range(len(copy.graph.initializer))):
        if copy.graph.initializer[i].name not in used:
            del copy.graph.initializer[i]
    return copy


TORCH = ("weight", "bias", "running_mean", "running_var")


def as_torch(model: ModelProto) -> tuple[dict[str, Array], dict[str, str]]:
    """The weights under PyTorch's names, and initializer → its key."""
    keys: dict[str, str] = {}
    for i, node in enumerate(model.graph.node):
        names = TORCH if node.op_type == "BatchNormalization" else TORCH[:2]
        keys |= {n: f"{i}.{k}" for n, k in zip(node.input[1:], names, strict=False) if n in weights(model)}
    return {keys[n]: a for n, a in weights(model).items() if n in keys}, keys


@pytest.mark.parametrize("name", ["conv_bn", "residual"])
def test_normalizations_that_the_exporter_folded(name: str) -> None:
    model = build(name)
    file = exported(model)
    assert gap(run(model, inputs(model)), run(file, inputs(model))) < 1e-5
    result = onnxfuse.fuse(file, sparsity=0.5, method="fold", round_to=1)
    state, keys = as_torch(model)
    small = onnxfuse.apply_plan(state, result.plan, file)
    check(model, {n: small[k] for n, k in keys.items()}, result)


def test_equal_biases_that_the_exporter_had_merged() -> None:
    """One initializer for the biases of two layers, which lose different channels."""
    model = build("shared_bias")
    result = onnxfuse.fuse(model, sparsity=0.5, method="fold", round_to=1)
    assert result.plan.clones
    apart = ModelProto()
    apart.CopyFrom(model)
    values = weights(model)
    state: dict[str, Array] = {}
    for node in apart.graph.node:
        for i, name in enumerate(node.input):
            if name in values:
                node.input[i] = f"{node.name}.{('', 'weight', 'bias')[i]}"
                state[node.input[i]] = values[name]
    del apart.graph.initializer[:]
    apart.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in state.items())
    check(apart, onnxfuse.apply_plan(state, result.plan, model), result)


# --- what does not fit ----------------------------------------------------------------------------------------------
def refused(state: Any, message: str, model: ModelProto | None = None) -> None:
    plan = onnxfuse.fuse(build("mlp"), sparsity=0.5, method="fold").plan
    with pytest.raises(onnxfuse.UsageError, match=message) as error:
        onnxfuse.apply_plan(state, plan, model)
    assert len(str(error.value).splitlines()) == 1


def test_missing_arrays_are_named() -> None:
    state = weights(build("mlp"))
    del state["w2"], state["b1"]
    refused(state, r"the plan changes 'w2', 'b1', which no array of the weights .* give the original file as model=")
    refused(state, r"'w2', 'b1', .* export the model from these weights", build("mlp"))


def test_other_shapes_are_named() -> None:
    state = weights(build("mlp"))
    state["w2"] = state["w2"][:, :7]
    refused(
        state, r"the weights do not fit the model: 'w2' has shape \[8, 7\], the file's 'w2' \[8, 10\]", build("mlp")
    )
    refused({**state, "w2": state["w2"][:4]}, "have other sizes than those the plan is for")


def test_no_plan(tmp_path: Path) -> None:
    with pytest.raises(onnxfuse.UsageError, match="no such file"):
        onnxfuse.apply_plan({}, tmp_path / "none.json")
    (tmp_path / "p.json").write_text("[]")
    np.savez(tmp_path / "p.json.npz")
    with pytest.raises(onnxfuse.UsageError, match="is not a plan"):
        onnxfuse.apply_plan({}, tmp_path / "p.json")


def test_a_plan_that_was_edited_or_cut_off(tmp_path: Path) -> None:
    """Edited by hand it is for --from-plan: the matrices beside it know nothing of that."""
    result, path = onnxfuse.fuse(model := build("mlp"), sparsity=0.5, method="fold"), tmp_path / "p.json"

    def refused(message: str, **changes: Any) -> None:
        result.plan.save(path)
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(onnxfuse.UsageError, match=message) as caught:
            onnxfuse.apply_plan(weights(model), path)
        assert str(caught.value).count(str(path)) == 1

    group, *others = result.plan.as_json()["groups"]
    refused("keeps other channels than the .npz has: use the plan of a run --from-plan", groups=[group | {"kept": 2}])
    refused("'slots'", groups=[{k: v for k, v in group.items() if k != "slots"}, *others])
    refused("is not a plan that --plan wrote", groups=[group | {"slots": [{}]}])
    (tmp_path / "p.json.npz").write_bytes((tmp_path / "p.json.npz").read_bytes()[:-30])
    with pytest.raises(onnxfuse.UsageError, match=r"npz: is not an \.npz file"):
        onnxfuse.apply_plan(weights(model), path)


def test_weights_in_half_precision() -> None:
    result = onnxfuse.fuse(model := build("mlp"), sparsity=0.5, method="fold")
    half = {name: values.astype(np.float16) for name, values in weights(model).items()}
    small, wanted = onnxfuse.apply_plan(half, result.plan), weights(result.model)
    assert {values.dtype for values in small.values()} == {np.dtype(np.float16)}
    assert all(np.allclose(values, wanted[name], atol=1e-2) for name, values in small.items())


# --- PyTorch --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("name", ["lenet", "resnet20", "vgg11_half"])
def test_from_pytorch_and_back(name: str, folded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exported, pruned, applied to the state_dict, exported again: the pruned file's outputs."""
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    sys.modules.pop("common", None)
    nets, training = pytest.importorskip("nets"), pytest.importorskip("training")
    torch.manual_seed(0)
    net = nets.NETS[name]()
    net.train()(torch.randn(64, 1, 28, 28))  # so that running statistics are no longer 0 and 1
    training.export(name, net.state_dict(), tmp_path / "in.onnx", folded)
    result = onnxfuse.fuse(tmp_path / "in.onnx", sparsity=0.4)
    small = onnxfuse.apply_plan(net.state_dict(), result.plan, tmp_path / "in.onnx")
    training.export(name, small, tmp_path / "again.onnx", folded)
    feeds = inputs(result.model, seed=3)
    assert gap(run(result.model, feeds), run(onnx.load(tmp_path / "again.onnx"), feeds)) < 1e-4
