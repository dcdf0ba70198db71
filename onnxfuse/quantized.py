"""Quantized models as real-number ones, so that all later stages see one kind of weight.

Until `requantize.py` undoes it the graph computes on real numbers, and onnxruntime cannot run it where an integer
operator was replaced.
"""

from __future__ import annotations

from onnx import ModelProto

from .dynamic import lower_dynamic
from .graph import Graph
from .qdq import lower_dequantized
from .qoperators import lower_operators
from .scheme import Lowered


def lower(model: ModelProto) -> Lowered:
    """Replace quantized weights by real numbers and integer operators by their counterparts, in place."""
    found = Lowered()
    lower_dequantized(model, found)
    lower_dynamic(model, found)
    lower_operators(model, found)
    return found


def lowered_graph(model: ModelProto) -> tuple[Graph, Lowered]:
    """`lower` a model; the graph of what it is then, and what was changed."""
    lowered = lower(model)
    return Graph(model, lowered.element_bytes(), runs=not lowered.operators), lowered
