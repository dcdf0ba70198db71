"""Branches of If: what lies within one, or passes through both, is merged like anything else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

import onnxfuse
from onnxfuse.graph import Graph
from onnxfuse.oracle import oracle_error
from onnxfuse.probe import probe
from onnxfuse.protos import branches, graphs
from onnxfuse.walk import Walk

from .graphs import build, from_text, inputs, run

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
    PERCEPTRONS: [("h", 8, 4), ("MatMul → t", 8, 4), ("MatMul → t_fuse1", 10, 5)],
    IMAGES: [("h", 8, 4), ("Conv → c", 6, 3), ("Conv → c_fuse1", 4, 2)],
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
    assert [s.tensor for s in found.groups[1].slots] == ["w1", "b1", "w2"]
    assert max(found.macs) < found.total_macs


def test_channels_that_both_branches_return_go_on() -> None:
    """Its recorded sizes, which a branch must have, follow."""
    model = build("branches")
    result = onnxfuse.fuse(model, sparsity=0.5)
    assert [(g.name, g.before, g.after) for g in result.report.groups] == [("h", 8, 4), ("c", 8, 4)]
    onnx.checker.check_model(result.model, full_check=True)
    for up in (True, False):
        assert oracle_error(model, result, inputs(model) | {"up": np.array(up)}) < 1e-5


SQUEEZED = """(float[N,6,L] x) => (float[N,3] y)
    <float[8,6,1] w1, float[8,3] w2, int64 last = {2}, int64 one = {1}, int64 two = {2}, int64[1] axis = {2}> {
    h = Conv(x, w1)
    sizes = Shape(h)
    length = Gather(sizes, last)
    single = Equal(length, one)
    k = If(single) <then_branch = yes () => (float[N,8] a) { a = Squeeze(h, axis) },
                    else_branch = no () => (float[N,8,L] b) { b = Identity(h) }>
    known = Shape(k)
    rank = Size(known)
    flat = Equal(rank, two)
    m = If(flat) <then_branch = some () => (float[N,8] c) { c = Relu(k) },
                  else_branch = none () => (float[N,8] d) { d = Abs(k) }>
    y = MatMul(m, w2)
}"""
"""As PyTorch writes x.squeeze(2), and then asks for the rank, where the last axis is open."""


def test_a_squeeze_that_depends_on_an_open_size_keeps_the_channels() -> None:
    model = from_text(SQUEEZED)
    result = onnxfuse.fuse(model, sparsity=0.5, input_shapes={"x": (2, 6, 1)})
    assert [(g.name, g.before, g.after) for g in result.report.groups] == [("h", 8, 4)]
    x = np.random.default_rng(0).standard_normal((3, 6, 1)).astype(np.float32)
    assert oracle_error(model, result, {"x": x}) < 1e-5


def test_sizes_that_never_change_are_known_in_branches_too() -> None:
    text = """(float[N,6] x, float[2,N,3] state, bool up) => (float[N,3] y)
        <float[6,8] w1, float[8,3] w2, float[6,3] w3, int64 zero = {0}, int64 two = {2}> {
        y = If(up) <
            then_branch = yes () => (float[N,3] a) {
                sizes = Shape(state)
                layers = Gather(sizes, zero)
                given = Equal(layers, two)
                a = If(given) <
                    then_branch = inner () => (float[N,3] c) { h = MatMul(x, w1) r = Relu(h) c = MatMul(r, w2) },
                    else_branch = other () => (float[N,3] d) { d = MatMul(x, w3) }>
            },
            else_branch = no () => (float[N,3] b) { b = MatMul(x, w3) }>
    }"""
    model = from_text(text)
    result = onnxfuse.fuse(model, sparsity=0.5)
    assert [node.op_type for graph in graphs(result.model) for node in graph.node].count("If") == 1
    assert oracle_error(model, result, inputs(model)) < 1e-5


def test_an_integer_that_chooses_a_branch_is_tried_with_what_it_is_compared_with() -> None:
    model = from_text("""(float[N,6] x, int64 rate) => (float[N,3] y)
        <float[6,3] w1, float[6,3] w2, int64 hertz = {16000}> {
        fast = Equal(rate, hertz)
        y = If(fast) <then_branch = yes () => (float[N,3] a) { a = MatMul(x, w1) },
                      else_branch = no () => (float[N,3] b) { b = MatMul(x, w2) }>
    }""")
    assert probe(model, ["CPUExecutionProvider"]).inputs["rate"] == 16000


# --- repair ---------------------------------------------------------------------------------------------------------
LOW = """(float[N,3] x, bool up) => (float[N,5] y)
    <float[3,8] w1, float[8,5] w2, float[3,8] w3, float[8,5] w4> {
    y = If(up) <
        then_branch = yes () => (float[N,5] a) { h = MatMul(x, w1) a = MatMul(h, w2) },
        else_branch = no () => (float[N,5] b) { i = MatMul(x, w3) b = MatMul(i, w4) }>
}"""
"""What is read has rank 3, so four channels of eight can say all that eight do."""
NOT_BOTH = """no sample takes the other branch of y: its weights are refitted to what would reach it, what follows to \
what the one that is taken makes"""


def off(model: ModelProto, small: ModelProto, feeds: dict[str, np.ndarray]) -> float:
    """Relative error of y."""
    before, after = (run(m, feeds)[0] for m in (model, small))
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))


def samples(rows: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((rows, 3)).astype(np.float32)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("up", [True, False])
def test_consumers_in_both_branches_are_refitted(up: bool, inside: bool) -> None:
    """The branch that no sample takes on what would reach it."""
    model, calib = from_text(LOW), {"x": samples(64), "up": np.array(True)}
    model = with_weights_inside(model) if inside else model
    small = onnxfuse.fuse(model, sparsity=0.5, method="drop", calib=calib)
    assert small.report.notes == ("repaired 2 consumers, on 56 given samples", NOT_BOTH)
    plain = onnxfuse.fuse(model, sparsity=0.5, method="drop", repair=False)
    feeds = {"x": np.random.default_rng(2).standard_normal((50, 3)).astype(np.float32), "up": np.array(up)}
    assert off(model, small.model, feeds) < 0.1 < 0.3 < off(model, plain.model, feeds)


def test_each_batch_goes_on_with_what_its_own_branch_makes() -> None:
    model = from_text("""(float[N,3] x) => (float[N,5] y)
        <float one = {1}, float[3,3] w1, float[3] w2, float[3,5] w3> {
        m = ReduceMax<keepdims=0>(x)
        up = Greater(m, one)
        k = If(up) <then_branch = yes () => (float[N,3] a) { a = MatMul(x, w1) },
                    else_branch = no () => (float[N,3] b) { n = Neg(x) b = Mul(n, w2) }>
        y = MatMul(k, w3)
    }""")
    batches = [{"x": samples(4) * np.float32(size)} for size in (0.01, 10, 0.02)]
    walk = Walk(Graph(model), False, {}, batches)
    for made, batch in zip(walk.value("y"), batches, strict=True):
        np.testing.assert_allclose(made, run(model, batch)[0], rtol=1e-5)
    assert walk.one_sided(range(6)) == []


def test_a_branch_that_does_not_run_on_the_samples_is_merged_alone() -> None:
    """On the two of the probing run it does."""
    text = LOW.replace("i = MatMul(x, w3)", "p = Reshape(x, pair) i = MatMul(p, w3)").replace(
        "(float[N,5] b)", "(float[M,5] b)"
    )
    model = from_text(text.replace("<float[3,8] w1", "<int64[2] pair = {2, 3}, float[3,8] w1"))
    result = onnxfuse.fuse(model, sparsity=0.5, method="drop", calib={"x": samples(64), "up": np.array(True)})
    assert result.report.notes[-1] == (
        "not refitted, 1 of 2 consumers: in a branch of If that cannot run on the samples (w4)"
    )
    assert off(model, result.model, {"x": samples(50), "up": np.array(True)}) < 0.1


def test_an_if_without_weights_runs_as_a_whole() -> None:
    """Its branches, and constants of theirs, are none of the walk's."""
    model = from_text("""(float[N,3] x, bool up) => (float[N,5] y) <float[3,8] w1, float[8,5] w2> {
        h = MatMul(x, w1)
        k = If(up) <
            then_branch = yes () => (float[N,8] a) <float half = {0.5}> { a = Mul(h, half) },
            else_branch = no () => (float[N,8] b) { b = Neg(h) }>
        y = MatMul(k, w2)
    }""")
    result = onnxfuse.fuse(model, sparsity=0.5, method="drop", calib={"x": samples(64), "up": np.array(True)})
    assert result.report.notes == ("repaired 1 consumers, on 56 given samples",)
    for up in (True, False):
        assert off(model, result.model, {"x": samples(50), "up": np.array(up)}) < 0.1
