"""Files that onnxruntime's optimizer wrote: its fused nodes are taken apart, what it made for one CPU is refused."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto

import onnxfuse
from onnxfuse.unfuse import unfuse

from .graphs import build, from_text, gap, inputs, run

GEMMS = {
    "Relu": "",
    "Sigmoid": "",
    "Tanh": "",
    "Softplus": "",
    "Softsign": "",
    "Elu": "activation_alpha=0.3",
    "LeakyRelu": "activation_alpha=0.2",
    "ThresholdedRelu": "activation_alpha=0.4",
    "HardSigmoid": "activation_alpha=0.3, activation_beta=0.4",
    "Selu": "activation_alpha=1.5, activation_gamma=1.2",
}
CONVS = {
    "Relu": "[0.0]",
    "Sigmoid": "[0.0]",
    "Tanh": "[0.0]",
    "LeakyRelu": "[0.2]",
    "HardSigmoid": "[0.3, 0.4]",
    "Clip": "[-0.1, 0.3]",
}


def gemm(activation: str) -> str:
    numbers = f", {GEMMS[activation]}" if GEMMS[activation] else ""
    return f"""(float[N,6] x) => (float[N,8] y) <float[8,6] w1, float[8] b1> {{
        y = com.microsoft.FusedGemm<transB=1, alpha=0.5, activation="{activation}"{numbers}>(x, w1, b1) }}"""


def conv(activation: str, summand: str = "") -> str:
    numbers = f", activation_params={CONVS[activation]}" if CONVS[activation] != "[0.0]" else ""
    return f"""(float[N,4,6,6] x) => (float[N,16,6,6] y) <float[16,4,3,3] w1, float[16] b1, float[16,4,1,1] w2> {{
        {"z = Conv(x, w2)" if summand else ""}
        y = com.microsoft.FusedConv<pads=[1,1,1,1], activation="{activation}"{numbers}>(x, w1, b1{summand}) }}"""


def apart(model: ModelProto) -> ModelProto:
    """A copy of the model, its fused nodes taken apart."""
    copy = ModelProto()
    copy.CopyFrom(model)
    unfuse(copy)
    onnx.checker.check_model(copy, full_check=True)
    return copy


@pytest.mark.parametrize(
    "text",
    [*map(gemm, GEMMS), *map(conv, CONVS), conv("Relu", ", z"), conv("LeakyRelu", ", z")],
)
@pytest.mark.parametrize("opset", [17, 10])
def test_the_parts_do_what_the_whole_did(text: str, opset: int) -> None:
    model = from_text(text, opset=opset)
    parts = apart(model)
    assert all(node.domain == "" for node in parts.graph.node)
    assert gap(run(model, inputs(model)), run(parts, inputs(model))) < 1e-6


def test_what_is_not_fused_stays() -> None:
    model = build("residual")
    assert apart(model) == model
    strange = from_text(gemm("Relu"))
    next(a for a in strange.graph.node[0].attribute if a.name == "activation").s = b"Swish"
    copy = ModelProto()
    copy.CopyFrom(strange)
    unfuse(copy)
    assert copy == strange


def optimized(model: ModelProto, path: Path, level: ort.GraphOptimizationLevel) -> ModelProto:
    """What onnxruntime saves."""
    options = ort.SessionOptions()
    options.graph_optimization_level, options.optimized_model_filepath = level, str(path)
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


@pytest.mark.parametrize("name", ["residual", "mlp"])
def test_a_file_that_the_optimizer_wrote_becomes_what_its_original_does(name: str, tmp_path: Path) -> None:
    model = build(name)
    fused = optimized(model, tmp_path / "o.onnx", ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)
    assert any(node.op_type in ("FusedConv", "FusedGemm") for node in fused.graph.node)
    one, other = (onnxfuse.fuse(m, sparsity=0.5, method="fold") for m in (model, fused))
    assert other.report.after.macs == one.report.after.macs
    assert gap(run(one.model, inputs(model)), run(other.model, inputs(model))) < 1e-4
    assert onnxfuse.fuse(fused, sparsity=0).model == fused


def test_a_file_for_one_kind_of_cpu(tmp_path: Path) -> None:
    written = optimized(build("residual"), tmp_path / "o.onnx", ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    if not any(node.domain == "com.microsoft.nchwc" for node in written.graph.node):
        pytest.skip("this CPU has no layout of its own")
    with pytest.raises(onnxfuse.NothingToMerge, match="onnxruntime optimized it for one kind of CPU: give the model"):
        onnxfuse.fuse(written, sparsity=0.5)
