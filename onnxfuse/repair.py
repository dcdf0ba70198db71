"""What a merge cannot keep is repaired: what consumers make stays as close as it can to what they made before.

Every reader gets its own `expand` E and shift s, so that E·y + s is closest to x, where x is what it saw in the
original network and y what it sees in the small one (`leastsquares`). The least λ goes by what was measured on
(`trust`).

A least-squares prediction varies less than what it predicts, and layer after layer that adds up until nothing passes
a ReLU any more. So what a reader makes is then scaled and shifted to the mean and deviation it had (REPAIR: Jordan et
al., ICLR 2023), in its own weights and bias. What goes into a sum or the next layer as it is (`CARRYING`) passes all
the same, and on real samples is only shifted, which leaves its error least.

Readers are repaired in graph order: each sees what the repairs before it have left. On real samples, and such as are
like them (`Trust.real`), depthwise kernels are refitted among them (`depthwise`), and what is added to a shortcut makes
up for what it has lost (`joins`).
"""

from __future__ import annotations

import importlib
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto
from scipy.sparse import csr_array

from .calibrate import Study
from .channels import ChannelGroup, Channels
from .cutoff import NONE, limits
from .depthwise import correction
from .findings import Role
from .joins import Join, joins
from .leastsquares import Prior, fit
from .likeness import Likeness, likeness
from .merge import Merge
from .moments import Moment, blocks, scaled_and_shifted, statistics
from .parts import made_axis
from .producers import out_axis, scaled_rows, shifted
from .readers import Reader
from .refit import Made, beside, columns_of, correct, made, merged, patch_moments, read_by, refittable, sizes_of
from .rewrite import Removal, removed_mask
from .schedule import ahead, blas_for_one_of_two, in_halves
from .tensors import Array
from .trust import Source
from .walk import Walk
from .weights import Weights

Matrix = NDArray[np.floating]
Merges = Sequence[tuple[ChannelGroup, Merge]]
GAIN = 3.0
"""No output is made larger or smaller by more than this factor."""
CARRYING = frozenset("Add Sum Sub Concat Conv ConvTranspose Gemm MatMul Identity".split())
"""Operators that pass small values on like large ones."""
SILENT = 1e-3
"""Outputs that vary less than this, relative to what they did before, are left alone: they were removed."""


@dataclass(frozen=True, eq=False)
class Repair:
    """What replaced the merges' expand at one reader.

    Attributes:
        reader: the weight.
        kept: (k,) channels of its layout that it reads from now on.
        expand: (n, k).
        shift: (n,), which the reader's bias took up.
        refitted: (k, q, outputs of a block, *taps) what was added to a convolution's weights then, or None.
        gain, offset: (outputs,) by which what it makes was then scaled and shifted; empty without a bias.
        outputs_axis: of the weight.
    """

    reader: Reader
    kept: NDArray[np.int64]
    expand: Matrix
    shift: Matrix
    refitted: Array | None
    gain: Matrix
    offset: Matrix
    outputs_axis: int


@dataclass(frozen=True, eq=False)
class Original:
    """Of a reader in the original network.

    Attributes:
        blocks: (samples, n) each, what it saw.
        alike: what it saw at the places of one sample.
        made: what it made, if it is a convolution to be refitted tap by tap; the sum, if it is one of a `Join`.
        mean, deviation: (outputs,) of what it made; empty without a bias, or if it is one of a `Join`.
    """

    blocks: tuple[Array, ...]
    alike: Likeness
    made: tuple[Made, ...]
    mean: Moment
    deviation: Moment


def repair(
    channels: Channels, merges: Merges, measured: Study, tell: Callable[[int, int], None]
) -> tuple[Weights, list[Repair]]:
    """The merged weights of a graph that still has its own, consumers repaired; and what was done.

    Args:
        channels: of the graph.
        merges: every group that shrinks.
        measured: moments of its readers.
        tell: called with the number of readers done and of all.
    """
    importlib.import_module("scipy.linalg")  # dear, so put off until here; its BLAS must be there to be limited
    with blas_for_one_of_two():
        return _repair(channels, merges, measured, tell)


