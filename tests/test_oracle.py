"""The zero-padding oracle over every small graph, strategy and sparsity, over the zoo, and over the shipped models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

import onnxfuse
from onnxfuse.oracle import oracle_error, padded

from .graphs import NAMES, build, case_id, dims, gap, inputs, load, run, trained, zoo

METHODS = ("drop", "intra-fusion", "barycentric", "fold")
TOLERANCE = 1e-4
SENSITIVE = 1e-3
"""For trained models: silero_vad's probability of speech in noise is close to 0, and its own rounding reaches 1e-4."""

HALVED: dict[str, dict[str, tuple[int, ...]]] = {
    "mlp": {"w1": (4, 6), "b1": (4,), "w2": (4, 5), "b2": (5,), "w3": (3, 5), "b3": (3,)},
    "matmul_add": {"w1": (6, 4), "b1": (4,), "w2": (4, 4)},
    "embedding": {"table": (10, 4), "w1": (4, 3), "w2": (3, 3)},
    "constant_nodes": {"w1": (4, 3), "b1": (3,), "w2": (3, 2)},
    "shared_weight": {"w1": (8, 4), "w2": (4, 4), "w3": (4, 3)},
    # two heads of four: two of each head's query-key channels and two of its value channels stay
    "attention_fused": {"w1": (8, 12), "b1": (12,), "w2": (4, 8), "b2": (8,)},
    "attention_separate": {"w1": (8, 4), "b1": (4,), "w2": (8, 4), "w3": (8, 4), "w4": (4, 8)},
    "unknown_operator": {"w1": (6, 4), "w2": (4, 8), "b2": (8,), "w3": (8, 3)},
    "branches": {"w1": (6, 4), "w2": (4, 4), "w3": (4, 4)},
    "conv_bn": {"w1": (4, 3, 3, 3), "w2": (3, 4, 3, 3), "b2": (3,), "w3": (5, 3), "b3": (5,)},
    "residual": {"w1": (4, 3, 3, 3), "w2": (3, 4, 3, 3), "w3": (4, 3, 3, 3), "w4": (6, 4, 3, 3), "w6": (4, 6)},
    "dense_block": {"w1": (4, 3, 3, 3), "w2": (2, 4, 3, 3), "w3": (2, 6, 3, 3), "w4": (2, 8, 1, 1)},
    "depthwise": {"w1": (4, 3, 1, 1), "w2": (4, 1, 3, 3), "w3": (4, 4, 1, 1)},
    "depthwise_twice": {"w1": (4, 3, 1, 1), "w2": (8, 1, 3, 3), "b2": (8,), "w3": (4, 8, 1, 1)},
    "grouped": {"w1": (4, 3, 3, 3), "w2": (6, 2, 3, 3), "b2": (6,), "w3": (3, 6, 1, 1)},
    # w2's six outputs are two blocks of three, of which int(3 · 0.5) = 1 each stays
    "conv_transpose": {"w1": (4, 3, 3, 3), "w2": (4, 2, 4, 4), "w3": (2, 2, 4, 4), "b3": (4,), "w4": (2, 4, 1, 1)},
    "squeeze_excite": {"w1": (4, 3, 3, 3), "w2": (2, 4, 1, 1), "w3": (4, 2, 1, 1), "b3": (4,), "w4": (4, 4, 1, 1)},
    "split": {"w1": (6, 3, 1, 1), "w2": (3, 3, 3, 3), "w3": (3, 6, 1, 1), "sizes": (2,)},
    "split_unsized": {"w1": (6, 3, 1, 1), "w2": (3, 3, 1, 1)},
    "slice": {"w1": (6, 3, 1, 1), "w2": (3, 6, 1, 1)},
    "gather": {"w1": (4, 3, 1, 1), "order": (4,), "w2": (3, 4, 1, 1)},
    "channel_shuffle": {"w1": (4, 3, 1, 1), "w2": (4, 2, 1, 1), "w3": (4, 2, 3, 3), "w4": (3, 4, 1, 1)},
    # halves of what the shuffle mixes pass by or are read: int(3 · 0.5) = 1 of each three, 3 of the six that are read
    "shuffle_units": {"w1": (5, 3, 1, 1), "w2": (2, 3, 3, 3), "w3": (3, 2, 3, 3), "w4": (3, 5, 1, 1)},
    "depth_to_space_dcr": {"w1": (8, 3, 3, 3), "w2": (2, 2, 1, 1)},
    "depth_to_space_crd": {"w1": (8, 3, 3, 3), "w2": (2, 2, 1, 1)},
    "pixel_shuffle": {"w1": (8, 3, 3, 3), "w2": (2, 2, 1, 1)},
    # eight channels come from the shortcut, four more are padding there and c2's alone
    "pad_channels": {"w1": (4, 3, 3, 3), "w2": (6, 4, 3, 3), "w3": (3, 6, 1, 1)},
    "flatten_spatial": {"w1": (4, 3, 3, 3), "w2": (5, 36), "b2": (5,), "w3": (4, 5)},
    "resize": {"w1": (4, 3, 3, 3), "w4": (3, 4, 3, 3), "w2": (3, 8, 1, 1)},
    "dynamic_batch": {"w1": (4, 3, 3, 3), "w2": (4, 144)},
    "shared_bias": {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "b1": (4,), "w3": (3, 4, 1, 1)},
    "prelu": {"w1": (4, 3, 3, 3), "slope": (4, 1, 1), "w2": (3, 4, 1, 1)},
    "instance_norm": {"w1": (4, 3, 3, 3), "b1": (4,), "i_scale": (4,), "i_shift": (4,), "w2": (3, 4, 1, 1)},
    "bn_after_relu": {"w1": (4, 3, 3, 3), "n1_mean": (4,), "n1_var": (4,), "w2": (3, 4, 1, 1)},
    "several_outputs": {"w1": (4, 3, 3, 3), "w2": (8, 4, 3, 3), "w3": (3, 8, 1, 1), "w4": (2, 4)},
    "conv1d": {"w1": (4, 2, 3), "b1": (4,), "w2": (3, 4, 1)},
    "conv3d": {"w1": (3, 2, 3, 3, 3), "w2": (3, 3, 1, 1, 1)},
}
"""Shapes at sparsity 0.5, counted by hand: n channels become int(n / 2), what feeds an output stays."""

