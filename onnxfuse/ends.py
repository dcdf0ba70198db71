"""Between what values synthetic images lie, and where they end: at black and white, of which they may have much.

Clothes on black are at one end in most places, photographs are seldom. Every BatchNormalization holds what its channels
were on the training images, so images cut off where these ended are known by it: the divergence of what channels are
from what they were, N(m, s²) from N(M, S²), is ½ (s²/S² + (m − M)²/S² − 1 − ln s²/S²) (Kullback and Leibler, 1951).
On Fashion-MNIST's own range drawn images are a fifteenth as far off as without an end (ResNet-20: 0.08, 1.21).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from .calibdata import Batches
from .channels import Channels
from .folding import Folded
from .heldout import a_few
from .levels import Recorded, recorded
from .moments import statistics
from .ranges import USUAL, Range, between, put_in
from .upto import up_to
from .walk import Chunks

Ends = tuple[float, float]
ENDS: Sequence[Ends] = (
    *((low, math.inf) for low in (-1.2, -0.8, -0.4)), *((-math.inf, high) for high in (0.4, 0.8, 1.2)), (-1.0, 1.0),
)  # fmt: skip
"""Least and greatest value that are tried, of images of mean 0 and deviation 1."""
APART = 1.0
"""The divergence from which on the range of images is asked for: deviations twice what they should be do no harm."""
CLEAR = 0.5
"""Share of the divergence without ends that there must be less of: photographs differ by a tenth."""
WORK, LEAST, MOST = 1e10, 8, 32
"""Multiply-accumulates that all trials may cost, and samples that they need at least and at most."""
FAINT = 1e-6
"""Of a recorded deviation: less counts as this much."""


def recorded_ranges(
    channels: Channels, folded: Sequence[Folded], batches: Batches, images: Collection[str]
) -> dict[str, Range]:
    """The range of `images` in which the first BatchNormalization sees what it holds, if that is clearly not what it
    sees of these batches, of mean 0 and deviation 1.

    Raises:
        Unsound: onnxruntime cannot run the model on them.
    """
    norms = [norm for norm in recorded(channels, folded) if norm.value not in batches[0]][:1]
    if not images or not norms:
        return {}
    few, divergence = a_few(batches, LEAST), _divergence(channels, norms)
    known = [between(*ends, "the first BatchNormalization says") for ends in USUAL]
    off = [divergence(put_in(one, few, images)) for one in known]
    best = min(range(len(known)), key=off.__getitem__)
    apart = divergence(few)
    return dict.fromkeys(images, known[best]) if apart > APART and off[best] < CLEAR * apart else {}


def ended(
    channels: Channels,
    folded: Sequence[Folded],
    batches: Batches,
    images: Collection[str],
    macs: int,
    ranges: Mapping[str, Range],
) -> Batches:
    """Batches whose `images` end where the training images did, if most of what was recorded bears that out.

    Args:
        channels: of the graph.
        folded: its BatchNormalizations.
        batches: synthetic samples.
        images: inputs.
        macs: multiply-accumulates of one sample; a network that takes many is not tried.
        ranges: of inputs that are not of mean 0 and deviation 1.

    Raises:
        Unsound: onnxruntime cannot run the model on them.
    """
    count = int(WORK / (len(ENDS) + 1) / max(macs, 1))
    norms = [norm for norm in recorded(channels, folded) if norm.value not in batches[0]]
    if not images or not norms or count < LEAST:
        return batches
    few = a_few(batches, min(count, MOST))
    divergence = _divergence(channels, norms)
    off = {ends: divergence(_cut(ends, few, images, ranges)) for ends in ENDS}
    best = min(off, key=off.__getitem__)
    return _cut(best, batches, images, ranges) if off[best] < CLEAR * divergence(few) else batches


def _cut(ends: Ends, batches: Batches, images: Collection[str], ranges: Mapping[str, Range]) -> Batches:
    """The batches with images cut off there, of deviation 1 or where that is in their range."""
    at = {n: [ranges[n].of(np.array(end)) for end in ends] if n in ranges else ends for n in images}
    return [
        {n: np.clip(v, *at[n]).astype(v.dtype) if n in images else v for n, v in batch.items()} for batch in batches
    ]


def _divergence(channels: Channels, norms: Sequence[Recorded]) -> Callable[[Batches], float]:
    """Of batches: mean over channels, and over normalizations then. All of these are outputs of one session.

    Raises:
        Unsound: onnxruntime cannot run the model on such.
    """
    names, t = list(dict.fromkeys(norm.value for norm in norms)), channels.tracker
    run = up_to(t.graph.model, t.probe.stand_in, names)

    def of(batches: Batches) -> float:
        made = dict(zip(names, zip(*map(run, batches), strict=True), strict=True))
        return float(np.mean([_apart(list(made[norm.value]), norm) for norm in norms]))

    return of


def _apart(chunks: Chunks, norm: Recorded) -> float:
    mean, deviation = statistics(chunks)
    alive = norm.deviation > 0
    unit = norm.deviation[alive]
    ratio, off = np.maximum(deviation[alive] / unit, FAINT) ** 2, (mean[alive] - norm.mean[alive]) / unit
    return float(np.mean(0.5 * (ratio + off**2 - 1 - np.log(ratio)))) if alive.any() else 0.0