def _repair(
    channels: Channels, merges: Merges, measured: Study, tell: Callable[[int, int], None]
) -> tuple[Weights, list[Repair]]:
    graph = channels.tracker.graph
    real = Weights(graph, keep=True)
    twin = Weights(graph, measured.twin, keep=True) if measured.twin else real
    both = (real,) if twin is real else (real, twin)
    for weights in both:
        _apply(weights, merges, measured.readers)
    kept = removed_mask(channels, [Removal(g, m.kept) for g, m in merges])
    stand_in, batches = channels.tracker.probe.stand_in, measured.batches
    before = Walk(graph, stand_in, measured.twin, batches)
    after = Walk(graph, stand_in, ChainMap(twin.arrays, dict(measured.twin)), batches)
    done = []
    order = sorted([*measured.readers, *measured.depthwise], key=lambda r: r.slot.edge.node)
    sums = joins(channels, order) if measured.source.value.real else {}
    originals = ahead(partial(_original, before, measured, sums), order)
    for i, (reader, original) in enumerate(zip(order, originals, strict=True)):
        tell(i, len(order))
        own, join = np.flatnonzero(kept[reader.slot.ids[reader.layout[:, 0]]]), sums.get(reader)
        if reader in measured.depthwise:
            done.append(_refitted(reader, original, after, own, real, merges, measured.source, join))
        else:
            done.append(_repaired(reader, original, after, own, both, merges, measured.source, join))
    return real, done


def _repaired(
    reader: Reader, original: Original, after: Walk, kept: NDArray[np.int64], both: Sequence[Weights], merges: Merges,
    source: Source, join: Join | None,
) -> Repair:  # fmt: skip
    """One reader, in both versions of the weights, the graph's own first; what it makes in `after` follows."""
    least, alike = source.value.ridge, original.alike
    node, seen = after.nodes[reader.slot.edge.node], after.value(reader.value)
    kernel, wanted = both[0][reader.slot.tensor].shape[2:], _wanted(reader, original, after, merges, join)
    read = read_by(both[-1], reader)
    with ThreadPoolExecutor(2) as pool:
        patched = pool.submit(patch_moments, reader, node, kernel, seen, wanted, kept, alike, least, read)
        prior = Prior(_expand(reader, merges)[:, kept], kept, reader.slot.split, least, read[kept])
        expand, shift = fit(original.blocks, blocks(reader, seen, source, kept), bool(reader.bias), prior, alike, pool)
        for weights in both:
            _read(weights, reader, kept, expand, shift, pool)
        added, aims = correct(both, reader, kept, patched.result(), pool)
    del seen, patched  # the walk may let it go
    mean, deviation = aims or (sizes_of(wanted) if join else (original.mean, original.deviation))
    gain, offset = _restore(reader, mean, deviation, after, both, source)
    return Repair(reader, kept, expand, shift, added, gain, offset, out_axis(node))


def _refitted(
    reader: Reader, original: Original, after: Walk, kept: NDArray[np.int64], weights: Weights, merges: Merges,
    source: Source, join: Join | None,
) -> Repair:  # fmt: skip
    """Depthwise kernels, on real samples: merged as their group is, each is then made to say what it said."""
    node, name = after.nodes[reader.slot.edge.node], reader.slot.tensor
    wanted, seen = _wanted(reader, original, after, merges, join, Role.SCALE), after.value(reader.value)
    change = correction(reader, node, weights[name], seen, wanted, kept, original.alike, source.value.ridge)
    weights[name][kept, 0] += change
    del seen  # the walk may let it go
    gain, offset = _restore(reader, *sizes_of(wanted), after, (weights,), source)
    n = len(reader.layout)
    as_merged = np.eye(n, dtype=change.dtype)[:, kept]
    return Repair(reader, kept, as_merged, np.zeros(n), change[:, None, None], gain, offset, out_axis(node))


def _wanted(
    reader: Reader, original: Original, after: Walk, merges: Merges, join: Join | None, role: Role = Role.PRODUCES
) -> list[Made]:
    """What a convolution should make."""
    wanted = merged(original.made, reader.slot.tensor, merges, role)
    return wanted if join is None else beside(wanted, after.value(join.other))


def _original(walk: Walk, measured: Study, sums: Mapping[Reader, Join], reader: Reader) -> Original:
    """What a reader saw, but for a depthwise one, and made, or the sum that it is added to.

    The values stay in the walk for no longer than others need them.
    """
    node, join = walk.nodes[reader.slot.edge.node], sums.get(reader)
    alike = likeness(reader, walk.value(reader.value), measured.source)
    seen = () if reader in measured.depthwise else tuple(blocks(reader, walk.value(reader.value), measured.source))
    kernel, nothing = walk.constants[reader.slot.tensor].dims[2:], (np.zeros(0), np.zeros(0))
    value = reader.made if join is None else join.total
    cut = limits(walk, value) if measured.source.value.real else NONE
    if join is not None:
        return Original(seen, alike, made(reader, kernel, walk.value(value), measured.source, cut), *nothing)
    refitted, restored = refittable(node, kernel), _is_restored(reader)
    if not restored and not refitted:
        return Original(seen, alike, (), *nothing)
    chunks = walk.value(reader.made)
    sizes = statistics(chunks, made_axis(node)) if restored else nothing
    return Original(seen, alike, made(reader, kernel, chunks, measured.source, cut) if refitted else (), *sizes)


