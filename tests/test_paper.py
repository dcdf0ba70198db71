"""Intra-Fusion is the paper's: plans, fused weights and the order of groups, worked out by hand.

The first network has one input pair, hidden channels C A D B E in this order, and one output. A channel's feature is
its row of w1 beside its column of w2, over its L2 norm; its importance is the mean over the two slots of Σ|w|:

    channel   w1 row    w2   norm   feature              importance
    C         2  1       2     3     2/3   1/3   2/3      (3 + 2)/2 = 2.5
    A         3  0       4     5     3/5   0     4/5      (3 + 4)/2 = 3.5
    D         0  1       0     1     0     1     0        (1 + 0)/2 = 0.5
    B         0  6       8    10     0     3/5   4/5      (6 + 8)/2 = 7
    E         1  2       2     3     1/3   2/3   2/3      (3 + 2)/2 = 2.5

A and B survive. L1 costs:  C→A 8/15  C→B 16/15   E→A 16/15  E→B 8/15   D→A 12/5  D→B 6/5   B→A = A→B 6/5
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import onnxfuse

from .graphs import Array, build, from_text, gap, inputs, run, weights

ROWS = {"C": [2, 1], "A": [3, 0], "D": [0, 1], "B": [0, 6], "E": [1, 2]}
READ = {"C": 2, "A": 4, "D": 0, "B": 8, "E": 2}
BIAS = {"C": 3, "A": 1, "D": 4, "B": 2, "E": 6}


def network(channels: str) -> ModelProto:
    """Gemm → Relu → Gemm with these hidden channels."""
    n = len(channels)
    text = f"""(float[N,2] x) => (float[N,1] y) <float[{n},2] w1, float[{n}] b1, float[1,{n}] w2> {{
        h = Gemm<transB=1>(x, w1, b1)
        r = Relu(h)
        y = Gemm<transB=1>(r, w2)
    }}"""
    values = {
        "w1": np.array([ROWS[c] for c in channels]),
        "b1": np.array([BIAS[c] for c in channels]),
        "w2": np.array([[READ[c] for c in channels]]),
    }
    return from_text(text, values)


def fused(model: ModelProto, sparsity: float, **options: Any) -> tuple[list[int], Array, dict[str, Array]]:
    """The only group's survivors and F, and the small model's weights."""
    options = {"method": "intra-fusion", **options}
    result = onnxfuse.fuse(model, sparsity=sparsity, **options)
    ((_, merge),) = result.plan.merges
    matrix = merge.compress.toarray()
    if options["method"] == "intra-fusion":
        np.testing.assert_array_equal(merge.expand.toarray(), matrix.T)
    return merge.kept.tolist(), matrix, weights(result.model)


def close(found: Array, expected: list[Any]) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_four_channels_to_two() -> None:
    """Uniform masses: each survivor has room for one more of 1/4. C→A and D→B cost 26/15, C→B and D→A 52/15."""
    kept, matrix, small = fused(network("CADB"), 0.5)
    assert kept == [1, 3]
    close(matrix, [[1, 1, 0, 0], [0, 0, 1, 1]])
    close(small["w1"], [[3 + 2, 0 + 1], [0 + 0, 6 + 1]])
    close(small["b1"], [1 + 3, 2 + 4])
    close(small["w2"], [[4 + 2, 8 + 0]])


def test_five_channels_to_two() -> None:
    """Sources weigh 1/5, survivors have room for 3/10 besides themselves: one of C, D and E is split in halves.

    A prefers C by 8/15. Of the other two, sending E instead of D to A costs 8/15 in place of 6/5 more: E is split.
    """
    kept, matrix, small = fused(network("CADBE"), 0.6)
    assert kept == [1, 3]
    close(matrix, [[1, 1, 0, 0, 0.5], [0, 0, 1, 1, 0.5]])
    close(small["w1"], [[3 + 2 + 0.5, 0 + 1 + 1], [0 + 0 + 0.5, 6 + 1 + 1]])
    close(small["b1"], [1 + 3 + 3, 2 + 4 + 3])
    close(small["w2"], [[4 + 2 + 1, 8 + 0 + 1]])


def test_euclidean_cost() -> None:
    """Features have norm 1: their distance is √(2 − 2 cos), with cos C·A = E·B = 14/15, C·B = E·A = 11/15, D·B = 3/5.

    C→A .365, C→B .730, E→A .730, E→B .365, D→A 1.414, D→B .894. To A, E costs .365 more than to B and D .520: E is
    split again, so the plan is the L1 one.
    """
    _, matrix, _ = fused(network("CADBE"), 0.6, cost_norm=2)
    close(matrix, [[1, 1, 0, 0, 0.5], [0, 0, 1, 1, 0.5]])


def test_source_mass_by_importance() -> None:
    """In units of importance C A D B = 2.5 3.5 0.5 7 and each survivor takes 6.75.

    D costs 6/5 less at B, which is what pushing as much of B over to A costs, so D is −D here: 12/5 from both.
    B keeps 6.75 and sends 0.25 to A, which takes 3.5 + 2.5 + 0.5 + 0.25.
    """
    kept, matrix, _ = fused(opposite_d(), 0.5, source_mass="importance")
    assert kept == [1, 3]
    close(matrix, [[1, 1, 1, 1 / 28], [0, 0, 0, 27 / 28]])


def opposite_d() -> ModelProto:
    """C A D B with D's only weight −1, so that its feature is 0 −1 0."""
    model = network("CADB")
    tensor = model.graph.initializer[0]
    assert tensor.name == "w1"
    values = np.array(ROWS_OF_CADB, np.float32)
    values[2] = [0, -1]
    tensor.raw_data = values.tobytes()
    return model


