"""A Gather of a flattened value by all its indices in order is a Reshape; any other is not."""

from __future__ import annotations

import pytest

import onnxfuse
from onnxfuse.oracle import oracle_error

from .graphs import from_text, inputs

TEXT = """(float[batch,3,4,4] x, float[other,2] z) => (float[batch,3] y, float[other,2] u)
    <float[8,3,3,3] w1, float[8,3] w2, int64[1] flat = {{-1}}, int64 zero = {{0}}, int64 one = {{1}},
     int64 wide = {{{wide}}}, int64[3] behind = {{1, 2, 3}},
     int64[1,8,1,1] places = {{{places}}}, int64[2] rows = {{{rows}}}> {{
    c = Conv(x, w1)
    m = GlobalAveragePool(c)
    f = Reshape(m, flat)
    size = Shape<start=0, end=1>({counted})
    count = Squeeze(size)
    r = Range(zero, count, one)
    s = Mul(r, wide)
    i = Unsqueeze(s, behind)
    j = Add(i, places)
    g = Gather(f, j)
    h = Reshape(g, rows)
    y = MatMul(h, w2)
    u = Relu(z)
}}"""
ORDER = "0,1,2,3,4,5,6,7"
PLAIN = {"wide": "8", "places": ORDER, "counted": "x", "rows": "-1,8"}
CASES = {
    "all in order": (PLAIN, True),
    "of a later value": (PLAIN | {"counted": "m"}, True),
    "other order": (PLAIN | {"places": "0,1,2,3,4,5,7,6"}, False),
    "rows overlap": (PLAIN | {"wide": "4"}, False),
    "rows of something else": (PLAIN | {"counted": "z"}, False),
}


@pytest.mark.parametrize("case", CASES)
def test_strided(case: str) -> None:
    change, rewritten = CASES[case]
    model = from_text(TEXT.format(**change), opset=18)
    if not rewritten:
        with pytest.raises(onnxfuse.NothingToMerge):
            onnxfuse.fuse(model, sparsity=0.5, method="drop")
        return
    result = onnxfuse.fuse(model, sparsity=0.5, method="drop")
    assert "Gather" not in [node.op_type for node in result.model.graph.node]
    for batch in (1, 5):
        feeds = inputs(model, batch=batch)
        assert oracle_error(model, result, feeds) < 1e-4
    assert {t.name: list(t.dims) for t in result.model.graph.initializer}["w1"] == [4, 3, 3, 3]
