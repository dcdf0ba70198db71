"""`ensemble`: several trained models of one architecture in, one model out."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto

from . import files
from .attempt import write
from .calibdata import Batches, calibration
from .channels import Channels, Locked
from .comparison import Comparison, compare
from .compress import Progress
from .counts import macs, parameters
from .defined import defined
from .drawing import draw
from .ensemble_options import ORDERS, EnsembleOptions, check_ensemble, recorded
from .fusion import Blend, Blended, blend
from .heldout import a_few, samples_in
from .keywords import SharedKeywords, documented, options_of, plain
from .kinds import checked
from .options import Options
from .origin import ModelSource, PathLike
from .parents import Parent, parent
from .pipeline import FuseResult, fuse_with
from .plan import Plan
from .probe import Probe, probe
from .providers import provider_list
from .report import GroupRow, Report, Size
from .runs import run
from .sidefiles import NONE, SideFiles
from .tensors import Array, read_in
from .topology import check_interface, check_nodes
from .verify import verify

if TYPE_CHECKING:
    from typing_extensions import Unpack

SAMPLES = 208
"""Synthetic samples that models are aligned and restored on, unless they cost too much; the paper aligns on 200."""


@checked
@documented(SharedKeywords)
def ensemble(
    models: Sequence[PathLike | ModelProto],
    output: PathLike | None = None,
    *,
    order: str = "fap",
    weights: Sequence[float] | None = None,
    align: str = "activations",
    restore: bool = True,
    progress: Progress | None = None,
    **options: Unpack[SharedKeywords],
) -> FuseResult:
    """Make one model of several trained ones of the same architecture (OTFusion, Fuse-and-Prune, Prune-and-Fuse).

    The channels of the others are transported onto the first model's, then the weights are averaged, and every layer is
    scaled and shifted until what it makes has the models' mean and deviation. Layers may have other widths in
    each model; the result has the first one's.

    Args:
        models: two or more files, or models in memory (which are left alone).
        output: where to write; none of the models. None writes nothing. It is replaced in one step, and only
            when every check has passed.
        order: 'fap' fuses the models, then prunes; 'paf' prunes each, then fuses.
        weights: one share for each model, their sum is 1; None: equal ones.
        align: what channels are matched by: 'activations' on samples, 'weights', or 'none': each keeps its place, as
            for models fine-tuned from one.
        restore: whether channels get the mean and deviation they have in the models.
        progress: called as the stages go on.
        options: see `SharedKeywords`; they are the pruning's, and `min_cosine` is to the first model's outputs. Without
            a sparsity the result is as large as the first model. The models, too, are run on `calib`.

    Returns:
        The model, its report, and the plan of the pruning that came after the fusion (empty for 'paf'): what
        `apply_plan` needs to do the same to the fused weights elsewhere.

    Raises:
        TypeError: there is no such option.
        UsageError: an option has an impossible value, or a file is given twice.
        ModelError: a file cannot be read, onnxruntime cannot run it, or it differs from the first in more than names
            and widths; the message has the first difference.
        NothingToMerge: no channel group may shrink at this sparsity.
        VerificationFailed: the result is not sound, or not as good as asked; nothing was written.
        OutputError: the result cannot be written.
    """
    prune, shares = options_of(ensemble, **options), None if weights is None else tuple(map(plain, weights))
    return ensemble_with(models, output, EnsembleOptions(prune, order, shares, align, restore), progress)


def ensemble_with(
    models: Sequence[PathLike | ModelProto],
    output: PathLike | None,
    options: EnsembleOptions,
    progress: Progress | None = None,
    beside: SideFiles = NONE,
) -> FuseResult:
    """`ensemble` with its options as one object, and files beside the model that are written before it."""
    start, tell, prune = time.perf_counter(), progress or (lambda stage, done, total: None), options.prune
    providers, shares = provider_list(prune.provider), check_ensemble(models, output, options)
    destination = None if output is None else Path(output)
    sources = [ModelSource(model) for model in models]
    beside.check(destination, prune.files, [file for source in sources for file in source.files])
    tell("load", 0, 1)
    originals = [source.load() for source in sources]
    names = [source.name or f"model {i}" for i, source in enumerate(sources, 1)]
    for name, model, source in zip(names, originals, sources, strict=True):
        check_interface(name, model, names[0], originals[0])
        files.check_unread(beside.paths(), source.beside)
        if destination is not None:
            files.check_distinct(Path(name), destination, source.beside)
    reference = _probing(prune)(originals[0])
    reference = defined(reference, originals[0], lambda: _given(originals[0], reference, prune, providers), providers)
    before = Size(0, parameters(originals[0]), macs(originals[0], reference.shapes), sources[0].bytes)
    fused = _fused(names, sources, originals, reference, shares, options, tell)
    read_in(fused.model)
    tell("verify", 0, 1)

    def prove(candidate: Path | ModelProto) -> Comparison:
        return verify(candidate, reference, providers, prune.min_cosine, None, sources[0].load)

    def conclude(comparison: Comparison, size: int) -> Report:
        after = Size(fused.left, parameters(fused.model), fused.macs, size)
        report = Report(
            " + ".join(names), None if output is None else str(output), recorded(options),
            replace(before, channels=fused.channels), after, fused.groups, fused.locked, comparison,
            time.perf_counter() - start, notes=fused.notes,
        )  # fmt: skip
        beside.write(report, fused.plan)
        return report

    report = write(fused.model, destination, prune.external_data or bool(sources[0].beside), prove, conclude)
    return FuseResult(fused.model, report, fused.plan)


# --- stages ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class _Fused:
    """The result, and what the report says of it; `groups` and `locked` of the pruning, if there was one.

    Attributes:
        channels, left: before and after the pruning.
        macs: multiply-accumulates of the result.
    """

    model: ModelProto
    groups: tuple[GroupRow, ...]
    locked: tuple[Locked, ...]
    channels: int
    left: int
    macs: int
    plan: Plan
    notes: tuple[str, ...]


def _fused(
    names: Sequence[str],
    sources: Sequence[ModelSource],
    originals: Sequence[ModelProto],
    reference: Probe,
    shares: tuple[float, ...],
    options: EnsembleOptions,
    tell: Progress,
) -> _Fused:
    """Prune and fuse, or fuse and prune, or fuse. The models in `originals` may change."""
    prune, providers = options.prune, provider_list(options.prune.provider)
    first = options.order == ORDERS[1]
    small = [fuse_with(s.given, None, replace(prune, min_cosine=None), tell) for s in sources] if first else []
    models = [s.model for s in small] or originals
    parents = [parent(name, model, _probing(prune)) for name, model in zip(names, models, strict=True)]
    for other in parents[1:]:
        check_nodes(other, parents[0])
    mean = _mean_outputs(parents, shares)
    how = Blend(shares, options.align, options.restore, prune.calib is None)
    sample = functools.partial(_batches, originals[0], reference, options, providers)
    blended = blend(parents, how, sample, providers, tell)
    read_in(blended.model)
    notes = _notes(names, options, blended, mean, run(blended.model, parents[0].probe.inputs, providers, False))
    if prune.sparsity is not None and not small:
        small = [fuse_with(blended.model, None, replace(prune, min_cosine=None), tell)]
        return _small(small[0].model, small[0], small[0].plan, (*notes, *small[0].report.notes))
    if small:
        return _small(blended.model, small[0], Plan(options.prune.recorded()), notes)
    count = sum(g.channels for g in blended.channels.groups)
    made = _probing(prune)(blended.model)  # put back, its norms name new values
    size = macs(blended.model, made.shapes)
    return _Fused(blended.model, (), (), count, count, size, Plan(options.prune.recorded()), notes)


def _probing(o: Options) -> Callable[[ModelProto], Probe]:
    """The run of a model that all else goes by."""
    return lambda model: probe(model, provider_list(o.provider), o.input_shapes, o.seed, o.input_ranges)


def _small(model: ModelProto, result: FuseResult, plan: Plan, notes: tuple[str, ...]) -> _Fused:
    r = result.report
    return _Fused(model, r.groups, r.locked, r.before.channels, r.after.channels, r.after.macs, plan, notes)


def _batches(
    model: ModelProto,
    reference: Probe,
    o: EnsembleOptions,
    providers: Sequence[str],
    channels: Channels,
    first: Parent,
) -> Batches:
    """The user's samples, or synthetic ones; none where nothing is measured."""
    if o.align != "activations" and not o.restore:
        return []
    if o.prune.calib is not None:
        return _given(model, reference, o.prune, providers)
    drawn = draw(channels, first.folded, macs(model, reference.shapes), o.prune.seed, o.prune.input_shapes or ())
    return a_few(drawn.fitted, SAMPLES)