ROWS_OF_CADB = [ROWS[c] for c in "CADB"]


def test_target_mass_by_importance() -> None:
    """Sources weigh 1/4; A takes 3.5 and B 7 parts of 10.5, that is 1/3 and 2/3.

    A has room for 1/12 besides itself, which goes to C (it gains 8/15 there, −D nothing); the rest goes to B.
    """
    _, matrix, small = fused(opposite_d(), 0.5, target_mass="importance")
    close(matrix, [[1 / 3, 1, 0, 0], [2 / 3, 0, 1, 1]])
    close(small["b1"], [1 + 3 / 3, 2 + 4 + 2 * 3 / 3])


def test_cluster_targets() -> None:
    """P and Q point one way, R and S another. The two most important are P and Q, the clusters are PQ and RS."""
    text = """(float[N,2] x) => (float[N,1] y)
        <float[4,2] w1 = {30, 0, 0, 6, 24, 0, 0, 3}, float[1,4] w2 = {40, 8, 32, 4}> {
        h = Gemm<transB=1>(x, w1)
        y = Gemm<transB=1>(h, w2)
    }"""
    kept, matrix, _ = fused(from_text(text), 0.5)  # P R Q S
    assert kept == [0, 2]
    assert matrix[:, [0, 2]].tolist() == [[1, 0], [0, 1]]
    kept, matrix, small = fused(from_text(text), 0.5, target="cluster")
    assert kept == [0, 1]
    close(matrix, [[1, 0, 1, 0], [0, 1, 0, 1]])
    close(small["w1"], [[54, 0], [0, 9]])
    close(small["w2"], [[72, 12]])


@pytest.mark.parametrize(
    ("n", "sparsity", "kept"),
    [(8, 0.5, 4), (10, 0.3, 7), (7, 0.5, 3), (3, 0.4, 1), (10, 0.9, 1), (5, 0.1, 4), (100, 0.29, 71), (9, 0.01, 8),
     (1, 0.5, 1), (2, 0.99, 1), (64, 0.75, 16), (11, 0.7, 3), (20, 0.9, 2)],
)  # fmt: skip
def test_removal_count(n: int, sparsity: float, kept: int) -> None:
    """n − int(n(1 − s)) channels go, but never the last one; a last layer of 4 gives other groups something to lose."""
    text = f"""(float[N,2] x) => (float[N,1] y) <float[2,{n}] w1, float[{n},4] w2, float[4,1] w3> {{
        h = MatMul(x, w1)
        k = MatMul(h, w2)
        y = MatMul(k, w3)
    }}"""
    small = weights(onnxfuse.fuse(from_text(text), sparsity=sparsity).model)
    assert small["w1"].shape == (2, kept)


