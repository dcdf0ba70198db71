"""`fuse` and `analyze`: one readable line per stage."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnx import ModelProto

from . import model as files
from .attempt import Setting, attempt
from .calibdata import Batches, calibration
from .compress import Progress, Studies, follow, kept_channels
from .evaluation import load_evaluation
from .inspection import Analysis, analysis
from .model import proto_label
from .options import Options, check_matches, check_options, check_patterns, listed
from .origin import ModelSource, PathLike
from .plan import Plan
from .prepare import prepare
from .probe import Probe, probe, provider_list
from .quantized import lowered_graph
from .report import Report
from .scores import Importance
from .search import Judge
from .sources import Source


@dataclass(frozen=True, eq=False)
class FuseResult:
    """What `fuse` returns.

    Attributes:
        model: the smaller model.
        report: sizes, groups, and the verification's measurements.
        plan: every merge that was made.
    """

    model: ModelProto
    report: Report
    plan: Plan


def fuse(
    model: PathLike | ModelProto,
    output: PathLike | None = None,
    *,
    sparsity: float | None = None,
    method: str = "auto",
    importance: Importance = "l1",
    source_mass: str | None = None,
    target_mass: str | None = None,
    target: str | None = None,
    cost_norm: int | None = None,
    exclude: Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    provider: str = "cpu",
    seed: int = 0,
    min_cosine: float | None = None,
    only: Sequence[str] = (),
    gradients: Source | None = None,
    scope: str | None = None,
    target_macs: str | float | None = None,
    target_params: str | float | None = None,
    target_size: str | float | None = None,
    ratio: Sequence[str] = (),
    keep: Sequence[str] = (),
    round_to: str | int = "auto",
    from_plan: PathLike | None = None,
    latency: bool = False,
    threads: int | None = None,
    target_latency: str | float | None = None,
    max_error: float | None = None,
    max_drop: float | None = None,
    eval: PathLike | None = None,  # noqa: A002 (the command line's name)
    metric: str | None = None,
    lossless: bool = False,
    repair: bool | None = None,
    calib: Source | None = None,
    calib_preprocess: str | None = None,
    external_data: bool = False,
    allow_norm: bool = False,
    prune_heads: bool = False,
    progress: Progress | None = None,
) -> FuseResult:
    """Merge channels of a trained model and write a smaller, verified one.

    Args:
        model: an ONNX file, or a model in memory (which is left alone).
        output: where to write; may be the input file. None writes nothing. It is replaced in one step, and only
            when every check has passed.
        sparsity: fraction of channels removed from each group, 0 ≤ s < 1; n − int(n(1 − s)) of n go.
        method: 'auto' (the best known), 'intra-fusion' (the paper's), 'barycentric', 'fold', 'fold-variance', 'surgeon'
            or 'drop'.
        importance: which channels survive: 'l1', 'l2', 'lamp', 'taylor' or 'random'; your own scores, as an .npz file
            or a mapping with an array for each layer or group; or a function from `GroupView` to scores.
        source_mass, target_mass: 'uniform' or 'importance'; for the transport methods only, like the next two.
        target: 'important' channels or means of a 'cluster'; barycentric defaults to 'cluster'.
        cost_norm: exponent p of the Lp ground cost, 1 or 2.
        exclude: regular expressions; nodes whose name matches keep their input and output channels.
        input_shapes: input name → shape, where dynamic dimensions cannot be guessed.
        provider: 'cpu', 'cuda' or another of onnxruntime's.
        seed: of the probe input and random importance.
        min_cosine: fail if any output's cosine similarity to the original's falls below.
        only: regular expressions of group names: merge these only (and their families).
        gradients: ∂L/∂w for each weight's name, an .npz file or a mapping; for taylor.
        scope: 'local' removes the same fraction everywhere; 'global' what costs least, at equal MACs. None: local for
            a sparsity, global for budgets.
        target_macs, target_params, target_size: budgets in place of a sparsity; 0.5 or '50%' of the original, or an
            amount such as '900M' or '5MB'. All that are given must hold.
        ratio: 'REGEX=0.6' each, the sparsity of layers that match; later ones win.
        keep: regular expressions; layers that match keep the channels they make.
        round_to: 'auto' (widths that this provider's kernels like), or the number of which they should be multiples;
            1 gives exact widths.
        from_plan: the plan of an earlier run, which says how many channels the groups it names keep.
        latency: time the original and the result.
        threads: of onnxruntime, for the timing.
        target_latency: budget like the others, as a share of the original's or a time such as '4ms'.
        max_error: largest absolute difference allowed in any output.
        max_drop: how much the metric on `eval` may fall. Floors alone find the smallest model that holds them;
            with a sparsity or a budget they are checks.
        eval: labelled data, .npz (`evaluation.load_evaluation`).
        metric: 'module:function' of outputs and labels, in place of top-1 accuracy.
        lossless: in place of a sparsity: remove only dead, constant and duplicate channels; the outputs may change by
            less than 1e-5 of their norm.
        repair: refit what consumers read to what it was, on samples; None: for auto and surgeon, and with `calib`.
        calib: 64 to 512 unlabelled samples to measure on, in place of synthetic ones: an .npz file or a mapping with an
            array for each input, or a folder of images.
        calib_preprocess: of a folder of images, such as 'mean=0.5,std=0.5,layout=nchw' (see `images.parse`).
        external_data: write large weights to `<output>.data` beside the result; so it is, too, if the input has such a
            file, and above 2 GB.
        allow_norm: let go of channels that a LayerNormalization (or RMS norm, or mean over channels) runs over: its
            statistics are then those of the channels that are left.
        prune_heads: take whole heads out of attention, instead of equally many channels in every head.
        progress: called as the stages go on.

    Raises:
        UsageError: an option has an impossible value.
        ModelError: the file cannot be read, or onnxruntime cannot run it.
        NothingToMerge: no channel group may shrink; the message has the reasons.
        VerificationFailed: the result is not sound, or not as good as asked; nothing was written.
        OutputError: the result cannot be written.
    """
    shapes = {k: tuple(v) for k, v in input_shapes.items()} if input_shapes else None
    options = Options(
        sparsity, method, importance, source_mass, target_mass, target, cost_norm,
        listed(exclude), shapes, provider, seed, min_cosine, listed(only), gradients,
        scope, target_macs, target_params, target_size, listed(ratio), listed(keep),
        round_to, None if from_plan is None else os.fspath(from_plan), latency, threads, target_latency,
        max_error, max_drop, None if eval is None else os.fspath(eval), metric,
        lossless, repair, calib, calib_preprocess, external_data, allow_norm, prune_heads,
    )  # fmt: skip
    return fuse_with(model, output, options, progress)


def fuse_with(
    model: PathLike | ModelProto, output: PathLike | None, options: Options, progress: Progress | None = None
) -> FuseResult:
    """`fuse` with its options as one object."""
    start, tell = time.perf_counter(), progress or (lambda stage, done, total: None)
    transport, providers = check_options(options), provider_list(options.provider)
    destination = None if output is None else Path(output).resolve()  # through a symbolic link
    if destination is not None:
        files.check_writable(destination)
    tell("load", 0, 1)
    source = ModelSource(model)
    original = source.load()
    if destination is not None and source.name is not None:
        files.check_distinct(Path(source.name), destination, source.beside)
    check_matches("exclude", options.exclude, "node", _labels(original))
    tell("run the original", 0, 1)
    reference = probe(original, providers, options.input_shapes, options.seed)
    judge = _judge(source, reference, providers, options)
    batches, studies = _samples(original, reference, providers, options, tell), Studies()
    setting = Setting(source, destination, reference, providers, transport, judge, batches, studies, tell)
    options, done = attempt(setting, original, options)
    small = done.small
    report = Report(
        source.name, None if output is None else str(output), options.recorded(),
        replace(small.before, file_bytes=source.bytes), replace(small.after, file_bytes=done.size), small.groups,
        small.locked, done.comparison, time.perf_counter() - start, done.latency, done.quality, small.notes, small.free,
        done.fidelity,
    )  # fmt: skip
    return FuseResult(small.model, report, small.plan)


def _samples(
    original: ModelProto, reference: Probe, providers: Sequence[str], options: Options, tell: Progress
) -> Batches | None:
    """The user's samples as the model takes them, if there are any."""
    if options.calib is None:
        return None
    tell("read the calibration data", 0, 1)
    return calibration(options.calib, options.calib_preprocess, original, reference, providers)


def _judge(source: ModelSource, reference: Probe, providers: Sequence[str], options: Options) -> Judge | None:
    """What measures results, if the options ask for more than a model of a given size."""
    if not (options.timed or options.eval or (options.floors and not options.sized)):
        return None
    original = source.load()
    data = load_evaluation(Path(options.eval), options.metric, original) if options.eval else None
    return Judge(original, reference, providers, options, data)


def analyze(
    model: PathLike | ModelProto,
    *,
    exclude: Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    provider: str = "cpu",
    allow_norm: bool = False,
    prune_heads: bool = False,
) -> Analysis:
    """The channel groups of a model, in graph order, and what is left alone; `print(group)` shows one as a table.

    Groups are those that can lose half of their channels.

    Raises:
        UsageError, ModelError: as for `fuse`.
    """
    exclude = listed(exclude)
    check_patterns(exclude)
    graph = ModelSource(model).load()
    check_matches("exclude", exclude, "node", _labels(graph))
    reference = probe(graph, provider_list(provider), input_shapes)
    prepare(graph, exclude)
    half = Options(0.5, round_to=1, allow_norm=allow_norm, prune_heads=prune_heads)
    choose = functools.partial(kept_channels, options=half)
    channels, _ = follow(lowered_graph(graph)[0], reference, exclude, choose, half.permit)
    return analysis(channels)


def _labels(model: ModelProto) -> list[str]:
    return [proto_label(node) for graph in files.graphs(model) for node in graph.node]


__all__ = ["FuseResult", "analyze", "fuse", "fuse_with"]
