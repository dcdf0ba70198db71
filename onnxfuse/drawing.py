"""Samples of our own for a network, as far as it tells what they should be."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from onnx import ModelProto

from .calibdata import Batches
from .calibrate import pinned, separable
from .carryover import carried_over
from .channels import Channels
from .ends import LEAST, ended, recorded_ranges
from .folding import Folded
from .heldout import a_few, samples_in
from .inferred import Correction, Inferred, infer, looked_at
from .leaves import leaves
from .levels import levelled, recorded
from .probe import Probe
from .ranges import Range
from .readers import depthwise_readers, readers
from .reading import Question, what_it_reads, with_room
from .samples import MANY, Scenes, others_count, pictures, sample_count, synthetic, written
from .states import is_state, waveforms
from .tensors import Array
from .trust import Source

TEXTURE = 0.3
"""Deviation of what lies over synthetic images, at most, in networks of depthwise separable convolutions with their
normalizations: on even areas each of their kernels has nothing to tell its taps apart by."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Samples, and what is known of them.

    Attributes:
        fitted: to be measured on.
        others: of the same kind, to be compared on.
        marks: what is done to layers whose normalizations were folded, by their positions.
        ranges: of inputs that are not of mean 0 and deviation 1.
        unknown: images of which nothing tells whether they should be.
        known: what they are, if the network says so.
    """

    fitted: Batches
    others: Batches
    marks: Mapping[int, Correction]
    ranges: Mapping[str, Range]
    unknown: tuple[str, ...]
    known: Source | None = None


def draw(
    channels: Channels,
    folded: Sequence[Folded],
    macs: int,
    seed: int,
    given: Collection[str],
    exclude: Sequence[str] = (),
) -> Drawn:
    """Samples for a network of so many multiply-accumulates in its probing run.

    Inputs whose shapes the user has `given` have these. Nodes that match one of `exclude`, regular expressions, are
    left out where its kind is asked for.

    Raises:
        Unsound: onnxruntime cannot run the model on them.
    """
    model, patterns = channels.tracker.graph.model, [re.compile(p) for p in exclude]
    macs //= drawn_in(model, [channels.tracker.probe.inputs])
    layers, norms = readers(channels, patterns), sum(1 for _ in recorded(channels, folded))
    pins = pinned(layers, norms)
    probe, marks = _with_ranges(channels, folded, pins, macs, seed)
    rough = (pins or marks.layers) and separable(layers, depthwise_readers(channels, patterns))
    texture = TEXTURE if rough else 0.0  # many networks that nothing pins lose by it
    read, large = _asked(model, probe, seed, given)
    macs, probe = macs * _places(large) // _places(probe), large
    scenes = read.scenes() if read else Scenes(picture=partial(leaves, texture=texture))
    count = min(sample_count(macs), read.most if read else MANY)
    made, others = synthetic(model, probe, count, seed, scenes), max(others_count(macs), 1 if read else 0)
    more = synthetic(model, probe, others, (seed, 1), scenes) if others else []
    drawn = levelled(channels, folded, [*made, *more], waveforms(model) - probe.ranges.keys())
    images = pictures(model, probe)
    if not read:
        drawn = ended(channels, folded, drawn, images - written(model, probe), macs, probe.ranges)
    drawn = carried_over(model, probe, drawn)
    unknown = () if norms or marks.sure or read else tuple(sorted(images - probe.ranges.keys()))
    marked, known = ({}, Source.READ) if read else (marks.layers, None)
    return Drawn(drawn[: len(made)], drawn[len(made) :], marked, probe.ranges, unknown, known)


def _asked(model: ModelProto, probe: Probe, seed: int, given: Collection[str]) -> tuple[Question | None, Probe]:
    """What the network proves to read, and the probe with room for that."""
    read = what_it_reads(model, probe, seed)
    return read, with_room(model, probe, read.side) if read and read.side and not given else probe


def _places(probe: Probe) -> int:
    """Numbers in all inputs."""
    return sum(values.size for values in probe.inputs.values())


def _with_ranges(
    channels: Channels, folded: Sequence[Folded], pins: bool, macs: int, seed: int
) -> tuple[Probe, Inferred]:
    """The probe with ranges that normalizations tell, or the marks they left; and what these marks tell besides."""
    model, probe = channels.tracker.graph.model, channels.tracker.probe
    images = pictures(model, probe) - probe.ranges.keys()
    if images and next(recorded(channels, folded), None) is not None:
        ranges = recorded_ranges(channels, folded, synthetic(model, probe, LEAST, seed), images)
        probe = replace(probe, ranges={**probe.ranges, **ranges})
    if pins:
        return probe, Inferred()
    few = synthetic(model, probe, looked_at(macs), seed)
    few = levelled(channels, folded, few, waveforms(model) - probe.ranges.keys())
    marks = infer(channels, few, images - probe.ranges.keys())
    return replace(probe, ranges={**probe.ranges, **marks.ranges}), marks


def marks_on(channels: Channels, folded: Sequence[Folded], batches: Batches, macs: int) -> Mapping[int, Correction]:
    """What is done to layers whose normalizations were folded, on samples that were drawn for a network like this.

    Raises:
        Unsound: onnxruntime cannot run the model on them.
    """
    layers, norms = readers(channels, []), sum(1 for _ in recorded(channels, folded))
    return {} if pinned(layers, norms) else infer(channels, a_few(batches, looked_at(macs)), ()).layers


def drawn_in(model: ModelProto, batches: Sequence[Mapping[str, Array]]) -> int:
    """How many samples runs have; of a state the first axis may count its layers."""
    drawn = [name for name in batches[0] if not is_state(model, name)]
    return sum(samples_in({name: batch[name] for name in drawn or batch}) for batch in batches)
