"""Reshape → Transpose → Reshape that permutes channels becomes a Gather, where it is proved to do nothing else."""

from __future__ import annotations

import numpy as np
import pytest

import onnxfuse
from onnxfuse.oracle import oracle_error

from .graphs import from_text

TEXT = """(float[{n},3,{image}] x) => (float[{n},3,{image}] y)
    <float[12,3,1,1] w1, float[6,6,3,3] w2, float[3,12,1,1] w3, int64[{rank}] first = {{{first}}},
     int64[4] last = {{{last}}}, int64[2] sizes = {{6, 6}}> {{
    c1 = Conv(x, w1)
    s0 = Reshape(c1, first)
    s1 = Transpose<perm={perm}>(s0)
    s2 = Reshape(s1, last)
    a, b = Split<axis=1>(s2, sizes)
    c2 = Conv<pads=[1,1,1,1]>(b, w2)
    j = Concat<axis=1>(a, c2)
    y = Conv(j, w3)
}}"""
CHANNELS = {
    "fixed": ("2", "6,6", "2,2,6,6,6", "2,12,6,6", "[0,2,1,3,4]"),
    "open batch": ("N", "6,6", "-1,2,6,6,6", "-1,12,6,6", "[0,2,1,3,4]"),
    "three factors": ("N", "6,6", "0,2,3,2,6,6", "0,-1,6,6", "[0,3,1,2,4,5]"),
}
OTHERS = {
    "open image": ("N", "H,W", "0,2,6,6,-1", "0,12,6,6", "[0,2,1,3,4]"),
    "rows too": ("N", "6,6", "-1,2,6,6,6", "-1,12,6,6", "[0,2,1,4,3]"),
    "batch too": ("2", "6,6", "2,2,6,6,6", "2,12,6,6", "[1,0,2,3,4]"),
}


def text(n: str, image: str, first: str, last: str, perm: str) -> str:
    return TEXT.format(n=n, image=image, first=first, last=last, perm=perm, rank=first.count(",") + 1)


@pytest.mark.parametrize("case", [*CHANNELS, *OTHERS])
def test_shuffle(case: str) -> None:
    model = from_text(text(*(CHANNELS | OTHERS)[case]))
    shapes = {"x": (2, 3, 6, 6)}
    result = onnxfuse.fuse(model, sparsity=0.5, method="drop", input_shapes=shapes)
    feeds = {"x": np.random.default_rng(0).normal(size=shapes["x"]).astype(np.float32)}
    kinds = [node.op_type for node in result.model.graph.node]
    assert ("Gather" in kinds, "Transpose" in kinds) == (case in CHANNELS, case in OTHERS)
    assert oracle_error(model, result, feeds) < 1e-4
    assert result.report.after.parameters < result.report.before.parameters