QUICK = (
    r"resnet18|mobilenet_v2|mobilenet_v3_small|mnasnet|shufflenet_v2_x0_5|squeezenet1_1"
    r"|unet|espcn|dcgan|wavenet|pointnet"
)
WIDE = r"resnext50_32x4d.dynamo18|densenet121.ts17.onnx|googlenet.ts17.onnx|regnet_y_400mf.ts17.onnx"


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_small_graphs(name: str, method: str, sparsity: float) -> None:
    model = build(name)
    result = onnxfuse.fuse(model, sparsity=sparsity, method=method)
    assert oracle_error(model, result, inputs(model, seed=7)) < TOLERANCE
    assert result.report.after.channels < result.report.before.channels
    assert sum(np.prod(s) for s in dims(result.model).values()) < sum(np.prod(s) for s in dims(model).values())


@pytest.mark.parametrize("name", NAMES)
def test_halved_shapes(name: str) -> None:
    found = dims(onnxfuse.fuse(build(name), sparsity=0.5, method="fold").model)
    assert {key: found[key] for key in HALVED[name]} == HALVED[name]


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", NAMES)
def test_other_batch_sizes(name: str, batch: int) -> None:
    """What was open in the original stays open, whatever size the probe had."""
    model = build(name)
    result = onnxfuse.fuse(model, sparsity=0.5, method="drop")
    feeds = inputs(model, batch=batch)
    assert oracle_error(model, result, feeds) < TOLERANCE
    assert all(len(output) == batch for output in run(result.model, feeds))


@pytest.mark.parametrize("name", ["mlp", "residual", "grouped", "attention_fused", "flatten_spatial"])
def test_oracle_notices_a_wrong_weight(name: str) -> None:
    """Whichever weight of the small model is wrong, the padded original no longer agrees with the right one."""
    model = build(name)
    feeds, result = inputs(model), onnxfuse.fuse(model, sparsity=0.5)
    right = run(result.model, feeds)
    for tensor in [t for t in result.model.graph.initializer if t.name.startswith("w")]:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.roll(values, 1, 0), tensor.name))
        assert gap(right, run(padded(model, result), feeds)) > TOLERANCE, tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize("case", zoo(QUICK), ids=case_id)
def test_zoo(case: Path | str) -> None:
    check(case, "intra-fusion")


@pytest.mark.parametrize("case", zoo(WIDE), ids=case_id)
def test_zoo_wide(case: Path | str) -> None:
    check(case, "drop")


@pytest.mark.parametrize("method", ["intra-fusion", "fold"])
@pytest.mark.parametrize("case", trained(), ids=case_id)
def test_trained(case: Path | str, method: str) -> None:
    check(case, method, SENSITIVE)


def is_dynamic(case: Path | str) -> bool:
    """Whether a file's inputs have open sizes: it is fused at sizes of onnxfuse's choice and then run at others."""
    return isinstance(case, str) or ".dyn." in case.name or ".dynhw." in case.name


def check(case: Path | str, method: str, tolerance: float = TOLERANCE) -> None:
    model, feeds = load(case)
    shapes = None if is_dynamic(case) else {name: array.shape for name, array in feeds.items()}
    result = onnxfuse.fuse(model, sparsity=0.4, method=method, input_shapes=shapes)
    assert oracle_error(model, result, feeds) < tolerance
    assert result.report.after.parameters < result.report.before.parameters