def test_groups_go_from_the_output_to_the_input() -> None:
    """Channels P Q, then R S, all to one. R = 3P + 2Q survives S = −3P + Q and becomes R + S = 0P + 3Q.

    Before that P (2, read with |3| + |3|) outweighs Q (1, read with 2 + 1); afterwards P is read with 0 and Q with 3:
    (2 + 0)/2 < (1 + 3)/2, so Q survives. It becomes P + Q = 3, read with 0 + 3.
    """
    text = """(float[N,1] x) => (float[N,1] y)
        <float[2,1] w1 = {2, 1}, float[2,2] w2 = {3, 2, -3, 1}, float[1,2] w3 = {2, 1}> {
        h = Gemm<transB=1>(x, w1)
        k = Gemm<transB=1>(h, w2)
        y = Gemm<transB=1>(k, w3)
    }"""
    result = onnxfuse.fuse(from_text(text), sparsity=0.5, method="intra-fusion")
    assert [(g.name, m.kept.tolist()) for g, m in result.plan.merges] == [("k", [0]), ("h", [1])]
    small = weights(result.model)
    assert (small["w1"].tolist(), small["w2"].tolist(), small["w3"].tolist()) == ([[3]], [[3]], [[3]])


@pytest.mark.parametrize("method", ["drop", "intra-fusion", "barycentric", "fold"])
def test_batch_normalization_is_folded_first(method: str) -> None:
    """w ← w·γ/√(σ² + ε), b ← (b − μ)·γ/√(σ² + ε) + β by hand gives the same small model."""
    model, values = build("conv_bn"), weights(build("conv_bn"))
    by_hand = {}
    for layer, epsilon in ((1, 1e-5), (2, 1e-3)):
        gamma, beta, mean, var = (values[f"n{layer}_{v}"].astype(np.float64) for v in ("scale", "shift", "mean", "var"))
        scale = gamma / np.sqrt(var + epsilon)
        by_hand[f"w{layer}"] = values[f"w{layer}"] * scale[:, None, None, None]
        by_hand[f"b{layer}"] = (values.get(f"b{layer}", 0) - mean) * scale + beta
    folded = from_text(FOLDED, {**values, **by_hand})
    assert gap(run(model), run(folded)) < 1e-5
    one, two = (onnxfuse.fuse(m, sparsity=0.5, method=method).model for m in (model, folded))
    assert "BatchNormalization" not in [node.op_type for node in one.graph.node]
    for name in ("w1", "w2", "b2", "w3", "b3"):
        np.testing.assert_allclose(weights(one)[name], weights(two)[name], rtol=1e-5, atol=1e-6)
    assert gap(run(one, inputs(model)), run(two, inputs(model))) < 1e-5


TIED = [
    # (graph, the group's first node, factors, shifts)
    ("bn_after_relu", "c1", ("n1_scale", "n1_var"), ("b1", "n1_shift", "n1_mean")),
    ("prelu", "c1", ("slope",), ()),
    ("instance_norm", "c1", ("i_scale",), ("b1", "i_shift")),
    ("depthwise_twice", "c1", ("w2",), ("b2",)),
]


@pytest.mark.parametrize(("name", "group", "factors", "shifts"), TIED, ids=[row[0] for row in TIED])
def test_shifts_are_merged_and_factors_averaged(
    name: str, group: str, factors: tuple[str, ...], shifts: tuple[str, ...]
) -> None:
    """A shift has the unit of an activation and becomes F b; of a factor the mean is taken with the weights of F."""
    before, result = weights(build(name)), onnxfuse.fuse(build(name), sparsity=0.5, method="intra-fusion")
    (matrix,) = (merge.compress.toarray() for g, merge in result.plan.merges if g.name == group)
    after, mean = weights(result.model), matrix / matrix.sum(axis=1, keepdims=True)
    assert matrix.sum() == 8  # all of every channel goes somewhere
    for names, fuse in ((shifts, matrix), (factors, mean)):
        for key in names:
            rows = before[key].reshape(8, -1)
            np.testing.assert_allclose(after[key].reshape(4, -1), fuse @ rows, rtol=1e-5, atol=1e-6, err_msg=key)


FOLDED = """(float[N,3,8,8] x) => (float[N,5] y)
    <float[8,3,3,3] w1, float[8] b1, float[6,8,3,3] w2, float[6] b2, float[5,6] w3, float[5] b3> {
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r1 = Relu(c1)
    p1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1)
    c2 = Conv<pads=[1,1,1,1]>(p1, w2, b2)
    r2 = Relu(c2)
    p2 = GlobalAveragePool(r2)
    f = Flatten(p2)
    y = Gemm<transB=1>(f, w3, b3)
}"""
