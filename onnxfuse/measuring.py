"""Whether a run measures activations, on what, and what its report says of it."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from onnx import ModelProto

from .calibdata import Batches
from .calibrate import Study, study
from .channels import ChannelGroup, Channels
from .drawing import draw, drawn_in
from .errors import Unsound
from .feeds import free_axes
from .findings import Role
from .folding import Folded
from .graph import Graph
from .levels import look_at
from .merge import MEASURING
from .options import Options
from .qoperators import BYTES
from .readers import Key
from .repair import Repair
from .states import is_state
from .tensors import FLOATS, Array
from .trust import Source

PASSING = """Flatten Reshape Squeeze Unsqueeze Transpose Cast Identity Add Sub Mul Div Neg Clip Scaler Imputer
QuantizeLinear DequantizeLinear""".split()
"""Operators through which an input stays what it is."""
MATRICES = "Gemm MatMul FusedMatMul Einsum Attention".split()
"""Operators that multiply an input by a matrix."""
log = logging.getLogger("onnxfuse")
ONE_SIDED = (
    "no sample takes the other branch of {}: its weights are refitted to what would reach it, what follows to what the "
    "one that is taken makes"
)
UNKNOWN = (
    "nothing tells between what values images lie: they are drawn with mean 0 and deviation 1, as normalised ones are; "
    "give {} if yours are not"
)
WRITTEN = "it reads, or finds, the writing that is drawn for it, and is fitted to that as to samples of yours"
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
    """Whether a matrix reads an input of real numbers, or of bytes, of the graph itself.

    A convolution reads patches, which look the same in all images and signals; what is where in them, and so what a
    matrix reads, is known to the training data alone.
    """
    queue = [v.name for v in graph.model.graph.input if v.type.tensor_type.elem_type in (*FLOATS, *BYTES)]
    while queue:
        for edge in graph.edges.get(queue.pop(), []):
            node = graph.protos[edge.node] if edge.node >= 0 else None
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
        return study(channels, folded, batches, Source.DATA, options.exclude, wanted)
    try:
        return _on_drawn(channels, folded, options, size[1], wanted)
    except Unsound as error:
        if options.repair:
            raise
        log.warning("not repaired: %s", error)
        return None


def _on_drawn(
    channels: Channels, folded: Sequence[Folded], options: Options, macs: int, wanted: Container[Source]
) -> Study:
    """Moments on synthetic samples; others are drawn beside these.

    Raises:
        Unsound: onnxruntime cannot run the model on them.
    """
    drawn = draw(channels, folded, macs, options.seed, options.input_shapes or (), options.exclude)
    if drawn.marks:
        count = len(drawn.marks)
        log.info("by their biases %d layers had normalizations: what samples make there is corrected", count)
    found = study(channels, folded, drawn.fitted, drawn.known, options.exclude, wanted, drawn.marks)
    return replace(found, others=drawn.others, ranges=drawn.ranges, unknown=drawn.unknown)


def repair_notes(
    model: ModelProto,
    repairs: Sequence[Repair],
    options: Options,
    measured: Study | None,
    merged: Sequence[ChannelGroup],
) -> tuple[str, ...]:
    """What the report says of the repair: on what, and which weights that read the groups `merged` it left out."""
    if measured is None or not options.repairs:
        return ()
    count = drawn_in(model, measured.batches)
    kind = "synthetic" if options.calib is None else "given"
    done: tuple[str, ...] = (f"repaired {len(repairs)} consumers, on {count} {kind} samples",) if repairs else ()
    if repairs and options.calib is None and (sizes := _guessed(model, measured.batches[0], options)):
        done += (f"sizes that the model leaves open were guessed: {sizes}; give those it is used with",)
    if repairs and options.calib is None:
        done += _drawn_notes(measured)
    if repairs and measured.one_sided:
        done += (ONE_SIDED.format(", ".join(measured.one_sided)),)
    slots = [s for g in merged for s in g.slots if s.role is Role.CONSUMES]
    keys = dict.fromkeys((s.tensor, s.axes, s.split) for s in slots)
    left = {key: measured.hindered[key] for key in keys if key in measured.hindered}
    return done + _left_notes(left, len(repairs) + len(left))


def _guessed(model: ModelProto, batch: Mapping[str, Array], options: Options) -> str:
    """The sizes behind the batch that neither the model nor the user gave, as options; '' if there are none."""
    found = []
    for value in (v for v in model.graph.input if v.name in batch and v.name not in (options.input_shapes or {})):
        axes = [i for i in free_axes(value) if i > 0]
        if axes and value.type.tensor_type.elem_type in FLOATS and not is_state(model, value.name):
            sizes = (1 if i == 0 else n for i, n in enumerate(batch[value.name].shape))
            found.append(f"--input-shape {value.name}:{','.join(map(str, sizes))}")
    return " ".join(found)


def _drawn_notes(measured: Study) -> tuple[str, ...]:
    """That samples are writing; between what values those are that are not of mean 0 and deviation 1, or may have had
    to be others."""
    notes = tuple(f"{name!r} is drawn {known.words}: {known.by}" for name, known in measured.ranges.items())
    given = " ".join(f"--input-range {name}:LOW,HIGH" for name in measured.unknown)
    written = (WRITTEN,) if measured.source is Source.READ else ()
    return written + notes + ((UNKNOWN.format(given),) if given else ())


def _left_notes(left: Mapping[Key, str], count: int) -> tuple[str, ...]:
    """A sentence for each reason why some of `count` consumers were not refitted."""
    notes = []
    for reason in dict.fromkeys(left.values()):
        names = [tensor for (tensor, _, _), own in left.items() if own == reason]
        listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        notes.append(f"not refitted, {len(names)} of {count} consumers: {reason} ({listed})")
    return tuple(notes)
