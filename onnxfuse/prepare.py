"""Make a graph ready for tracking, without changing what it computes.

    functions            inlined
    FusedConv, FusedGemm → Conv, Gemm, Add, activation (unfuse.py)
    names in branches of If               → of their own
    nodes before those that make what they read   → behind them (order.py)
    If with a constant condition                     → the branch that runs
    sparse initializers  → dense ones
    Constant value_float(s), value_int(s), sparse_value     → value
    what is computed from constants only    → an initializer
    what Shape tells of sizes that never change   → an initializer (sizes.py)
    Reshape → Gather by computed indices that changes no order   → Reshape (strided.py)
    Reshape → Transpose → Reshape that permutes channels   → Gather (shuffles.py)
    Conv/ConvTranspose/Gemm → BatchNormalization   → one node with other weights

Statistics do not average, weights do: that is why BatchNormalization is folded before anything is merged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import onnx
import onnx.inliner
from onnx import ModelProto

from .branches import choose_branches, name_apart
from .constants import densify, fold_constants
from .folding import Folded, fold_batch_norms
from .order import sort_nodes
from .settled import borne_out, settled_sizes
from .shuffles import fold_shuffles
from .sizes import Sizes, asks_for_sizes, fold_sizes, known_sizes
from .strided import fold_strided
from .unfuse import unfuse
from .unused import drop_unused, idle_names


def inline(model: ModelProto) -> ModelProto:
    """The model with its local functions inlined, what is fused taken apart, no name made twice and all nodes in order;
    the same object if it has no functions."""
    model = onnx.inliner.inline_local_functions(model) if model.functions else model
    unfuse(model)
    name_apart(model)
    sort_nodes(model)
    return model


def prepare(
    model: ModelProto, exclude: Sequence[str] = (), shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})
) -> list[Folded]:
    """Normalise constants and fold BatchNormalization, in place; returns what was folded.

    Args:
        model: functions inlined, external data loaded.
        exclude: regular expressions; a producer whose name matches keeps its BatchNormalization.
        shapes: of its values in a probing run, if there was one; without it all is found by inference.
    """
    densify(model)
    idle = idle_names(model)
    fold_constants(model)
    known = _fold_sizes(model, shapes)
    fold_strided(model)
    fold_shuffles(model, known)
    folded = fold_batch_norms(model, [re.compile(p) for p in exclude])
    drop_unused(model, idle)
    return folded


def _fold_sizes(model: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Sizes]:
    """Fold sizes, and what is computed from them, until nothing is left; returns those that are known at last."""
    settled = settled_sizes(model, shapes) if asks_for_sizes(model) else {}
    if fold_sizes(model, settled):
        fold_constants(model)
    while True:
        known = {**borne_out(known_sizes(model), shapes), **settled} if asks_for_sizes(model) else settled
        if not (fold_sizes(model, known) or choose_branches(model)):
            return known
        fold_constants(model)  # what one round finds lets shape inference prove more
