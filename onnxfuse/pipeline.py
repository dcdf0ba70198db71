"""`fuse` and `analyze`: one readable line per stage."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import ModelProto

from . import files
from .attempt import Finished, Setting, attempt
from .calibdata import Samples, calibration
from .carryover import carried_over
from .chance import drawn
from .checks import check_options
from .compress import Progress, Studies
from .defined import defined
from .evaluation import load_evaluation
from .inspection import Analysis, analysis
from .keywords import FuseKeywords, SharedKeywords, documented, options_of
from .kinds import checked
from .options import Options
from .origin import ModelSource, PathLike
from .patterns import check_matches, check_patterns, listed
from .plan import Plan
from .prepare import prepare
from .probe import Probe, probe
from .protos import graphs, proto_label
from .providers import provider_list
from .quantized import lowered_graph
from .report import Report, growth
from .search import Judge
from .settle import follow, kept_channels
from .sidefiles import NONE, SideFiles

if TYPE_CHECKING:
    from typing_extensions import Unpack


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


@checked
@documented(SharedKeywords, FuseKeywords)
def fuse(
    model: PathLike | ModelProto,
    output: PathLike | None = None,
    *,
    progress: Progress | None = None,
    **options: Unpack[FuseKeywords],
) -> FuseResult:
    """Merge channels of a trained model and write a smaller, verified one.

    Args:
        model: an ONNX file, or a model in memory (which is left alone).
        output: where to write; may be the input file. None writes nothing. It is replaced in one step, and only
            when every check has passed.
        progress: called as the stages go on.
        options: how, and how far; see `FuseKeywords`.

    Raises:
        TypeError: there is no such option.
        UsageError: an option has an impossible value.
        ModelError: the file cannot be read, or onnxruntime cannot run it.
        NothingToMerge: no channel group may shrink; the message has the reasons.
        VerificationFailed: the result is not sound, or not as good as asked; nothing was written.
        OutputError: the result cannot be written.
    """
    return fuse_with(model, output, options_of(fuse, **options), progress)


def fuse_with(
    model: PathLike | ModelProto,
    output: PathLike | None,
    options: Options,
    progress: Progress | None = None,
    beside: SideFiles = NONE,
) -> FuseResult:
    """`fuse` with its options as one object, and files beside the model that are written before it."""
    start, tell = time.perf_counter(), progress or (lambda stage, done, total: None)
    transport, providers = check_options(options), provider_list(options.provider)
    destination, source = None if output is None else Path(output), ModelSource(model)
    beside.check(destination, options.files, source.files)
    tell("load", 0, 1)
    original = source.load()
    options = replace(options, external_data=options.external_data or bool(source.beside))
    files.check_unread(beside.paths(), source.beside)
    if destination is not None and options.external_data:
        files.check_data_place(destination)
    if destination is not None and source.name is not None:
        files.check_distinct(Path(source.name), destination, source.beside)
    check_matches("exclude", options.exclude, "node", _labels(original))
    tell("run the original", 0, 1)
    reference = probe(original, providers, options.input_shapes, options.seed, options.input_ranges)
    samples = _samples(original, reference, providers, options, tell)
    reference = defined(reference, original, lambda: samples.fitted if samples else [], providers)
    judge = _judge(source, reference, providers, options, samples)

    def conclude(options: Options, done: Finished) -> Report:
        small = done.small
        before, after = replace(small.before, file_bytes=source.bytes), replace(small.after, file_bytes=done.size)
        report = Report(
            source.name, None if output is None else str(output), options.recorded(), before, after, small.groups,
            small.locked, done.comparison, time.perf_counter() - start, done.latency, done.quality,
            (*small.notes, *growth(before, after), *drawn(small.model)), small.free, done.fidelity,
            done.synthetic, small.read,
        )  # fmt: skip
        beside.write(report, small.plan)
        return report

    setting = Setting(source, destination, reference, providers, transport, judge, samples, Studies(), tell, conclude)
    small, report = attempt(setting, original, options)
    return FuseResult(small.model, report, small.plan)


def _samples(
    original: ModelProto, reference: Probe, providers: Sequence[str], options: Options, tell: Progress
) -> Samples | None:
    """The user's samples as the model takes them, if there are any, from states that occur."""
    if options.calib is None:
        return None
    tell("read the calibration data", 0, 1)
    found = calibration(options.calib, options.calib_preprocess, original, reference, providers, hold_out=True)
    batches = carried_over(original, reference, [*found.fitted, *found.held], "the calibration data")
    return Samples(batches[: len(found.fitted)], batches[len(found.fitted) :])


def _judge(
    source: ModelSource, reference: Probe, providers: Sequence[str], options: Options, samples: Samples | None
) -> Judge | None:
    """What measures results, if the options ask for more than a model of a given size."""
    if not (options.timed or options.eval or (options.floors and not options.sized)):
        return None
    original = source.load()
    data = load_evaluation(Path(options.eval), options.metric, original) if options.eval else None
    return Judge(original, reference, providers, options, data, samples)


@checked
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
    prepare(graph, exclude, reference.shapes)
    half = Options(0.5, round_to=1, allow_norm=allow_norm, prune_heads=prune_heads)
    choose = functools.partial(kept_channels, options=half)
    view, _, reference = lowered_graph(graph, reference)
    channels, _ = follow(view, reference, exclude, choose, half.permit)
    return analysis(channels)


def _labels(model: ModelProto) -> list[str]:
    return [proto_label(node) for graph in graphs(model) for node in graph.node]


__all__ = ["FuseResult", "analyze", "fuse", "fuse_with"]
