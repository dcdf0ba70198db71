"""Whether a run measures activations, on what, and what its report says of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from .calibdata import Batches
from .calibrate import Study, study
from .channels import ChannelGroup, Channels
from .ends import ended
from .errors import Unsound
from .findings import Role
from .folding import Folded
from .graph import Graph
from .heldout import samples_in
from .levels import levelled, look_at
from .merge import MEASURING
from .options import Options
from .readers import Key
from .repair import Repair
from .samples import others_count, pictures, sample_count, synthetic, waveforms
from .surgeon import Source
from .tensors import FLOATS

PASSING = """Flatten Reshape Squeeze Unsqueeze Transpose Cast Identity Add Sub Mul Div Neg QuantizeLinear
DequantizeLinear""".split()
"""Operators through which an input stays what it is."""
MATRICES = "Gemm MatMul FusedMatMul Einsum Attention".split()
"""Operators that multiply an input by a matrix."""
log = logging.getLogger("onnxfuse")
NAMED = 3
"""Weights that a note names."""
LARGE = 250_000_000
"""Parameters from which on a model is repaired only on demand: weights and moments are held twice for it."""


def refusal(channels: Channels, folded: Sequence[Folded], options: Options, size: tuple[int, int]) -> str | None:
    """Why nothing is measured although the method or the repair would need it; None if all is well."""
    if options.repair or options.calib is not None:
        return None
    if size[0] > LARGE:
        return f"{size[0] / 1e6:.0f} million parameters are many; ask for it with --repair"
    if not folded and dense_first(channels.tracker.graph):
        return "the first layer has weights for each place of its input, so synthetic inputs tell nothing; give --calib"
    return None


def dense_first(graph: Graph) -> bool:
    """Whether a matrix reads a float input of the graph itself.

    A convolution reads patches, which look the same in all images and signals; what is where in them, and so what a
    matrix reads, is known to the training data alone.
    """
    queue = [v.name for v in graph.model.graph.input if v.type.tensor_type.elem_type in FLOATS]
    while queue:
        for edge in graph.edges.get(queue.pop(), []):
            node = graph.model.graph.node[edge.node] if edge.node >= 0 else None
            if node is not None and node.op_type in MATRICES:
                return True
            if node is not None and node.op_type in PASSING:
                queue.append(node.output[0])
    return False


def survey(
    channels: Channels,
    folded: Sequence[Folded],
    options: Options,
    batches: Batches | None,
    size: tuple[int, int],
) -> Study | None:
    """Moments of what consumers read, if the method or the repair needs them.

    Args:
        channels: of the graph, nothing merged yet.
        folded: its BatchNormalizations.
        options: of the run.
        batches: the user's samples; synthetic ones are made if there are none.
        size: parameters and multiply-accumulates.
    """
    if not (options.repairs or options.method in MEASURING):
        return None
    if (reason := refusal(channels, folded, options, size)) is not None:
        log.warning("not repaired: %s", reason)
        return None
    wanted = MEASURING.get(options.method, frozenset())
    if wanted and options.spreads:
        wanted = frozenset(Source)  # weights alone tell less of what a layer costs than any samples do
    if batches is not None:
        look_at(channels, folded, batches)
        return study(channels, folded, batches, False, options.exclude, wanted)
    t = channels.tracker
    macs = size[1] // samples_in(t.probe.inputs)
    made = synthetic(t.graph.model, t.probe, sample_count(macs), options.seed)
    others = others_count(macs)
    more = synthetic(t.graph.model, t.probe, others, (options.seed, 1)) if others else []
    try:
        level = levelled(channels, folded, [*made, *more], waveforms(t.graph.model))
        level = ended(channels, folded, level, pictures(t.graph.model, t.probe), macs)
        found = study(channels, folded, level[: len(made)], True, options.exclude, wanted)
        return replace(found, others=level[len(made) :])
    except Unsound as error:
        if options.repair:
            raise
        log.warning("not repaired: %s", error)
        return None


def repair_notes(
    repairs: Sequence[Repair], options: Options, measured: Study | None, merged: Sequence[ChannelGroup]
) -> tuple[str, ...]:
    """What the report says of the repair: on what, and which weights that read the groups `merged` it left out."""
    if measured is None or not options.repairs:
        return ()
    count = sum(map(samples_in, measured.batches))
    kind = "synthetic" if options.calib is None else "given"
    done = (f"repaired {len(repairs)} consumers, on {count} {kind} samples",) if repairs else ()
    slots = [s for g in merged for s in g.slots if s.role is Role.CONSUMES]
    keys = dict.fromkeys((s.tensor, s.axes, s.split) for s in slots)
    left = {key: measured.hindered[key] for key in keys if key in measured.hindered}
    return done + _left_notes(left, len(repairs) + len(left))


def _left_notes(left: Mapping[Key, str], count: int) -> tuple[str, ...]:
    """A sentence for each reason why some of `count` consumers were not refitted."""
    notes = []
    for reason in dict.fromkeys(left.values()):
        names = [tensor for (tensor, _, _), own in left.items() if own == reason]
        listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        notes.append(f"not refitted, {len(names)} of {count} consumers: {reason} ({listed})")
    return tuple(notes)
