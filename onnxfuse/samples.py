"""Synthetic inputs to measure activations on, chosen by each input's shape and type.

Covariances of activations depend on what images and signals look like: edges, plain areas and objects of all sizes
matter more than the spectrum. Images are therefore *dead leaves*, whose statistics are close to those of photographs
(`leaves.py`), or, if they are as low and long as such, lines of writing (`writing.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from onnx import ModelProto, TensorProto, helper

from .bytestreams import BYTES, stream
from .calibdata import Batches
from .leaves import leaves
from .probe import Probe
from .ranges import COLOURS, is_image
from .states import batch_is_open, is_state, waveforms
from .tensors import Array
from .tokens import beside, text, vocabularies
from .writing import is_line, line

SIGNAL = 64
"""Last axes of at least this size are taken for a signal in time."""
CHUNK, RUNS = 16, 512
"""Samples in a run, where the model leaves that open, and runs, which have a cost of their own."""
WORK = 30e9
"""Multiply-accumulates that all samples together may cost in one pass through the model."""
FEWEST, MOST = 8, 256
"""Samples, whatever they cost."""
CHEAP, MANY = 2e9, 1024
"""Multiply-accumulates for which more than `MOST` are taken, up to so many: small models see few places in each."""
MORE = 3
"""Times so many where samples are files, which are of many kinds."""
OTHERS, WATCHED = 32, 4e9
"""Samples that nothing is fitted to, for the result to be compared on, and multiply-accumulates that these may cost."""
HIGHEST, HARMONICS = 0.12, 60
"""Of a signal: its tone's frequency in cycles for each value at most, and how many multiples of that it has."""
NOISE = (0.01, 0.5)
"""Its noise in units of the tone's deviation, at least and at most."""


Shape = tuple[int, int, int]
"""(C, H, W)."""
Scene = Callable[[Shape, np.random.Generator], Array]
"""(C, H, W) one image."""


@dataclass(frozen=True)
class Scenes:
    """What images show.

    Attributes:
        line: that are as low and long as a line of writing, from −1 to 1.
        picture: others, whatever their mean and deviation is.
    """

    line: Scene = line
    picture: Scene = leaves


SCENES = Scenes()


def sample_count(macs: int) -> int:
    """How many samples a model of this many multiply-accumulates for one of them is measured on."""
    count = WORK / max(macs, 1)
    return int(max(np.clip(count, FEWEST, MOST), min(count * CHEAP / WORK, MANY)))


def others_count(macs: int) -> int:
    """How many others the result is compared on; none of a model so large that they would take a share of its time."""
    return int(min(OTHERS, WATCHED / max(macs, 1)))


def synthetic(
    model: ModelProto, probe: Probe, count: int, seed: int | Sequence[int], scenes: Scenes = SCENES
) -> Batches:
    """Batches with `count` samples or a few more, shaped like the probe's inputs except for an open batch size.

    Images are dead leaves or lines of writing, or show what `scenes` tells; signals and recorded sound are harmonics in
    noise, of deviation 1; tokens are drawn from the rows of the embedding that they index, bytes are those of texts and
    binary files, and all of it is to be seen: masks beside it are ones, positions count; a recurrent network starts
    from zero, as on its first call; other inputs are normal, or what the probe used if they are not floats. What has a
    range is in that.
    """
    rng, inputs = np.random.default_rng(seed), [v for v in model.graph.input if v.name in probe.inputs]
    open_batch = all(batch_is_open(v) for v in inputs)
    size = min(CHUNK, count) if open_batch else max((p.shape[0] for p in probe.inputs.values() if p.ndim), default=1)
    codes = vocabularies(model, probe)
    files = any(size in BYTES for size in codes.values())
    count = min(count * (MORE if files else 1), RUNS * size)
    shapes = {n: (size, *p.shape[1:]) if open_batch else p.shape for n, p in probe.inputs.items()}
    states = {v.name: np.zeros(shapes[v.name], probe.inputs[v.name].dtype) for v in inputs if is_state(model, v.name)}
    masks = beside({n: (s, probe.inputs[n].dtype) for n, s in shapes.items() if n not in states}, codes)
    drawn, sounds = [v.name for v in inputs if v.name not in states.keys() | masks.keys()], waveforms(model)
    return [
        {n: _sample(n, probe, shapes[n], codes.get(n), n in sounds, rng, scenes) for n in drawn} | masks | states
        for _ in range(math.ceil(count / size))
    ]


def pictures(model: ModelProto, probe: Probe) -> set[str]:
    """Inputs that are drawn as images, but for flattened ones."""
    others = waveforms(model)
    return {n for n, p in probe.inputs.items() if is_image(p) and n not in others and not is_state(model, n)}


def written(model: ModelProto, probe: Probe) -> set[str]:
    """Those of these that are drawn as lines of writing."""
    return {n for n in pictures(model, probe) if is_line(planes(probe.inputs[n].shape))}


