"""`fuse` and `analyze`: one readable line per stage."""

from __future__ import annotations

import difflib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto
from onnx.external_data_helper import uses_external_data

from . import model as files
from .allocate import allocate, kept_count
from .channels import ChannelGroup, Channels, Slot, find_channels, shrunk_shape
from .errors import ModelError, NothingToMerge, UsageError, VerificationFailed
from .importance import METRICS, importance
from .merge import TRANSPORTS, Merge, Task, TransportOptions, strategy
from .model import Array, Graph, proto_label
from .plan import Plan
from .prepare import Folded, inline, prepare
from .probe import Probe, probe, provider_list
from .report import GroupRow, LockedRow, Report, Size, macs, parameters
from .rewrite import Removal, conflicts, removed_mask, rewrite
from .schedule import in_order
from .tracker import Lock, Role
from .verify import Comparison, verify
from .weights import Weights, side_by_side

PathLike = str | os.PathLike[str]
Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how many of its steps are done, and how many there are."""


@dataclass(frozen=True)
class Options:
    """How to merge. Fields that only apply to some methods are None unless given.

    Attributes:
        sparsity: fraction of channels removed from each group.
        method: intra-fusion, barycentric, fold or drop.
        importance: l1, l2, lamp or random.
        source_mass, target_mass, target, cost_norm: the transport's ablations (None: the method's own).
        exclude: regular expressions of nodes to leave alone.
        input_shapes: input name → shape for the probe run.
        provider: onnxruntime execution provider.
        seed: of random inputs and random importance.
        min_cosine: smallest cosine similarity allowed for any output.
        only: regular expressions of group names: merge these only.
    """

    sparsity: float
    method: str = "intra-fusion"
    importance: str = "l1"
    source_mass: str | None = None
    target_mass: str | None = None
    target: str | None = None
    cost_norm: int | None = None
    exclude: tuple[str, ...] = ()
    input_shapes: Mapping[str, tuple[int, ...]] | None = None
    provider: str = "cpu"
    seed: int = 0
    min_cosine: float | None = None
    only: tuple[str, ...] = ()


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


CHOICES: Mapping[str, Sequence[Any]] = {
    "importance": tuple(METRICS),
    "source_mass": ("uniform", "importance"),
    "target_mass": ("uniform", "importance"),
    "target": ("important", "cluster"),
    "cost_norm": (1, 2),
}
"""Options with a closed list of values."""


def check_options(o: Options) -> TransportOptions:
    """The transport options that apply; every value is checked.

    Raises:
        UsageError: an unknown value, or an option that the method does not use.
    """
    kept_count(1, o.sparsity)
    strategy(o.method)
    for name, valid in CHOICES.items():
        value = getattr(o, name)
        if value is not None and value not in valid:
            names = ", ".join(map(str, valid))
            raise UsageError(f"{name.replace('_', '-')} {value!r} is not known; choose from {names}")
    given = {f.name: getattr(o, f.name) for f in fields(TransportOptions) if getattr(o, f.name) is not None}
    if given and o.method not in TRANSPORTS:
        names = ", ".join("--" + n.replace("_", "-") for n in given)
        raise UsageError(f"method {o.method!r} solves no transport problem: leave out {names}")
    if o.seed < 0:
        raise UsageError(f"seed {o.seed} is negative; give a whole number from 0 up")
    if o.min_cosine is not None and not -1 <= o.min_cosine <= 1:
        raise UsageError(f"min-cosine {o.min_cosine} is not a cosine; give a number from −1 to 1")
    _check_patterns([*o.exclude, *o.only])
    default = TransportOptions(target="cluster") if o.method == "barycentric" else TransportOptions()
    return replace(default, **given)


def _listed(patterns: Sequence[str]) -> tuple[str, ...]:
    """A single pattern is a list of one, not of its letters."""
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _check_patterns(patterns: Sequence[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"{pattern!r} is not a regular expression: {error}") from error


def fuse(
    model: PathLike | ModelProto,
    output: PathLike | None = None,
    *,
    sparsity: float,
    method: str = "intra-fusion",
    importance: str = "l1",
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
    progress: Progress | None = None,
) -> FuseResult:
    """Merge channels of a trained model and write a smaller, verified one.

    Args:
        model: an ONNX file, or a model in memory (which is left alone).
        output: where to write; may be the input file. None writes nothing. It is replaced in one step, and only
            when every check has passed.
        sparsity: fraction of channels removed from each group, 0 ≤ s < 1; n − int(n(1 − s)) of n go.
        method: 'intra-fusion' (the paper's), 'barycentric', 'fold' or 'drop'.
        importance: 'l1', 'l2', 'lamp' or 'random': which channels survive.
        source_mass, target_mass: 'uniform' or 'importance'; for the transport methods only, like the next two.
        target: 'important' channels or means of a 'cluster'; barycentric defaults to 'cluster'.
        cost_norm: exponent p of the Lp ground cost, 1 or 2.
        exclude: regular expressions; nodes whose name matches keep their input and output channels.
        input_shapes: input name → shape, where dynamic dimensions cannot be guessed.
        provider: 'cpu', 'cuda' or another of onnxruntime's.
        seed: of the probe input and random importance.
        min_cosine: fail if any output's cosine similarity to the original's falls below.
        only: regular expressions of group names: merge these only (and their families).
        progress: called as the stages go on.

    Raises:
        UsageError: an option has an impossible value.
        ModelError: the file cannot be read, or onnxruntime cannot run it.
        NothingToMerge: no channel group may shrink; the message has the reasons.
        VerificationFailed: the result is not sound, or below `min_cosine`; nothing was written.
        OutputError: the result cannot be written.
    """
    shapes = {k: tuple(v) for k, v in input_shapes.items()} if input_shapes else None
    options = Options(
        sparsity, method, importance, source_mass, target_mass, target, cost_norm,
        _listed(exclude), shapes, provider, seed, min_cosine, _listed(only),
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
    source = _Source(model)
    original = source.load()
    if destination is not None and source.name is not None:
        files.check_distinct(Path(source.name), destination, source.beside)
    _check_matches("exclude", options.exclude, "node", [proto_label(node) for node in original.graph.node])
    tell("run the original", 0, 1)
    reference = probe(original, providers, options.input_shapes, options.seed)
    if options.sparsity == 0:
        small = _untouched(original, reference, options)
    else:
        small = _compress(original, reference, options, transport, tell)
    tell("verify", 0, 1)

    def finish(candidate: Path | ModelProto) -> Comparison:
        return verify(candidate, reference, providers, options.min_cosine, source.load)

    if destination is None:
        comparison, size = finish(small.model), small.model.ByteSize()
    else:
        comparison, size = _write(small.model, destination, bool(source.beside), finish)
    before = replace(small.before, file_bytes=source.bytes)
    report = Report(
        source.name, None if output is None else str(output), _as_dict(options), before,
        replace(small.after, file_bytes=size), small.groups, small.locked, comparison, time.perf_counter() - start,
    )  # fmt: skip
    return FuseResult(small.model, report, small.plan)


def analyze(
    model: PathLike | ModelProto,
    *,
    exclude: Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    provider: str = "cpu",
) -> list[ChannelGroup]:
    """The channel groups of a model, in graph order; `print(group)` shows one as a table.

    Raises:
        UsageError, ModelError: as for `fuse`.
    """
    exclude = _listed(exclude)
    _check_patterns(exclude)
    graph = _Source(model).load()
    _check_matches("exclude", exclude, "node", [proto_label(node) for node in graph.graph.node])
    reference = probe(graph, provider_list(provider), input_shapes)
    prepare(graph, exclude)
    return list(find_channels(Graph(graph), reference, exclude).groups)


# --- files ----------------------------------------------------------------------------------------------------------
class _Source:
    """The input, which can be loaded again when a late check needs the original."""

    def __init__(self, model: PathLike | ModelProto) -> None:
        self.given = model
        self.name = None if isinstance(model, ModelProto) else str(model)
        self.beside: tuple[Path, ...] = ()
        self.bytes = 0

    def load(self) -> ModelProto:
        """A copy of the model that may be changed, its functions inlined."""
        if isinstance(self.given, ModelProto):
            if any(uses_external_data(t) for t in self.given.graph.initializer):
                raise ModelError(
                    "the model's external data is not loaded; load it with onnx.load(path), or give the path"
                )
            copy = ModelProto()
            copy.CopyFrom(self.given)
            self.bytes = copy.ByteSize()
            return inline(copy)
        loaded = files.load(Path(self.given))
        self.beside, self.bytes = loaded.beside, loaded.file_bytes
        return inline(loaded.model)


def _write(
    small: ModelProto, destination: Path, external: bool, finish: Callable[[Path], Comparison]
) -> tuple[Comparison, int]:
    """Stage, verify, move into place; returns the comparison and the bytes written."""
    with files.staged(destination) as directory:
        staged = directory / destination.name
        files.save(small, staged, external)
        comparison = finish(staged)
        size = sum(f.stat().st_size for f in directory.iterdir())
        files.move(staged, destination)
    return comparison, size


# --- merging --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class _Small:
    """A model after merging, and what the report says of it."""

    model: ModelProto
    before: Size
    after: Size
    groups: tuple[GroupRow, ...]
    locked: tuple[LockedRow, ...]
    plan: Plan


def _untouched(original: ModelProto, reference: Probe, options: Options) -> _Small:
    size = Size(0, parameters(original), macs(original, reference.shapes), 0)
    return _Small(original, size, size, (), (), Plan(_as_dict(options)))


def _compress(
    model: ModelProto, reference: Probe, options: Options, transport: TransportOptions, tell: Progress
) -> _Small:
    """Prepare, track, merge group by group from the output to the input, rewrite. `model` becomes small in place."""
    before = (parameters(model), macs(model, reference.shapes))
    folded = prepare(model, options.exclude)
    graph = Graph(model)
    channels, keep = settle(graph, reference, options)
    merges = _merge_all(channels, keep, options, transport, tell)
    return _finish(channels, merges, before, folded, options)


def settle(graph: Graph, reference: Probe, options: Options) -> tuple[Channels, list[int]]:
    """The channel groups and how many each keeps, with every group locked that a shape constant could not follow."""
    locks: list[Lock] = []
    while True:
        channels = find_channels(graph, reference, options.exclude, locks)
        if channels.groups:
            _check_matches("only", options.only, "group", [g.name for g in channels.groups])
        chosen = {g.family for g in channels.groups if any(re.search(p, g.name) for p in options.only or ("",))}
        keep = allocate(channels.groups, options.sparsity)
        keep = [k if g.family in chosen else g.channels for g, k in zip(channels.groups, keep, strict=True)]
        if not any(k < g.channels for k, g in zip(keep, channels.groups, strict=True)):
            raise NothingToMerge(_nothing(channels))
        trial = [Removal(g, np.arange(k)) for g, k in zip(channels.groups, keep, strict=True)]
        found = conflicts(channels, removed_mask(channels, trial))
        if not found:
            return channels, keep
        locks += found


def _nothing(channels: Channels) -> str:
    reasons = dict.fromkeys(f"{row.reason} ({row.name})" for row in channels.locked)
    listed = "; ".join(list(reasons)[:5]) + (f"; and {len(reasons) - 5} more" if len(reasons) > 5 else "")
    if channels.groups:
        largest = max(g.unit for g in channels.groups)
        listed = f"at this sparsity no group of at most {largest} channels loses one; raise --sparsity" + (
            f"; {listed}" if listed else ""
        )
    return f"nothing to merge: {listed or 'no Conv, ConvTranspose, Gemm, MatMul or embedding with constant weights'}"


def _check_matches(option: str, patterns: Sequence[str], what: str, names: Sequence[str]) -> None:
    """Every pattern must match one of the names; the error suggests near ones."""
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            near = ", ".join(difflib.get_close_matches(pattern, names, 3, 0.3))
            raise UsageError(f"--{option} {pattern!r} matches no {what}" + (f"; near: {near}" if near else ""))


def _merge_all(
    channels: Channels, keep: Sequence[int], options: Options, transport: TransportOptions, tell: Progress
) -> list[tuple[ChannelGroup, Merge]]:
    """Merge every group, the last in the graph first: later plans see the weights that earlier ones left.

    Groups that share no weight tensor do not see each other, so two are merged at a time.
    """
    weights, method = Weights(channels.tracker.graph), strategy(options.method)
    todo = [(g, k) for g, k in zip(channels.groups, keep, strict=True) if k < g.channels][::-1]

    def merge(number: int) -> Merge:
        group, k = todo[number]
        rows = {s: weights.gather(s) for s in group.slots if s.role in (Role.PRODUCES, Role.CONSUMES)}
        _check_finite(rows)
        rng = np.random.default_rng([options.seed, number])
        scores = importance(options.importance, list(rows.values()), rng)
        result = method(Task(side_by_side(list(rows.values())), scores, k, transport))
        weights.apply(group, result, rows)
        return result

    before = _shared_tensors([g for g, _ in todo])
    merges = in_order(merge, before, lambda done: tell("merge", done, len(todo)))
    rewrite(channels, weights, [Removal(g, m.kept) for (g, _), m in zip(todo, merges, strict=True)])
    return [(g, m) for (g, _), m in zip(todo, merges, strict=True)]


def _check_finite(rows: Mapping[Slot, Array]) -> None:
    for slot, values in rows.items():
        if not np.isfinite(values).all():
            raise ModelError(
                f"weight {slot.tensor!r} of {slot.node} has values that are not finite; repair the model first"
            )


def _shared_tensors(groups: Sequence[ChannelGroup]) -> list[set[int]]:
    """For each group the earlier ones that change a tensor it reads."""
    last: dict[str, list[int]] = {}
    before: list[set[int]] = []
    for number, group in enumerate(groups):
        tensors = {slot.tensor for slot in group.slots}
        before.append({i for t in tensors for i in last.get(t, [])})
        for t in tensors:
            last.setdefault(t, []).append(number)
    return before


def _finish(
    channels: Channels,
    merges: Sequence[tuple[ChannelGroup, Merge]],
    before: tuple[int, int],
    folded: Sequence[Folded],
    options: Options,
) -> _Small:
    t = channels.tracker
    kept = removed_mask(channels, [Removal(g, m.kept) for g, m in merges])
    shapes = {name: shrunk_shape(channels, kept, name) for name in t.probe.shapes}
    after = {g: len(m.kept) for g, m in merges}
    rows = tuple(GroupRow(g.name, g.channels, after.get(g, g.channels), g.nodes) for g in channels.groups)
    model = t.graph.model
    sizes = (
        Size(sum(r.before for r in rows), *before, 0),
        Size(sum(r.after for r in rows), parameters(model), macs(model, shapes), 0),
    )
    locked = tuple(LockedRow(r.name, r.channels, r.reason, r.node) for r in channels.locked)
    return _Small(model, *sizes, rows, locked, Plan(_as_dict(options), tuple(folded), t.graph.clones, tuple(merges)))


def _as_dict(options: Options) -> dict[str, Any]:
    return asdict(options)


__all__ = ["FuseResult", "Options", "VerificationFailed", "analyze", "fuse", "fuse_with"]
