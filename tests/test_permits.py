"""What the user may allow beyond the default: norms over fewer channels, and whole heads."""

from __future__ import annotations

from typing import Any

import pytest
from onnx import ModelProto, helper

import onnxfuse
from onnxfuse.oracle import oracle_error

from .graphs import Array, from_text, inputs, weights
from .hard_texts import FUSED_NORM, HEADS, NORMS
from .test_hard_graphs import METHODS


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str, method: str) -> None:
    """With the option the norm's channels go, and the oracle's norms run over those that are left."""
    model = from_text(NORMS[name])
    result = onnxfuse.fuse(model, sparsity=0.5, method=method, allow_norm=True)
    assert oracle_error(model, result, inputs(model)) < 1e-5
    assert not any("over the channels" in row.reason for row in result.report.locked)
    assert all(2 * g.after == g.before for g in result.report.groups)


@pytest.mark.parametrize("name", [name for name in NORMS if name != "group norm spelled out"])
def test_norms_stay_by_default(name: str) -> None:
    found = onnxfuse.analyze(from_text(NORMS[name]))
    assert any("over the channels" in row.reason for row in found.locked)


def shapes(arrays: dict[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


@pytest.mark.parametrize("method", METHODS)
def test_whole_heads(method: str) -> None:
    """Two of four heads go, with their rows of the bias; a head stays as wide as it was."""
    model = from_text(HEADS["heads with a bias each"])
    result = onnxfuse.fuse(model, sparsity=0.5, method=method, prune_heads=True)
    assert oracle_error(model, result, inputs(model)) < 1e-5
    small = weights(result.model)
    assert shapes(small)["relative"] == (1, 2, 5, 5)
    assert shapes(small)["w1"] == (8, 12)
    assert small["heads"].tolist() == [0, 5, 3, 2, 2]


@pytest.mark.parametrize("method", METHODS)
def test_normalized_heads_go_as_a_whole(method: str) -> None:
    """What a norm runs over within a head stays as it is in the heads that stay."""
    model = from_text(HEADS["normalized heads"])
    result = onnxfuse.fuse(model, sparsity=0.5, method=method, prune_heads=True)
    assert oracle_error(model, result, inputs(model)) < 1e-5
    small = weights(result.model)
    assert shapes(small)["w1"] == (8, 16)
    assert shapes(small)["q_scale"] == (8,)
    assert small["heads"].tolist() == [0, 5, 2, 8]


@pytest.mark.parametrize("method", METHODS)
def test_whole_fused_heads(method: str) -> None:
    """The operator counts its heads, and its scale would follow their size: the small graph spells both out."""
    model = from_text(HEADS["fused heads"])
    result = onnxfuse.fuse(model, sparsity=0.5, method=method, prune_heads=True)
    assert oracle_error(model, result, inputs(model)) < 1e-5
    attention = next(node for node in result.model.graph.node if node.op_type == "MultiHeadAttention")
    assert {a.name: helper.get_attribute_value(a) for a in attention.attribute} == {
        "num_heads": 2,
        "scale": pytest.approx(2**-0.5),
    }


def test_heads_that_one_operator_projects() -> None:
    """By default all stay and are narrower, values by as much as they may; else two of four go, of the other width."""
    model = from_text(HEADS["projected heads"])
    left = {"qkv_hidden_sizes": [4, 4, 12], "scale": pytest.approx(2**-0.5)}
    assert projected(model, prune_heads=False) == {"num_heads": 4, **left}
    assert projected(model, prune_heads=True) == {"num_heads": 2, **left}


def projected(model: ModelProto, prune_heads: bool) -> dict[str, Any]:
    """Attributes of the Attention that is left of a model's."""
    result = onnxfuse.fuse(model, sparsity=0.5, round_to=1, prune_heads=prune_heads)
    assert oracle_error(model, result, inputs(model)) < 1e-5
    attention = next(node for node in result.model.graph.node if node.op_type == "Attention")
    return {a.name: helper.get_attribute_value(a) for a in attention.attribute}


def test_fused_norms_stay() -> None:
    model = from_text(FUSED_NORM)
    result = onnxfuse.fuse(model, sparsity=0.5)
    assert oracle_error(model, result, inputs(model)) < 1e-5
    assert shapes(weights(result.model))["a_scale"] == (8,)
    assert shapes(weights(result.model))["w3"] == (8, 4)


def test_channels_of_every_head() -> None:
    """By default all heads stay, half as wide."""
    model = from_text(HEADS["heads with a bias each"])
    result = onnxfuse.fuse(model, sparsity=0.5)
    assert weights(result.model)["heads"].tolist() == [0, 5, 3, 4, 1]
    assert oracle_error(model, result, inputs(model)) < 1e-5