def planes(shape: Sequence[int]) -> Shape:
    """(C, H, W) of a batch of images, which may have their channels last, or of one in colours."""
    first, second, third = shape[-3:]
    last = third in COLOURS and first not in COLOURS
    return (third, first, second) if last else (first, second, third)


def all_sound(model: ModelProto, probe: Probe) -> bool:
    """Whether every input of real numbers that is drawn is sound."""
    return bool(drawn := _drawn(model, probe)) and drawn <= waveforms(model)


def all_writing(model: ModelProto, probe: Probe) -> bool:
    """Whether every one is a line of writing."""
    return bool(drawn := _drawn(model, probe)) and drawn <= written(model, probe)


def _drawn(model: ModelProto, probe: Probe) -> set[str]:
    """Inputs of real numbers, and images of bytes, but for states."""
    return {n for n, p in probe.inputs.items() if (p.dtype in FLOATING or is_image(p)) and not is_state(model, n)}


def _sample(
    name: str,
    probe: Probe,
    shape: tuple[int, ...],
    vocabulary: int | None,
    sound: bool,
    rng: np.random.Generator,
    scenes: Scenes,
) -> Array:
    like, known = probe.inputs[name], probe.ranges.get(name)
    if vocabulary is not None:
        count, size = math.prod(shape[:1]), math.prod(shape[1:])
        read = partial(stream if vocabulary in BYTES else text, vocabulary=vocabulary)
        return np.stack([read(size, rng) for _ in range(count)]).reshape(shape).astype(like.dtype)
    if like.dtype not in FLOATING and known is None:
        return np.resize(like, shape)
    if sound and shape and shape[-1] > 1:
        made = np.stack([_signal(shape[1:], rng) for _ in range(shape[0])])
    else:
        made = _floats(shape, rng, scenes)
    return made.astype(like.dtype) if known is None else known.as_type(made, like.dtype)


FLOATING = tuple(
    helper.tensor_dtype_to_np_dtype(t)
    for t in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
)


def _floats(shape: tuple[int, ...], rng: np.random.Generator, scenes: Scenes) -> Array:
    """(samples, …) values of mean 0 and deviation 1."""
    if len(shape) == 4 and shape[3] in COLOURS and shape[1] not in COLOURS:  # (N, H, W, C)
        return np.ascontiguousarray(np.moveaxis(_floats((shape[0], shape[3], *shape[1:3]), rng, scenes), 1, 3))
    if len(shape) == 4 and min(shape[2:]) > 1:
        one = (shape[1], *shape[2:])
        if is_line(one):
            return np.stack([scenes.line(one, rng) for _ in range(shape[0])])
        return _standard(np.stack([scenes.picture(one, rng) for _ in range(shape[0])]))
    if is_image(np.broadcast_to(0.0, shape)):  # one that is no batch
        return np.asarray(_floats((1, *shape), rng, scenes)[0])
    side = math.isqrt(shape[-1]) if shape else 0
    if len(shape) == 2 and side**2 == shape[-1] and side % 4 == 0 and side < SIGNAL // 2:  # an image, flattened
        return _floats((shape[0], 1, side, side), rng, scenes).reshape(shape)
    if len(shape) in (2, 3) and shape[-1] >= SIGNAL:
        return np.stack([_signal(shape[1:], rng) for _ in range(shape[0])])
    return rng.standard_normal(shape)


def _standard(samples: Array) -> Array:
    """Mean 0 and deviation 1 over all values."""
    return np.asarray((samples - samples.mean()) / max(samples.std(), 1e-12))


def _signal(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """(…, T) a tone as voices and instruments make it, in noise; mean 0 and deviation 1.

    Harmonics of falling strength, some of them raised by two resonances; noise whose spectrum falls by a random power.
    """
    length = shape[-1]
    base = np.exp(rng.uniform(*np.log((2 / length, HIGHEST))))
    k = np.arange(1, min(int(0.5 / base), HARMONICS) + 1)
    centre, width, height = (
        rng.uniform(0.01, 0.3, (2, 1)),
        rng.uniform(0.01, 0.06, (2, 1)),
        rng.exponential(size=(2, 1)),
    )
    raised = np.exp((height * np.exp(-(((k * base - centre) / width) ** 2))).sum(axis=0))
    strength = rng.exponential(size=len(k)) / k ** rng.uniform(0.3, 2) * raised
    wave = strength @ np.sin(2 * np.pi * (np.outer(k * base, np.arange(length)) + rng.uniform(size=(len(k), 1))))
    spectrum = np.fft.rfft(rng.standard_normal(shape), axis=-1)
    fall = np.maximum(np.arange(spectrum.shape[-1]), 1) ** -rng.uniform(0, 1.5)
    level = np.exp(rng.uniform(*np.log(NOISE)))
    return _standard(_standard(wave) + level * _standard(np.fft.irfft(spectrum * fall, length, axis=-1)))