def _apply(weights: Weights, merges: Merges, readers: Sequence[Reader]) -> None:
    """Merge all slots but those of the readers."""
    later = {r.key for r in readers}
    for group, merge in merges:
        slots = [s for s in group.slots if s.role is not Role.CONSUMES or (s.tensor, s.axes, s.split) not in later]
        weights.apply(slots, merge, {})


def _expand(reader: Reader, merges: Merges) -> csr_array:
    """(n, n) what the merges do to the channels of a reader; columns of removed ones are zero."""
    n = len(reader.layout)
    channel = np.empty(reader.layout.size, np.int64)
    channel[reader.layout] = np.arange(n)[:, None]
    alone, parts = np.ones(n), []
    for group, merge in merges:
        for slot in group.slots:
            if (slot.tensor, slot.axes, slot.split) == reader.key:
                own = merge.expand.tocoo()
                for place in np.unique(channel[slot.positions], axis=1).T:
                    alone[place] = 0
                    parts.append((own.data, place[own.row], place[merge.kept][own.col]))
    data, row, column = (np.concatenate(p) for p in zip((alone, np.arange(n), np.arange(n)), *parts, strict=True))
    return csr_array((data, (row, column)), shape=(n, n))


def _read(
    weights: Weights, reader: Reader, kept: NDArray[np.int64], expand: Matrix, shift: Matrix, pool: Executor
) -> None:
    """Give a weight its repaired columns, and its bias the shift."""
    slot, n = reader.slot, len(reader.layout)
    view, index = columns_of(weights, reader)
    columns = view[index]
    if reader.bias:
        made = _outputs(columns, shift, slot.split, reader.taps)
        weights[reader.bias] = shifted(weights[reader.bias], made)
    left = in_halves(pool, expand.T.astype(columns.dtype).__matmul__, columns.reshape(n, -1))
    view[index] = 0
    view[tuple(i[kept] for i in index)] = left.reshape(len(kept), *columns.shape[1:])


def _outputs(columns: Array, shift: Matrix, blocks: int, taps: int) -> Array:
    """(outputs,) what (n, q, outputs, taps) columns make of a constant input, away from the borders."""
    parts = zip(np.split(columns, blocks), np.split(shift, blocks), strict=True)
    made = [np.tensordot(s.astype(c.dtype), c, 1) for c, s in parts]
    return np.concatenate([m.reshape(len(m), -1, taps).sum(axis=(0, 2)) for m in made])


# --- variance -------------------------------------------------------------------------------------------------------
def _is_restored(reader: Reader) -> bool:
    """Whether what a reader makes is a value that its weight and bias can scale and shift."""
    return bool(reader.bias and reader.made)


def _is_carried(value: str, walk: Walk) -> bool:
    """Whether all that reads a value passes small ones on like large ones, or nothing does."""
    return all(node.op_type in CARRYING for node in walk.readers(value))


def _restore(
    reader: Reader, mean: Moment, deviation: Moment, after: Walk, both: Sequence[Weights], source: Source
) -> tuple[Matrix, Matrix]:
    """Scale and shift what a reader makes to this mean and deviation; returns (gain, offset), each (outputs,)."""
    node = after.nodes[reader.slot.edge.node]
    if not _is_restored(reader):
        return np.zeros(0), np.zeros(0)
    axis = made_axis(node)
    new_mean, new = statistics(after.value(reader.made), axis)
    alive = new > SILENT * deviation
    if source.value.real and _is_carried(reader.made, after):
        deviation = new
    with np.errstate(invalid="ignore"):  # what overflows is not alive
        gain = np.where(alive, np.clip(deviation / np.where(alive, new, 1), 1 / GAIN, GAIN), 1)
        offset = np.where(alive, mean - gain * new_mean, 0)
    for weights in both:
        _scale(weights, reader, node, gain, offset)
    after.replace(reader.made, scaled_and_shifted(after.value(reader.made), gain, offset, axis))
    return gain, offset


def _scale(weights: Weights, reader: Reader, node: NodeProto, gain: Matrix, offset: Matrix) -> None:
    tensor, name = reader.slot.tensor, str(reader.bias)
    bias = weights[name]
    weights[tensor] = scaled_rows(node, weights[tensor], gain)
    weights[name] = (bias * gain.reshape(bias.shape) + offset.reshape(bias.shape)).astype(bias.dtype)