def _given(model: ModelProto, reference: Probe, prune: Options, providers: Sequence[str]) -> Batches:
    """The user's samples, if there are any."""
    if prune.calib is None:
        return []
    return calibration(prune.calib, prune.calib_preprocess, model, reference, providers).fitted


def _mean_outputs(parents: Sequence[Parent], shares: Sequence[float]) -> dict[str, Array]:
    """The average of what the models make of the probe input."""
    first = parents[0].probe.outputs
    numeric = [n for n, a in first.items() if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    return {
        n: np.asarray(sum(w * np.asarray(p.probe.outputs[n], np.float64) for w, p in zip(shares, parents, strict=True)))
        for n in numeric
    }


def _notes(
    names: Sequence[str],
    o: EnsembleOptions,
    blended: Blended,
    mean: Mapping[str, Array],
    result: Mapping[str, Array],
) -> tuple[str, ...]:
    """What the report says of the fusion."""
    count = sum(map(samples_in, blended.batches))
    samples = f"{count} {'synthetic' if o.prune.calib is None else 'given'} samples"
    by = {"activations": f"aligned by activations of {samples}", "weights": "aligned by weights", "none": "not aligned"}
    cosine = min((e.cosine for e in compare(mean, {n: result[n] for n in mean})), default=1.0)
    first = f"fused {len(names)} models, {by[o.align]}; cosine {cosine:.4f} to the average of their outputs"
    restored = f"mean and deviation restored in {blended.restored} layers, on {samples}"
    return (first, restored) if o.restore else (first,)
