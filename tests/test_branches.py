"""Branches of If: what lies within one is merged like anything else; what it takes from outside and returns stays."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, helper

import onnxfuse
from onnxfuse.oracle import oracle_error
from onnxfuse.probe import probe
from onnxfuse.protos import branches, graphs

from .graphs import from_text, inputs

PERCEPTRONS = """(float[N,6] x, bool up) => (float[N,3] y)
    <float[6,8] w0, float[8,8] w1, float[8] b1, float[8,3] w2, float[8,10] w3, float[10,3] w4> {
    h = MatMul(x, w0)
    y = If(up) <
        then_branch = yes () => (float[N,3] a) {
            t = MatMul(h, w1)
            s = Add(t, b1)
            r = Relu(s)
            a = MatMul(r, w2)
        },
        else_branch = no () => (float[N,3] b) {
            t = MatMul(h, w3)
            r = Tanh(t)
            b = MatMul(r, w4)
        }>
}"""
"""Both branches have a `t` and an `r`."""
IMAGES = """(float[N,3,6,6] x, bool up, bool round) => (float[N,2,6,6] y)
    <float[8,3,1,1] w0, float[12,8,1,1] w1, float[12] n_scale, float[12] n_shift, float[12] n_mean, float[12] n_var,
     float[2,6,1,1] w2, float[4,8,1,1] w3, float[2,4,1,1] w4, float[2,8,1,1] w5> {
    h = Conv(x, w0)
    g = Relu(h)
    y = If(up) <
        then_branch = yes () => (float[N,2,6,6] a) {
            c = Conv(g, w1)
            n = BatchNormalization(c, n_scale, n_shift, n_mean, n_var)
            u, v = Split<axis=1>(n)
            m = Mul(u, v)
            a = Conv(m, w2)
        },
        else_branch = no () => (float[N,2,6,6] b) {
            b = If(round) <
                then_branch = inner () => (float[N,2,6,6] d) {
                    c = Conv(g, w3)
                    r = Relu(c)
                    d = Conv(r, w4)
                },
                else_branch = plain () => (float[N,2,6,6] e) { e = Conv(g, w5) }>
        }>
}"""
GROUPS = {
    PERCEPTRONS: [("MatMul → t", 8, 4), ("MatMul → t_fuse1", 10, 5)],
    IMAGES: [("Conv → c", 6, 3), ("Conv → c_fuse1", 4, 2)],
}


def with_weights_inside(model: ModelProto) -> ModelProto:
    """What one branch alone reads is an initializer of it, or every other time a Constant node."""
    for branch in branches(model.graph):
        own = [t for t in model.graph.initializer if readers(model, t.name) == [branch.name]]
        for i, tensor in enumerate(own):
            if i % 2:
                branch.initializer.append(tensor)
            else:
                branch.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
            model.graph.initializer.remove(tensor)
    return model


def readers(model: ModelProto, name: str) -> list[str]:
    return [graph.name for graph in graphs(model) for node in graph.node if name in node.input]


@pytest.mark.parametrize("method", ["drop", "fold", "auto"])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("text", GROUPS)
def test_groups_within_a_branch_shrink(text: str, inside: bool, method: str) -> None:
    model = from_text(text)
    model = with_weights_inside(model) if inside else model
    result = onnxfuse.fuse(model, sparsity=0.5, method=method)
    assert [(g.name, g.before, g.after) for g in result.report.groups] == GROUPS[text]
    assert ("h", "enters the body of If") in {(row.name, row.reason) for row in result.report.locked}
    assert "feeds an output of If" in {row.reason for row in result.report.locked}
    assert result.report.after.macs < result.report.before.macs
    assert result.report.after.parameters < result.report.before.parameters
    feeds = inputs(model)
    for up, turned in ((True, True), (False, True), (False, False)):
        feeds |= {"up": np.array(up), "round": np.array(turned)}
        assert oracle_error(model, result, {name: feeds[name] for name in inputs(model)}) < 1e-5


@pytest.mark.parametrize(
    "condition", ["int64[1] axis = {1}, int64[1] eight = {8}", "int64[1] axis = {1}, int64[1] eight = {9}"]
)
def test_a_branch_that_is_always_taken_takes_the_place_of_its_if(condition: str) -> None:
    """As an exporter writes a squeeze: by a size that never changes."""
    text = f"""(float[N,6] x) => (float[N,3] y) <float[6,8] w1, float[8,3] w2, {condition}> {{
        h = MatMul(x, w1)
        size = Shape(h)
        n = Gather(size, axis)
        same = Equal(n, eight)
        k = If(same) <then_branch = yes () => (float[N,8] a) {{ r = Relu(h) a = Neg(r) }},
                      else_branch = no () => (float[N,8] b) {{ r = Tanh(h) b = Neg(r) }}>
        y = MatMul(k, w2)
    }}"""
    model = from_text(text)
    result = onnxfuse.fuse(model, sparsity=0.5)
    assert [(g.before, g.after) for g in result.report.groups] == [(8, 4)]
    assert not any(node.op_type == "If" for node in result.model.graph.node)
    assert oracle_error(model, result, inputs(model)) < 1e-5


def test_a_branch_that_cannot_run_is_left_alone_with_the_reason() -> None:
    """The condition keeps it from running on what it would fail on."""
    text = """(float[N,6] x, bool up) => (float[N,3] y)
        <float[6,8] w1, float[8,3] w2, float[6,8] w3, float[8,3] w4, int64[2] odd = {7, 6}> {
        y = If(up) <then_branch = yes () => (float[N,3] a) { h = MatMul(x, w1) r = Relu(h) a = MatMul(r, w2) },
                    else_branch = no () => (float[M,3] b) { s = Reshape(x, odd) h = MatMul(s, w3) b = MatMul(h, w4) }>
    }"""
    model = from_text(text)
    result = onnxfuse.fuse(model, sparsity=0.5)
    assert [(g.name, g.before, g.after) for g in result.report.groups] == [("MatMul → h", 8, 4)]
    assert "it does not run on the probing input" in {row.reason for row in result.report.locked}
    assert oracle_error(model, result, inputs(model) | {"up": np.array(True)}) < 1e-5


def test_norms_in_a_branch() -> None:
    """What is permitted outside is permitted inside."""
    text = """(float[N,5,6] x, bool up) => (float[N,5,3] y)
        <float[6,8] w1, float[8] n_scale, float[8] n_shift, float[8,3] w2, float[6,3] w3> {
        y = If(up) <then_branch = yes () => (float[N,5,3] a) {
            h = MatMul(x, w1)
            n = LayerNormalization(h, n_scale, n_shift)
            a = MatMul(n, w2)
        }, else_branch = no () => (float[N,5,3] b) { b = MatMul(x, w3) }>
    }"""
    model = from_text(text)
    with pytest.raises(onnxfuse.NothingToMerge, match="LayerNormalization over the channels"):
        onnxfuse.fuse(model, sparsity=0.5)
    result = onnxfuse.fuse(model, sparsity=0.5, allow_norm=True)
    assert [(g.before, g.after) for g in result.report.groups] == [(8, 4)]
    assert oracle_error(model, result, inputs(model)) < 1e-5


@pytest.mark.parametrize(
    ("body", "groups"), [("t = Relu(n)", 1), ("m = MatMul(n, w3) o = Relu(m) t = MatMul(o, w4)", 2)]
)
def test_a_branch_that_picks_is_run_by_itself_only_for_its_weights(body: str, groups: int) -> None:
    """To suppress the boxes of a detector once more may take as long as all the rest."""
    text = f"""(float[N,6] x, bool up) => (float[N,6] y)
        <float[6,8] w1, float[8,6] w2, float[6,4] w3, float[4,6] w4> {{
        h = MatMul(x, w1)
        r = Relu(h)
        n = MatMul(r, w2)
        y = If(up) <then_branch = yes () => (float[N,6] a) {{
            p = NonZero(n)
            c = Cast<to=1>(p)
            s = ReduceMax(c)
            {body}
            a = Mul(t, s)
        }}, else_branch = no () => (float[N,6] b) {{ b = Neg(n) }}>
    }}"""
    model = from_text(text)
    known = probe(model, ["CPUExecutionProvider"]).shapes
    assert ("t" in known, "b" in known) == (groups > 1, True)
    result = onnxfuse.fuse(model, sparsity=0.5)
    assert len(result.report.groups) == groups
    assert oracle_error(model, result, inputs(model) | {"up": np.array(True)}) < 1e-5


def test_weights_that_both_branches_compute_alike_stay_one() -> None:
    """As PyTorch writes a recurrent layer whose state may be missing: with axes of other names in each branch."""
    text = """(float[N,6] x, bool up) => (float[N,3] y)
        <float[8,6] w1, float[16,3] w2, int64[1] from = {8}, int64[1] to = {16}, int64[1] begin = {8},
         int64[1] end = {16}> {
        y = If(up) <
            then_branch = yes () => (float[N,3] a) {
                s = Slice(w2, from, to)
                t = Transpose(w1)
                h = MatMul(x, t)
                r = Relu(h)
                a = MatMul(r, s)
            },
            else_branch = no () => (float[N,3] b) {
                q = Slice(w2, begin, end)
                u = Transpose(w1)
                i = MatMul(x, u)
                o = Tanh(i)
                b = MatMul(o, q)
            }>
    }"""
    model = from_text(text)
    result = onnxfuse.fuse(model, sparsity=0.5, method="drop")
    assert [(g.before, g.after) for g in result.report.groups] == [(8, 4)]
    assert result.report.after.parameters == 6 * 4 + 4 * 3
    for up in (True, False):
        assert oracle_error(model, result, inputs(model) | {"up": np.array(up)}) < 1e-5


def test_inspect_names_what_is_in_a_branch() -> None:
    found = onnxfuse.analyze(from_text(PERCEPTRONS))
    assert [g.name for g in found] == [name for name, _, _ in GROUPS[PERCEPTRONS]]
    assert [s.tensor for s in found.groups[0].slots] == ["w1", "b1", "w2"]
    assert sum(found.macs) < found.total_macs
