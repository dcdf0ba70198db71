"""The user's own unlabelled samples, `--calib`: arrays by input name, or a folder of images → batches for a model."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto

from . import heldout
from .errors import UsageError, one_line
from .heldout import Positions, distinct, evenly, parted
from .images import Preprocess, load_images, parse
from .probe import Probe
from .sessions import session
from .sources import LABELS, Source, arrays_of, by_input
from .standin import in_float32
from .states import steps_first
from .takes import Input, as_taken, filled_in, inputs_of, listed_inputs
from .tensors import Array

log = logging.getLogger("onnxfuse")
Batches = list[dict[str, Array]]
"""One dict of input arrays for each run of the model."""
FEWEST, MOST = 64, 512
"""Samples: fewer do not settle the moments of a few hundred channels, more cost time and change little."""
RUN = 16
"""Samples in a run, where the model leaves that open: all activations of a run may be held at once."""
STEPS = 128
"""The same where samples are steps of one sequence: what a recurrent operator carries has to build up. Silero's VAD at
20 to 50% keeps an AUC of 91.9 with 16 of them, 92.8, 93.8 and 92.6 with 64, 128 and 256."""


@dataclass(frozen=True, eq=False)
class Samples:
    """The user's samples, in runs of the model.

    Attributes:
        fitted: what merges and repair are measured on.
        held: others, for results to be compared on; none if there are too few runs, or none are to be held out.
    """

    fitted: Batches
    held: Batches


def calibration(
    source: Source,
    preprocess: str | None,
    model: ModelProto,
    reference: Probe,
    providers: Sequence[str],
    hold_out: bool = False,
) -> Samples:
    """Samples as the model takes them, from 64 to 512 (of more, as many evenly spaced).

    A run has 16 samples where the batch size is open, 128 successive ones if they are steps of a sequence, else as many
    as the model fixes; one where the size is open and more do not run. An array for an input of fixed batch size with
    exactly one run's worth, or a scalar, is given to every run: the first state of a recurrent model. A state whose
    batch size is open may hold one sample's, for all; one that is left out starts at zero. Samples that are copies of
    others are left out, but for steps of a sequence; of a fixed batch size whole runs.

    Args:
        source: an .npz file or a mapping with an array for each input, or a folder of images for a model with one.
        preprocess: of images, as for `images.parse`.
        model: with its inputs as the user knows them.
        reference: a run of it, for the sizes it leaves open.
        providers: of onnxruntime, for a trial run of the first batch.
        hold_out: some samples from what is fitted to: 8 to 32 (of a sequence its end), see `heldout`.

    Raises:
        UsageError: the samples are not what the model expects; the message says what that is.
    """
    model = in_float32(model) if reference.stand_in else model
    expected = inputs_of(model, reference)
    if isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
        arrays = _from_folder(Path(source), parse(preprocess or ""), expected, MOST + heldout.MOST * hold_out)
    elif preprocess:
        raise UsageError("--calib-preprocess is for a folder of images; give arrays as the model takes them")
    else:
        arrays = _named(arrays_of(source), expected)
    checked = as_taken(filled_in(arrays, model, expected), expected)
    samples = split(checked, expected, STEPS if steps_first(model) else 1, hold_out)
    error = _error_of(model, providers, samples)
    if error is not None and any(not i.each for i in expected):
        # a state, or a Reshape, may fix the batch size that the input leaves open
        samples = split(checked, [i.alone() for i in expected], 1, hold_out)
        error = _error_of(model, providers, samples)
    if error is not None:
        raise UsageError(f"onnxruntime cannot run the model on the calibration data: {one_line(error)}") from error
    return samples


def _error_of(model: ModelProto, providers: Sequence[str], samples: Samples) -> Exception | None:
    """Why onnxruntime cannot run the model on the first run's samples; None if it can."""
    try:
        session(model, providers).run(None, samples.fitted[0])
    except Exception as error:  # onnxruntime has no base class for what it raises
        return error
    return None


def _from_folder(folder: Path, how: Preprocess, expected: Sequence[Input], most: int) -> dict[str, Array]:
    if len(expected) != 1 or len(expected[0].dims) != 4:
        taken = listed_inputs(expected)
        raise UsageError(f"a folder of images fits a model with one input of 4 axes, not {taken}; give .npz")
    image = expected[0]
    return {image.name: load_images(folder, how, image.dims, image.probed, image.dtype, most)}


