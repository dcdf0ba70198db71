"""Operators that pick by value: a rounding decides what is there, so the result is judged by what they read."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

import onnxfuse
from onnxfuse.picking import before_picks
from onnxfuse.probe import probe, provider_list
from onnxfuse.verify import run

from .graphs import from_text

TEXT = """(float[1,3,16,16] x) => (int64[2,M] y, float[1,16,16,16] z)
    <float[32,3,3,3] w1, float[16,32,3,3] w2, float[8,16] w3, float level = {0.1}> {
    c1 = Conv<pads=[1,1,1,1]>(x, w1)
    r1 = Relu(c1)
    z = Conv<pads=[1,1,1,1]>(r1, w2)
    s = ReduceMax<axes=[0, 1], keepdims=0>(z)
    g = Greater(s, level)
    y = NonZero(g)
}"""


def test_the_part_before_picks() -> None:
    part = before_picks(from_text(TEXT))
    assert part is not None
    assert [o.name for o in part.graph.output] == ["z", "s"]
    assert [n.op_type for n in part.graph.node] == ["Conv", "Relu", "Conv", "ReduceMax"]
    assert before_picks(from_text("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }")) is None


def test_a_rounding_that_picks_is_no_fault() -> None:
    """The threshold lies between what the result has with optimizations and without."""
    model = from_text(TEXT)

    def fused() -> onnxfuse.FuseResult:
        return onnxfuse.fuse(model, sparsity=0.5, method="drop", input_shapes={"x": (1, 3, 16, 16)})

    part = before_picks(fused().model)
    assert part is not None
    reference = probe(model, provider_list("cpu"))
    plain, fast = (run(part, reference.inputs, provider_list("cpu"), optimized)["s"] for optimized in (False, True))
    apart = plain != fast
    assert apart.any()
    level = next(t for t in model.graph.initializer if t.name == "level")
    level.CopyFrom(numpy_helper.from_array(np.minimum(plain, fast)[apart].max(), "level"))
    result = fused()
    assert result.report.comparison.agreement > 1e-3  # another number of places
    assert result.report.after.parameters < result.report.before.parameters
