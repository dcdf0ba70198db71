"""Several prepared models become one: pair, align, average, restore, put BatchNormalization back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from .align import align
from .batchnorm import Norm, unfold
from .calibdata import Batches
from .calibrate import study
from .carry import Carrier
from .channels import Channels
from .counts import macs
from .drawing import marks_on
from .errors import ModelError
from .folding import Folded
from .grouping import find_channels
from .parents import Parent, float_array, make_plain
from .restore import Share, restore
from .segments import segments
from .tensors import FLOATS, Array, set_values, values_of
from .topology import ADVICE, pair, unshare_alike
from .traces import Traces, traces
from .tracker import Permit

log = logging.getLogger("onnxfuse")
ALIGNMENTS = ("activations", "weights", "none")
"""What channels are matched by; with none each keeps its place (plain weight averaging)."""


@dataclass(frozen=True, eq=False)
class Blended:
    """What became of the models.

    Attributes:
        model: the first one, with all models' weights.
        channels: of it, before BatchNormalization was put back.
        restored: layers whose mean and deviation were restored.
        batches: the samples.
    """

    model: ModelProto
    channels: Channels
    restored: int
    batches: Batches


@dataclass(frozen=True)
class Blend:
    """How models are averaged.

    Attributes:
        weights: one share for each model, their sum is 1.
        align: one of `ALIGNMENTS`.
        repair: whether means and deviations of channels are restored.
        anchored: whether the samples are synthetic.
    """

    weights: tuple[float, ...]
    align: str
    repair: bool
    anchored: bool


def blend(
    parents: Sequence[Parent],
    how: Blend,
    sample: Callable[[Channels, Parent], Batches],
    providers: Sequence[str],
    tell: Callable[[str, int, int], None],
) -> Blended:
    """The first model with all models' weights, changed in place.

    Args:
        parents: the models, which have passed `check_nodes`.
        how: to average.
        sample: gives samples for alignment by activations and for the restoring, by the first model.
        providers: of onnxruntime.
        tell: called with the stage, and how many of how many models are done.

    Raises:
        ModelError: the models are not of one architecture.
    """
    first = parents[0]
    unshare_alike([p.graph for p in parents])
    found = [find_channels(p.graph, p.probe, permit=Permit(norms=True)) for p in parents]
    batches = sample(found[0], first)
    pairings = [pair(p, c, first, found[0]) for p, c in zip(parents[1:], found[1:], strict=True)]
    twins = _twins(parents, found, how, batches, tell)
    for p, twin in zip(parents, twins, strict=True):
        make_plain(p.graph, twin)
    scales = segments(found[0])
    carriers = [Carrier(found[0], c, pairing, scales) for c, pairing in zip(found[1:], pairings, strict=True)]
    for p, carrier in zip(parents[1:], carriers, strict=True):
        _check_shapes(p, first, carrier)
    seen: list[Traces] = []
    for i, (channels, twin) in enumerate(zip(found, twins, strict=True)):
        if how.align == "activations":
            tell("run the models", i, len(parents))
            own = segments(channels)
            seen.append(traces(channels, [own[g] for g in channels.groups], batches, twin, providers))
    for i, carrier in enumerate(carriers):
        tell("align", i, len(carriers))
        if how.align == "none":
            carrier.keep_order()
        else:
            align(carrier, (seen[0], seen[i + 1]) if seen else None)
    shares = [Share(w, p, t, c) for w, p, t, c in zip(how.weights, parents, twins, [None, *carriers], strict=True)]
    restored = _average(shares, how, batches, tell)
    return Blended(first.graph.model, found[0], restored, batches)


def _twins(
    parents: Sequence[Parent], found: Sequence[Channels], how: Blend, batches: Batches, tell: Callable[..., None]
) -> list[dict[str, Array]]:
    """For each model what differs where it runs on samples that are not real."""
    if not how.anchored or not (how.repair or how.align == "activations"):
        return [{} for _ in parents]
    twins = []
    for i, (p, channels) in enumerate(zip(parents, found, strict=True)):
        tell("measure", i, len(parents))
        marks = marks_on(channels, p.folded, batches, macs(p.graph.model, p.probe.shapes))
        twins.append(dict(study(channels, p.folded, batches, None, inferred=marks).twin))
    return twins


def _check_shapes(other: Parent, first: Parent, carrier: Carrier) -> None:
    for name, twin in carrier.pairing.tensors.items():
        if (misfit := carrier.misfit(name)) is not None and first.graph.constants[name].data_type in FLOATS:
            raise ModelError(f"{other.name}: constant {twin!r} {misfit} in {first.name}; {ADVICE}")


def _average(shares: Sequence[Share], how: Blend, batches: Batches, tell: Callable[..., None]) -> int:
    """Give the first model the average of all; returns how many layers were restored."""
    first, tensors = shares[0].parent, shares[1].carrier.pairing.tensors if shares[1].carrier else {}
    names = [n for n in tensors if first.graph.constants[n].data_type in FLOATS]
    real = {n: _mixed(shares, n, twins=False) for n in names}
    twin = {n: _mixed(shares, n, twins=True) for n in names} if any(s.twin for s in shares) else real
    norms = {f.output: n for f in first.folded if (n := _norm(shares, f)) is not None}
    count = 0
    if how.repair:
        tell("restore", 0, 1)
        count = restore(real, twin, shares, batches)
    for name, values in real.items():
        set_values(first.graph.constants[name], values)
    unfold(first.graph.model, norms)
    return count


def _mixed(shares: Sequence[Share], name: str, twins: bool) -> Array:
    """The average of what the models, or their twins, have for a constant of the first."""
    total = np.zeros(tuple(shares[0].parent.graph.constants[name].dims))
    for s in shares:
        own = s.own_name(name)
        values = s.twin[own] if twins and own in s.twin else s.parent.graph.array(own)
        total += s.weight * s.carried(name, float_array(np.asarray(values)))
    return total


def _norm(shares: Sequence[Share], folded: Folded) -> Norm | None:
    """The average of the normalizations that the parents had at one place; None if one of them had none."""
    first = shares[0].parent
    position = next(i for i, n in enumerate(first.graph.protos) if folded.output in n.output)
    node = first.graph.protos[position]
    mean, gamma, variance = (np.zeros(len(folded.mean)) for _ in range(3))
    for s in shares:
        output = s.parent.graph.protos[position].output[0]
        own = next((f for f in s.parent.folded if f.output == output), None)
        if own is None or own.norm[3] not in s.parent.unfolded:
            return None
        spread = np.asarray(values_of(s.parent.unfolded[own.norm[3]]), np.float64)
        for total, values in ((mean, own.mean), (gamma, own.gamma), (variance, spread)):
            total += s.weight * s.carried(node.input[2], values)
    return Norm(folded, gamma, mean, variance, folded.bias in first.unfolded)
