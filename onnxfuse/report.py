"""What a run changed: counts before and after, as data, JSON and lines of text; `tables` has the rest."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .channels import Locked
from .comparison import Comparison
from .fidelity import Fidelity
from .latency import Latency


@dataclass(frozen=True)
class Size:
    """How large a model is.

    Attributes:
        channels: of all channel groups that may shrink.
        parameters: elements of all floating-point constants, and of those quantized to 16 bits or fewer.
        macs: multiply-accumulates for the probe input, of the operators in `counts.MACS`.
        file_bytes: of the file and its external data.
    """

    channels: int
    parameters: int
    macs: int
    file_bytes: int


@dataclass(frozen=True)
class GroupRow:
    """One group: its name, its channels before and after, and by which method they were merged, if they were."""

    name: str
    before: int
    after: int
    nodes: tuple[str, ...]
    method: str = ""


@dataclass(frozen=True)
class Quality:
    """A metric on labelled data, of the original and of the result."""

    metric: str
    before: float
    after: float


@dataclass(frozen=True)
class Report:
    """Everything a run has to say.

    Attributes:
        source, destination: files, or None for models in memory.
        options: what was asked for.
        before, after: sizes.
        groups: what was merged, in graph order.
        locked: what was left alone.
        comparison: the verification's measurements.
        seconds: of the whole run.
        latency: of both models, if it was asked for.
        quality: on labelled data, if there are any.
        notes: what else was decided, a sentence each.
        free: how many channels were dead, constant, duplicate, if only these went.
        fidelity: to the original on the user's samples, if there are any.
        synthetic: the same on synthetic samples that nothing was fitted to, if it was fitted to others of these.
        read: whether the model reads, or finds, what is written in these; random input tells nothing beside them.
    """

    source: str | None
    destination: str | None
    options: dict[str, Any]
    before: Size
    after: Size
    groups: tuple[GroupRow, ...]
    locked: tuple[Locked, ...]
    comparison: Comparison
    seconds: float
    latency: Latency | None = None
    quality: Quality | None = None
    notes: tuple[str, ...] = ()
    free: Mapping[str, int] | None = None
    fidelity: Fidelity | None = None
    synthetic: Fidelity | None = None
    read: bool = False

    @property
    def likeness(self) -> tuple[float, str]:
        """Cosine similarity to the original's outputs, and on what: the user's samples, or where it is least."""
        if self.fidelity is not None:
            return self.fidelity.cosine, "on your samples"
        random, drawn = self.comparison.cosine, self.synthetic
        if drawn is None or (drawn.cosine >= random and not self.read):
            return random, RANDOM
        return drawn.cosine, "on synthetic samples"

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"status": "passed", **_finite(asdict(self))}

    def reasons(self) -> list[tuple[str, int, int]]:
        """(reason, places, channels) of what was left alone, most channels first."""
        places, channels = Counter[str](), Counter[str]()
        for row in self.locked:
            places[row.reason] += 1
            channels[row.reason] += row.channels
        return [(reason, places[reason], n) for reason, n in channels.most_common()]


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: null stands for them."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- lines of text --------------------------------------------------------------------------------------------------
SLOWER = 0.05
"""Share of the original's latency beyond which a result is called slower; less may be chance."""
SLOW = (
    "it is slower than the original here, though smaller: give --target-latency, or another --round-to (auto, 8, 16): "
    "kernels take channels in blocks"
)
LATE = (
    "timed once more it takes {:.3g} ms, {:.0f}% more than --target-latency: latency varies here; repeat the run on a "
    "quiet machine, or ask for less"
)
STIFF = (0.2, 1 / 3)
"""Share of multiply-accumulates saved, and of that what latency saves at least, or the result is hardly faster."""
HARDLY_FASTER = (
    "{:.0f}% fewer multiply-accumulates save {:.0f}% of the time here: most of it goes elsewhere, as with one small "
    "sample on a large device; time it as it will run (--input-shape, --threads, --provider)"
)
LARGER = (
    "the file is larger than the original: {}; a higher --sparsity, or --exclude of what shares a weight, "
    "makes it smaller"
)
MORE = (
    "{} parameters more, since layers that shared a weight have one each now, or a bias, or what was computed from "
    "constants is one"
)
STILL = (
    "the original makes the same of every sample here, so nothing is known of {}: give {} samples by --calib, with all "
    "its inputs as it is used"
)
RANDOM = "on random input"
DOUBTFUL = 0.9
"""Cosine similarity below which a result that is sound need not be good."""


