"""Make a result, prove it, and move it into place; in another way if on samples of our own it is not sound."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from onnx import ModelProto

from . import files
from .calibdata import Samples
from .comparison import Comparison, OutputError, check_lossless, floor_missed
from .compress import Progress, Small, Studies, compress, untouched
from .errors import NothingToMerge, OnnxFuseError, Unsound, UsageError, VerificationFailed
from .fidelity import Fidelity, comparable, fidelity, fidelity_on_drawn
from .latency import Latency
from .merge import UNMEASURED, TransportOptions
from .options import Options
from .origin import ModelSource
from .probe import Probe
from .report import Quality, Report
from .search import Judge, find
from .tensors import read_in
from .verify import ELSEWHERE, compare_elsewhere, verify

log = logging.getLogger("onnxfuse")
Proof = TypeVar("Proof")


class Far(Unsound):
    """Even on samples of the kind that it was fitted to, the result is too far off.

    Attributes:
        off: by how much, as L2 norms of outputs, where zeros would be 1.
    """

    def __init__(self, found: Fidelity, worst: OutputError) -> None:
        super().__init__(
            f"output {worst.name!r} is off by {worst.relative:.2g} of its size on {found.samples} synthetic samples"
        )
        self.off = worst.relative


@dataclass(frozen=True, eq=False)
class Finished:
    """A result that passed every check.

    Attributes:
        small: the model, and what was done.
        latency, quality: what was measured of it, if that was asked for.
        comparison: with the original.
        fidelity: to the original on the user's samples, if there are any.
        synthetic: on synthetic ones, if there are any that nothing was fitted to.
        size: bytes of its files, or that they would have.
    """

    small: Small
    latency: Latency | None
    quality: Quality | None
    comparison: Comparison
    fidelity: Fidelity | None
    synthetic: Fidelity | None
    size: int


@dataclass(frozen=True, eq=False)
class Setting:
    """What all attempts at one result share: where it comes from and goes to, and what it is measured on.

    Attributes:
        conclude: what is told and written of a result that passed, before it is moved into place.
    """

    source: ModelSource
    destination: Path | None
    reference: Probe
    providers: Sequence[str]
    transport: TransportOptions
    judge: Judge | None
    samples: Samples | None
    studies: Studies
    tell: Progress
    conclude: Callable[[Options, Finished], Report]

    def make(self, original: ModelProto, options: Options) -> Small:
        """The smaller model; `original` is used up."""
        if options.sparsity == 0 and not options.wishes:
            return self._untouched(options)

        def at(room: float | None) -> Small:
            model = self.source.load() if self.judge else original
            fitted = None if self.samples is None else self.samples.fitted
            return compress(model, self.reference, options, self.transport, self.tell, room, fitted, self.studies)

        small = find(at, self.judge, options, self.tell) if self.judge else at(None)
        return self._untouched(options) if options.sparsity == 0 and not small.plan.merges else small

    def _untouched(self, options: Options) -> Small:
        return replace(untouched(self.source.load(), self.reference, options), model=self.source.as_it_is())

    def by_weights(self, options: Options) -> bool:
        """Whether `auto` chose channels by weights alone, though not all that was measured is in doubt.

        Where it is, weights stay the better guess: magika without 10% of its channels, in blocks, keeps 92.9% so, and
        91.8 by `surgeon`, which is nearer on synthetic files.
        """
        trusts = [s.source.value for s in self.studies.values() if s is not None]
        return options.method == "auto" and not options.scored and any(not t.chooses and t.doubt < 1 for t in trusts)

    def finish(self, small: Small, options: Options, wary: bool = False, most: float = math.inf) -> Report:
        """Prove it, report it, and write it.

        Args:
            small, options: how it was made.
            wary: whether there is another way to make it.
            most: how far it may be off on synthetic samples.

        Raises:
            Far: it is further off.
            VerificationFailed: it is not what it should be.
        """
        read_in(small.model)  # before the file that it is mapped from is replaced
        self.tell("verify", 0, 1)
        latency, quality = self.judge.verdict(small.model) if self.judge else (None, None)

        def prove(model: Path | ModelProto) -> tuple[Comparison, Fidelity | None, Fidelity | None]:
            compared = self._compared(model, small, options, wary)
            return compared, self._fidelity(small.model, options), self._on_drawn(small, options, most)

        def conclude(proof: tuple[Comparison, Fidelity | None, Fidelity | None], size: int) -> Report:
            return self.conclude(options, Finished(small, latency, quality, *proof, size))

        return write(small.model, self.destination, options.external_data, prove, conclude)

    def _compared(self, model: Path | ModelProto, made: Small, options: Options, wary: bool) -> Comparison:
        small = made.model
        on_samples = (self.samples is not None or bool(made.others and made.read)) and bool(comparable(small))
        floors = (None, None) if on_samples else (options.min_cosine, options.max_error)
        comparison = verify(model, self.reference, self.providers, *floors, self.source.load, wary)
        if options.lossless:
            types = {t.data_type for t in small.graph.initializer}
            check_lossless(comparison.outputs, types, "on random input")
            elsewhere = compare_elsewhere(model, self.reference, self.providers, self.source.load())
            check_lossless(elsewhere, types, ELSEWHERE)
        return comparison

    def _fidelity(self, result: ModelProto, options: Options) -> Fidelity | None:
        """None if there are no samples, or no outputs that can be compared on them.

        Raises:
            VerificationFailed: they are further off there than the options allow.
        """
        if self.samples is None:
            return None
        self.tell("compare on the samples", 0, 1)
        found = fidelity(self.source.load(), result, self.samples, self.providers, self.reference)
        missed = floor_missed(found.outputs, options.min_cosine, options.max_error)
        if missed is not None:
            raise VerificationFailed(f"on {found.samples} of your samples {missed}")
        return found if found.outputs else None

    def _on_drawn(self, small: Small, options: Options, most: float) -> Fidelity | None:
        """The same on synthetic samples, if there are others than those that it was fitted to."""
        if not small.others:
            return None
        self.tell("compare on synthetic samples", 0, 1)
        found = fidelity_on_drawn(self.source.load(), small.model, small.others, self.providers, self.reference)
        if found:
            _refuse_far(found, most)
        missed = floor_missed(found.outputs, options.min_cosine, options.max_error) if found else None
        if found and missed is not None:
            raise VerificationFailed(f"on {found.samples} synthetic samples {missed}")
        return found


def _refuse_far(found: Fidelity, most: float) -> None:
    worst = max(found.outputs, key=lambda o: o.relative)
    if worst.relative > most:
        raise Far(found, worst)


def attempt(setting: Setting, original: ModelProto, options: Options) -> tuple[Small, Report]:
    """The result, written, and what is told of it: without repair if that, on samples of our own, spoils the model."""
    wary = options.may_go_without_repair
    try:
        small = setting.make(original, options)
        wary = wary and bool(small.plan.repairs)
        return _sound(setting, small, options, wary)
    except NothingToMerge as error:
        searched = wary and setting.judge and setting.by_weights(options)
        found = _measured(setting, options, error) if searched else None
        if found is None:
            raise
        return found
    except Unsound as error:
        if not wary:
            raise
        log.warning("refitting on synthetic samples gives no sound result (%s); it is made without repair", error)
    plain = replace(options, repair=False)
    small = setting.make(setting.source.load(), plain)
    return small, setting.finish(small, plain)


def _sound(setting: Setting, small: Small, options: Options, wary: bool) -> tuple[Small, Report]:
    """The result, or one whose channels are chosen by what was measured, if that is sound and nearer.

    It is made if the first, by weights, has lost more of its outputs' energy than of its channels.

    Raises:
        Unsound: neither is sound.
    """
    if not (wary and setting.by_weights(options)):
        return small, setting.finish(small, options, wary)
    try:
        return small, setting.finish(small, options, wary, math.sqrt(1 - small.after.channels / small.before.channels))
    except Unsound as error:
        why = error
    found = _measured(setting, options, why)
    if found is not None:
        return found
    if not isinstance(why, Far):
        raise why
    return small, setting.finish(small, options, wary)


def _measured(setting: Setting, options: Options, why: OnnxFuseError) -> tuple[Small, Report] | None:
    """The same with channels chosen by what was measured; None if that is no better than what failed."""
    setting, options = replace(setting, studies=Studies()), replace(options, method="surgeon")
    try:
        small = setting.make(setting.source.load(), options)
        report = setting.finish(small, options, True, why.off if isinstance(why, Far) else math.inf)
    except (NothingToMerge, UsageError, VerificationFailed) as error:  # UsageError: a latency that is out of reach
        log.debug("by surgeon: %s", error)
        return None
    log.warning("by %s too much is lost (%s); it is made by surgeon", UNMEASURED, why)
    return small, report


def write(
    small: ModelProto,
    destination: Path | None,
    external: bool,
    prove: Callable[[Path | ModelProto], Proof],
    conclude: Callable[[Proof, int], Report],
) -> Report:
    """Stage, prove, conclude from the proof and the bytes that are written, and only then move into place."""
    if destination is None:
        return conclude(prove(small), small.ByteSize())
    if external or files.too_large(small):
        files.check_data_place(destination)
    place = files.resolved(destination)
    with files.staged(place) as directory:
        staged = directory / place.name
        files.save(small, staged, external)
        report = conclude(prove(staged), sum(f.stat().st_size for f in directory.iterdir()))
        files.move(staged, place)
    return report
