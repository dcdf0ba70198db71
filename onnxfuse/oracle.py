"""The zero-padding oracle: proof that a rewrite is right, for any merge on any graph.

Pad the small model's weights with zeros back to their original shapes, at the places of the channels that went:
the *original* graph with these weights must give the small graph's outputs to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from .channels import Channels, Slot
from .comparison import compare
from .findings import Role
from .graph import Graph
from .options import Options
from .oracle_norms import mask_norms
from .picking import feeds_of, numeric, picked, with_outputs, with_picks
from .pipeline import FuseResult
from .prepare import inline, prepare
from .probe import Probe, probe
from .protos import every_constant
from .providers import provider_list
from .quantized import lower, lowered_graph
from .requantize import Scales, held, restore
from .rewrite import Removal, kept_along, removed_mask, slot_masks
from .runs import run
from .scheme import Lowered, Scheme
from .settle import settle, settle_lossless
from .standin import in_float32
from .tensors import Array, set_values, values_of
from .weights import front

PICKED = 1e-4
"""Relative error from which on the outputs of a model that picks by value are not what is compared."""


def padded(original: ModelProto, result: FuseResult) -> ModelProto:
    """The original graph (BatchNormalization folded) with the small weights of `result`, zeros elsewhere.

    Quantized weights are padded with what stands for zero, and keep the scales of the small model. Norms that were
    permitted to shrink run over the channels that are left.
    """
    return _padded(original, result)[0]


def _padded(original: ModelProto, result: FuseResult) -> tuple[ModelProto, Probe]:
    model = ModelProto()
    model.CopyFrom(original)
    model, options = inline(model), Options(**result.plan.options)
    ranges = options.input_ranges
    reference = probe(model, provider_list(options.provider), options.input_shapes, options.seed, ranges)
    prepare(model, options.exclude, reference.shapes)
    graph, lowered, extended = lowered_graph(model, reference)
    channels = _groups(graph, extended, options) if result.plan.merges else None  # clones shared constants, too
    removals = [Removal(group, merge.kept) for group, merge in result.plan.merges]
    shrunk = ModelProto()
    shrunk.CopyFrom(result.model)
    small_schemes = lower(shrunk).schemes
    small = {name: values_of(t) for name, t in every_constant(shrunk).items()}
    full = {name: values_of(t) for name, t in graph.constants.items()}
    masks_of = slot_masks(removals, full)
    for name in _repaired(result) - masks_of.keys():  # other values at the old size
        set_values(graph.constants[name], small[name])
    for name, masks in masks_of.items():
        array = small[name]
        for slot, mask in reversed(masks):
            array = unshrink(array, slot, mask)
        set_values(graph.constants[name], array)
    for name in result.plan.shifts:
        if small[name].shape == full[name].shape:
            set_values(graph.constants[name], small[name])
    restore(graph, lowered, _padded_scales(graph, lowered, small_schemes, removals), exact=True)
    if channels is not None:
        mask_norms(channels, removed_mask(channels, removals))
    return model, reference


def _groups(graph: Graph, reference: Probe, options: Options) -> Channels:
    """The groups, with the locks that shape constants need; what measured costs would change in widths is no matter."""
    if options.lossless:
        return settle_lossless(graph, reference, options)[0]
    return settle(graph, reference, options, None, lambda _: None)[0]


def _repaired(result: FuseResult) -> set[str]:
    """Names of all constants that a repair changed."""
    readers = [r.reader for r in result.plan.repairs]
    return {r.slot.tensor for r in readers} | {r.bias for r in readers if r.bias}


def _padded_scales(
    graph: Graph, lowered: Lowered, small: Mapping[str, Scheme], removals: Sequence[Removal]
) -> dict[str, Scales]:
    """The small model's scales, and the original's for channels that went."""
    found = {}
    for name, s in held(graph, lowered).items():
        scales, zeros = (np.array(v) for v in (s.scales, s.zeros))
        kept = kept_along(removals, name, s.integers.shape, s.axis) if scales.size > 1 else np.ones(1, bool)
        if kept is not None:
            scales.reshape(-1)[kept] = small[name].scales.reshape(-1)
            zeros.reshape(-1)[kept if zeros.size > 1 else ...] = small[name].zeros.reshape(-1)
            found[name] = Scales(scales, zeros)
    return found


def unshrink(small: Array, slot: Slot, mask: NDArray[np.bool_]) -> Array:
    """The inverse of `rewrite.shrink`, with zeros outside of `mask` (ones in a factor)."""
    axes = mask.ndim
    differ = [a for a in range(axes) if (mask != mask.take([0], a)).any()]
    if not differ:
        return small
    view, last = front(small, slot), axes - 1
    fill = 1 if slot.role is Role.SCALE else 0  # a factor of what is zero already, or a divisor
    full = np.full((*mask.shape, *view.shape[axes:]), fill, small.dtype)
    rows, kept = np.moveaxis(full, differ[-1], last), np.moveaxis(mask, differ[-1], last)
    rows[kept] = np.moveaxis(view, differ[-1], last).reshape(-1, *view.shape[axes:])
    moved = np.moveaxis(full, range(axes), slot.axes)
    return moved.reshape(-1, *moved.shape[2:]) if slot.split > 1 else moved


def oracle_error(original: ModelProto, result: FuseResult, inputs: Mapping[str, Array]) -> float:
    """Largest relative L2 error of any output between the padded and the small model, on `inputs`.

    Where values are picked, a rounding can decide which: if the outputs differ, both are given the original's picks.
    """
    providers, (model, reference) = provider_list("cpu"), _padded(original, result)
    pair, feeds = [model, result.model], dict(inputs)
    if reference.stand_in:
        pair = [in_float32(m) for m in pair]
        feeds = {name: a.astype(reference.inputs[name].dtype) for name, a in inputs.items()}
    error = _furthest(pair, feeds, providers)
    names = picked(original.graph)
    if error <= PICKED or not names:
        return error
    source = in_float32(original) if reference.stand_in else original
    given = numeric(run(with_outputs(source, names), feeds, providers, optimized=False))
    return _furthest([with_picks(m, given) for m in pair], feeds, providers, given)


def _furthest(
    pair: Sequence[ModelProto],
    feeds: Mapping[str, Array],
    providers: Sequence[str],
    given: Mapping[str, Array] = MappingProxyType({}),
) -> float:
    """Largest relative error of any output that both have; infinite if a model that picks has nothing to go on with, or
    makes nothing of it, which proves nothing."""
    try:
        large, small = (run(m, feeds_of(m, feeds, given), providers, optimized=False) for m in pair)
    except Exception:  # onnxruntime has no base class for what it raises
        if given or not picked(pair[0].graph):
            raise
        return math.inf
    both = {n: a for n, a in large.items() if n in small}
    if not given and picked(pair[0].graph) and not any(a.size for a in numeric(both).values()):
        return math.inf
    return max((e.relative for e in compare(both, small)), default=0.0)
