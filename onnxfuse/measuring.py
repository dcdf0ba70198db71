"""Whether a run measures activations, on what, and what its report says of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from .calibdata import Batches
from .calibrate import Study, study
from .channels import Channels
from .merge import MEASURING
from .options import Options
from .prepare import Folded
from .quantized import Lowered
from .repair import Repair
from .samples import sample_count, synthetic

log = logging.getLogger("onnxfuse")
LARGE = 250_000_000
"""Parameters from which on a model is repaired only on demand: weights and moments are held twice for it."""


def refusal(options: Options, size: tuple[int, int], lowered: Lowered) -> str | None:
    """Why nothing is measured although the method or the repair would need it."""
    if lowered.operators:
        return "integer operators cannot be refitted"
    if options.repair is None and options.calib is None and size[0] > LARGE:
        return f"{size[0] / 1e6:.0f} million parameters are many; ask for it with --repair"
    return None


def survey(
    channels: Channels,
    folded: Sequence[Folded],
    options: Options,
    batches: Batches | None,
    size: tuple[int, int],
    lowered: Lowered,
) -> Study | None:
    """Moments of what consumers read, if the method or the repair needs them.

    Args:
        channels: of the graph, nothing merged yet.
        folded: its BatchNormalizations.
        options: of the run.
        batches: the user's samples; synthetic ones are made if there are none.
        size: parameters and multiply-accumulates.
        lowered: how quantized parts were replaced.
    """
    if not (options.repairs or options.method in MEASURING):
        return None
    if (reason := refusal(options, size, lowered)) is not None:
        log.warning("not repaired: %s", reason)
        return None
    if batches is not None:
        return study(channels, folded, batches, False, options.exclude)
    t = channels.tracker
    batch = max((len(v) for v in t.probe.inputs.values() if v.ndim), default=1)
    made = synthetic(t.graph.model, t.probe, sample_count(size[1] // batch), options.seed)
    return study(channels, folded, made, True, options.exclude)


def repair_notes(repairs: Sequence[Repair], options: Options, measured: Study | None) -> tuple[str, ...]:
    """What the report says of the repair."""
    if measured is None or not repairs:
        return ()
    count = sum(max((len(v) for v in b.values() if v.ndim), default=1) for b in measured.batches)
    kind = "synthetic" if options.calib is None else "given"
    return (f"repaired {len(repairs)} consumers, on {count} {kind} samples",)
