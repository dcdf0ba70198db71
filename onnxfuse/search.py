"""Find the model that was asked for where only a trial tells: quality floors and latency.

Allocations of less and less room form a line from the whole model (1) to one channel everywhere (0); a trial is
one point on it, merged, and measured in onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnx import ModelProto

from .budget import Amount, amount
from .calibdata import Samples
from .channels import but_held
from .comparison import OutputError, floor_missed
from .compress import Small
from .errors import NothingToMerge, Unsound, UsageError, VerificationFailed
from .evaluation import Evaluation
from .fidelity import comparable, fidelity, fidelity_on_drawn
from .latency import Latency, measure
from .options import Options
from .probe import Probe
from .report import Quality
from .verify import verify

UNUSED = "it takes {:.2f} of the original's time; of what was tried the next larger model takes {:.2f}"
Make = Callable[[float | None], Small]
"""The model at a point of the line; None: where the other options put it."""
TRIALS = 7
"""Bisections: the smallest model is found to 1% of what can go."""
BELOW = (0.25, 0.5, 0.75)
"""Shares of what bisection found that are tried, too: a few samples may have misled it."""
AGAIN = 3
"""Bisections below the first of these that is good enough."""
CLOSE = 0.94
"""Latency may stay below its budget by this factor before another trial is worth it; if none comes closer, it is told
what a larger model takes."""


class Judge:
    """Measures results against the original."""

    def __init__(
        self, original: ModelProto, reference: Probe, providers: Sequence[str], options: Options,
        evaluation: Evaluation | None, samples: Samples | None,
    ) -> None:  # fmt: skip
        self.original, self.reference, self.providers, self.options = original, reference, providers, options
        self.evaluation, self.samples = evaluation, samples
        self.dense = evaluation.score(original, providers) if evaluation else 0.0

    def quality(self, model: ModelProto) -> Quality | None:
        """The metric, if there is labelled data."""
        if self.evaluation is None:
            return None
        return Quality(self.evaluation.name, self.dense, self.evaluation.score(model, self.providers))

    def latency(self, model: ModelProto) -> Latency:
        """Both models, timed in turns."""
        time = measure(self.original, model, self.reference.inputs, self.providers, self.options.threads)
        target = self.options.target_latency
        return time if target is None else replace(time, most=latency_amount(target).of(time.before))

    def missed(self, small: Small) -> str | None:
        """What the model is worse in than some floor allows; None if it is as good as every floor says."""
        if (self.options.min_cosine, self.options.max_error) != (None, None):
            try:
                worse = floor_missed(self._outputs(small), self.options.min_cosine, self.options.max_error)
            except Unsound as error:
                return str(error)
            if worse is not None:
                return worse
        return self._lost(self.quality(small.model))

    def _outputs(self, small: Small) -> Sequence[OutputError]:
        providers = self.providers
        if self.samples is not None and comparable(self.original):
            return fidelity(self.original, small.model, self.samples, providers, self.reference).outputs
        drawn = fidelity_on_drawn(self.original, small.model, small.others, providers, self.reference)
        if drawn and small.read:
            return drawn.outputs
        on_random = verify(small.model, self.reference, providers, None, None, lambda: self.original).outputs
        return (*on_random, *(drawn.outputs if drawn else ()))

    def _lost(self, quality: Quality | None) -> str | None:
        """How much of the metric, if it is more than may be; rounding forgiven."""
        most = self.options.max_drop
        if quality is None or most is None or quality.before - quality.after <= most + 1e-9:
            return None
        return f"{quality.metric} falls from {quality.before:.4f} to {quality.after:.4f}, by more than {most:g}"

    def verdict(self, model: ModelProto) -> tuple[Latency | None, Quality | None]:
        """Latency, if the options ask for it, and quality, if there is labelled data.

        Raises:
            VerificationFailed: more of the metric is lost than may be.
        """
        quality = self.quality(model)
        if (lost := self._lost(quality)) is not None:
            raise VerificationFailed(lost)
        return self.latency(model) if self.options.timed else None, quality


def find(make: Make, judge: Judge, options: Options, tell: Callable[[str, int, int], None]) -> Small:
    """The model that the options ask for.

    Raises:
        UsageError: the latency is out of reach.
        NothingToMerge: no smaller model holds the floors.
        VerificationFailed: a model whose size is given does not hold them.
    """
    if options.target_latency is not None:
        return _fast_enough(make, judge, options.target_latency, tell)
    if options.floors and not options.sized:
        return _smallest(make, judge, tell)
    return make(None)


def _smallest(make: Make, judge: Judge, tell: Callable[[str, int, int], None]) -> Small:
    """Bisect for the smallest model that holds the floors; then look for smaller ones that do, and bisect again.

    Along the line a model may be better than a larger one, by chance on the few samples there are or by its widths.
    """
    missed: list[str | None] = []

    def trial(room: float) -> Small | None:
        tell("search", len(missed), TRIALS + len(BELOW) + AGAIN)
        small = make(room)
        missed.append(judge.missed(small))
        return None if missed[-1] else small

    best, least = _bisected(trial, 0.0, 1.0, TRIALS)
    if best is None:
        raise NothingToMerge(f"no smaller model is as good as asked; of the largest that was tried {missed[-1]}")
    worse = 0.0
    for room in (share * least for share in BELOW):
        if (found := trial(room)) is not None:
            return _bisected(trial, worse, room, AGAIN)[0] or found
        worse = room
    return best


def _bisected(
    trial: Callable[[float], Small | None], low: float, high: float, times: int
) -> tuple[Small | None, float]:
    """The model of least room found between the two that is good enough, if one is, and its room."""
    best = None
    for _ in range(times):
        middle = (low + high) / 2
        if (small := trial(middle)) is None:
            low = middle
        else:
            best, high = small, middle
    return best, high


def _fast_enough(make: Make, judge: Judge, target: str | float, tell: Callable[[str, int, int], None]) -> Small:
    """The largest model found within the latency.

    Latency is modelled as linear in the multiply-accumulates between the nearest slower and the nearest faster trial;
    each trial that this model proposes is measured, end to end, and makes it better. All is in shares of the original's
    latency in the same interleaved runs, which other load on the machine changes least.
    """
    budget, originals = latency_amount(target), list[float]()

    def share(small: Small) -> float:
        time = judge.latency(small.model)
        originals.append(time.before)
        return time.after / time.before

    tell("search", 0, TRIALS)
    best = make(0.0)
    fast, slow = (0.0, share(best)), (1.0, 1.0)
    if fast[1] > _aim(budget, originals):
        raise UsageError(
            f"--target-latency {target} is out of reach: the fastest possible here takes "
            f"{fast[1] * originals[0]:.3g} ms, the original {originals[0]:.3g} ms{but_held(best.locked)}"
        )
    for trial in range(1, TRIALS):
        aim = _aim(budget, originals)
        if fast[1] >= CLOSE * aim or fast[0] >= 1:
            break
        tell("search", trial, TRIALS)
        point = 1.0 if slow[1] <= aim else _between(fast, slow, aim * (1 + CLOSE) / 2)
        small = make(point)
        left = share(small)
        if CLOSE * aim <= left <= aim:  # a chance reading must not end the search
            left = (left + share(small)) / 2
        if left <= aim:
            best, fast = small, (point, left)
        else:
            slow = (point, left)
    if fast[0] >= 1 or fast[1] >= CLOSE * _aim(budget, originals):
        return best
    return replace(best, notes=(*best.notes, UNUSED.format(fast[1], slow[1])))


def _aim(budget: Amount, originals: Sequence[float]) -> float:
    """The latency budget as a share of the original's."""
    return budget.value if budget.relative else budget.value / float(np.median(originals))


def _between(fast: tuple[float, float], slow: tuple[float, float], aim: float) -> float:
    """Where a line through two (point, share of the latency) reaches `aim`, kept off their ends."""
    share = (aim - fast[1]) / (slow[1] - fast[1])
    return fast[0] + (slow[0] - fast[0]) * min(max(share, 0.1), 0.9)


MILLISECONDS: Mapping[str, float] = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def latency_amount(given: str | float) -> Amount:
    """Read a latency budget.

    Raises:
        UsageError: it is no time and no share.
    """
    return amount("target-latency", given, MILLISECONDS)