def doubt(report: Report) -> tuple[str, ...]:
    """A warning that the outputs are far from the original's, and which ways of keeping more were not taken."""
    likeness, where = report.likeness
    if likeness >= DOUBTFUL:
        return ()
    options, less = report.options, report.after.channels < report.before.channels
    spread = options.get("sparsity") is None or options.get("scope", "global") == "global"  # an ensemble has no scope
    ways = [*["removing less"] * less, *["--scope global"] * (not spread), *["--calib"] * (not options.get("calib"))]
    *others, last = ways or [""]
    keep = f"{', '.join(others)} and {last} keep more, " if others else f"{last} keeps more, " if last else ""
    return (
        f"its outputs hardly resemble the original's {where}: measure it on your own test set; {keep}"
        "--min-cosine refuses such a result",
    )


def blindness(report: Report) -> tuple[str, ...]:
    """A warning that the original makes the same of all samples, as where a bound that it takes leaves nothing."""
    found = report.fidelity or report.synthetic
    if found is None or not found.still:
        return ()
    return (STILL.format(", ".join(map(repr, found.still)), "other" if report.fidelity else "your own"),)


def growth(before: Size, after: Size) -> tuple[str, ...]:
    """A note that the result is larger than its original, and why."""
    more = after.parameters - before.parameters
    why = MORE.format(more) if more > 0 else "what was added to its nodes outweighs the channels that went"
    return (LARGER.format(why),) if after.file_bytes > before.file_bytes else ()


def merged_line(groups: Sequence[GroupRow]) -> str:
    """How many groups were merged, and by which methods."""
    merged = [g for g in groups if g.after < g.before]
    by = Counter(g.method for g in merged if g.method)
    listed = ", ".join(f"{n} by {method}" for method, n in by.most_common())
    return f"{len(merged)} of {len(groups)} channel groups merged{f' ({listed})' if listed else ''}"


def latency_notes(t: Latency | None) -> list[str]:
    """How latency was measured."""
    threads = "" if t is None else f"{t.threads} thread" + "s" * (t.threads != 1)
    return [] if t is None else [f"latency: median of {t.runs} interleaved runs of each, {threads}, {t.provider}"]


def slowness(t: Latency | None) -> list[str]:
    """Warnings that the result is slower than its original, or than was asked for."""
    late = [LATE.format(t.after, 100 * (t.after / t.most - 1))] if t is not None and t.most and t.missed else []
    return [*([SLOW] if t is not None and t.change > SLOWER else []), *late]


def stiffness(report: Report) -> list[str]:
    """A warning that what was removed hardly tells in time, unless the result is called slower already."""
    t, saved = report.latency, 1 - report.after.macs / max(report.before.macs, 1)
    if t is None or t.change > SLOWER or saved < STIFF[0] or -t.change >= STIFF[1] * saved:
        return []
    return [HARDLY_FASTER.format(100 * saved, max(0, -100 * t.change))]


def verification_line(report: Report) -> str:
    """One line: onnxruntime agrees with itself, and how close outputs are, unless samples tell more."""
    c, start = report.comparison, "verified in onnxruntime: "
    worst = max((o.max_abs for o in c.outputs), default=0.0)
    more = report.fidelity or (report.read and report.synthetic)
    close = "" if more else f"cosine {c.cosine:.4f}, max abs error {worst:.3g} against the original on random input; "
    return f"{start}{close}optimizations off/on differ by {c.agreement:.1g}"


def fidelity_lines(report: Report) -> list[str]:
    """What the user's samples show, or synthetic ones, whose classes mean little."""
    found = []
    if (f := report.fidelity) is not None:
        top = "" if f.same_top is None else f", the same class on top for {round(f.same_top * f.samples)} of them"
        which = "held out from fitting" if f.held_out else "which it was fitted to"
        found.append(f"on {f.samples} of your samples, {which}: {_alike(f)}{top}")
    if (f := report.synthetic) is not None:
        found.append(f"on {f.samples} synthetic samples, others than it was fitted to: {_alike(f)}")
    return found


def _alike(f: Fidelity) -> str:
    return f"cosine {f.cosine:.4f}, max abs error {max((o.max_abs for o in f.outputs), default=0.0):.3g}"


def result_line(report: Report) -> str:
    """What a pipeline greps: PASSED, and the three numbers that matter."""
    b, a = report.before, report.after
    likeness, where = report.likeness
    share = f"{100 * a.macs / b.macs:.1f}% of the MACs" if b.macs else "no MACs"
    time = "" if report.latency is None else f"latency {100 * report.latency.change:+.0f}%, "
    return (
        f"PASSED {report.destination or '(nothing written)'}: {share}, {in_bytes(a.file_bytes)}, {time}"
        f"cosine {likeness:.4f}{'' if where == RANDOM else f' {where}'}, {report.seconds:.1f} s"
    )


def count(n: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return str(n)


def in_bytes(n: int) -> str:
    return f"{n / 1e6:.2f} MB" if n >= 1e5 else f"{n / 1e3:.1f} kB"