def _named(arrays: Mapping[str, Array], expected: Sequence[Input]) -> dict[str, Array]:
    """The arrays by input; labels, if there are any, are left out."""
    names = [i.name for i in expected]
    found = by_input(arrays, names, "calibration data")
    return {name: a for name, a in found.items() if name != LABELS or name in names}


# --- runs -----------------------------------------------------------------------------------------------------------
def split(arrays: Mapping[str, Array], expected: Sequence[Input], steps: int, hold_out: bool) -> Samples:
    """One dict of arrays for each run (see `calibration`); as many samples as `steps` stay together, in order.

    Raises:
        UsageError: the inputs' numbers of samples disagree, there are too few, or they are all the same.
    """
    counts = {i.name: arrays[i.name].shape[i.axis] // (i.each or 1) for i in expected if i.dims}
    constant = {i.name for i in expected if not i.dims or ((i.each or i.axis) and counts[i.name] == 1)}
    varying = [i for i in expected if i.name not in constant] or [i for i in expected if i.dims]
    units = counts[varying[0].name] if varying else 1
    if any(counts[i.name] != units for i in varying):
        listed = ", ".join(f"{i.name!r} {counts[i.name]}" for i in varying)
        raise UsageError(f"calibration data: the inputs have different numbers of samples: {listed}")
    each = max((i.each or 1 for i in varying), default=1)
    if units * each < FEWEST:
        raise UsageError(f"calibration data: {units * each} samples are too few; give {FEWEST} to {MOST}")
    apart = units * each if len({i.each for i in varying}) == 1 else units  # a step may have a state of several rows
    stretch = 1 if any(i.each for i in varying) else steps  # what has a state of its own stands by itself
    rows = [np.moveaxis(arrays[i.name], i.axis, 0).reshape(apart, -1) for i in varying]
    told = _look_for_copies(rows, min(FEWEST, apart))
    own = (
        np.arange(units) if stretch > 1 else _without_copies([_by_unit(arrays[i.name], i) for i in varying], each, told)
    )
    together = 1 if any(i.each for i in varying) else max(RUN, steps)
    n, most = len(own), max(MOST // each, 1)
    fitted, held = parted(n, each, most, stretch) if hold_out else (evenly(n, most, stretch), np.arange(0))

    def run(at: Array) -> dict[str, Array]:
        same = {i.name: _for_all(arrays[i.name], i, len(at) * each) for i in expected if i.name in constant}
        return same | {i.name: _rows(arrays[i.name], at, i) for i in varying}

    return Samples(
        *([run(at[i : i + together]) for i in range(0, len(at), together)] for at in (own[fitted], own[held]))
    )


def _look_for_copies(arrays: Sequence[Array], least: int) -> bool:
    """Refuse (count, …) samples that are all the same, as a loader with a fault makes them; warn where few differ.

    Returns whether it warned, as fewer than `least` do.
    """
    count, seen = len(arrays[0]), set[tuple[int, ...]]()
    for n in range(count):
        seen.add(tuple(hash(a[n].tobytes()) for a in arrays))
        if len(seen) >= least:
            return False
    if len(seen) == 1:
        raise UsageError(f"calibration data: all {count} samples are the same; give {FEWEST} to {MOST} different ones")
    log.warning("calibration data: only %d of %d samples differ; give %d to %d", len(seen), count, FEWEST, MOST)
    return True


def _without_copies(arrays: Sequence[Array], each: int, told: bool) -> Positions:
    """Positions of (units, …) that are no copies of others: one held out would be what another was fitted to."""
    own, count = distinct(arrays), len(arrays[0])
    if len(own) < count and not told:
        copies = each * (count - len(own))
        log.warning("calibration data: %d of %d samples are copies of others: left out", copies, each * count)
    return own


def _for_all(a: Array, i: Input, count: int) -> Array:
    """What every run is given; a state whose batch size is open is the first one of each of its samples."""
    return np.repeat(a, count, axis=i.axis) if i.dims and not i.each else a


def _by_unit(a: Array, i: Input) -> Array:
    """(units, samples of each, …)."""
    front = np.moveaxis(a, i.axis, 0)
    return front.reshape(-1, i.each or 1, *front.shape[1:])


def _rows(a: Array, units: Array, i: Input) -> Array:
    """The samples of these runs."""
    runs = _by_unit(a, i)[units]
    rows = runs.reshape(-1, *runs.shape[2:])
    return np.ascontiguousarray(np.moveaxis(rows, 0, i.axis))
