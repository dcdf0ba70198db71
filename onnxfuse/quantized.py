"""Quantized models as real-number ones, so that all later stages see one kind of weight.

Until `requantize.py` undoes it the weights are real numbers, and what reads them computes on such.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

from onnx import ModelProto

from .dynamic import lower_dynamic
from .graph import Graph
from .probe import Probe
from .protos import graphs
from .qdq import lower_dequantized
from .qoperators import OPERATORS, lower_operators
from .scheme import Lowered
from .unused import idle_names

FORMS: Sequence[tuple[frozenset[str], Callable[[ModelProto, Lowered], None]]] = (
    (frozenset({"DequantizeLinear"}), lower_dequantized),
    (frozenset({"DynamicQuantizeLinear"}), lower_dynamic),
    (frozenset(OPERATORS), lower_operators),
)
"""Operators that a file in some quantized form has, and what replaces that form in place and notes how it was."""


def rounds(model: ModelProto) -> bool:
    """Whether it rounds numbers to integers, so that the last bit of one may decide on another integer."""
    nodes = chain((n for g in graphs(model) for n in g.node), (n for f in model.functions for n in f.node))
    return any(node.op_type.startswith(("Quantize", "DynamicQuantize", "QLinear", "QGemm")) for node in nodes)


def lower(model: ModelProto) -> Lowered:
    """Replace quantized weights by real numbers and integer operators by their counterparts, in place."""
    present = {node.op_type for node in model.graph.node}
    forms = [lower_form for marks, lower_form in FORMS if present & marks]
    found = Lowered(idle=idle_names(model) if forms else set())
    for lower_form in forms:
        lower_form(model, found)
    return found


def lowered_graph(model: ModelProto, reference: Probe) -> tuple[Graph, Lowered, Probe]:
    """`lower` a model; the graph of what it is then, what was changed, and the run with what the graph has now."""
    lowered = lower(model)
    return Graph(model, lowered.element_bytes(), lowered.layers.keys()), lowered, reference.with_shapes(lowered.like)
